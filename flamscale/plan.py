"""A run on many GPUs before there is one: a config and assumptions in; memory, time, network and storage needs out.

Everything here is computed. Nothing is measured but what the assumptions bring, and nothing is rounded in one's favour:
what the formulas leave out is told beside them.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from flamscale.config import PretrainConfig, StageConfig
from flamscale.data.clips import ClipSpace
from flamscale.data.mixture import Mixture
from flamscale.plan_config import DEFAULT_MFU, PlanConfig
from flamscale.training.devices import GPUS, Precision, gpu_peak_flops
from flamscale.training.flops import ClipFlops, count_clip_flops
from flamscale.training.sizes import (
    MEMORY_FORMULA,
    StageSize,
    build_objective,
    count_parameters,
    stage_config,
    stage_size,
    state_bytes,
)

NETWORK_FORMULA = (
    "Bytes a GPU sends in a step, for P parameters whose gradients travel as G bytes (bf16: 2 of linear and "
    "convolutional layers, else 4 each), A micro-batches a step, times (W - 1) / W: ZeRO-0 an all-reduce in fp32, 8P; "
    "ZeRO-1 an all-reduce and a gather of fp32 parameters, 2G + 4P; ZeRO-2 the same, reducing after every micro-batch, "
    "2GA + 4P; ZeRO-3 two gathers and a reduce-scatter a micro-batch, 3GA, where DeepSpeed saves the second "
    "gather of what comes back within 10^9 parameters, 2GA."
)
CHECKPOINT_FORMULA = "A checkpoint holds parameters and both moments in fp32: 12P bytes."
TIME_FORMULA = (
    "Step time is compute alone, as if network, data and checkpoints hid behind it: a floor. Network GB/s is what each "
    "GPU must send for that. Store MiB/s counts a whole file for each clip: a ceiling, without caches."
)


@dataclass(frozen=True, kw_only=True)
class PlanRow:
    """One number of GPUs."""

    num_gpus: int
    micro_batches: int
    """Micro-batches each GPU puts through the model in a step (count)."""
    memory: StageSize
    """Memory of one GPU (bytes)."""
    fits: bool
    """Whether that is less than the GPU has."""
    step_s: float
    clips_per_s: float
    """Of all GPUs together."""
    network_bytes: int
    """What one GPU sends in a step."""
    network_gb_per_s: float
    """What one GPU must send for the network to hide behind compute (10^9 bytes a second)."""
    store_mib_per_s: float | None
    """What all GPUs together read from the object store; None where a clip's size is not known."""
    days: float
    gpu_hours: float


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A stage on some numbers of GPUs."""

    question: PlanConfig
    assumptions: tuple[str, ...]
    num_parameters: int
    clip_flops: ClipFlops
    num_clips: int
    checkpoint_bytes: int
    checkpoint_s: float
    rows: tuple[PlanRow, ...]

    def to_json(self) -> dict[str, Any]:
        """Returns the plan as JSON values, marked as computed."""
        return {"computed": True} | dataclasses.asdict(self)


def make_plan(config: PretrainConfig, question: PlanConfig) -> Plan:
    """Plans a stage of `config` for each number of GPUs.

    Raises:
        ConfigError: a number of GPUs cannot share the global batch.
        DataError: a data URL was given, and no usable data set is there.
    """
    stage = stage_config(config, question.stage)
    counts = question.gpu_counts(stage)
    with FakeTensorMode():
        objective = build_objective(config, question.stage)
        num_parameters, sent_bytes = count_parameters(objective), gradient_bytes(objective, stage.precision)
    flops = count_clip_flops(config, question.stage, encodes_video=config.data.encodes_each_clip)
    rate, told_rate = _clips_per_s(question, stage, flops)
    encodes = question.stage == "flam" and config.data.encodes_each_clip
    clip_bytes, told_bytes = _clip_bytes(config, question, stage)
    activations = stage_size(config, question.stage).activations
    num_clips = question.num_clips or stage.num_steps * stage.global_batch

    def row(count: int) -> PlanRow:
        memory = StageSize(*state_bytes(num_parameters, count, question.zero_stage), activations=activations)
        step_s, micro_batches = stage.global_batch / (rate * count), stage.global_batch // (stage.micro_batch * count)
        sent = network_bytes(num_parameters, sent_bytes, count, micro_batches, question.zero_stage)
        return PlanRow(
            num_gpus=count,
            micro_batches=micro_batches,
            memory=memory,
            fits=memory.total < GPUS[question.gpu].memory_gb * 1e9,
            step_s=step_s,
            clips_per_s=rate * count,
            network_bytes=sent,
            network_gb_per_s=sent / step_s / 1e9,
            store_mib_per_s=None if clip_bytes is None else clip_bytes * rate * count / 2**20,
            days=num_clips / (rate * count) / 86_400,
            gpu_hours=num_clips / rate / 3_600,
        )

    checkpoint_bytes = 12 * num_parameters
    return Plan(
        assumptions=(
            told_rate + (", the frozen tokenizer's encoder included" if encodes else ""),
            told_bytes,
            f"checkpoints are written at {question.storage_mib_per_s:,.0f} MiB/s by all workers together",
        ),
        question=question,
        num_parameters=num_parameters,
        clip_flops=flops,
        num_clips=num_clips,
        checkpoint_bytes=checkpoint_bytes,
        checkpoint_s=checkpoint_bytes / 2**20 / question.storage_mib_per_s,
        rows=tuple(row(count) for count in counts),
    )


def gradient_bytes(module: nn.Module, precision: Precision) -> int:
    """Returns the bytes of a module's gradients as DeepSpeed's autocast sends them: G of NETWORK_FORMULA."""
    halved = {
        parameter
        for part in module.modules()
        if type(part) in (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
        for parameter in part.parameters(recurse=False)
    }
    half = torch.bfloat16.itemsize if precision == "bf16" else torch.float32.itemsize
    return sum(
        parameter.numel() * (half if parameter in halved else torch.float32.itemsize)
        for parameter in module.parameters()
    )


def network_bytes(num_parameters: int, sent_bytes: int, num_workers: int, micro_batches: int, zero_stage: int) -> int:
    """Returns the bytes one worker sends in a step, by NETWORK_FORMULA.

    Args:
        num_parameters: P.
        sent_bytes: G, see `gradient_bytes`.
        num_workers: W.
        micro_batches: A.
        zero_stage: DeepSpeed ZeRO stage.

    Source: ring collectives; Rajbhandari et al., arXiv 1910.02054, Section 7, and what DeepSpeed 0.19 does: stages 1
    and 2 reduce by all-reduce, and parameters stay fp32.
    """
    whole = {
        0: 8 * num_parameters,
        1: 2 * sent_bytes + 4 * num_parameters,
        2: 2 * sent_bytes * micro_batches + 4 * num_parameters,
        3: 3 * sent_bytes * micro_batches,
    }[zero_stage]
    return whole * (num_workers - 1) // num_workers


def _clips_per_s(question: PlanConfig, stage: StageConfig, flops: ClipFlops) -> tuple[float, str]:
    """Returns the rate of one GPU, and where it comes from."""
    if question.clips_per_s:
        return question.clips_per_s, f"a GPU does {question.clips_per_s:g} clips/s, as stated to be measured"
    mfu, peak = question.mfu or DEFAULT_MFU, gpu_peak_flops(GPUS[question.gpu], stage.precision)
    return mfu * peak / flops.total, (
        f"a GPU does {mfu:.0%} of its peak, {peak / 1e12:,.0f} TFLOP/s in {stage.precision}, at "
        f"{flops.total / 1e9:,.1f} GFLOP a clip"
    )


def _clip_bytes(config: PretrainConfig, question: PlanConfig, stage: StageConfig) -> tuple[float | None, str]:
    """Returns the mean size of the file a clip is read from, None where it is not known, and where that comes from."""
    if question.clip_kib:
        return question.clip_kib * 2**10, f"a clip is read from {question.clip_kib:,.1f} KiB, as stated"
    urls = config.data.latents if question.stage == "flam" and config.data.latents else config.data.url
    if not urls:
        return (
            None,
            "the size of a clip is not known; --clip-kib or --data.url would tell what the object store must give",
        )
    num_bytes = mean_clip_bytes(Mixture.load(urls, config.data.weights), stage)
    return num_bytes, f"a clip is read from {num_bytes / 2**10:,.1f} KiB, the mean of the data set's manifest"


def mean_clip_bytes(data: Mixture, stage: StageConfig) -> float:
    """Returns the mean size of the file that a training clip is read from (bytes)."""
    spaces = [
        ClipSpace(manifest.of_split("train"), stage.clip_frames, stage.frame_stride, stage.clip_hop)
        for manifest in data.manifests
    ]
    weights = data.weights or [space.num_clips for space in spaces]
    return float(np.average([space.mean_bytes(data.content) for space in spaces], weights=weights))


def print_plan(plan: Plan, console: Console | None = None) -> None:
    """Prints a plan: assumptions, two tables, and the formulas behind them."""
    console = console or Console(width=120, highlight=False)
    question, gib = plan.question, 2**30
    memory = _table(f"{question.stage} stage on {question.gpu}, ZeRO-{question.zero_stage}: GiB a GPU, computed")
    for name in ("GPUs", "micro-batches", *(part.name for part in dataclasses.fields(StageSize)), "together", "fits"):
        memory.add_column(name, justify="right")
    rates = _table(f"{plan.num_clips:,} clips: time, network and store, computed from the assumptions")
    for name in ("GPUs", "step s", "clips/s", "network GB/step", "GB/s a GPU", "store MiB/s", "days", "GPU-hours"):
        rates.add_column(name, justify="right")
    for row in plan.rows:
        parts = (f"{size / gib:,.2f}" for size in (*dataclasses.astuple(row.memory), row.memory.total))
        memory.add_row(f"{row.num_gpus:,}", str(row.micro_batches), *parts, "yes" if row.fits else "no")
        rates.add_row(
            f"{row.num_gpus:,}",
            f"{row.step_s:,.3f}",
            f"{row.clips_per_s:,.0f}",
            f"{row.network_bytes / 1e9:,.2f}",
            f"{row.network_gb_per_s:,.2f}",
            "-" if row.store_mib_per_s is None else f"{row.store_mib_per_s:,.1f}",
            f"{row.days:,.2f}",
            f"{row.gpu_hours:,.0f}",
        )
    for line in plan.assumptions:
        console.print(Text(f"assumed: {line}"))
    console.print(
        Text(
            f"computed: {plan.num_parameters:,} parameters; {plan.clip_flops.total / 1e9:,.1f} GFLOP a clip; "
            f"checkpoint {plan.checkpoint_bytes / gib:,.2f} GiB, written in {plan.checkpoint_s:,.1f} s"
        )
    )
    console.print(memory)
    console.print(rates)
    for formula in (MEMORY_FORMULA, NETWORK_FORMULA, CHECKPOINT_FORMULA, TIME_FORMULA):
        console.print(Text(formula, style="dim"))


def _table(title: str) -> Table:
    return Table(box=None, title=title, title_justify="left")
