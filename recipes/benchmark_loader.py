#!/usr/bin/env python
"""How close does the loader come to the bare decoding loop, and how does it stand beside its peers?

Measures flamscale's loader, webdataset, MosaicML streaming and litData on the same samples, clips and machine: speed
over local disk and loopback S3, of videos and of pre-tokenised latents; time to the first batch, also when resumed;
samples that survive a corrupt header; memory. The limit is a bare loop of as many processes that reads and decodes and
does nothing else. Contestants take turns, each time in a fresh process; a row is of its best round, the one that other
work on the machine disturbed least. Peers get an environment each; one that cannot be had is left out with a note.

Command: python recipes/benchmark_loader.py        (--smoke for half a minute without peers)
Hardware and hours: two idle CPU cores, 20 minutes.
Aimed at: 0.95 of the bare loop from local disk, 0.9 from S3, ahead of all peers; for latents 0.8 of
the bare loop with np.load. The other bare loop of latents shares the loaders' parser, which reads a header only once.
"""

import json
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from loader_peers.contest import Job
from loader_peers.environments import BARE, BARE_NUMPY, OURS, PEERS
from loader_peers.prepare import LATENTS, corrupt_index, corrupt_tar, write_latents, write_videos
from loader_peers.turns import BARE_LOOP, Contest
from rich.console import Console
from rich.table import Table
from support.object_store import BUCKET, ObjectStore

from flamscale import command_line

VIDEO = Job(
    task="speed", url="", content="mp4", num_samples=800, sample_frames=64, clip_frames=16, batch=8, num_processes=1
)
TOKENS = replace(VIDEO, content=LATENTS, num_samples=8000, batch=64)
ONE_SHARD = replace(VIDEO, task="survivors", num_samples=250, sample_frames=32, clip_frames=32, batch=10)
BARE_LOOP_NUMPY = "bare loop, np.load"


Part = Literal["speed", "survivors", "starts", "memory"]


@dataclass(frozen=True, kw_only=True)
class BenchmarkLoader:
    """Prints a table and writes JSON."""

    parts: tuple[Part, ...] = ("speed", "survivors", "starts", "memory")
    """What to measure, one after the other."""

    smoke: bool = False
    """Measure our loader and the bare loop alone, from local disk, on little data."""
    rounds: int = 5
    """Turns each contestant takes (count)."""
    run_s: float = 3.0
    """Time of one measurement of speed (seconds)."""
    num_processes: tuple[int, ...] = (1, 2)
    """Processes that read (count), one table row each."""
    s3: bool = True
    """Measure over an S3 server on loopback as well."""
    environments: Path = Path(".venv-peers")
    """Folder for the peers' environments, kept for the next time."""
    out: Path = Path("recipes/results/benchmark_loader.json")
    """JSON file to write."""


def fastest(row: dict) -> float:
    """Returns the frames a second of a row's best round; 0 if it has none."""
    return max(done.get("frames_per_s", 0.0) for done in row["rounds"])


def best(row: dict) -> str:
    """Returns a row's figure in words: its best round's, of memory its worst, or the error that all rounds ended in."""
    rounds = [done for done in row["rounds"] if "error" not in done or done["error"] is None]
    if not rounds:
        return row["rounds"][0]["error"] + (f" after {row['rounds'][0].get('survivors', 0)} samples")
    if "frames_per_s" in rounds[0]:
        fastest = {name: max(done[name] for done in rounds) for name in rounds[0]}
        return f"{fastest['frames_per_s']:,.0f} frames/s, {fastest['frames_per_cpu_s']:,.0f} a CPU second"
    if "first_batch_s" in rounds[0]:
        return f"{min(done['first_batch_s'] for done in rounds) * 1000:,.0f} ms"
    if "survivors" in rounds[0]:
        return f"{rounds[0]['survivors']}"
    most = max(rounds, key=lambda done: done["memory_mib"])
    return f"{most['memory_mib']:,.0f} MiB, {most['growth_mib']:+,.1f} MiB in the second half"


def print_table(rows: Sequence[dict]) -> None:
    """Prints a line for each row."""
    table = Table("What", "Processes", "Contestant", "Best round", "Of the bare loop")
    limits = {(row["what"], row["processes"]): row for row in rows if row["contestant"] == BARE_LOOP}
    for row in rows:
        limit = limits.get((row["what"], row["processes"]))
        share = f"{fastest(row) / fastest(limit):.2f}" if limit and fastest(row) else ""
        table.add_row(row["what"], str(row["processes"]), row["contestant"], best(row), share)
    Console(width=140).print(table)


def loaders(contest: Contest) -> list[str]:
    """Returns the contestants that are no bare loops."""
    return [name for name in contest.contestants if not name.startswith(BARE_LOOP)]


def speed(contest: Contest, config: BenchmarkLoader) -> None:
    """Measures frames a second from local disk and, if wanted, from an object store."""
    jobs = {"video": replace(VIDEO, run_s=config.run_s), "latents": replace(TOKENS, run_s=config.run_s)}
    for data, job in jobs.items():
        for num_processes in config.num_processes:
            job = replace(job, num_processes=num_processes)
            names = [name for name in contest.contestants if data == "latents" or name != BARE_LOOP_NUMPY]
            contest.add(f"{data}, local disk", job, str(contest.folder / data), names, config.rounds)
    if not config.s3:
        return
    with ObjectStore(contest.folder / "store") as store:
        for data in ("video", "video-mds", "video-litdata"):
            if (contest.folder / data).exists():
                store.files.put(str(contest.folder / data), f"{BUCKET}/{data}", recursive=True)
        names = loaders(contest)
        streaming = [name for name in names if name == "flamscale" or not contest.contestants[name].copies]
        limit = str(contest.folder / "video")
        for num_processes in config.num_processes:
            job = replace(jobs["video"], num_processes=num_processes)
            url = f"s3://{BUCKET}/video"
            kept = replace(job, local="yes")
            contest.add("video, S3", kept, url, [BARE_LOOP, *names], config.rounds, limit)
            contest.add("video, S3, nothing kept on disk", job, url, [BARE_LOOP, *streaming], config.rounds, limit)


def survivors(contest: Contest, config: BenchmarkLoader) -> None:
    """Counts the samples of a 250-sample shard that come through after one header was overwritten."""
    for form, name in {"tar": "one", "mds": "one-mds", "litdata": "one-litdata"}.items():
        folder = contest.folder / name
        if form == "tar":
            corrupt_tar(str(folder))
        elif folder.exists():
            corrupt_index(sorted(folder.glob("*.mds" if form == "mds" else "*.bin"))[0])
    job = replace(ONE_SHARD, num_processes=config.num_processes[0])
    contest.add("survivors of 250", job, str(contest.folder / "one"), loaders(contest))


def starts(contest: Contest, config: BenchmarkLoader) -> None:
    """Times the first batch of a fresh and of a resumed run."""
    names = loaders(contest)
    job = replace(VIDEO, num_processes=max(config.num_processes))
    data = str(contest.folder / "video")
    for share in (0.0, 0.9):
        contest.add(f"start at {share:.0%}", replace(job, task="start", start=share), data, names, config.rounds)
    for share in () if config.smoke else (0.1, 0.5, 0.99):
        contest.add(
            f"start at {share:.0%}", replace(job, task="start", start=share), data, ["flamscale"], config.rounds
        )


def memory(contest: Contest, config: BenchmarkLoader) -> None:
    """Weighs all processes together, and what they gain in as long a time again."""
    job = replace(VIDEO, task="memory", num_processes=max(config.num_processes))
    contest.add("memory", job, str(contest.folder / "video"), loaders(contest), config.rounds)


PARTS: dict[Part, Callable[[Contest, BenchmarkLoader], None]] = {
    "speed": speed,
    "survivors": survivors,
    "starts": starts,
    "memory": memory,
}


def write(contest: Contest, config: BenchmarkLoader) -> None:
    """Writes what has been measured so far."""
    result = {
        "machine": {"cpu_cores": os.cpu_count(), "load_average": os.getloadavg()},
        "run": {"rounds": config.rounds, "run_s": config.run_s},
        "versions": {name: version(name) for name in ("av", "torch", "numpy")},
        "packages": {name: peer.packages for name, peer in PEERS.items()},
        "missing": contest.missing,
        "settings": contest.settings,
        "rows": contest.rows,
    }
    config.out.write_text(json.dumps(result, indent=1) + "\n")


def main(arguments: Sequence[str]) -> None:
    """Measures, prints and writes."""
    config = command_line.parse(BenchmarkLoader, arguments, description=__doc__ or "")
    if config.smoke:
        config = replace(config, rounds=1, run_s=0.5, num_processes=(1,), s3=False)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        peers = {} if config.smoke else PEERS
        contestants = {BARE_LOOP: BARE, BARE_LOOP_NUMPY: BARE_NUMPY, "flamscale": OURS, **peers}
        contest = Contest(folder, config.environments, contestants)
        num_samples = 16 if config.smoke else VIDEO.num_samples
        write_videos(str(folder / "video"), num_samples, VIDEO.sample_frames, size=128, shard_bytes=2**22)
        write_latents(str(folder / "latents"), 8, 1000, TOKENS.sample_frames, num_tokens=64)
        write_videos(str(folder / "one"), ONE_SHARD.num_samples, ONE_SHARD.sample_frames, size=64, shard_bytes=2**30)
        for data, content in {"video": "mp4", "latents": LATENTS, "one": "mp4"}.items():
            contest.write(data, content)
        for part in config.parts:
            PARTS[part](contest, config)
            write(contest, config)
    print_table(contest.rows)


if __name__ == "__main__":
    command_line.run(main)
