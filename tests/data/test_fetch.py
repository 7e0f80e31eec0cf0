"""Range requests: sent ahead of their use, answered once for many clips, and bounded in memory."""

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch

from flamscale.config import DataConfig
from flamscale.data import loader as loader_module
from flamscale.data import reader as reader_module
from flamscale.data import storage
from flamscale.data.clips import ClipSpace
from flamscale.data.fetch import Fetcher
from flamscale.data.loader import ClipLoader
from flamscale.data.manifest import VIDEO, Manifest
from flamscale.data.mixture import Mixture
from flamscale.errors import DataError


@pytest.fixture
def remote(make_data_set: Callable[..., Manifest], s3_url: str) -> Manifest:
    return make_data_set(s3_url, (9, 12, 7, 16, 11, 14, 9, 8, 13, 10), shard_bytes=12_000)


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, int]]:
    """URL, offset and size of every range asked for."""
    sent: list[tuple[str, int, int]] = []
    real = storage.read_range

    def noted(url: str, offset: int, size_bytes: int, cancel: object) -> bytes:
        sent.append((url, offset, size_bytes))
        return real(url, offset, size_bytes)

    monkeypatch.setattr(storage, "read_range", noted)
    return sent


def _loader(manifest: Manifest, **settings: int) -> ClipLoader:
    config = DataConfig(**{"window_shards": 2, "prefetch_batches": 0, "shard_cache": "", **settings})
    clip = {"clip_frames": 3, "frame_stride": 1, "clip_hop": 1}
    batch = {"global_batch": 12, "micro_batch": 6, "rank": 0, "world_size": 1, "seed": 5}
    return ClipLoader(Mixture((manifest,)), "train", **clip, **batch, config=config)


def _videos(loader: ClipLoader, count: int) -> torch.Tensor:
    return torch.cat([batch.video for batch in itertools.islice(loader, count)])


def test_a_later_micro_batch_is_asked_for_while_this_one_is_read(
    remote: Manifest, requests: list[tuple[str, int, int]]
) -> None:
    with _loader(remote, fetch_cache_mib=0) as loader:
        expected, _ = loader._read(range(20, 26))
        requests.clear()
        loader._read(range(6), later=range(20, 26))
        found, _ = loader._read(range(20, 26))
    together = len(requests)
    with _loader(remote, fetch_cache_mib=0) as loader:
        requests.clear()
        loader._read(range(6))
        loader._read(range(20, 26))
    assert np.array_equal(found, expected)
    assert together == len(requests)  # none of them twice


def test_what_is_asked_for_ahead_takes_bounded_memory(
    remote: Manifest, requests: list[tuple[str, int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader_module, "_AHEAD_BYTES", 3000)
    with _loader(remote, fetch_cache_mib=0) as loader:
        contents = loader._reader.request(range(loader.num_clips))
        sizes = [len(content()) for content in contents.values()]
    assert 0 < sum(sizes) <= 3000
    assert sum(size_bytes for _, _, size_bytes in requests) <= 2 * 3000  # with the gaps between neighbours


@pytest.mark.parametrize("num_processes", [0, 2])
def test_batches_are_the_same_however_they_are_fetched(remote: Manifest, num_processes: int) -> None:
    with _loader(remote, fetch_cache_mib=0) as loader:
        expected = _videos(loader, 40)
    for fetch_cache_mib in (0, 1):
        settings = {"fetch_cache_mib": fetch_cache_mib, "num_processes": num_processes, "prefetch_batches": 2}
        with _loader(remote, **settings) as loader:
            assert torch.equal(_videos(loader, 40), expected)


def test_every_byte_of_a_window_is_asked_for_once_where_memory_holds_them(
    remote: Manifest, requests: list[tuple[str, int, int]]
) -> None:
    with _loader(remote, prefetch_batches=2) as loader:
        _videos(loader, loader.num_clips // 6)
    assert len(requests) == len(remote.of_split("train"))  # a shard of this data set is a block
    assert len(set(requests)) == len(requests)


def test_what_is_kept_stays_below_its_limit(remote: Manifest) -> None:
    space = ClipSpace(remote.of_split("train"), 3, 1, 1)
    fetcher = Fetcher(space, VIDEO, limit_bytes=9000)
    kept = set()
    for shard in range(len(space.shards)):
        for sample in range(len(space.samples(shard))):
            (content,) = fetcher.request([(shard, sample)]).values()
            assert len(content()) == space.samples(shard).members[VIDEO].sizes[sample]
            kept.add(fetcher.kept_bytes)
    fetcher.close()
    assert 0 < max(kept) <= 9000


def test_a_block_that_comes_damaged_is_asked_for_anew_and_only_once(
    remote: Manifest, requests: list[tuple[str, int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    with _loader(remote) as loader:
        expected = _videos(loader, 12)
    sound, calls = storage.read_range, itertools.count()
    requests.clear()

    def damaged(url: str, offset: int, size_bytes: int, cancel: object) -> bytes:
        content = sound(url, offset, size_bytes, cancel)
        return content if next(calls) else bytes(len(content))

    monkeypatch.setattr(storage, "read_range", damaged)
    with _loader(remote) as loader:
        assert torch.equal(_videos(loader, 12), expected)
        assert loader.skipped_samples == 0
    assert len({url for url, _, _ in requests}) < len(requests) < 12


def test_a_shard_that_was_missing_for_a_moment_is_asked_for_again(
    remote: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = storage.read_range, itertools.count()

    def missing_once(url: str, offset: int, size_bytes: int, cancel: object) -> bytes:
        if next(calls) == 0:
            raise FileNotFoundError(url)
        return real(url, offset, size_bytes)

    monkeypatch.setattr(storage, "read_range", missing_once)
    fetcher = Fetcher(ClipSpace(remote.of_split("train"), 3, 1, 1), VIDEO, limit_bytes=2**20, in_blocks=True)
    with pytest.raises(FileNotFoundError):
        fetcher.request([(0, 0)])[0, 0]()
    assert fetcher.request([(0, 0)])[0, 0]()
    fetcher.close()


def test_what_waits_for_its_turn_is_not_asked_for_once_reading_is_given_up(
    remote: Manifest, requests: list[tuple[str, int, int]]
) -> None:
    fetcher = Fetcher(ClipSpace(remote.of_split("train"), 3, 1, 1), VIDEO)
    fetcher.cancel()
    with pytest.raises(DataError, match=r"was given up\.$"):
        fetcher.request([(0, 0)])[0, 0]()
    assert not requests
    fetcher.close()


def test_a_process_that_meets_few_samples_twice_keeps_none(remote: Manifest) -> None:
    space = ClipSpace(remote.of_split("train"), 3, 1, 1)
    data, config = Mixture((remote,)), DataConfig(window_shards=2, num_processes=2)
    assert loader_module._fetcher(config, space, data, world_size=4)._limit_bytes  # 8 clips a sample: it meets most
    assert not loader_module._fetcher(config, space, data, world_size=100)._limit_bytes


def test_blocks_are_fetched_only_where_memory_holds_a_window(remote: Manifest) -> None:
    space = ClipSpace(remote.of_split("train"), 3, 1, 1)
    data = Mixture((remote,))
    assert loader_module._fetcher(DataConfig(fetch_cache_mib=1), space, data, world_size=1)._in_blocks
    assert not loader_module._fetcher(DataConfig(fetch_cache_mib=0), space, data, world_size=1)._in_blocks
