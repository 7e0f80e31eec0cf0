#!/usr/bin/env python
"""What does the order of an epoch cost, in time and memory, as the data set grows?

Writes the manifest of a data set that has no videos, and goes through its order in a fresh process: opens it, numbers
the clips, finds the first clip and one at 90 % of the epoch, then every clip that one rank of 1,024 reads in an epoch.
Memory is what the process has for itself; the manifest's own pages are the system's, shared by all processes of a node.

Command: python recipes/benchmark_order.py --num-clips 10000000 100000000 1000000000
Hardware and hours: one CPU core; 10^9 clips take 12 GB of memory and 4 GB of disk to write, and three minutes.
Expected: the same first clip, 90 % and memory at any size; a few microseconds for each thousand clips to number them.
"""

import json
import multiprocessing
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
from rich.console import Console
from rich.table import Table

from flamscale import command_line
from flamscale.data.clips import ClipSpace
from flamscale.data.manifest import FILE_NAME, VIDEO, Manifest, Members, Samples, Shard
from flamscale.data.mixture import Mixture
from flamscale.data.order import MixtureOrder

CLIP_FRAMES = 8
SAMPLE_FRAMES = 32  # 25 clips a sample
SHARD_SAMPLES = 1000
WORLD_SIZE = 1024


@dataclass(frozen=True, kw_only=True)
class BenchmarkOrder:
    """Prints a table and writes JSON."""

    num_clips: tuple[int, ...] = (10**7, 10**8)
    """Sizes to measure (count); each is rounded to whole shards of 25,000 clips."""
    out: Path = Path("recipes/results/benchmark_order.json")
    """JSON file to write."""


def write_manifest(url: str, num_clips: int) -> None:
    """Writes the manifest of a data set of about `num_clips` clips, all shards alike."""
    clips_a_shard = SHARD_SAMPLES * (SAMPLE_FRAMES - CLIP_FRAMES + 1)
    place = Members(offsets=np.arange(SHARD_SAMPLES) * 33_000, sizes=np.full(SHARD_SAMPLES, 32_000))
    samples = Samples.of(
        keys=[f"video-{number:012d}" for number in range(SHARD_SAMPLES)],
        frames=np.full(SHARD_SAMPLES, SAMPLE_FRAMES),
        sha256=["00" * 32] * SHARD_SAMPLES,
        members={VIDEO: place, "json": place},
    )
    shards = tuple(
        Shard.of(path=f"train/{number:06d}.tar", split="train", size_bytes=10**8, sha256="00" * 32, samples=samples)
        for number in range(max(1, round(num_clips / clips_a_shard)))
    )
    Manifest(name="order", source="none", fps=10.0, height=128, width=128, arguments={}, shards=shards).save(url)


def measure(url: str) -> dict[str, float]:
    """Returns what each step takes (seconds), and the most memory this process had for itself after any (MiB)."""
    memory = psutil.Process().memory_full_info
    before_bytes = peak_bytes = memory().uss
    row: dict[str, float] = {}
    started_s = time.perf_counter()

    def done(step: str) -> None:
        nonlocal started_s, peak_bytes
        row[step] = time.perf_counter() - started_s
        peak_bytes = max(peak_bytes, memory().uss)
        started_s = time.perf_counter()

    data = Mixture.load([url])
    done("open (s)")
    space = ClipSpace(data.of_split("train"), CLIP_FRAMES, 1, 1)
    done("number the clips (s)")
    order = MixtureOrder(data.clips_of_parts(space, "train"), (), window_shards=16, seed=0)
    space.clip(next(order.candidates(0)))
    done("first clip (s)")
    space.clip(next(order.candidates(space.num_clips * 9 // 10)))
    done("clip at 90 % (s)")
    for position in range(0, space.num_clips, WORLD_SIZE):
        space.clip(next(order.candidates(position)))
    done("epoch of a rank (s)")
    return {"clips": space.num_clips} | row | {"private memory (MiB)": (peak_bytes - before_bytes) / 2**20}


def main(arguments: Sequence[str]) -> None:
    """Measures, prints and writes."""
    config = command_line.parse(BenchmarkOrder, arguments, description=__doc__ or "")
    rows = []
    for num_clips in config.num_clips:
        with tempfile.TemporaryDirectory() as folder, multiprocessing.get_context("spawn").Pool(1) as fresh:
            write_manifest(folder, num_clips)
            manifest = {"manifest (MB)": (Path(folder) / FILE_NAME).stat().st_size / 1e6}
            rows.append(fresh.apply(measure, (folder,)) | manifest)
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*(f"{value:,.3f}" if value < 10 else f"{value:,.0f}" for value in row.values()))
    Console(width=160).print(table)
    config.out.write_text(json.dumps({"cpu_cores": psutil.cpu_count(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    command_line.run(main)
