"""What video files and image folders have in common: pictures in, episodes of one size and frame rate out.

Decoded once and never held whole: an episode and a few frames are all that is in memory.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePosixPath

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from flamscale.data.episode import Episode, Part, Tally
from flamscale.data.measure import SIGNATURE_BITS
from flamscale.data.plan import Rules
from flamscale.data.sources.timeline import Picture, mark_scenes, resample
from flamscale.errors import ConfigError, VideoError


@dataclass(frozen=True, kw_only=True)
class CameraSource(ABC):
    """Episodes of camera pictures: the largest centred square or a crop, resized by area, cut into equal lengths."""

    input: str = ""
    """A file or folder (local path or URL), searched through its subfolders, or a .txt list of them, one a line."""
    size: int = 64
    """Height and width of a frame (pixels), even."""
    episode_frames: int = 32
    """Frames of one episode (count); what is left at the end of a scene is dropped."""
    crop: str = ""
    """Square to cut out of every frame, as x0,y0,x1,y1 (pixels); empty takes the largest centred one."""
    fps: float = 0.0
    """Frames a second, by the nearest in time; 0 takes the source's own rate."""
    cut_threshold: float = 3.0
    """How many times the change around it a change must exceed to be a scene cut; 0 looks for none."""
    static_threshold: float = 0.05
    """Drops episodes that change less from frame to frame (mean absolute grey levels of 255); 0 keeps all."""
    duplicate_bits: int = 12
    """Drops episodes whose signature of 256 bits differs in at most so many from an earlier one's; -1 keeps all."""

    def __post_init__(self) -> None:
        if not self.input:
            raise ConfigError("--source video and --source images need --input: a file, a folder, or a .txt list.")
        if self.size < 16 or self.size % 2:
            raise ConfigError(f"size must be an even number of pixels, 16 or more, got {self.size}.")
        if self.episode_frames < 2:
            raise ConfigError(f"episode-frames must be at least 2, got {self.episode_frames}.")
        for name in ("fps", "cut_threshold", "static_threshold"):
            if not 0 <= getattr(self, name) < 1000:
                raise ConfigError(f"{name.replace('_', '-')} must lie between 0 and 1000, got {getattr(self, name)}.")
        if not -1 <= self.duplicate_bits <= SIGNATURE_BITS // 4:
            raise ConfigError(
                f"duplicate-bits must lie between -1 and {SIGNATURE_BITS // 4}, got {self.duplicate_bits}."
            )
        self._crop_box  # noqa: B018 - raises where --crop makes no sense

    @property
    def rules(self) -> Rules:
        """Which of the episodes a data set leaves out."""
        return Rules(static_threshold=self.static_threshold, duplicate_bits=self.duplicate_bits)

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

    @abstractmethod
    def parts(self) -> Sequence[Part]:
        """Returns the videos, in order of name; raises DataError where there are none."""

    @abstractmethod
    def pictures(self, part: Part) -> Iterator[Picture]:
        """Yields the pictures of one video; raises VideoError where it cannot be used."""

    def read(self, part: Part) -> Iterator[Episode | Tally]:
        """Yields the episodes of one video in time order; none has a split yet, since some may be dropped."""
        run: list[np.ndarray] = []
        num_episodes_in_scene = 0
        for number, (frame, starts_scene) in enumerate(mark_scenes(self._frames(part), self.cut_threshold)):
            if starts_scene:
                yield Tally(what="scenes", count=1)
                yield from _left_over(run, num_episodes_in_scene)
                run, num_episodes_in_scene = [], 0
            run.append(frame)
            if len(run) == self.episode_frames:
                first = number + 1 - self.episode_frames
                yield Episode(
                    key=f"video-{part.number:06d}-{first // self.episode_frames:06d}",
                    split="",
                    frames=np.stack(run),
                    fps=part.fps,
                    info={"source": PurePosixPath(part.name).name, "first_frame": first},
                )
                run, num_episodes_in_scene = [], num_episodes_in_scene + 1
        yield from _left_over(run, num_episodes_in_scene)

    def _frames(self, part: Part) -> Iterator[tuple[UInt8[np.ndarray, "H W 3"], bool]]:
        """Yields frames of the right rate and size, and whether time breaks before each."""
        shown: Picture | None = None
        for picture, fresh in resample(self.pictures(part), part.fps):
            if picture is not shown:
                frame, shown = self._resize(picture.load(), part.name), picture
            yield frame, fresh

    def _resize(self, picture: Image.Image, name: str) -> UInt8[np.ndarray, "H W 3"]:
        side = min(picture.size)
        left, top = (picture.width - side) // 2, (picture.height - side) // 2
        box = self._crop_box or (left, top, left + side, top + side)
        if box[2] > picture.width or box[3] > picture.height:
            raise VideoError(
                f"crop {self.crop} reaches outside the frames of {name}, which are {picture.width}x{picture.height} "
                f"pixels: give a smaller crop."
            )
        return np.asarray(picture.resize((self.size, self.size), Image.Resampling.BOX, box=box))


def _left_over(run: list[np.ndarray], num_episodes_in_scene: int) -> Iterator[Tally]:
    """Counts the frames after a scene's last whole episode."""
    if run and not num_episodes_in_scene:
        yield Tally(what="scenes shorter than an episode", count=1)
    if run:
        yield Tally(what="frames left over", count=len(run))
