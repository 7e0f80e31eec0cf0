"""What every contestant of benchmark_loader.py does alike: a job comes in as JSON on the command line, figures go out.

A contestant hands over one function, which opens its loader for a job and yields uint8 or integer batches [B, T, ...]
without end. It runs in a process of its own, with its imports done before the clock starts.
"""

import contextlib
import hashlib
import json
import sys
import time
from collections.abc import Generator
from dataclasses import dataclass

import numpy as np
import psutil

from flamscale.data.decode import decode_frames
from flamscale.data.decode_latents import decode_latents
from flamscale.data.manifest import VIDEO

WARM_S = 1.5
"""Time from the first batch to the start of a measurement of speed (seconds)."""

MEMORY_S = 8.0
"""Time until memory is weighed, and until it is weighed again: some epochs each (seconds)."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What to read, and what to find out."""

    task: str
    """speed, start, survivors or memory."""
    url: str
    """Folder or s3:// URL of the data in the contestant's own format."""
    content: str
    """Extension of the files: mp4, or that of latents."""
    num_samples: int
    """Samples of an epoch (count)."""
    sample_frames: int
    """Frames of each sample (count)."""
    clip_frames: int
    """Frames of a clip (count)."""
    batch: int
    """Clips of a batch (count)."""
    num_processes: int
    """Processes that read (count)."""
    start: float = 0.0
    """Place to go on from (share of an epoch)."""
    run_s: float = 3.0
    """How long speed is measured (seconds)."""
    local: str = ""
    """Folder on local disk for copies of what lies in an object store; none if empty."""

    @classmethod
    def of_command_line(cls) -> "Job":
        """Returns the job this process was started for."""
        return cls(**json.loads(sys.argv[1]))

    @property
    def resumed_samples(self) -> int:
        """Samples of the epoch already used, in whole batches (count)."""
        return int(self.num_samples * self.start) // self.batch * self.batch


def decode(content: bytes, job: Job, chance: np.random.Generator) -> np.ndarray:
    """Returns a random clip [T, ...] of a sample: what every peer does with the bytes it has loaded."""
    first = int(chance.integers(job.sample_frames - job.clip_frames + 1))
    if job.content == VIDEO:
        return decode_frames(content, first, job.clip_frames)
    return decode_latents(content, first, job.clip_frames, 1)


class Decode:
    """`decode` with the job filled in, for loaders that map a function over samples."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._chance: np.random.Generator | None = None

    def __call__(self, content: bytes) -> np.ndarray:
        if self._chance is None:  # a stream of its own in every process
            self._chance = np.random.default_rng()
        return decode(content, self._job, self._chance)


def compete(job: Job, batches: Generator, settings: dict) -> None:
    """Does the job and prints what came out as one line of JSON.

    Args:
        job: what to find out.
        batches: the contestant's batches without end; a generator, so that nothing is opened before the first `next`.
        settings: what it is set to, for the record.
    """
    find_out = {"speed": _speed, "start": _start, "survivors": _survivors, "memory": _memory}[job.task]
    with contextlib.closing(batches):
        figures = find_out(batches, job)
    print(json.dumps({"settings": settings, **figures}), flush=True)


def speed(num_frames: int, wall_s: float, cpu_s: float) -> dict:
    """Returns frames a second, and a second of processor time, which other work on the machine disturbs less."""
    return {"frames_per_s": num_frames / wall_s, "frames_per_cpu_s": num_frames / cpu_s}


def _tree() -> list[psutil.Process]:
    """Returns this process and those it has started, directly or not."""
    process = psutil.Process()
    return [process, *process.children(recursive=True)]


def _cpu_s() -> float:
    """Returns the processor time of all of them so far (seconds)."""
    return sum(times.user + times.system for times in (one.cpu_times() for one in _tree()))


def _speed(batches: Generator, job: Job) -> dict:
    """Speed once the processes are up: from a batch after WARM_S to one `run_s` later."""
    next(batches)
    warm_s = time.perf_counter() + WARM_S
    while time.perf_counter() < warm_s:
        next(batches)
    start_s, start_cpu_s, num_frames = time.perf_counter(), _cpu_s(), 0
    while time.perf_counter() < start_s + job.run_s:
        num_frames += job.clip_frames * len(next(batches))
    return speed(num_frames, time.perf_counter() - start_s, _cpu_s() - start_cpu_s)


def _start(batches: Generator, job: Job) -> dict:
    """Time from opening the data set, which a generator does at its first batch, to that batch."""
    start_s = time.perf_counter()
    clips = next(batches)
    assert clips.shape[:2] == (job.batch, job.clip_frames), clips.shape
    return {"first_batch_s": time.perf_counter() - start_s}


def _survivors(batches: Generator, job: Job) -> dict:
    """Samples that come in one epoch; told apart by their first frames."""
    seen, error = set(), None
    try:
        for _ in range(0, job.num_samples, job.batch):
            seen |= {hashlib.sha256(np.asarray(clip).tobytes()).digest() for clip in next(batches)}
    except Exception as found:  # noqa: BLE001 - whatever a peer raises is its answer
        error = f"{type(found).__name__}: {found}".splitlines()[0][:200]
    return {"survivors": len(seen), "error": error}


def _memory(batches: Generator, job: Job) -> dict:
    """Memory of all processes together, shared pages counted once, after MEMORY_S and after as long again."""
    used = []
    for _ in range(2):
        end_s = time.perf_counter() + MEMORY_S
        while time.perf_counter() < end_s:
            next(batches)
        used.append(sum(one.memory_full_info().pss for one in _tree()) / 2**20)
    return {"memory_mib": used[-1], "growth_mib": used[-1] - used[0]}
