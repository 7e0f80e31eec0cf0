#!/usr/bin/env python
"""Makes a data set for FLAM: WebDataset tars of H.264 clips and their manifest, from MultiGrid or from video files.

    python recipes/make_shards.py --source multigrid --out data/multigrid
    python recipes/make_shards.py --source video --input videos/ --size 128 --out s3://bucket/videos

Hardware: one CPU core. Time: 640 MultiGrid episodes (20,480 frames of 64x64) take about 10 s.
Expected: a folder with manifest.arrow and train/, validation/ and test/ tars that any webdataset reader opens.
Object stores: address and keys come from AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.
"""

import dataclasses
import sys
import time
from dataclasses import dataclass
from typing import Literal

import tyro
from rich.console import Console
from rich.progress import track

from flamscale.data.encode import LOSSLESS_CRF, NEAR_LOSSLESS_CRF
from flamscale.data.manifest import Manifest
from flamscale.data.shards import ShardWriter
from flamscale.data.sources.multigrid import MultigridSource
from flamscale.data.sources.video import VideoSource
from flamscale.errors import ConfigError, FlamError


@dataclass(frozen=True, kw_only=True)
class MakeShards:
    """Writes WebDataset shards and their manifest."""

    source: Literal["multigrid", "video"]
    """multigrid: simulated 8x8 room, needs flamscale[sim]; video: files of your own."""
    out: str
    """Folder or s3:// URL to write to."""
    size: int = 64
    """Height and width of a frame (pixels)."""
    episode_frames: int = 32
    """Frames of one episode, the longest clip that can be cut (count)."""
    shard_mib: int = 64
    """Size at which a tar is closed and the next begun (MiB)."""
    num_agents: int | None = None
    """multigrid: agents in the room (count); 4 if not given."""
    episodes: int | None = None
    """multigrid: episodes to make, split 80/10/10 (count); 640 if not given."""
    seed: int | None = None
    """multigrid: seed of starts and actions; 0 if not given."""
    input: str | None = None
    """video: a video file, or a folder of them (local path or URL)."""
    crop: str | None = None
    """video: square to cut out of every frame, as x0,y0,x1,y1 (pixels); the largest centred one if not given."""

    def build(self) -> MultigridSource | VideoSource:
        """Returns the source; raises ConfigError where a flag cannot take effect."""
        kind = {"multigrid": MultigridSource, "video": VideoSource}[self.source]
        known = {item.name for item in dataclasses.fields(kind)}
        given = {name: value for name, value in vars(self).items() if value is not None}
        idle = given.keys() - known - {"source", "out", "shard_mib"}
        if idle:
            flags = ", ".join(f"--{name.replace('_', '-')}" for name in sorted(idle))
            raise ConfigError(f"{flags} cannot take effect with --source {self.source}: leave it out.")
        if self.shard_mib < 1:
            raise ConfigError(f"shard-mib must be at least 1, got {self.shard_mib}.")
        return kind(**{name: value for name, value in given.items() if name in known})


def make(config: MakeShards) -> None:
    """Writes the data set, or finds that it is already there."""
    source = config.build()
    arguments = {"source": config.source, "shard_mib": config.shard_mib, **dataclasses.asdict(source)}
    existing = Manifest.find(config.out)
    if existing is not None:
        if existing.arguments != arguments:
            raise ConfigError(
                f"{config.out} already holds a data set made with other arguments ({existing.arguments}, now "
                f"{arguments}): choose another --out, or delete that one first."
            )
        print(f"{config.out} already holds this data set ({_size(existing)}); nothing to do.")
        return
    started_s = time.monotonic()
    num_episodes = len(source)
    with ShardWriter(
        config.out,
        name=config.out.rstrip("/").rsplit("/", 1)[-1],
        source=config.source,
        arguments=arguments,
        crf=LOSSLESS_CRF if config.source == "multigrid" else NEAR_LOSSLESS_CRF,
        shard_bytes=config.shard_mib * 2**20,
    ) as writer:
        for episode in track(source, "episodes", total=num_episodes, console=Console(stderr=True)):
            writer.write(episode)
    assert writer.manifest is not None
    print(f"Wrote {_size(writer.manifest)} to {config.out} in {time.monotonic() - started_s:.1f} s.")


def _size(manifest: Manifest) -> str:
    counts = {
        split: sum(len(shard) for shard in manifest.shards if shard.split == split)
        for split in ("train", "validation", "test")
    }
    frames = sum(int(shard.samples.frames.sum()) for shard in manifest.shards)
    size_mib = sum(shard.size_bytes for shard in manifest.shards) / 2**20
    return (
        f"{' + '.join(f'{count} {split}' for split, count in counts.items())} episodes, {frames:,} frames of "
        f"{manifest.height}x{manifest.width}, {len(manifest.shards)} shards, {size_mib:.1f} MiB"
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
