"""flamscale's own loader."""

from collections.abc import Generator

import torch
from contest import Job, compete

from flamscale.config import DataConfig
from flamscale.data.loader import ClipLoader
from flamscale.data.mixture import Mixture

SETTINGS = {"window_shards": 16, "prefetch_batches": 4}
WITHOUT_COPIES = SETTINGS | {"window_shards": 2, "fetch_cache_mib": 12}
"""The data are few: memory holds a window, as it would of many, and not half of all."""


def settings_of(job: Job) -> dict[str, int]:
    """Returns the loader's settings for a job."""
    return WITHOUT_COPIES if "://" in job.url and not job.local else SETTINGS


def open_loader(job: Job) -> Generator[torch.Tensor, None, None]:
    """Yields clips."""
    config = DataConfig(num_processes=job.num_processes, shard_cache=job.local, **settings_of(job))
    loader = ClipLoader(
        Mixture.load([job.url]),
        "train",
        clip_frames=job.clip_frames,
        frame_stride=1,
        clip_hop=1,
        global_batch=job.batch,
        micro_batch=job.batch,
        rank=0,
        world_size=1,
        seed=0,
        config=config,
    )
    if job.start:
        state = loader.state()
        loader.load_state(type(state)(**vars(state) | {"position": int(loader.num_clips * job.start)}))
    with loader:
        for batch in loader:
            yield batch.video


def main() -> None:
    """Does the job on the command line."""
    job = Job.of_command_line()
    compete(job, open_loader(job), settings_of(job))
