#!/usr/bin/env python
"""Do the paper's tables (arXiv 2602.16229) come out again, and how do ours compare?

Command: python recipes/reproduce.py --table prediction --budget hour --data data/reproduce --out runs/reproduce
    Makes MultiGrid (full: Procgen too) data sets under --data, trains and evaluates every row's runs, and writes
    OUT/<table>.md, .json and .png. Tables share --data and --out, one folder for each budget: a run that another table
    has finished is not run again, and the same command goes on after a kill. --dry-run prints every run and its cost.

Hardware and hours: smoke two CPU cores, seconds a row (it proves the pipeline, its numbers mean nothing); hour two CPU
cores, about an hour for prediction and dci together; full GPUs, as long as --dry-run says.

Expected: FLAM's rows above the monolithic baselines' and copy-last's, its slots' D and I above the ablations'.
"""

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro
from flamscale_cluster.arguments import check_absolute
from flamscale_cluster.sweep_config import SweepConfig

from flamscale import command_line
from flamscale.config import ReproduceConfig
from flamscale.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Which table, at what cost, and where."""

    config: Annotated[ReproduceConfig, tyro.conf.arg(name="")]
    dry_run: bool = False
    """Print every run and its cost, and run nothing."""
    tflops_per_s: float = 0.0
    """Model FLOP rate of a run's device that device-hours follow from (TFLOP/s); 0 for an assumption."""
    sweep: Annotated[SweepConfig, tyro.conf.arg(name="")]


def main(arguments: Sequence[str]) -> None:
    """Trains what is missing and writes the table, or tells what it would cost."""
    chosen = command_line.parse(Arguments, arguments, description=__doc__ or "")
    from flamscale.reproduce.budgets import BUDGETS  # these import torch, which --help shall not wait for
    from flamscale.reproduce.rows import check_weights
    from flamscale.reproduce.tables import TABLES, shards_of
    from flamscale.scaling.cost import print_costs

    config, budget = chosen.config, BUDGETS[chosen.config.budget]
    check_absolute([("--data", config.data), ("--out", config.out)])
    if chosen.sweep.early_stop:
        raise ConfigError("early-stop would leave a row the mean of its better seeds; leave it out.")
    studies = TABLES[config.table].studies(config)
    for study in studies:
        print_costs(study.runs(), chosen.tflops_per_s or budget.tflops_per_s)
    if chosen.dry_run:
        return
    check_weights([run for study in studies for run in study.runs()])
    from flamscale_cluster.sweep import FailedRunsError, run_study

    from flamscale.reproduce.report import write_report
    from flamscale.scaling.records import RunRecord

    failed: FailedRunsError | None = None
    for study in studies:
        if all(RunRecord(run).is_finished for run in study.runs()):
            continue
        try:
            # Entities of Procgen come and go, so that no probe can be fitted to each.
            run_study(study, chosen.sweep, shards_of(study, budget), entities=study is studies[0])
        except FailedRunsError as error:  # the others are worth a table
            failed = error
    command = shlex.join(["python", "recipes/reproduce.py", *sys.argv[1:]])
    print(f"table: {write_report(config, studies, command)}", flush=True)
    if failed:
        raise failed


if __name__ == "__main__":
    command_line.run(main)
