#!/usr/bin/env python
"""Makes a data set for FLAM: WebDataset tars of H.264 clips and their manifest, from simulators or from video files.

    python recipes/make_shards.py --source multigrid --out data/multigrid
    python recipes/make_shards.py --source procgen --game bigfish --episodes 2000 --out data/bigfish
    python recipes/make_shards.py --source video --input videos/ --size 128 --out s3://bucket/videos
    python recipes/make_shards.py --source webdataset --input s3://bucket/tars --out s3://bucket/tars

The last writes only the manifest: plain WebDataset tars of videos are indexed where they lie.
Hardware: one CPU core. Time: 640 MultiGrid episodes (20,480 frames of 64x64) take about 10 s, and as many
Procgen frames of 224x224 two and a half minutes.
Expected: a folder with manifest.arrow and train/, validation/ and test/ tars that any webdataset reader opens.
Object stores: address and keys come from AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.
"""

import dataclasses
import sys
import time
from dataclasses import dataclass
from typing import Any, Literal

import tyro
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table

from flamscale.data import storage
from flamscale.data.encode import LOSSLESS_CRF, NEAR_LOSSLESS_CRF
from flamscale.data.manifest import Manifest
from flamscale.data.shards import ShardWriter
from flamscale.data.sources.multigrid import MultigridSource
from flamscale.data.sources.procgen import ProcgenSource
from flamscale.data.sources.video import VideoSource
from flamscale.data.sources.webdataset_tars import WebdatasetSource
from flamscale.errors import ConfigError, FlamError

EpisodeSource = MultigridSource | ProcgenSource | VideoSource
Source = EpisodeSource | WebdatasetSource
_SOURCES: dict[str, type[Source]] = {
    "multigrid": MultigridSource,
    "procgen": ProcgenSource,
    "video": VideoSource,
    "webdataset": WebdatasetSource,
}
_DEFAULT_SHARD_MIB = 64


@dataclass(frozen=True, kw_only=True)
class MakeShards:
    """Writes WebDataset shards and their manifest."""

    source: Literal["multigrid", "procgen", "video", "webdataset"]
    """multigrid, procgen: simulated, need flamscale[sim]; video: files of your own; webdataset: tars of your own."""
    out: str
    """Folder or s3:// URL to write to."""
    size: int | None = None
    """Height and width of a frame (pixels); 64 if not given, procgen 224."""
    episode_frames: int | None = None
    """Frames of one episode, the longest clip that can be cut (count); 32 if not given."""
    shard_mib: int | None = None
    """Size at which a tar is closed and the next begun (MiB); 64 if not given."""
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
    """video: a video file, or a folder of them; webdataset: a tar, a folder of them, or a {000..123} pattern."""
    crop: str | None = None
    """video: square to cut out of every frame, as x0,y0,x1,y1 (pixels); the largest centred one if not given."""

    def build(self) -> Source:
        """Returns the source; raises ConfigError where a flag cannot take effect."""
        kind = _SOURCES[self.source]
        known = {item.name for item in dataclasses.fields(kind)}
        given = {name: value for name, value in vars(self).items() if value is not None}
        idle = given.keys() - known - {"source", "out"} - ({"shard_mib"} if kind is not WebdatasetSource else set())
        if idle:
            flags = ", ".join(f"--{name.replace('_', '-')}" for name in sorted(idle))
            raise ConfigError(f"{flags} cannot take effect with --source {self.source}: leave it out.")
        if self.shard_mib is not None and self.shard_mib < 1:
            raise ConfigError(f"shard-mib must be at least 1, got {self.shard_mib}.")
        return kind(**{name: value for name, value in given.items() if name in known})


def make(config: MakeShards) -> None:
    """Writes the data set, or finds that it is already there."""
    source = config.build()
    arguments = {"source": config.source, **dataclasses.asdict(source)}
    if not isinstance(source, WebdatasetSource):
        arguments["shard_mib"] = config.shard_mib or _DEFAULT_SHARD_MIB
    existing = Manifest.find(config.out)
    if existing is not None:
        # A flag that did not exist yet when the data set was made had today's default.
        defaults = {item.name: item.default for item in dataclasses.fields(source)}
        if defaults | existing.arguments != arguments:
            raise ConfigError(
                f"{config.out} already holds a data set made with other arguments ({existing.arguments}, now "
                f"{arguments}): choose another --out, or delete that one first."
            )
        print(f"{config.out} already holds this data set ({_size(existing)}); nothing to do.")
        return
    started_s = time.monotonic()
    if isinstance(source, WebdatasetSource):
        manifest = _index(source, config.out, arguments)
    else:
        manifest = _write(source, config.out, arguments)
    print(f"Wrote {_size(manifest)} to {config.out} in {time.monotonic() - started_s:.1f} s.")


def _write(source: EpisodeSource, out: str, arguments: dict[str, Any]) -> Manifest:
    """Writes tars and manifest of a source's episodes."""
    num_episodes = len(source)
    with ShardWriter(
        out,
        name=_name(out),
        source=arguments["source"],
        arguments=arguments,
        crf=NEAR_LOSSLESS_CRF if isinstance(source, VideoSource) else LOSSLESS_CRF,
        shard_bytes=arguments["shard_mib"] * 2**20,
    ) as writer:
        for episode in track(source, "episodes", total=num_episodes, console=Console(stderr=True)):
            writer.write(episode)
    assert writer.manifest is not None
    return writer.manifest


def _index(source: WebdatasetSource, out: str, arguments: dict[str, Any]) -> Manifest:
    """Writes a manifest of tars that lie where they are, and prints what it leaves out."""
    num_tars = len(source)
    storage.check_writable(out)
    console = Console(stderr=True)
    tars = list(track(source, "tars", total=num_tars, console=console))
    manifest, left_out = source.manifest(tars, out, _name(out), arguments)
    if left_out.counts:
        table = Table("left out", "count", "first")
        for reason, count in left_out.counts.most_common():
            table.add_row(reason, f"{count:,}", escape(left_out.first[reason]))
        console.print(table)
    manifest.save(out)
    return manifest


def _name(out: str) -> str:
    return out.rstrip("/").rsplit("/", 1)[-1]


def _size(manifest: Manifest) -> str:
    counts = {
        split: sum(len(shard) for shard in manifest.shards if shard.split == split)
        for split in ("train", "validation", "test")
    }
    frames = sum(int(shard.samples.frames.sum()) for shard in manifest.shards)
    tars = {shard.path: shard.size_bytes for shard in manifest.shards}  # one tar may hold samples of several splits
    size_mib = sum(tars.values()) / 2**20
    return (
        f"{' + '.join(f'{count} {split}' for split, count in counts.items())} episodes, {frames:,} frames of "
        f"{manifest.height}x{manifest.width}, {len(tars)} shards, {size_mib:.1f} MiB"
    )


def main() -> int:
    """Returns the exit code: 0 done, 1 failed, 2 wrong usage."""
    try:
        make(tyro.cli(MakeShards, description=__doc__))
    except ConfigError as error:
        print(f"make_shards: {error}", file=sys.stderr)
        return 2
    except FlamError as error:
        print(f"make_shards: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
