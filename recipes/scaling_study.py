#!/usr/bin/env python
"""How many factors do these data need, what does more video buy, and which model size is best for a compute budget?

Hypotheses: K below the number of entities hurts, K above it does no harm (arXiv 2602.16229, Figure 4); loss falls with
videos and parameters as a power law down to an irreducible loss, and both should grow together (arXiv 2203.15556).

Command: python recipes/scaling_study.py --study factors --preset quickstart --data data/scaling --out runs/factors
    --dry-run prints every run with its parameters, FLOPs, device-hours and storage. The same command again goes on.
    MultiGrid data sets are made under --data; the preset large reads the data set that lies there.

Hardware and hours: quickstart two CPU cores, an hour or less for factors and data together; multigrid one GPU or more,
large a cluster, for as long as --dry-run says: --tokenizer-from a run of pretrain_large.py, as a study trains its
tokenizer on one device, and --num-workers 1 2 4 8 for more devices the larger the model.

Expected: report.md, figures and results.json in --out, with laws and intervals, or why the runs support none; the best
models in frontier/.
"""

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from flamscale_cluster.arguments import check_absolute
from flamscale_cluster.sweep_config import SweepConfig

from flamscale import command_line

if TYPE_CHECKING:
    from flamscale.scaling.study import Study

TFLOPS_PER_S = {"quickstart": 0.016, "multigrid": 20.0, "large": 200.0}
"""Assumed rate of a run's device: a CPU core, as `make pretrain` reached; a GPU in fp32; one in bf16."""


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """What to vary, how large, and where."""

    study: Literal["factors", "data", "model", "joint"]
    """factors: K against entities; data: unique videos; model: sizes at equal compute; joint: sizes and videos."""
    preset: Literal["quickstart", "multigrid", "large"] = "quickstart"
    """Settings that all runs share."""
    data: str
    """Folder of the data sets (MultiGrid, made where missing); for large the data set itself."""
    out: str
    """The study's folder: run directories, shared tokenizers and latents, report."""
    num_workers: tuple[int, ...] = (1,)
    """Workers of each run, a device each (count); or, where sizes vary, those of each size, the smallest first."""
    tokenizer_from: str = ""
    """Run directory or model/ folder whose trained tokenizer all runs share; empty trains one for each data set."""
    dry_run: bool = False
    """Print every run and its cost, and run nothing."""
    tflops_per_s: float = 0.0
    """Model FLOP rate of a run's device that device-hours follow from (TFLOP/s); 0 for an assumption."""
    sweep: Annotated[SweepConfig, tyro.conf.arg(name="")]


def main(arguments: Sequence[str]) -> None:
    """Runs the study and writes its report, or tells what it would cost."""
    chosen = command_line.parse(Arguments, arguments, description=__doc__ or "")
    from flamscale.data.sources.inputs import absolute  # these import torch, which --help shall not wait for
    from flamscale.scaling import studies
    from flamscale.scaling.cost import print_costs

    places = {"--data": chosen.data, "--out": chosen.out, "--tokenizer-from": chosen.tokenizer_from}
    check_absolute(places.items())
    study: Study = studies.STUDIES[chosen.study](chosen.preset, chosen.data, chosen.out)
    study = studies.with_workers(study, chosen.num_workers)
    if chosen.tokenizer_from:
        study = replace(study, base=replace(study.base, tokenizer_from=absolute(chosen.tokenizer_from)))
    rate = chosen.tflops_per_s or TFLOPS_PER_S[chosen.preset]
    print_costs(study.runs(), rate)
    if chosen.dry_run:
        return
    from flamscale_cluster.sweep import FailedRunsError, run_study

    from flamscale.scaling.report import write_study_report

    simulated = chosen.preset != "large"
    shards = studies.multigrid_shards(study, chosen.preset) if simulated else ()
    failed: FailedRunsError | None = None
    try:
        run_study(study, chosen.sweep, shards, entities=simulated)
    except FailedRunsError as error:  # the others are worth a report
        failed = error
    command = shlex.join(["python", "recipes/scaling_study.py", *sys.argv[1:]])
    print(f"report: {write_study_report(study, rate, command)}", flush=True)
    if failed:
        raise failed


if __name__ == "__main__":
    command_line.run(main)
