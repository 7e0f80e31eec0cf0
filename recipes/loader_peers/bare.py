"""The limit: plain processes that read a sample's bytes at a known place, decode a clip of it and drop the frames."""

import json
import multiprocessing
import os
import time
from collections.abc import Callable

import numpy as np
from contest import WARM_S, Decode, Job, speed

from flamscale.data import storage
from flamscale.data.manifest import Manifest


def _read_on(job: Job, take: Callable[[bytes], np.ndarray], queue: multiprocessing.Queue) -> None:
    """Reads samples in random order, and tells the speed of `run_s` after WARM_S."""
    places = []
    for shard in Manifest.load(job.url).of_split("train"):
        file = os.open(storage.local_path(shard.url) or shard.url, os.O_RDONLY)
        member = shard.samples.members[job.content]
        places += [(file, int(start), int(size)) for start, size in zip(member.offsets, member.sizes, strict=True)]
    order = np.random.default_rng().permutation(len(places)).tolist()
    num_clips = 0
    for run_s in (WARM_S, job.run_s):
        start_s, start_cpu_s, num_before = time.perf_counter(), time.process_time(), num_clips
        while time.perf_counter() < start_s + run_s:
            file, start, size = places[order[num_clips % len(order)]]
            take(os.pread(file, size, start))
            num_clips += 1
    num_frames = (num_clips - num_before) * job.clip_frames
    queue.put(speed(num_frames, time.perf_counter() - start_s, time.process_time() - start_cpu_s))


def main(take: Callable[[bytes], np.ndarray] | None = None) -> None:
    """Prints the speed of all processes together, and the processor time of their mean.

    Args:
        take: what is done with a sample's bytes; none: what all loaders do.
    """
    job = Job.of_command_line()
    queue: multiprocessing.Queue = multiprocessing.Queue()
    arguments = (job, take or Decode(job), queue)
    processes = [multiprocessing.Process(target=_read_on, args=arguments) for _ in range(job.num_processes)]
    for process in processes:
        process.start()
    speeds = [queue.get() for _ in processes]
    frames_per_s = sum(one["frames_per_s"] for one in speeds)
    frames_per_cpu_s = float(np.mean([one["frames_per_cpu_s"] for one in speeds]))
    settings = {"note": "local disk, index in memory, no checks, no batches"}
    print(json.dumps({"settings": settings, "frames_per_s": frames_per_s, "frames_per_cpu_s": frames_per_cpu_s}))
