"""The shard writer: plain WebDataset tars, the same bytes every time, and nothing half-written left behind."""

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import webdataset

from flamscale.data.decode import decode_frames
from flamscale.data.encode import LOSSLESS_CRF
from flamscale.data.episode import SPLITS, Episode, split_of
from flamscale.data.manifest import Manifest
from flamscale.data.shards import ShardWriter
from flamscale.errors import DataError


def _files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_standard_webdataset_reads_the_tars(data_set: Manifest) -> None:
    urls = [str(Path(data_set.url, shard.path)) for shard in data_set.of_split("train")]
    assert len(urls) > 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # webdataset's own
        samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode())
    assert [sample["__key__"] for sample in samples] == [f"e{index:03d}" for index in range(24)]
    for index, sample in enumerate(samples):
        info = sample["json"]
        assert (info["number"], info["fps"], info["height"], info["width"]) == (index, 10.0, 16, 16)
        assert sample["npz"]["actions"].shape == (info["frames"] - 1, 2)
        frames = decode_frames(sample["mp4"], 0, info["frames"])
        assert (frames[..., 0] == index).all()


def test_tars_close_at_their_size(data_set: Manifest) -> None:
    shards = data_set.of_split("train")
    assert [shard.path for shard in shards] == [f"train/{number:06d}.tar" for number in range(len(shards))]
    assert all(30_000 <= shard.size_bytes < 60_000 for shard in shards[:-1])


def test_an_s3_data_set_is_the_same_as_a_local_one(
    make_data_set: Callable[..., Manifest], s3_url: str, tmp_path: Path
) -> None:
    there, here = make_data_set(s3_url, (5, 9, 4)), make_data_set(str(tmp_path), (5, 9, 4))
    assert there.hash == here.hash
    assert there.url == s3_url


def test_an_error_leaves_no_shard_and_no_manifest(tmp_path: Path) -> None:
    frames = np.zeros((4, 16, 16, 3), dtype=np.uint8)
    arguments = {"name": "x", "source": "test", "arguments": {}, "crf": LOSSLESS_CRF, "shard_bytes": 1}

    def write_two_sizes() -> None:
        with ShardWriter(str(tmp_path), **arguments) as writer:
            writer.write(Episode(key="a", split="train", frames=frames, fps=10.0))
            assert _files(tmp_path) == ["train/000000.tar"]
            writer.write(Episode(key="b", split="train", frames=np.concatenate([frames, frames], axis=2), fps=10.0))

    with pytest.raises(DataError, match="Expected frames of 16x16 pixels as before, got 16x32 in sample b"):
        write_two_sizes()
    assert _files(tmp_path) == []


def test_a_manifest_that_cannot_be_written_leaves_no_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise DataError("Cannot write manifest.arrow: no space left.")

    monkeypatch.setattr(Manifest, "save", refuse)
    episode = Episode(key="a", split="train", frames=np.zeros((4, 16, 16, 3), dtype=np.uint8), fps=10.0)
    writer = ShardWriter(str(tmp_path), name="x", source="test", arguments={}, crf=LOSSLESS_CRF, shard_bytes=1 << 20)
    with pytest.raises(DataError, match="no space left"), writer:
        writer.write(episode)
    assert _files(tmp_path) == []


def test_a_source_without_episodes_is_told(tmp_path: Path) -> None:
    writer = ShardWriter(str(tmp_path), name="x", source="test", arguments={}, crf=LOSSLESS_CRF, shard_bytes=1)
    with pytest.raises(DataError, match="Not one episode came from the source"), writer:
        pass


def test_every_file_but_the_shards_is_the_manifest(data_set: Manifest) -> None:
    expected = {shard.path for shard in data_set.shards} | {"manifest.arrow"}
    assert set(_files(Path(data_set.url))) == expected
    assert Manifest.load(data_set.url).name == "coloured"


def test_splits_are_80_10_10_in_order_and_none_is_empty_from_three_episodes_on() -> None:
    splits = [split_of(index, 640) for index in range(640)]
    assert splits == ["train"] * 512 + ["validation"] * 64 + ["test"] * 64
    for total in range(3, 40):
        splits = [split_of(index, total) for index in range(total)]
        assert set(splits) == set(SPLITS)
        assert splits == sorted(splits, key=SPLITS.index)
    assert [split_of(index, 2) for index in range(2)] == ["train", "train"]
