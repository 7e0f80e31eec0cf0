"""The manifest: what is saved is loaded, its hash is the data set's identity, and members are found by range."""

import io
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import feather

from flamscale.data import storage
from flamscale.data.manifest import Manifest, Members, Samples, Shard
from flamscale.errors import DataError


def test_a_range_read_of_every_member_is_what_the_tar_holds(data_set: Manifest) -> None:
    for shard in data_set.shards:
        content = Path(data_set.url, shard.path).read_bytes()
        assert len(content) == shard.size_bytes
        with tarfile.open(fileobj=io.BytesIO(content)) as tar:
            members = {item.name: tar.extractfile(item).read() for item in tar}
        assert len(members) == 3 * len(shard)
        for extension, columns in shard.samples.members.items():
            for key, offset, size in zip(shard.samples.keys, columns.offsets, columns.sizes, strict=True):
                found = storage.read_range(storage.join(data_set.url, shard.path), int(offset), int(size))
                assert found == members[f"{key}.{extension}"]


def test_saving_and_loading_keeps_everything_and_the_hash(data_set: Manifest, tmp_path: Path) -> None:
    data_set.save(str(tmp_path))
    loaded = Manifest.load(str(tmp_path))
    assert loaded.hash == data_set.hash
    assert loaded.url == str(tmp_path)
    assert (loaded.name, loaded.source, loaded.fps, loaded.height, loaded.width) == ("coloured", "test", 10.0, 16, 16)
    for here, there in zip(loaded.shards, data_set.shards, strict=True):
        assert (here.path, here.split, here.samples.keys) == (there.path, there.split, there.samples.keys)
        np.testing.assert_array_equal(here.samples.frames, there.samples.frames)


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
    with pytest.raises(DataError, match=r"^Expected a data set at .*, but there is no manifest.arrow: check the URL"):
        Manifest.load(str(tmp_path / folder))


def test_a_missing_manifest_on_s3_is_told_in_one_sentence(s3_url: str) -> None:
    with pytest.raises(DataError, match=r"^Expected a data set at s3://.*, but there is no manifest.arrow"):
        Manifest.load(s3_url)


@pytest.mark.parametrize("content", [b"", b"{}", b"ARROW1\0\0", b"\xff" * 100])
def test_a_manifest_that_cannot_be_understood_is_told_in_one_sentence(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "manifest.arrow").write_bytes(content)
    with pytest.raises(
        DataError, match=r"manifest.arrow should be a flamscale-manifest-2 file and cannot be understood"
    ):
        Manifest.load(str(tmp_path))


def test_a_truncated_manifest_is_told_in_one_sentence(own_data_set: Manifest) -> None:
    path = Path(own_data_set.url, "manifest.arrow")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match="cannot be understood"):
        Manifest.load(own_data_set.url)


def test_an_arrow_file_of_something_else_is_told(tmp_path: Path) -> None:
    feather.write_feather(pa.table({"a": [1]}), str(tmp_path / "manifest.arrow"))
    with pytest.raises(DataError, match="should be a flamscale-manifest-2 file"):
        Manifest.load(str(tmp_path))


def test_shards_with_other_members_share_a_manifest(tmp_path: Path) -> None:
    def shard(split: str, *extensions: str) -> Shard:
        one = np.array([512])
        members = {extension: Members(offsets=one, sizes=one) for extension in extensions}
        samples = Samples.of(keys=["a"], frames=[3], sha256=["00" * 32], members=members)
        return Shard.of(path=f"{split}.tar", split=split, size_bytes=2048, sha256="00" * 32, samples=samples)

    shards = (shard("train", "mp4"), shard("test", "mp4", "npz"))
    Manifest(name="x", source="test", fps=10.0, height=16, width=16, arguments={}, shards=shards).save(str(tmp_path))
    sizes = [shard.samples.members["npz"].sizes.tolist() for shard in Manifest.load(str(tmp_path)).shards]
    assert sizes == [[0], [512]]


def test_a_manifest_in_another_process_reads_the_same(data_set: Manifest, s3_url: str) -> None:
    data_set.save(s3_url)
    for url in (data_set.url, s3_url):
        manifest = Manifest.load(url)
        copy = pickle.loads(pickle.dumps(manifest))
        assert copy.hash == manifest.hash
        assert [shard.samples.keys for shard in copy.shards] == [shard.samples.keys for shard in manifest.shards]


def test_a_split_that_is_not_there_is_told_in_one_sentence(data_set: Manifest) -> None:
    with pytest.raises(DataError, match=r"Expected a holdout split in .*, which has only .*'train', 'validation'"):
        data_set.of_split("holdout")
