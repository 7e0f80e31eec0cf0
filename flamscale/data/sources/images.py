"""Episodes of folders of images, as nuPlan's camera folders: each folder that directly holds images is one video.

Images follow each other by name, `fps` a second. Where names are no times (nuPlan's are random tokens), `timestamps`
names the folder of nuPlan's log databases (*.db, SQLite, table `image`), and images follow each other by their time
stamps; folders of logs without a database there are left out.
"""

import contextlib
import io
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from pathlib import PurePosixPath

from PIL import Image, UnidentifiedImageError

from flamscale.data import storage
from flamscale.data.episode import Part
from flamscale.data.sources.camera import CameraSource
from flamscale.data.sources.inputs import expand, find_folders, local_file
from flamscale.data.sources.timeline import Picture
from flamscale.errors import DataError, VideoError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
DEFAULT_FPS = 10.0
"""Of nuPlan's cameras."""


@dataclass(frozen=True, kw_only=True)
class ImageSource(CameraSource):
    """Episodes of image folders; each folder is a part."""

    camera: str = "*"
    """Pattern that the names of the image folders must match, such as CAM_F0."""
    timestamps: str = ""
    """Folder of nuPlan's databases, LOG.db for images under LOG/CAMERA/; empty takes images in order of name."""

    def parts(self) -> Sequence[Part]:
        """Returns the image folders in order of name; raises DataError where there are none."""
        folders = sorted(
            (folder, len(_images(names)))
            for entry in expand(self.input)
            for folder, names in find_folders(entry)
            if _images(names) and fnmatchcase(PurePosixPath(folder).name, self.camera)
        )
        if not folders:
            raise DataError(
                f"Expected folders of images ({', '.join(IMAGE_SUFFIXES)}) named {self.camera} in {self.input}, found "
                f"none: check --input and --camera."
            )
        fps = self.fps or DEFAULT_FPS
        return [Part(number=number, name=name, size=size, fps=fps) for number, (name, size) in enumerate(folders)]

    def pictures(self, part: Part) -> Iterator[Picture]:
        _, names = next(find_folders(part.name), ("", []))
        images = _images(names)
        if self.timestamps:
            times_s = self._read_times(part)
            timed = sorted((times_s[name], name) for name in images if name in times_s)
            if not timed:
                raise VideoError(f"None of the images in {part.name} has a time stamp in {self._database(part)}.")
        else:
            timed = [(number / part.fps, name) for number, name in enumerate(images)]
        for time_s, name in timed:
            yield Picture(time_s=time_s, load=partial(_load, storage.join(part.name, name)))

    def _database(self, part: Part) -> str:
        return storage.join(self.timestamps, f"{PurePosixPath(part.name).parent.name}.db")

    def _read_times(self, part: Part) -> dict[str, float]:
        """Time stamps (seconds) of a log's images by file name."""
        address = self._database(part)
        try:
            with (
                local_file(address) as path,
                contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db,
            ):
                rows = db.execute("SELECT filename_jpg, timestamp FROM image").fetchall()
        except (sqlite3.Error, FileNotFoundError) as error:
            raise VideoError(
                f"Expected nuPlan's log database at {address}, which cannot be read ({error}): check --timestamps, or "
                f"leave it out where the images' names are in order."
            ) from error
        return {PurePosixPath(name).name: microseconds / 1e6 for name, microseconds in rows}


def _images(names: Sequence[str]) -> list[str]:
    return [name for name in names if PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES]


def _load(address: str) -> Image.Image:
    try:
        return Image.open(io.BytesIO(storage.read_bytes(address))).convert("RGB")
    except (UnidentifiedImageError, FileNotFoundError, OSError, Image.DecompressionBombError) as error:
        raise VideoError(
            f"The image {address} cannot be decoded ({error}): repair it, or take its folder out."
        ) from error
