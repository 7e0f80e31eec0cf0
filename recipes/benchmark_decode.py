#!/usr/bin/env python
"""Which backend decodes clips fastest, and do threads pay?

    python recipes/benchmark_decode.py --input pedestrians.avi

Decodes clips of 16 frames from random places, and whole samples, with every backend in turn; figures are of the best
round, the one that other work on the machine disturbed least. A backend that gives other frames than PyAV ends the run.
Hardware: two idle CPU cores. Time: 5 minutes. Expected: PyAV first for clips; OpenCV level or ahead for whole samples.
"""

import importlib
import json
import random
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import tyro

from flamscale.data.decode import MODULES, PREFERENCE, Backend, decode_frames, why_unavailable
from flamscale.data.encode import LOSSLESS_CRF, NEAR_LOSSLESS_CRF, encode_frames
from flamscale.data.sources.multigrid import MultigridSource
from flamscale.data.sources.video import VideoSource
from flamscale.errors import DataError, FlamError

NUM_FRAMES = 256  # of a sample
JOBS = {"clips": [16] * 6, "samples": [NUM_FRAMES] * 2}  # lengths of the runs decoded in a round
WAYS = {"1 thread": (1, 1), "2 threads a clip": (2, 1), "2 clips at once": (1, 2)}  # threads of a clip, clips at once


@dataclass(frozen=True, kw_only=True)
class BenchmarkDecode:
    """Prints the speed of every decoding backend, and writes it as JSON."""

    input: str = ""
    """Camera video to measure beside MultiGrid: a file of 256 frames or more; none if empty."""
    row_s: float = 3.0
    """Time for one line of the table, at least three rounds (seconds)."""
    out: Path = Path("recipes/results/benchmark_decode.json")
    """JSON file to write."""


def measure(video: bytes, lengths: list[int], way: str, row_s: float) -> dict[Backend, float]:
    """Returns frames a second of every backend that is available."""
    backends = [name for name in PREFERENCE if why_unavailable(name) is None]
    num_threads, at_once = WAYS[way]
    chance = random.Random(0)
    runs = [(chance.randint(0, NUM_FRAMES - length), length) for length in lengths]
    taken_s: dict[Backend, list[float]] = {name: [] for name in backends}
    end_s = time.monotonic() + row_s
    with ThreadPoolExecutor(at_once) as pool:
        while time.monotonic() < end_s or len(taken_s["pyav"]) < 3:
            decoded = {}
            for name in chance.sample(backends, len(backends)):
                start_s = time.perf_counter()
                jobs = [pool.submit(decode_frames, video, *run, backend=name, num_threads=num_threads) for run in runs]
                decoded[name] = [job.result() for job in jobs]
                taken_s[name].append(time.perf_counter() - start_s)
            for name, frames in decoded.items():
                if not all(map(np.array_equal, frames, decoded["pyav"])):
                    raise DataError(f"{name} gives other frames than pyav, so its speed says nothing: leave it out.")
    return {name: sum(lengths) / min(times) for name, times in taken_s.items()}


def benchmark(config: BenchmarkDecode) -> list[dict]:
    """Prints and returns one row for each video, job and way."""
    rows = []
    for source, size, gop in product(["multigrid"] + ["camera"] * bool(config.input), (64, 128, 256), (16, 250)):
        if source == "multigrid":
            (episode,) = MultigridSource(size=size, episode_frames=NUM_FRAMES, episodes=1)
        else:
            episode = next(iter(VideoSource(input=config.input, size=size, episode_frames=NUM_FRAMES)))
        crf = LOSSLESS_CRF if source == "multigrid" else NEAR_LOSSLESS_CRF
        video = encode_frames(episode.frames, 10.0, crf, gop)
        for (job, lengths), way in product(JOBS.items(), WAYS):
            fps = measure(video, lengths, way, config.row_s)
            row = {"video": source, "size": size, "gop": gop, "KiB": len(video) // 1024, "decoded": job, "by": way}
            row |= {"frames/s (pyav)": round(fps["pyav"]), "clips or samples/s": round(fps["pyav"] / lengths[0], 1)}
            row |= {f"{name}:pyav": round(value / fps["pyav"], 2) for name, value in fps.items() if name != "pyav"}
            if not rows:
                print(*row, sep="\t")
            print(*row.values(), sep="\t", flush=True)
            rows.append(row)
    return rows


def main() -> int:
    """Returns the exit code: 0 done, 1 failed."""
    config = tyro.cli(BenchmarkDecode, description=__doc__)
    libraries = {}
    for name in PREFERENCE:
        reason = why_unavailable(name)
        version = None if reason else importlib.import_module(MODULES[name]).__version__
        libraries[name] = version or f"not available here: {reason}"
    print(*(f"{name}: {version}" for name, version in libraries.items()), sep="\n")
    try:
        rows = benchmark(config)
    except FlamError as error:
        print(f"benchmark_decode: {error}", file=sys.stderr)
        return 1
    config.out.write_text(json.dumps({"libraries": libraries, "rows": rows}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
