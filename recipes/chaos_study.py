#!/usr/bin/env python
"""What does a study lose when its processes are killed, and what does the scheduler cost each run?

Runs a study of many small runs on an emulated cluster of two nodes while processes that train are killed at random.
Fails unless every run is finished once, with every step recorded once.

Command: python recipes/chaos_study.py
Hardware and hours: two CPU cores, ten minutes.
Expected: no run lost or done twice; a free device has its next run handed over within a second, and the rest of the
time between two runs, some ten seconds, is the start of a process.
"""

import json
import os
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path

from flamscale_cluster.sweep import run_study
from flamscale_cluster.sweep_config import SweepConfig
from rich.console import Console
from rich.table import Table
from support.multigrid import write_multigrid
from support.nodes import Nodes
from support.study_kills import Killer, overheads, problems, summary

from flamscale import command_line
from flamscale.config import DataConfig, PretrainConfig
from flamscale.errors import ConfigError, FlamError
from flamscale.presets import PRESETS
from flamscale.scaling.axes import SIZES, Seeds, with_steps
from flamscale.scaling.records import RunRecord
from flamscale.scaling.study import Study

NODES = 2
SIZE = 32  # of frames (pixels)


@dataclass(frozen=True, kw_only=True)
class ChaosStudy:
    """Prints a table and writes JSON."""

    runs: int = 60
    """Runs of the study (count)."""
    kills: int = 12
    """Kills while they work, at least two fewer than runs (count)."""
    steps: int = 12
    """Steps of each run (count)."""
    seed: int = 0
    """Seed of the moments of kills."""
    note: str = ""
    """What else the machine did meanwhile."""
    out: Path = Path("recipes/results/chaos_study.json")
    """JSON file to write."""

    def __post_init__(self) -> None:
        if not 0 <= self.kills <= self.runs - NODES:
            raise ConfigError(f"kills must be 0 or more, and {NODES} fewer than runs, got {self.kills} of {self.runs}.")


def small_run(data: str, out: str, num_steps: int) -> PretrainConfig:
    """The preset quickstart with the smallest named size, on small frames."""
    config = PRESETS["quickstart"]()
    config = replace(
        config,
        out=out,
        data=DataConfig(url=(data,), cache_mib=16),
        tokenizer=replace(config.tokenizer, image_size=SIZE),
        tokenizer_stage=replace(config.tokenizer_stage, num_steps=20, warmup_steps=2, validate_every=0),
        flam=SIZES["xxs"].apply(config.flam),
        evaluation=replace(config.evaluation, num_clips=4),
        cluster=replace(config.cluster, num_workers=1, zero_stage=0),
    )
    config = with_steps(config, num_steps)
    stage = replace(config.flam_stage, log_every=1, checkpoint_every=4, validation_clips=32)
    return replace(config, flam_stage=stage)


def main(arguments: Sequence[str]) -> None:
    """Runs the study under kills, checks it, prints and writes."""
    chaos = command_line.parse(ChaosStudy, arguments, description=__doc__ or "")
    with tempfile.TemporaryDirectory() as temporary, Nodes(NODES, {}) as nodes:
        write_multigrid(f"{temporary}/data", num_agents=2, size=SIZE)
        base = small_run(f"{temporary}/data", f"{temporary}/study", chaos.steps)
        study = Study(name="chaos", question="?", base=base, axes=(Seeds(values=tuple(range(chaos.runs))),))
        os.environ |= nodes.environment  # Ray reads it as it is imported: in a process of its own
        started = time.monotonic()
        with (
            Killer(nodes, study.runs(), chaos.kills, chaos.seed) as killer,
            ProcessPoolExecutor(1, mp_context=get_context("spawn")) as driver,
        ):
            driver.submit(run_study, study, SweepConfig(ray=nodes.address, max_retries=chaos.kills)).result()
        total_s = time.monotonic() - started
        found = problems(study.runs())
        if found:
            raise FlamError(f"The study is not as it should be: {'; '.join(found)}.")
        costs = summary(overheads(study.runs(), killer.kills))
        records = [RunRecord(run).read() for run in study.runs()]
    retries = sum(len(record["attempts"]) - 1 for record in records)
    table = Table("Between two runs on a device (s)", "median", "most")
    for name, values in costs.items():
        table.add_row(name.removesuffix("_s"), f"{values['median']:.2f}", f"{values['most']:.2f}")
    Console().print(table, f"{chaos.runs} runs, {len(killer.kills)} kills, {retries} retries, {total_s:.0f} s")
    result = {
        "runs": chaos.runs, "steps": chaos.steps, "nodes": NODES, "kills": len(killer.kills), "retries": retries,
        "total_s": total_s, "run_s": sorted(record["seconds"] for record in records), "overhead": costs,
        "versions": {name: version(name) for name in ("ray", "torch")}, "note": chaos.note,
    }  # fmt: skip
    chaos.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    command_line.run(main)
