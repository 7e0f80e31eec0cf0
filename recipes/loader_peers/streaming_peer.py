"""MosaicML streaming over MDS shards of the same video bytes; `write` makes them."""

from collections.abc import Generator

import torch
from contest import Decode, Job, compete
from torch import library

# A torchvision built for another torch than the CPU's lacks operators and cannot be imported, which streaming does.
for name in ("nms", "qnms"):
    if not hasattr(torch.ops.torchvision, name):
        library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

import streaming  # noqa: E402

SETTINGS = {"shuffle": True, "shuffle_algo": "py1e", "prefetch_factor": 4, "persistent_workers": True}


class Clips(streaming.StreamingDataset):
    """Random clips of the samples."""

    def __init__(self, job: Job) -> None:
        remote = {"remote": job.url, "local": job.local} if "://" in job.url else {"local": job.url}
        super().__init__(
            **remote, batch_size=job.batch, shuffle=True, shuffle_algo=SETTINGS["shuffle_algo"], shuffle_seed=0
        )
        self.decode = Decode(job)

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.from_numpy(self.decode(super().__getitem__(index)["content"]))


def open_loader(job: Job) -> Generator[torch.Tensor, None, None]:
    """Yields clips."""
    data = Clips(job)
    loader = streaming.StreamingDataLoader(
        data,
        batch_size=job.batch,
        num_workers=job.num_processes,
        drop_last=True,
        prefetch_factor=SETTINGS["prefetch_factor"],
        persistent_workers=SETTINGS["persistent_workers"],
    )
    if job.start:
        loader.load_state_dict(data.state_dict(job.resumed_samples, from_beginning=True))
    while True:
        yield from loader


def main() -> None:
    """Does the job on the command line."""
    job = Job.of_command_line()
    compete(job, open_loader(job), SETTINGS)
