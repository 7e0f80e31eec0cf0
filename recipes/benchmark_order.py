#!/usr/bin/env python
"""What does the order of an epoch cost, in time and memory, as the data set grows?

Writes the manifest of a data set that has no videos, and goes through its order in a fresh process: opens it, numbers
the clips, finds the first clip and one at 90 % of the epoch, then every clip that one rank of 1,024 reads in an epoch.
Memory is the process's own; the manifest is mapped, so its pages are the system's, and all of a node's processes share
them.

Command: python recipes/benchmark_order.py --num-clips 10000000 100000000 1000000000
Hardware and hours: one CPU core, three minutes for 10^9 clips; their manifest takes 3.8 GB of disk, and twice that of
memory to write.
Expected: any clip in 0.04 to 0.12 s, whatever the size; about 100 MiB at 10^9 clips. A rank's epoch grows with the
clips, 0.1 to 0.3 s for a million of them, since every rank shuffles every window.
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


def _own_bytes() -> int:
    """Returns this process's memory without mapped files: the manifest's pages are the system's."""
    memory = psutil.Process().memory_info()
    return memory.rss - memory.shared


def measure(url: str) -> dict[str, float]:
    """Returns what each step takes (seconds), and the most memory of its own after any of them (MiB)."""
    before_bytes = peak_bytes = _own_bytes()
    row: dict[str, float] = {}
    started_s = time.perf_counter()

    def done(step: str) -> None:
        nonlocal started_s, peak_bytes
        row[step] = time.perf_counter() - started_s
        peak_bytes = max(peak_bytes, _own_bytes())
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
    return {"clips": space.num_clips} | row | {"own memory (MiB)": (peak_bytes - before_bytes) / 2**20}


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
    machine = {"cpu_cores": psutil.cpu_count(), "load_average": psutil.getloadavg()}
    config.out.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    command_line.run(main)
