"""litData over optimised chunks of the same video bytes."""

from collections.abc import Generator

import litdata
import torch
from contest import Decode, Job, compete

SETTINGS = {"shuffle": True, "drop_last": True, "prefetch_factor": 4, "persistent_workers": True}


class Clips(litdata.StreamingDataset):
    """Random clips of the samples."""

    def __init__(self, job: Job) -> None:
        super().__init__(job.url, cache_dir=job.local or None, shuffle=True, drop_last=True, seed=0)
        self.decode = Decode(job)

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.from_numpy(self.decode(super().__getitem__(index)))


def _loader(job: Job) -> litdata.StreamingDataLoader:
    return litdata.StreamingDataLoader(
        Clips(job),
        batch_size=job.batch,
        num_workers=job.num_processes,
        prefetch_factor=SETTINGS["prefetch_factor"],
        persistent_workers=SETTINGS["persistent_workers"],
    )


def _state_at(job: Job) -> dict:
    """Returns the state of a loader that has handed out `resumed_samples`, as it writes it in mid-epoch."""
    loader = _loader(job)
    batches = iter(loader)
    for _ in range(job.resumed_samples // job.batch):
        next(batches)
    return loader.state_dict()


def open_loader(job: Job, state: dict | None) -> Generator[torch.Tensor, None, None]:
    """Yields clips, from where `state` was taken."""
    loader = _loader(job)
    if state is not None:
        loader.load_state_dict(state)
    while True:
        yield from loader


def main() -> None:
    """Does the job on the command line."""
    job = Job.of_command_line()
    compete(job, open_loader(job, _state_at(job) if job.start else None), SETTINGS)
