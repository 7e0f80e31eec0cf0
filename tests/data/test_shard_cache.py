"""Local copies of an object store's shards: bounded, shared, whole or not there, and never a reason to fail."""

import errno
import fcntl
import itertools
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from flamscale.config import DataConfig
from flamscale.data import loader as loader_module
from flamscale.data import storage
from flamscale.data.loader import ClipLoader
from flamscale.data.manifest import Manifest, Shard
from flamscale.data.mixture import Mixture
from flamscale.data.shard_cache import ShardCache, temporary_cache
from flamscale.errors import DataError

EPOCH = 8  # batches of 12 in the data set below, and a little more


@pytest.fixture
def remote(make_data_set: Callable[..., Manifest], s3_url: str) -> Manifest:
    return make_data_set(s3_url, (9, 12, 7, 16, 11, 14, 9, 8, 13, 10), shard_bytes=12_000)


def _loader(manifest: Manifest, cache: Path | None, **settings: int | float) -> ClipLoader:
    world_size = int(settings.pop("world_size", 1))
    config = DataConfig(window_shards=2, prefetch_batches=0, shard_cache=str(cache or ""), **settings)
    clip = {"clip_frames": 3, "frame_stride": 1, "clip_hop": 1}
    batch = {"global_batch": 12, "micro_batch": 12 // world_size, "rank": 0, "world_size": world_size, "seed": 5}
    return ClipLoader(Mixture((manifest,)), "train", **clip, **batch, config=config)


def _videos(loader: ClipLoader, count: int = EPOCH) -> torch.Tensor:
    return torch.cat([batch.video for batch in itertools.islice(loader, count)])


def _wait_for(condition: Callable[[], object]) -> None:
    deadline_s = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.02)


def _fill(cache: ShardCache, shards: tuple[Shard, ...]) -> None:
    cache.want(shards)
    _wait_for(lambda: all(cache.copy_of(shard).exists() for shard in shards))


def test_batches_are_the_same_with_copies_and_come_from_them(
    remote: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with _loader(remote, None) as loader:
        expected = _videos(loader)
    shards = remote.of_split("train")
    assert len(shards) > 3
    with _loader(remote, tmp_path / "cache") as loader:
        assert torch.equal(_videos(loader), expected)
    cache = ShardCache(str(tmp_path / "cache"), 2**30)
    _fill(cache, shards)
    cache.close()
    monkeypatch.setattr(storage, "read_range", None)
    with _loader(remote, tmp_path / "cache") as loader:
        assert torch.equal(_videos(loader), expected)


def test_the_shards_of_this_window_and_the_next_are_fetched_behind_the_reader(remote: Manifest, tmp_path: Path) -> None:
    with _loader(remote, tmp_path) as loader:
        next(loader)
        near = list(loader._read.order.shards_near(0))
        cache = loader._reader._shard_cache
        assert cache is not None
        _wait_for(lambda: all(cache.copy_of(remote.of_split("train")[shard]).exists() for shard in near))
    copies = list(tmp_path.glob("*.tar"))
    assert len(copies) == len(near) == 4
    assert sorted(path.stat().st_size for path in copies) == sorted(
        remote.of_split("train")[shard].size_bytes for shard in near
    )


def test_copies_used_longest_ago_make_room_for_new_ones(remote: Manifest, tmp_path: Path) -> None:
    first, second, third, *_ = remote.of_split("train")
    cache = ShardCache(str(tmp_path), first.size_bytes + second.size_bytes + third.size_bytes // 2)
    for shard in (first, second):
        cache.fetch(shard)
        time.sleep(0.02)
    cache.fetch(first)  # used again
    cache.fetch(third)
    assert {path.name for path in tmp_path.iterdir()} == {cache.copy_of(shard).name for shard in (first, third)}


def test_no_more_is_wanted_than_fits(remote: Manifest, tmp_path: Path) -> None:
    first, second, third, *_ = remote.of_split("train")
    cache = ShardCache(str(tmp_path), first.size_bytes + second.size_bytes)
    _fill(cache, (first, second))
    cache.want((first, second, third))
    time.sleep(0.3)
    cache.close()
    assert {path.name for path in tmp_path.iterdir()} == {cache.copy_of(shard).name for shard in (first, second)}


def test_what_another_process_fetches_is_left_to_it(remote: Manifest, tmp_path: Path) -> None:
    shard = remote.of_split("train")[0]
    cache = ShardCache(str(tmp_path), 2**30)
    partial = cache.copy_of(shard).with_suffix(".partial")
    with partial.open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        cache.fetch(shard)
        assert not cache.copy_of(shard).exists()
    cache.fetch(shard)  # it died: its lock is gone, its partial file is written over
    assert cache.copy_of(shard).read_bytes() == storage.read_bytes(shard.url)
    assert [path.suffix for path in tmp_path.iterdir()] == [".tar"]


def test_a_damaged_copy_costs_nothing(remote: Manifest, tmp_path: Path) -> None:
    with _loader(remote, None) as loader:
        expected = _videos(loader)
    cache = ShardCache(str(tmp_path), 2**30)
    _fill(cache, remote.of_split("train"))
    cache.close()
    for copy in tmp_path.iterdir():
        copy.write_bytes(bytes(copy.stat().st_size))
    with _loader(remote, tmp_path, max_bad_fraction=0.0) as loader:
        assert torch.equal(_videos(loader), expected)
        assert loader.skipped_samples == 0


@pytest.mark.parametrize("reason", [errno.ENOSPC, errno.EIO])
def test_a_full_or_broken_disk_only_does_without_copies(
    reason: int, remote: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_: str, file: str, __: object) -> None:
        Path(file).write_bytes(b"some")
        raise OSError(reason, "no room")

    with _loader(remote, None) as loader:
        expected = _videos(loader)
    monkeypatch.setattr(storage, "download", fail)
    with _loader(remote, tmp_path) as loader:
        assert torch.equal(_videos(loader), expected)
        _wait_for(lambda: "Reading without a local copy for a while" in caplog.text)
    assert list(tmp_path.iterdir()) == []


def test_a_shard_of_another_size_than_the_manifests_is_not_kept(remote: Manifest, tmp_path: Path) -> None:
    shard = remote.of_split("train")[0]
    storage.write_bytes(shard.url, storage.read_bytes(shard.url)[:-512])
    with pytest.raises(DataError, match=r"The manifest says that s3://.* has \d+ bytes, and it has \d+\."):
        ShardCache(str(tmp_path), 2**30).fetch(shard)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_told_in_one_sentence(remote: Manifest, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DataError, match=r"^Cannot write .*file/"):
        _loader(remote, tmp_path / "file")


def test_by_default_copies_lie_in_the_temporary_folder_and_leave_half_of_its_space(
    remote: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    free = shutil.disk_usage(tmp_path)._replace(free=2 * remote.of_split("train")[0].size_bytes + 100)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
    space = _loader(remote, None)._reader._space
    cache = loader_module._shard_cache(DataConfig(), space, node_share=1.0)
    assert cache is not None
    cache.want(remote.of_split("train"))
    _wait_for(lambda: list(cache.copy_of(remote.of_split("train")[0]).parent.glob("*.tar")))
    cache.close()
    (folder,) = tmp_path.iterdir()
    assert folder.name == f"flamscale-shards-{os.getuid()}"
    assert folder.stat().st_mode & 0o777 == 0o700
    assert len(list(folder.glob("*.tar"))) == 1


def test_a_temporary_folder_that_is_not_ours_means_no_copies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / f"flamscale-shards-{os.getuid()}").symlink_to(tmp_path / "elsewhere")
    assert temporary_cache(2**30) is None
    (tmp_path / "flamscale-shards-4321").mkdir()
    monkeypatch.setattr(os, "getuid", lambda: 4321)
    assert temporary_cache(2**30) is None
    assert caplog.text.count("is a link, or belongs to someone else") == 2


def test_tars_that_are_no_copies_stay(remote: Manifest, tmp_path: Path) -> None:
    (tmp_path / "mine.tar").write_bytes(bytes(10_000))
    cache = ShardCache(str(tmp_path), remote.of_split("train")[0].size_bytes)
    for shard in remote.of_split("train")[:3]:
        cache.fetch(shard)
    assert (tmp_path / "mine.tar").exists()
    assert len(list(tmp_path.glob("*.tar"))) == 2


def test_local_shards_need_no_copies(data_set: Manifest) -> None:
    space = _loader(data_set, None)._reader._space
    assert loader_module._shard_cache(DataConfig(), space, node_share=1.0) is None


def test_a_node_that_reads_little_of_each_shard_copies_none(remote: Manifest, tmp_path: Path) -> None:
    space = _loader(remote, None)._reader._space
    config = DataConfig(shard_cache=str(tmp_path))
    assert loader_module._shard_cache(config, space, node_share=1.0) is not None
    assert loader_module._shard_cache(config, space, node_share=0.25) is not None  # 8 clips a sample: it meets most
    assert loader_module._shard_cache(config, space, node_share=0.01) is None


def test_neighbours_are_read_by_one_request(remote: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = []
    real = storage.read_range

    def counted(url: str, offset: int, size_bytes: int, _: object) -> bytes:
        requests.append(url)
        return real(url, offset, size_bytes)

    monkeypatch.setattr(storage, "read_range", counted)
    with _loader(remote, None) as loader:
        next(loader)
    assert len(requests) == len(set(requests)) <= 2  # 12 clips of the two shards of a window
