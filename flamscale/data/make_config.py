"""Settings of recipes/make_shards.py: flags in; a source, and what to make of it, out."""

import dataclasses
import os
from dataclasses import dataclass
from typing import Any, Literal

from flamscale.data.encode import LOSSLESS_CRF, NEAR_LOSSLESS_CRF
from flamscale.data.executors import Executor, Processes, serial
from flamscale.data.pieces import Job
from flamscale.data.sources.camera import CameraSource
from flamscale.data.sources.images import ImageSource
from flamscale.data.sources.inputs import absolute
from flamscale.data.sources.multigrid import MultigridSource
from flamscale.data.sources.video import VideoSource
from flamscale.errors import ConfigError

_SOURCES = {"multigrid": MultigridSource, "video": VideoSource, "images": ImageSource}
_LOSSLESS = ("multigrid",)


@dataclass(frozen=True, kw_only=True)
class MakeShards:
    """Writes WebDataset shards and their manifest; start it again with the same flags after a kill."""

    source: Literal["multigrid", "video", "images"]
    """multigrid: simulated 8x8 room, needs flamscale[sim]; video: files of your own; images: folders of frames."""
    out: str
    """Folder or s3:// URL to write to."""
    size: int = 64
    """Height and width of a frame (pixels)."""
    episode_frames: int = 32
    """Frames of one episode, the longest clip that can be cut (count)."""
    shard_mib: int = 64
    """Size at which a tar is closed and the next begun (MiB)."""
    workers: int = dataclasses.field(default_factory=lambda: len(os.sched_getaffinity(0)))
    """Processes that do the work (count); all cores if not given. The data do not depend on it."""
    ray: str = ""
    """Do the work on the Ray cluster at HOST:PORT, or auto for the one this process is a job of; excludes --workers."""
    max_bad_fraction: float = 0.5
    """Share of videos that may be unusable; each is named in the summary."""
    num_agents: int | None = None
    """multigrid: agents in the room (count); 4 if not given."""
    episodes: int | None = None
    """multigrid: episodes to make, split 80/10/10 (count); 640 if not given."""
    seed: int | None = None
    """multigrid: seed of starts and actions; 0 if not given."""
    input: str | None = None
    """video, images: a file or folder (local path or URL), or a .txt list of them, one a line."""
    crop: str | None = None
    """video, images: square to cut out, as x0,y0,x1,y1 (pixels); the largest centred one if not given."""
    fps: float | None = None
    """video: frames a second of all episodes; that of the first video if not given. images: 10 if not given."""
    cut_threshold: float | None = None
    """video, images: how many times the change around it a scene cut exceeds; 3 if not given, 0 looks for none."""
    static_threshold: float | None = None
    """video, images: drops episodes that change less (mean grey levels a frame); 0.05 if not given, 0 drops none."""
    duplicate_bits: int | None = None
    """video, images: drops episodes whose 256-bit signature differs in at most so many; 12 if not given, -1: none."""
    camera: str | None = None
    """images: pattern for the names of the image folders, such as CAM_F0; all if not given."""
    timestamps: str | None = None
    """images: folder of nuPlan's LOG.db files, which order and time the images; by name if not given."""

    def __post_init__(self) -> None:
        if self.shard_mib < 1:
            raise ConfigError(f"shard-mib must be at least 1, got {self.shard_mib}.")
        if self.workers < 1:
            raise ConfigError(f"workers must be at least 1, got {self.workers}.")
        if not 0 <= self.max_bad_fraction <= 1:
            raise ConfigError(f"max-bad-fraction must lie between 0 and 1, got {self.max_bad_fraction}.")
        self.build()

    def build(self) -> MultigridSource | CameraSource:
        """Returns the source; raises ConfigError where a flag cannot take effect."""
        kind = _SOURCES[self.source]
        known = {item.name for item in dataclasses.fields(kind)}
        optional = {item.name for item in dataclasses.fields(self) if item.default is None}
        given = {name: getattr(self, name) for name in optional if getattr(self, name) is not None}
        idle = given.keys() - known
        if idle:
            flags = ", ".join(f"--{name.replace('_', '-')}" for name in sorted(idle))
            raise ConfigError(f"{flags} cannot take effect with --source {self.source}: leave it out.")
        return kind(size=self.size, episode_frames=self.episode_frames, **given)

    @property
    def arguments(self) -> dict[str, Any]:
        """What the bytes of the data set follow from."""
        return {"source": self.source, "shard_mib": self.shard_mib, **dataclasses.asdict(self.build())}

    def job(self) -> Job:
        """Returns what to make, with a place that means the same to every process."""
        source = self.build()
        if isinstance(source, ImageSource) and source.timestamps:
            source = dataclasses.replace(source, timestamps=absolute(source.timestamps))
        return Job(
            source=source,
            out=absolute(self.out),
            crf=LOSSLESS_CRF if self.source in _LOSSLESS else NEAR_LOSSLESS_CRF,
            shard_bytes=self.shard_mib * 2**20,
            rules=source.rules if isinstance(source, CameraSource) else None,
        )

    def local_executor(self) -> Executor:
        """Returns who does the work on this machine."""
        return serial if self.workers == 1 else Processes(num_workers=self.workers)
