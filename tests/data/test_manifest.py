"""The manifest: what is saved is loaded, its hash is the data set's identity, and members are found by range."""

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from flamscale.data import storage
from flamscale.data.manifest import Manifest
from flamscale.errors import DataError


def test_a_range_read_of_every_member_is_what_the_tar_holds(data_set: Manifest) -> None:
    for shard in data_set.shards:
        content = Path(data_set.url, shard.path).read_bytes()
        assert len(content) == shard.size_bytes
        with tarfile.open(fileobj=io.BytesIO(content)) as tar:
            members = {item.name: tar.extractfile(item).read() for item in tar}
        assert len(members) == 3 * len(shard)
        for extension, columns in shard.members.items():
            for key, offset, size in zip(shard.keys, columns.offsets, columns.sizes, strict=True):
                found = storage.read_range(storage.join(data_set.url, shard.path), int(offset), int(size))
                assert found == members[f"{key}.{extension}"]


def test_saving_and_loading_keeps_everything_and_the_hash(data_set: Manifest, tmp_path: Path) -> None:
    data_set.save(str(tmp_path))
    loaded = Manifest.load(str(tmp_path))
    assert loaded.hash == data_set.hash
    assert loaded.url == str(tmp_path)
    assert (loaded.name, loaded.source, loaded.fps, loaded.height, loaded.width) == ("coloured", "test", 10.0, 16, 16)
    for here, there in zip(loaded.shards, data_set.shards, strict=True):
        assert (here.path, here.split, here.keys) == (there.path, there.split, there.keys)
        np.testing.assert_array_equal(here.frames, there.frames)


def test_the_same_episodes_have_the_same_hash_and_others_another(
    make_data_set: Callable[..., Manifest], tmp_path: Path
) -> None:
    first, second, third = (
        make_data_set(str(tmp_path / name), frames) for name, frames in (("a", (5, 6)), ("b", (5, 6)), ("c", (5, 7)))
    )
    assert first.hash == second.hash != third.hash


def test_an_empty_url_is_told_in_one_sentence() -> None:
    with pytest.raises(DataError, match=r"^No data URL was given: pass the folder or s3:// URL of shards"):
        Manifest.load("")


@pytest.mark.parametrize("folder", ["", "missing"])
def test_a_missing_manifest_is_told_in_one_sentence(folder: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^Expected a data set at .*, but there is no manifest.json: check the URL"):
        Manifest.load(str(tmp_path / folder))


def test_a_missing_manifest_on_s3_is_told_in_one_sentence(s3_url: str) -> None:
    with pytest.raises(DataError, match=r"^Expected a data set at s3://.*, but there is no manifest.json"):
        Manifest.load(s3_url)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": "flamscale-manifest-0"}', "\udcff"])
def test_a_manifest_that_cannot_be_understood_is_told_in_one_sentence(text: str, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(
        DataError, match=r"manifest.json should be a flamscale-manifest-1 file and cannot be understood"
    ):
        Manifest.load(str(tmp_path))


def test_columns_of_unequal_length_are_told(own_data_set: Manifest) -> None:
    path = Path(own_data_set.url, "manifest.json")
    content = json.loads(path.read_text())
    content["shards"][0]["frames"].pop()
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match="all its columns equally long"):
        Manifest.load(own_data_set.url)


def test_a_split_that_is_not_there_is_told_in_one_sentence(data_set: Manifest) -> None:
    with pytest.raises(DataError, match=r"Expected a holdout split in .*, which has only .*'train', 'validation'"):
        data_set.of_split("holdout")
