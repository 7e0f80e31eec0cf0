"""Image folders as a source, nuPlan's layout among them: the right order, the right times, one sentence a fault."""

import contextlib
import sqlite3
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flamscale.data import storage
from flamscale.data.episode import Episode
from flamscale.data.sources.images import ImageSource
from flamscale.errors import DataError, VideoError


def _write_images(folder: Path, levels: dict[str, int]) -> None:
    """Writes grey pictures by file name."""
    folder.mkdir(parents=True)
    for name, level in levels.items():
        Image.new("RGB", (64, 48), (level, level, level)).save(folder / name)


def _levels(source: ImageSource) -> dict[str, list[int]]:
    """Grey level of every frame by the folder it comes from."""
    found: dict[str, list[int]] = {}
    for part in source.parts():
        for item in source.read(part):
            if isinstance(item, Episode):
                found.setdefault(part.name, []).extend(np.round(item.frames[:, 0, 0, 0]).tolist())
    return found


def _source(folder: Path | str, **settings: object) -> ImageSource:
    return ImageSource(**{"input": str(folder), "size": 16, "episode_frames": 4, "cut_threshold": 0.0} | settings)


def test_each_folder_of_images_is_a_video_in_order_of_name(tmp_path: Path) -> None:
    _write_images(tmp_path / "log a" / "CAM_F0", {f"{number:03d}.png": 10 * number for number in range(5)})
    _write_images(tmp_path / "log b" / "CAM_F0", {f"{number:03d}.PNG": 200 - number for number in range(4)})
    _write_images(tmp_path / "log b" / "CAM_L0", {f"{number:03d}.png": 7 for number in range(4)})
    (tmp_path / "log b" / "CAM_F0" / "notes.txt").write_text("no image")
    assert _levels(_source(tmp_path, camera="*_F0")) == {
        str(tmp_path / "log a" / "CAM_F0"): [0, 10, 20, 30],
        str(tmp_path / "log b" / "CAM_F0"): [200, 199, 198, 197],
    }
    assert len(_source(tmp_path).parts()) == 3
    assert {part.fps for part in _source(tmp_path).parts()} == {10.0}


def test_jpegs_on_s3_are_read_as_local_ones(tmp_path: Path, s3_url: str) -> None:
    _write_images(tmp_path / "CAM_F0", {f"{number}.jpg": 10 * number for number in range(4)})
    for path in (tmp_path / "CAM_F0").iterdir():
        storage.write_bytes(storage.join(s3_url, "CAM_F0", path.name), path.read_bytes())
    (local,), (remote,) = (_levels(_source(place)).values() for place in (tmp_path, s3_url))
    assert local == remote == [0, 10, 20, 30]


def _write_database(path: Path, rows: list[tuple[str, int]]) -> None:
    """As nuPlan's: one database a log, with the images of all its cameras."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        database.execute("CREATE TABLE image (token BLOB, filename_jpg VARCHAR(128), timestamp INTEGER)")
        database.executemany("INSERT INTO image VALUES (x'00', ?, ?)", rows)


def test_nuplan_databases_order_and_time_images_whose_names_are_tokens(tmp_path: Path) -> None:
    times_ms = {"c.jpg": 0, "a.jpg": 50, "e.jpg": 100, "b.jpg": 210, "f.jpg": 300, "d.jpg": 5000}
    _write_images(tmp_path / "blobs" / "log" / "CAM_F0", {name: level for level, name in enumerate(times_ms)})
    _write_images(tmp_path / "blobs" / "other" / "CAM_F0", {"a.jpg": 0})
    rows = [(f"log/CAM_F0/{name}", 1_600_000_000_000_000 + 1000 * time_ms) for name, time_ms in times_ms.items()]
    _write_database(tmp_path / "db" / "log.db", rows)
    source = _source(tmp_path / "blobs", timestamps=str(tmp_path / "db"))
    log, other = source.parts()
    (episode,) = (item for item in source.read(log) if isinstance(item, Episode))
    assert episode.frames[:, 0, 0, 0].tolist() == [0, 2, 3, 4]
    with pytest.raises(VideoError, match=r"Expected nuPlan's log database at .*other\.db, which cannot be read"):
        list(source.read(other))


def test_a_damaged_image_is_named(tmp_path: Path) -> None:
    _write_images(tmp_path / "a", {f"{number}.jpg": 0 for number in range(4)})
    (tmp_path / "a" / "2.jpg").write_bytes((tmp_path / "a" / "2.jpg").read_bytes()[:300])
    with pytest.raises(VideoError, match=r"The image .*2\.jpg cannot be decoded \(.*\): repair it"):
        _levels(_source(tmp_path))


def test_no_folder_of_that_name_is_told_in_one_sentence(tmp_path: Path) -> None:
    _write_images(tmp_path / "CAM_F0", {"0.jpg": 0})
    with pytest.raises(DataError, match=r"Expected folders of images \(.*\) named CAM_R0 in .*, found none: check"):
        _source(tmp_path, camera="CAM_R0").parts()
