"""Plain WebDataset tars as a source: every sound video found where it lies, everything else counted."""

import hashlib
import io
import tarfile
import warnings
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
import webdataset

from flamscale.data import storage
from flamscale.data.decode import decode_frames
from flamscale.data.encode import LOSSLESS_CRF, encode_frames
from flamscale.data.episode import SPLITS
from flamscale.data.manifest import Manifest
from flamscale.data.sources.webdataset_index import LeftOut
from flamscale.data.sources.webdataset_tars import WebdatasetSource
from flamscale.errors import ConfigError, DataError

BLOCK = 512


def _video(number: int, num_frames: int = 4, height: int = 16, width: int = 16) -> bytes:
    frames = np.full((num_frames, height, width, 3), number % 256, dtype=np.uint8)
    return encode_frames(frames, 10.0, LOSSLESS_CRF)


def _tar(files: dict[str, bytes] | list[tuple[str, bytes]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in files.items() if isinstance(files, dict) else files:
            item = tarfile.TarInfo(name)
            item.size = len(content)
            tar.addfile(item, io.BytesIO(content))
    return buffer.getvalue()


def _write(path: Path, files: dict[str, bytes] | list[tuple[str, bytes]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(_tar(files))


def _index(input_url: Path | str, out: Path | str) -> tuple[Manifest, LeftOut]:
    source = WebdatasetSource(input=str(input_url))
    return source.manifest(list(source), str(out), "tars", {"source": "webdataset"})


def _keys(manifest: Manifest) -> list[str]:
    return [key for shard in manifest.shards for key in shard.samples.keys]


def test_the_samples_are_those_webdataset_reads(tmp_path: Path) -> None:
    files = {}
    for number in range(6):
        files |= {f"some/clip{number}.json": b"{}", f"some/clip{number}.MP4": _video(number, 3 + number)}
    _write(tmp_path / "a" / "000.tar", files)
    (tmp_path / "notes.txt").write_text("no tar")
    manifest, left_out = _index(tmp_path, tmp_path)
    manifest.save(str(tmp_path))
    manifest = Manifest.load(str(tmp_path))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # webdataset's own
        expected = list(webdataset.WebDataset(str(tmp_path / "a" / "000.tar"), shardshuffle=False))
    content = (tmp_path / "a" / "000.tar").read_bytes()
    assert _keys(manifest) == [sample["__key__"] for sample in expected]
    videos = {sample["__key__"]: sample["mp4"] for sample in expected}
    for shard in manifest.shards:
        assert shard.path == "a/000.tar"
        assert (shard.size_bytes, shard.sha256) == (len(content), hashlib.sha256(content).hexdigest())
        column = shard.samples.members["mp4"]
        rows = zip(shard.samples.keys, column.offsets, column.sizes, shard.samples.frames, strict=True)
        for number, (key, offset, size, frames) in enumerate(rows):
            video = content[offset : offset + size]
            assert video == videos[key]
            assert shard.samples.sha256(number) == hashlib.sha256(video).digest()
            assert frames == 3 + int(key[-1])
            assert len(decode_frames(video, 0, int(frames))) == frames
    assert (manifest.height, manifest.width, manifest.fps, manifest.source) == (16, 16, 10.0, "webdataset")
    assert not left_out.counts


@pytest.mark.parametrize(
    ("container", "codec"), [("avi", "mpeg4"), ("matroska", "libx264"), ("webm", "libvpx"), ("mov", "libx264")]
)
def test_only_the_mp4_family_is_indexed_since_clips_are_read_from_nothing_else(
    tmp_path: Path, container: str, codec: str
) -> None:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as film:
        stream = film.add_stream(
            codec, rate=12, width=48, height=32, pix_fmt="yuv420p"
        )  # with B-frames where it has any
        for number in range(20):
            picture = np.full((32, 48, 3), 10 * number, dtype=np.uint8)
            film.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        film.mux(stream.encode(None))
    extension = {"matroska": "mkv"}.get(container, container)
    _write(tmp_path / "0.tar", {f"a.{extension}": buffer.getvalue()})
    if container != "mov":
        with pytest.raises(DataError, match=r"cannot be decoded, or is no mp4: 1"):
            _index(tmp_path, tmp_path)
        return
    manifest, _ = _index(tmp_path, tmp_path)
    (shard,) = manifest.shards
    assert len(decode_frames(buffer.getvalue(), 0, 20)) == 20
    assert (manifest.height, manifest.width, manifest.fps, shard.samples.frames.tolist()) == (32, 48, 12.0, [20])


def test_everything_left_out_is_counted_by_reason(tmp_path: Path) -> None:
    broken = _video(1)
    files = [
        ("good.mp4", _video(0)),
        ("good.txt", b"caption"),
        ("words.txt", b"caption"),
        ("noise.mp4", b"this is no video"),
        ("half.mp4", broken[: len(broken) // 2]),
        ("/etc/absolute.mp4", _video(2)),
        ("../escaping.mp4", _video(2)),
        ("folder/../../up.mp4", _video(2)),
        ("good.mp4", _video(3)),
        ("twice.mp4", _video(4)),
        ("twice.mp4", _video(5)),
        ("large.mp4", _video(6, height=32)),
        ("__meta__/some.mp4", _video(7)),
        ("last.one.mp4", _video(8)),
    ]
    _write(tmp_path / "0.tar", files)
    manifest, left_out = _index(tmp_path, tmp_path)
    assert sorted(_keys(manifest)) == ["good", "last", "twice"]
    rows = [shard.samples for shard in manifest.shards]
    videos = {key: samples.sha256(number) for samples in rows for number, key in enumerate(samples.keys)}
    assert videos["good"] == hashlib.sha256(_video(0)).digest()
    assert videos["twice"] == hashlib.sha256(_video(4)).digest()
    assert left_out.counts == {
        "no video among the members": 1,
        "video that cannot be decoded, or is no mp4": 2,
        "name that leads out of the archive": 3,
        "key used before in the same tar": 2,
        "frames of another size than 16x16, the most common": 1,
    }
    assert left_out.first["name that leads out of the archive"] == f"{tmp_path / '0.tar'}: /etc/absolute"


@pytest.fixture(scope="module")
def many_samples() -> bytes:
    video = _video(9)
    return _tar(
        [
            (f"{number:03d}.{kind}", content)
            for number in range(250)
            for kind, content in (("json", b"{}"), ("mp4", video))
        ]
    )


@pytest.mark.parametrize("kind", ["mp4", "json"])
def test_a_damaged_header_costs_at_most_one_of_250_samples(tmp_path: Path, many_samples: bytes, kind: str) -> None:
    content = bytearray(many_samples)
    with tarfile.open(fileobj=io.BytesIO(many_samples)) as tar:
        offset = tar.getmember(f"100.{kind}").offset
    content[offset + 148 : offset + 156] = b"garbage!"
    (tmp_path / "0.tar").write_bytes(content)
    manifest, left_out = _index(tmp_path, tmp_path)
    expected = [f"{number:03d}" for number in range(250) if number != 100 or kind == "json"]
    assert sorted(_keys(manifest)) == expected
    assert left_out.counts["header of the tar damaged, its member not found"] == 1
    assert left_out.counts["no video among the members"] == (kind == "mp4")


def test_a_truncated_tar_keeps_the_samples_before_the_cut(tmp_path: Path, many_samples: bytes) -> None:
    with tarfile.open(fileobj=io.BytesIO(many_samples)) as tar:
        cut = tar.getmember("100.mp4").offset_data + 50
    (tmp_path / "0.tar").write_bytes(many_samples[:cut])
    manifest, left_out = _index(tmp_path, tmp_path)
    assert sorted(_keys(manifest)) == [f"{number:03d}" for number in range(100)]
    assert left_out.counts == {"cut off by the end of the tar": 1}


def test_a_file_that_is_no_tar_is_counted(tmp_path: Path) -> None:
    _write(tmp_path / "0.tar", {"a.mp4": _video(0)})
    (tmp_path / "1.tar").write_bytes(b"an error page" * 100)
    manifest, left_out = _index(tmp_path, tmp_path)
    assert _keys(manifest) == ["a"]
    assert left_out.first == {"header of the tar damaged, its member not found": str(tmp_path / "1.tar")}


def test_splits_follow_the_names_of_the_tars(tmp_path: Path) -> None:
    names = ("train/0", "web-train-1", "sub/VAL/0", "validation_000", "tests/0", "x/testset-0", "training.2")
    for number, name in enumerate(names):
        _write(tmp_path / f"{name}.tar", {f"{number}.mp4": _video(number)})
    manifest, _ = _index(tmp_path, tmp_path)
    splits = {shard.path.removesuffix(".tar"): shard.split for shard in manifest.shards}
    assert splits == {
        "train/0": "train",
        "web-train-1": "train",
        "training.2": "train",
        "sub/VAL/0": "validation",
        "validation_000": "validation",
        "tests/0": "test",
        "x/testset-0": "test",
    }
    order = [SPLITS.index(shard.split) for shard in manifest.shards]
    assert order == sorted(order)


@pytest.mark.parametrize(("num_tars", "samples"), [(10, 3), (3, 10), (1, 30)])
def test_unnamed_tars_are_split_whole_and_few_ones_by_samples(tmp_path: Path, num_tars: int, samples: int) -> None:
    for tar in range(num_tars):
        _write(tmp_path / f"contest-{tar:02d}.tar", {f"{tar}-{n}.mp4": _video(n) for n in range(samples)})
    manifest, _ = _index(tmp_path, tmp_path)
    sizes = {split: sum(map(len, manifest.of_split(split))) for split in ("train", "validation", "test")}
    assert sizes == {"train": 24, "validation": 3, "test": 3}
    assert len(set(_keys(manifest))) == 30
    if num_tars == 10:
        assert len(manifest.shards) == 10


def test_tars_on_s3_are_indexed_as_local_ones(tmp_path: Path, s3_url: str) -> None:
    for number in range(3):
        _write(tmp_path / f"{number}.tar", {f"{number}.mp4": _video(number)})
        storage.write_bytes(storage.join(s3_url, "in", f"{number}.tar"), (tmp_path / f"{number}.tar").read_bytes())
    here, _ = _index(tmp_path, tmp_path)
    there, _ = _index(storage.join(s3_url, "in"), storage.join(s3_url, "in"))
    assert there.hash == here.hash
    elsewhere, _ = _index(storage.join(s3_url, "in"), tmp_path / "out")
    assert [shard.path for shard in elsewhere.shards] == [f"{s3_url}/in/{number}.tar" for number in range(3)]


def test_a_manifest_elsewhere_names_the_tars_in_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write(tmp_path / "tars" / "0.tar", {"a.mp4": _video(0)})
    monkeypatch.chdir(tmp_path)
    for out in ("out", "tars2", "tars/deeper"):
        manifest, _ = _index("tars", out)
        assert [shard.path for shard in manifest.shards] == [str(tmp_path / "tars" / "0.tar")]
    manifest, _ = _index("tars", ".")
    assert [shard.path for shard in manifest.shards] == ["tars/0.tar"]


def test_a_brace_pattern_names_tars(tmp_path: Path) -> None:
    for number in range(4):
        _write(tmp_path / f"{number:02d}.tar", {f"{number}.mp4": _video(number)})
    assert sorted(_keys(_index(f"{tmp_path}/{{01..03}}.tar", tmp_path)[0])) == ["1", "2", "3"]
    assert _keys(_index(tmp_path / "02.tar", tmp_path)[0]) == ["2"]
    with pytest.raises(DataError, match=r"Expected 3 tars as .*, and 1 are missing, the first being .*/04.tar: copy"):
        len(WebdatasetSource(input=f"{tmp_path}/{{02..04}}.tar"))
    with pytest.raises(ConfigError, match=r"input must close every brace, as in tars/\{000..123\}.tar, got a\{1"):
        len(WebdatasetSource(input="a{1"))


def test_nothing_to_index_is_told_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"Expected WebDataset tars \(.tar\) in .*, found nothing: point --input at a"):
        len(WebdatasetSource(input=str(tmp_path / "missing")))
    (tmp_path / "0.tar.gz").write_bytes(b"")
    with pytest.raises(DataError, match=r"found 1 other files \(1 of them compressed tars\): .* uncompressed tars"):
        len(WebdatasetSource(input=str(tmp_path)))
    _write(tmp_path / "0.tar", {"a.txt": b"words", "b.mp4": b"noise"})
    with pytest.raises(
        DataError,
        match=r"Not one sample of the 1 tars .* \(no video .*: 1, video that cannot .*, or is no mp4: 1\): point",
    ):
        _index(tmp_path, tmp_path)
    with pytest.raises(ConfigError, match="--source webdataset needs --input"):
        WebdatasetSource()


def test_a_link_to_nothing_is_told(tmp_path: Path) -> None:
    (tmp_path / "0.tar").symlink_to(tmp_path / "gone.tar")
    with pytest.raises(DataError, match=r"The tar .*0.tar is listed but not there"):
        _index(f"{tmp_path}/0.{{tar,tar}}", tmp_path)


def test_every_tar_is_read_once_and_nothing_is_written(tmp_path: Path, make_opens: Callable[[], list[str]]) -> None:
    for number in range(3):
        _write(tmp_path / f"{number}.tar", {f"{number}.mp4": _video(number)})
    before = sorted(tmp_path.iterdir())
    opened = make_opens()
    _index(tmp_path, tmp_path)
    assert sorted(opened) == [str(tmp_path / f"{number}.tar") for number in range(3)]
    assert sorted(tmp_path.iterdir()) == before


@pytest.fixture
def make_opens(monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """Returns a function that begins to record which local files are opened."""
    from fsspec.implementations.local import LocalFileSystem

    def begin() -> list[str]:
        opened: list[str] = []
        original = LocalFileSystem.open

        def recorded(self: LocalFileSystem, path: str, *arguments: object, **options: object) -> object:
            opened.append(path)
            return original(self, path, *arguments, **options)

        monkeypatch.setattr(LocalFileSystem, "open", recorded)
        return opened

    return begin
