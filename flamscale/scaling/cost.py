"""What a study will cost, before anything is spent: runs in; parameters, FLOPs, device-hours and storage out.

Each model is built on fake tensors, as large as it is and without content.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch._subclasses.fake_tensor import FakeTensorMode

from flamscale.models.build import build_world_model
from flamscale.scaling.axes import clip_flops
from flamscale.scaling.study import Run
from flamscale.training.sizes import count_parameters

COST_FORMULA = (
    "Stage 2 alone, latents read in place of video. FLOPs: model FLOPs of all clips, forward and backward. Storage: "
    "12 bytes a parameter for each checkpoint kept, 4 for the exported model; tokenizer, latents and records "
    "come on top."
)


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Of one run."""

    parameters: int
    """FLAM's (count)."""
    num_clips: int
    """Clips trained on, repeated ones included (count)."""
    flops: float
    """Model FLOPs of training (count)."""
    device_hours: float
    storage_bytes: int


def run_cost(run: Run, tflops_per_s: float) -> Cost:
    """Returns what a run costs on devices of this model FLOP rate (TFLOP/s); see COST_FORMULA."""
    config, stage = run.config, run.config.flam_stage
    with FakeTensorMode():
        parameters = count_parameters(build_world_model(config.flam, config.tokenizer))
    num_clips = stage.num_steps * stage.global_batch
    flops = clip_flops(config) * num_clips
    return Cost(
        parameters=parameters,
        num_clips=num_clips,
        flops=float(flops),
        device_hours=flops / (1e12 * tflops_per_s) / 3_600,
        storage_bytes=parameters * (12 * stage.keep_checkpoints + 4),
    )


def print_costs(runs: Sequence[Run], tflops_per_s: float, console: Console | None = None) -> None:
    """Prints every run with its cost, and the total."""
    console = console or Console(width=120, highlight=False)
    names = list(runs[0].labels)
    table = Table(*names, "parameters", "steps", "clips", "FLOPs", "workers", "device-hours", "MiB", box=None)
    for column in table.columns:
        column.justify = "right"
    costs = [run_cost(run, tflops_per_s) for run in runs]
    for run, cost in zip(runs, costs, strict=True):
        table.add_row(
            *(run.labels[name] for name in names),
            *_cells(cost, f"{run.config.flam_stage.num_steps:,}", str(run.config.cluster.num_workers)),
        )
    total = Cost(
        parameters=sum(cost.parameters for cost in costs),
        num_clips=sum(cost.num_clips for cost in costs),
        flops=sum(cost.flops for cost in costs),
        device_hours=sum(cost.device_hours for cost in costs),
        storage_bytes=sum(cost.storage_bytes for cost in costs),
    )
    table.add_row(f"{len(runs)} runs", *[""] * (len(names) - 1), *_cells(total, "", ""), style="bold")
    console.print(table)
    console.print(Text(f"assumed: a device does {tflops_per_s:g} TFLOP/s of model FLOPs. {COST_FORMULA}", style="dim"))


def _cells(cost: Cost, num_steps: str, num_workers: str) -> tuple[str, ...]:
    return (
        f"{cost.parameters:,}",
        num_steps,
        f"{cost.num_clips:,}",
        f"{cost.flops:.3g}",
        num_workers,
        f"{cost.device_hours:,.3g}",
        f"{cost.storage_bytes / 2**20:,.1f}",
    )
