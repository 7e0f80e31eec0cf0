"""webdataset over our tars: shards split over workers and shuffled, a buffer of samples shuffled again."""

import shlex
from collections.abc import Generator, Iterator
from functools import partial
from itertools import islice

import s3fs
import torch
import webdataset
from contest import Decode, Job, compete
from torch.utils.data import DataLoader

from flamscale.data.manifest import Manifest

SETTINGS = {"shuffle_buffer": 100, "prefetch_factor": 4, "persistent_workers": True, "handler": "warn_and_continue"}


def _skip(samples: Iterator[dict], count: int) -> Iterator[dict]:
    """webdataset keeps no state: a resumed run reads past what it has had."""
    return islice(samples, count, None)


def _readable(url: str) -> str:
    """An s3:// URL as a command that streams it: what webdataset does with HTTP, and lighter than the AWS client."""
    return f"pipe:curl -sf {shlex.quote(s3fs.S3FileSystem().sign(url))}" if url.startswith("s3://") else url


def open_loader(job: Job) -> Generator[torch.Tensor, None, None]:
    """Yields clips."""
    urls = [_readable(shard.url) for shard in Manifest.load(job.url).of_split("train")]
    handler = webdataset.warn_and_continue
    stages = [
        webdataset.SimpleShardList(urls, seed=0),
        webdataset.detshuffle(100, seed=0),
        webdataset.split_by_worker,
        webdataset.tarfile_to_samples(handler=handler),
        webdataset.shuffle(SETTINGS["shuffle_buffer"]),
    ]
    if job.start:
        stages.append(partial(_skip, count=job.resumed_samples // job.num_processes))
    stages += [
        webdataset.to_tuple(job.content),
        webdataset.map_tuple(Decode(job), handler=handler),
        webdataset.batched(job.batch, partial=False),
    ]
    loader = DataLoader(
        webdataset.DataPipeline(*stages),
        batch_size=None,
        num_workers=job.num_processes,
        prefetch_factor=SETTINGS["prefetch_factor"],
        persistent_workers=SETTINGS["persistent_workers"],
    )
    while True:
        for (clips,) in loader:
            yield torch.as_tensor(clips)


def main() -> None:
    """Does the job on the command line."""
    job = Job.of_command_line()
    compete(job, open_loader(job), SETTINGS)
