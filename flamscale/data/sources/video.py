"""Episodes of any folder of video files: cropped to a square, resized by area, cut into runs of equal length."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any

import av
import fsspec
import numpy as np
from jaxtyping import UInt8
from PIL import Image

from flamscale.data import storage
from flamscale.data.episode import Episode, split_of
from flamscale.errors import ConfigError, DataError

VIDEO_SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ts", ".webm", ".wmv")
_POOLED_EPISODES = 10  # files with fewer episodes are split together, not each for itself


@dataclass(frozen=True, kw_only=True)
class VideoSource:
    """Episodes of camera video."""

    input: str = ""
    """A video file, or a folder of them (local path or URL), searched through its subfolders."""
    size: int = 64
    """Height and width of a frame (pixels), even."""
    episode_frames: int = 32
    """Frames of one episode (count); what is left at the end of a file is dropped."""
    crop: str = ""
    """Square to cut out of every frame, as x0,y0,x1,y1 (pixels); empty takes the largest centred one."""

    def __post_init__(self) -> None:
        if not self.input:
            raise ConfigError("--source video needs --input: a video file, or a folder of video files.")
        if self.size < 16 or self.size % 2:
            raise ConfigError(f"size must be an even number of pixels, 16 or more, got {self.size}.")
        if self.episode_frames < 2:
            raise ConfigError(f"episode-frames must be at least 2, got {self.episode_frames}.")
        self._crop_box  # noqa: B018 - raises where --crop makes no sense

    @cached_property
    def _crop_box(self) -> tuple[int, int, int, int] | None:
        if not self.crop:
            return None
        try:
            x0, y0, x1, y1 = (int(number) for number in self.crop.split(","))
        except ValueError:
            raise ConfigError(f"crop must be four whole numbers x0,y0,x1,y1 (pixels), got {self.crop!r}.") from None
        if not (0 <= x0 < x1 and 0 <= y0 < y1 and x1 - x0 == y1 - y0):
            raise ConfigError(f"crop must be a square with x0 < x1 and y0 < y1, got {self.crop}.")
        return x0, y0, x1, y1

    @cached_property
    def _files(self) -> tuple[fsspec.AbstractFileSystem, list[str]]:
        """The file system, and its video files in order of name."""
        fs, path = storage.locate(self.input)
        with storage.explained("read", self.input, fs):
            if fs.isfile(path):
                return fs, [path]
            found = fs.find(path)
        videos = sorted(name for name in found if PurePosixPath(name).suffix.lower() in VIDEO_SUFFIXES)
        if not videos:
            what = f"{len(found)} other files (single images must be encoded to video first)" if found else "nothing"
            raise DataError(
                f"Expected video files ({', '.join(VIDEO_SUFFIXES)}) in {self.input}, found {what}: point --input at a "
                f"video file or a folder of them."
            )
        return fs, videos

    @cached_property
    def _episode_counts(self) -> list[int]:
        """Whole episodes in each file, from its packets, without decoding."""
        counts = [self._count_frames(name) // self.episode_frames for name in self._files[1]]
        if not sum(counts):
            raise DataError(
                f"Every video in {self.input} has fewer frames than one episode of {self.episode_frames}: choose "
                f"shorter episodes or longer videos."
            )
        return counts

    def __len__(self) -> int:
        return sum(self._episode_counts)

    def __iter__(self) -> Iterator[Episode]:
        """Yields the episodes file by file, in time order, split 80/10/10 in that order."""
        counts = self._episode_counts
        num_pooled = sum(count for count in counts if count < _POOLED_EPISODES)
        pooled = 0
        for number, (name, count) in enumerate(zip(self._files[1], counts, strict=True)):
            for index, (frames, fps) in zip(range(count), self._cut(name), strict=False):
                split = split_of(index, count) if count >= _POOLED_EPISODES else split_of(pooled, num_pooled)
                pooled += count < _POOLED_EPISODES
                yield Episode(
                    key=f"video-{number:06d}-{index:06d}",
                    split=split,
                    frames=frames,
                    fps=fps,
                    info={"source": PurePosixPath(name).name, "first_frame": index * self.episode_frames},
                )

    def _count_frames(self, name: str) -> int:
        with _Video(self._files[0], name) as video:
            return video.count_frames()

    def _cut(self, name: str) -> Iterator[tuple[UInt8[np.ndarray, "F H W 3"], float]]:
        """Yields runs of `episode_frames` frames of one file, with its frame rate."""
        run: list[np.ndarray] = []
        with _Video(self._files[0], name) as video:
            for picture in video.pictures():
                run.append(self._resize(picture, name))
                if len(run) == self.episode_frames:
                    yield np.stack(run), video.fps
                    run = []

    def _resize(self, picture: Image.Image, name: str) -> UInt8[np.ndarray, "H W 3"]:
        side = min(picture.size)
        left, top = (picture.width - side) // 2, (picture.height - side) // 2
        box = self._crop_box or (left, top, left + side, top + side)
        if box[2] > picture.width or box[3] > picture.height:
            raise ConfigError(
                f"crop {self.crop} reaches outside the frames of {name}, which are {picture.width}x{picture.height} "
                f"pixels."
            )
        return np.asarray(picture.resize((self.size, self.size), Image.Resampling.BOX, box=box))


class _Video:
    """One open video file; every fault of it is one sentence."""

    def __init__(self, fs: fsspec.AbstractFileSystem, name: str) -> None:
        self._fs = fs
        self._name = name
        self._open = contextlib.ExitStack()

    def __enter__(self) -> "_Video":
        with self._faults(), contextlib.ExitStack() as opened:
            file = opened.enter_context(self._fs.open(self._name, "rb"))
            self._container = opened.enter_context(av.open(file, "r"))
            self._stream = self._container.streams.video[0]
            if not self.fps:
                raise ValueError("it states no frame rate")
            self._stream.codec_context.thread_count = 1
            self._open = opened.pop_all()
        return self

    def __exit__(self, *_: Any) -> None:
        self._open.close()

    @property
    def fps(self) -> float:
        return float(self._stream.average_rate or self._stream.guessed_rate or 0)

    def count_frames(self) -> int:
        with self._faults():
            return sum(packet.size > 0 for packet in self._container.demux(self._stream))

    def pictures(self) -> Iterator[Image.Image]:
        with self._faults():
            for frame in self._container.decode(self._stream):
                yield frame.to_image()

    @contextlib.contextmanager
    def _faults(self) -> Iterator[None]:
        with storage.explained("read", self._name, self._fs):
            try:
                yield
            except (av.FFmpegError, IndexError, ValueError, OSError) as error:  # IndexError: no video stream
                raise DataError(
                    f"The video {self._name} cannot be decoded ({error}): repair it, convert it (for example with "
                    f"ffmpeg), or take it out of the folder."
                ) from error
