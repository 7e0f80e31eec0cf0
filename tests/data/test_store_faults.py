"""An object store that fails in every way: it delays the reader, and not a clip is lost."""

import itertools
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import s3fs

from flamscale.config import DataConfig
from flamscale.data import storage
from flamscale.data.loader import ClipLoader
from flamscale.data.manifest import Manifest
from flamscale.data.mixture import Mixture
from flamscale.errors import DataError

_BUSY = (
    b"HTTP/1.1 503 Slow Down\r\nContent-Type: application/xml\r\nContent-Length: 88\r\nConnection: close\r\n\r\n"
    b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error> \n"
)


class FaultyProxy:
    """Stands between a client and the S3 server, and behaves as `mode` says."""

    def __init__(self, server: tuple[str, int]) -> None:
        self._server = server
        self.mode = "fine"
        self.faults = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with suppress(OSError), closing(client), closing(socket.create_connection(self._server)) as server:
            threading.Thread(target=self._answer, args=(server, client), daemon=True).start()
            while request := client.recv(2**16):
                if self.mode != "fine":
                    self.faults += 1
                if self.mode == "busy":
                    client.sendall(_BUSY)
                    return
                if self.mode == "dead":
                    return
                if self.mode == "slow":
                    time.sleep(0.3)
                server.sendall(request)

    def _answer(self, server: socket.socket, client: socket.socket) -> None:
        with suppress(OSError):
            while answer := server.recv(2**16):
                if self.mode == "cut" and len(answer) > 2000:
                    self.faults += 1
                    client.sendall(answer[:1000])
                    client.shutdown(socket.SHUT_RDWR)
                    return
                client.sendall(answer)

    def close(self) -> None:
        self._listener.close()

    @contextmanager
    def misbehaving(self, mode: str, for_s: float) -> Iterator[None]:
        """Behaves as `mode` from now on, for a while."""
        self.mode = mode
        timer = threading.Timer(for_s, setattr, (self, "mode", "fine"))
        timer.start()
        yield
        timer.join()


@pytest.fixture
def proxy(s3_url: str, s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    address = urlsplit(s3_endpoint)
    proxy = FaultyProxy((str(address.hostname), int(address.port or 0)))
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
    s3fs.S3FileSystem.clear_instance_cache()
    yield proxy
    proxy.close()


def _loader(manifest: Manifest, clip_frames: int = 3, batch: int = 8, **settings: Any) -> ClipLoader:
    clip = {"clip_frames": clip_frames, "frame_stride": 1, "clip_hop": 1}
    place = {"global_batch": batch, "micro_batch": batch, "rank": 0, "world_size": 1, "seed": 5}
    config = DataConfig(**{"window_shards": 2, "max_bad_fraction": 0.0, **settings})
    return ClipLoader(Mixture((manifest,)), "train", **clip, **place, config=config)


def _epoch(loader: ClipLoader) -> set[tuple[int, int]]:
    """Episode and first frame of every clip of whole batches of an epoch."""
    batches = itertools.islice(loader, loader.num_clips // 8)
    return {tuple(clip) for batch in batches for clip in batch.video[:, 0, 0, 0, :2].tolist()}


@pytest.mark.parametrize("mode", ["busy", "dead", "slow", "cut"])
@pytest.mark.parametrize("reader", ["thread", "processes", "copies"])
def test_no_clip_is_lost(
    mode: str,
    reader: str,
    proxy: FaultyProxy,
    make_data_set: Callable[..., Manifest],
    s3_url: str,
    tmp_path: Path,
) -> None:
    manifest = make_data_set(s3_url, (9, 12, 7, 10, 10, 16), shard_bytes=15_000)
    settings = {"thread": {}, "processes": {"num_processes": 2}, "copies": {"shard_cache": str(tmp_path)}}[reader]
    with _loader(manifest, **settings) as loader:
        with proxy.misbehaving(mode, for_s=0.7):
            clips = _epoch(loader)
        assert proxy.faults
        assert len(clips) == loader.num_clips // 8 * 8
        assert loader.skipped_samples == 0


def test_a_store_that_stays_away_ends_the_run_with_one_sentence(
    proxy: FaultyProxy, make_data_set: Callable[..., Manifest], s3_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = make_data_set(s3_url, (9, 9))
    monkeypatch.setattr(storage, "RETRY_TIMEOUT_S", 1.0)
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
    proxy.mode = "dead"
    with (
        _loader(manifest, prefetch_batches=0) as loader,
        pytest.raises(DataError, match=r"^Cannot read s3://.*check that the address"),
    ):
        next(loader)


def test_a_missing_shard_of_a_store_costs_its_samples_alone(
    make_data_set: Callable[..., Manifest], s3_url: str
) -> None:
    manifest = make_data_set(s3_url, (9,) * 20, shard_bytes=15_000)
    missing = manifest.of_split("train")[1]
    storage.remove(missing.url)
    with _loader(manifest, clip_frames=9, batch=20, max_bad_fraction=0.5) as loader:
        episodes = {int(episode) for episode in next(loader).video[:, 0, 0, 0, 0]}
        lost = {where.rpartition("/")[2] for where in loader.bad_samples}
    assert lost == set(missing.samples.keys)
    assert len(episodes) == 20 - len(lost)


def test_a_bad_tar_header_in_a_shard_of_250_costs_no_sample(
    make_data_set: Callable[..., Manifest], tmp_path: Path
) -> None:
    manifest = make_data_set(str(tmp_path), (4,) * 199, shard_bytes=2**30)
    (shard,) = manifest.of_split("train")
    path = Path(shard.url)
    content = bytearray(path.read_bytes())
    header = int(shard.samples.members["mp4"].offsets[50]) - 512
    content[header : header + 512] = bytes(range(256)) * 2
    path.write_bytes(content)
    with _loader(manifest, clip_frames=4, batch=199) as loader:
        assert len(set(next(loader).video[:, 0, 0, 0, 0].tolist())) == 199
