#!/usr/bin/env python
"""Makes a data set for FLAM: WebDataset tars of H.264 clips and their manifest, from simulators, videos or images.

    python recipes/make_shards.py --source multigrid --out data/multigrid
    python recipes/make_shards.py --source procgen --game bigfish --episodes 2000 --out data/bigfish
    python recipes/make_shards.py --source video --input videos/ --size 128 --out s3://bucket/videos
    python recipes/make_shards.py --source images --input nuplan/sensor_blobs --camera CAM_F0 --timestamps nuplan/db
        --out s3://bucket/nuplan --ray auto
    python recipes/make_shards.py --source webdataset --input s3://bucket/tars --out s3://bucket/tars

Videos of any codec, size and frame rate are cut into scenes, brought to one size and rate, and cut into episodes;
static episodes, and near copies of earlier ones, are dropped and counted. A start with the same flags after a kill
goes on where the last one stopped, and the data are the same bytes for any number of workers. The last line writes
only a manifest: WebDataset tars of videos are indexed where they lie.

Hardware: CPU cores, those of this machine or of a Ray cluster. Disk: as much again as the data set while it is made.
Memory: a few tars for each worker. Time: 640 MultiGrid episodes (20,480 frames of 64x64) take about 10 s on one core,
as many Procgen frames of 224x224 two and a half minutes.
Expected: a folder with train/, validation/ and test/ tars that any webdataset reader opens, their manifest,
summary.json with all counts, and contact_sheet.png, which is worth a look.
Object stores: address and keys come from AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, on every node.
"""

import time
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.progress import track

from flamscale import command_line
from flamscale.data import ingest, storage, summary
from flamscale.data.executors import Executor
from flamscale.data.make_config import MakeShards
from flamscale.data.manifest import Manifest
from flamscale.data.sources.webdataset_tars import WebdatasetSource
from flamscale.data.work_folder import WorkFolder
from flamscale.errors import ConfigError


def main(arguments: Sequence[str]) -> None:
    """Makes the data set, or finds that it is already there."""
    config = command_line.parse(MakeShards, arguments, description=__doc__ or "")
    source = config.build()
    existing = Manifest.find(config.out)
    if existing is not None:
        if not config.is_same(existing.arguments):
            raise ConfigError(
                f"{config.out} already holds a data set made with other arguments ({existing.arguments}, now "
                f"{config.arguments}): choose another --out, or delete that one first."
            )
        WorkFolder(out=config.out).remove()
        print(f"{config.out} already holds this data set ({summary.describe(existing)}); nothing to do.")
        return
    started_s = time.monotonic()
    console = Console(stderr=True)

    def progress(stage: str, results: Iterable[Any], num_done: int, num_pieces: int) -> Iterable[Any]:
        return track(results, stage, total=num_pieces, completed=num_done, console=console)

    def finish(outcome: ingest.Outcome) -> None:
        counts = summary.summarise(outcome, time.monotonic() - started_s)
        summary.save(outcome, counts)
        summary.print_summary(counts, outcome.faults, console)

    name = config.out.rstrip("/").rsplit("/", 1)[-1]
    if isinstance(source, WebdatasetSource):
        num_tars = len(source)
        storage.check_writable(config.out)
        tars = list(progress("indexing tars", source, 0, num_tars))
        manifest, left_out = source.manifest(tars, config.out, name, config.arguments)
        summary.print_left_out(left_out, console)
        manifest.save(config.out)
    else:
        job = ingest.Ingest(
            job=config.job(source),
            name=name,
            kind=config.source,
            arguments=config.arguments,
            executor=_ray(config) if config.ray else config.local_executor(),
            max_bad_fraction=config.max_bad_fraction,
            progress=progress,
        )
        manifest = job.run(finish)
    print(f"Wrote {summary.describe(manifest)} to {config.out} in {time.monotonic() - started_s:.1f} s.")


def _ray(config: MakeShards) -> Executor:
    from flamscale_cluster.arguments import check_absolute
    from flamscale_cluster.head import find_cluster
    from flamscale_cluster.tasks import RayTasks

    places = (("--out", config.out), ("--input", config.input), ("--timestamps", config.timestamps))
    check_absolute((flag, place) for flag, place in places if place)
    return RayTasks(address=find_cluster(config.ray, flag="--ray"))


if __name__ == "__main__":
    command_line.run(main)
