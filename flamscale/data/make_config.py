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
from flamscale.data.sources.procgen import ProcgenSource
from flamscale.data.sources.video import VideoSource
from flamscale.data.sources.webdataset_tars import WebdatasetSource
from flamscale.errors import ConfigError

EpisodeSource = MultigridSource | ProcgenSource | CameraSource
_SOURCES: dict[str, type[EpisodeSource | WebdatasetSource]] = {
    "multigrid": MultigridSource,
    "procgen": ProcgenSource,
    "video": VideoSource,
    "images": ImageSource,
    "webdataset": WebdatasetSource,
}
_SHARD_MIB = 64


@dataclass(frozen=True, kw_only=True)
class MakeShards:
    """Writes WebDataset shards and their manifest; start it again with the same flags after a kill."""

    source: Literal["multigrid", "procgen", "video", "images", "webdataset"]
    """multigrid, procgen: simulated, need flamscale[sim]; video: files of your own; images: folders of frames;
    webdataset: tars of your own, indexed where they lie."""
    out: str
    """Folder or s3:// URL to write to."""
    size: int | None = None
    """Height and width of a frame (pixels); 64 if not given, procgen 224."""
    episode_frames: int | None = None
    """Frames of one episode, the longest clip that can be cut (count); 32 if not given."""
    shard_mib: int | None = None
    """Size at which a tar is closed and the next begun (MiB); 64 if not given."""
    workers: int = dataclasses.field(default_factory=lambda: len(os.sched_getaffinity(0)))
    """Processes that do the work (count); all cores if not given. The data do not depend on it."""
    ray: str = ""
    """Do the work on the Ray cluster at HOST:PORT, or auto for the one this process is a job of; excludes --workers."""
    max_bad_fraction: float = 0.5
    """Share of videos that may be unusable; each is named in the summary."""
    num_agents: int | None = None
    """multigrid: agents in the room (count); 4 if not given."""
    correlated_agents: int | None = None
    """multigrid: so many agents always act alike (count, 0 or 2 to num-agents); 0 if not given."""
    game: Literal["bigfish", "leaper", "starpilot"] | None = None
    """procgen: which game; bigfish if not given."""
    random_action_share: float | None = None
    """procgen: share of the player's actions that are drawn at random (0 to 1); 0.1 if not given."""
    episodes: int | None = None
    """multigrid, procgen: episodes to make, split 80/10/10 (count); 640 if not given."""
    seed: int | None = None
    """multigrid, procgen: seed of starts and actions; 0 if not given."""
    input: str | None = None
    """video, images: a file or folder (local path or URL), or a .txt list of them, one a line; webdataset: a tar, a
    folder of them, or a {000..123} pattern."""
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
        if self.shard_mib is not None and self.shard_mib < 1:
            raise ConfigError(f"shard-mib must be at least 1, got {self.shard_mib}.")
        if self.workers < 1:
            raise ConfigError(f"workers must be at least 1, got {self.workers}.")
        if not 0 <= self.max_bad_fraction <= 1:
            raise ConfigError(f"max-bad-fraction must lie between 0 and 1, got {self.max_bad_fraction}.")
        if self.ray and self.source == "webdataset":
            raise ConfigError("--ray cannot take effect with --source webdataset: leave it out.")
        self.build()

    def build(self) -> EpisodeSource | WebdatasetSource:
        """Returns the source; raises ConfigError where a flag cannot take effect."""
        kind = _SOURCES[self.source]
        known = {item.name for item in dataclasses.fields(kind)}
        if kind is not WebdatasetSource:
            known.add("shard_mib")
        optional = {item.name for item in dataclasses.fields(self) if item.default is None}
        given = {name: getattr(self, name) for name in optional if getattr(self, name) is not None}
        idle = given.keys() - known
        if idle:
            flags = ", ".join(f"--{name.replace('_', '-')}" for name in sorted(idle))
            raise ConfigError(f"{flags} cannot take effect with --source {self.source}: leave it out.")
        return kind(**{name: value for name, value in given.items() if name != "shard_mib"})

    @property
    def arguments(self) -> dict[str, Any]:
        """What the bytes of the data set follow from."""
        source = self.build()
        size = {} if isinstance(source, WebdatasetSource) else {"shard_mib": self.shard_mib or _SHARD_MIB}
        return {"source": self.source, **size, **dataclasses.asdict(source)}

    def is_same(self, arguments: dict[str, Any]) -> bool:
        """Whether a data set was made with these; a flag that did not exist yet had today's default."""
        defaults = {item.name: item.default for item in dataclasses.fields(self.build())}
        return defaults | arguments == self.arguments

    def job(self, source: EpisodeSource) -> Job:
        """Returns what to make, with a place that means the same to every process."""
        if isinstance(source, ImageSource) and source.timestamps:
            source = dataclasses.replace(source, timestamps=absolute(source.timestamps))
        return Job(
            source=source,
            out=absolute(self.out),
            crf=NEAR_LOSSLESS_CRF if isinstance(source, CameraSource) else LOSSLESS_CRF,
            shard_bytes=(self.shard_mib or _SHARD_MIB) * 2**20,
            rules=source.rules if isinstance(source, CameraSource) else None,
        )

    def local_executor(self) -> Executor:
        """Returns who does the work on this machine."""
        return serial if self.workers == 1 else Processes(num_workers=self.workers)
