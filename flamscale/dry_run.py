"""What a run would be, without running it: a config in; settings, sizes, memory and steps on the terminal out."""

import contextlib
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from flamscale.config import PretrainConfig, StageConfig
from flamscale.data.clips import ClipSpace
from flamscale.data.mixture import Mixture
from flamscale.models.flam import Flam
from flamscale.models.lpips import Lpips
from flamscale.models.tokenizer import Tokenizer
from flamscale.training.objectives import FlamObjective, TokenizerObjective

MEMORY_FORMULA = (
    "Bytes, for P parameters in fp32 on W workers: parameters 4P (ZeRO-3: 4P/W), gradients 4P (ZeRO-2 and 3: 4P/W), "
    "AdamW 8P (ZeRO-1 to 3: 12P/W, with a copy of the parameters), activations: what autograd keeps of a batch. "
    "Not counted: buffers of communication and allocator, the CUDA context, stage 2's frozen tokenizer."
)


@dataclass(frozen=True)
class StageSize:
    """Memory of one stage on one device (bytes)."""

    parameters: int
    gradients: int
    optimizer: int
    activations: int


def print_dry_run(config: PretrainConfig, console: Console | None = None) -> None:
    """Prints the whole resolved config, parameter counts, shapes, memory a device, steps and shards.

    Raises:
        DataError: a data URL was given, and no usable data set is there.
    """
    console = console or Console(width=120, highlight=False)
    console.print(_settings(config))
    with FakeTensorMode():
        tokenizer = Tokenizer(config.tokenizer)
        flam = Flam(config.flam, config.tokenizer)
        console.print(_parameter_table(tokenizer, flam))
        sizes = {"tokenizer": _tokenizer_size(config, tokenizer), "flam": _flam_size(config, flam)}
    console.print(_shapes(config))
    console.print(_memory_table(sizes))
    console.print(Text(MEMORY_FORMULA, style="dim"))
    console.print(_steps(config))


def _settings(config: PretrainConfig) -> Table:
    """Every setting, a row a section."""
    table = Table.grid(padding=(0, 1))
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    sections = {name: value for name, value in vars(config).items() if dataclasses.is_dataclass(value)}
    table.add_row("run", f"out={config.out} seed={config.seed}")
    for name, section in sections.items():
        values = " ".join(f"{item.name}={_plain(getattr(section, item.name))}" for item in dataclasses.fields(section))
        table.add_row(name, Text(values))
    return table


def _plain(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return str(value) if value != "" else "-"


def _parameter_table(tokenizer: Tokenizer, flam: Flam) -> Table:
    table = Table("module", "parameters", box=None, title="parameters", title_justify="left")
    table.columns[1].justify = "right"
    for name, model in (("tokenizer", tokenizer), ("flam", flam)):
        for part, module in model.named_children():
            if count_parameters(module):
                table.add_row(f"{name}.{part}", f"{count_parameters(module):,}")
        table.add_row(f"{name}, all", f"{count_parameters(model):,}", style="bold")
    return table


def count_parameters(module: nn.Module) -> int:
    """Parameters of a module (count)."""
    return sum(parameter.numel() for parameter in module.parameters())


def _shapes(config: PretrainConfig) -> Text:
    tokenizer, side = config.tokenizer, config.tokenizer.image_size // config.tokenizer.downsample
    codebook = torch.Size(tokenizer.fsq_levels).numel()
    lines = [
        f"tokens a frame: {side} x {side} = {tokenizer.num_tokens} of {tokenizer.feature_channels} channels, codebook "
        f"{codebook}; slots {config.flam.num_slots} x {config.flam.width}, latent actions {config.flam.num_slots} x "
        f"{config.flam.action_width}"
    ]
    pixels = f"{tokenizer.image_size}, {tokenizer.image_size}, 3"
    for name, inside in (
        ("tokenizer_stage", pixels),
        ("flam_stage", f"{tokenizer.num_tokens}, {tokenizer.feature_channels}"),
    ):
        stage = getattr(config, name)
        lines.append(
            f"{name}: global batch [{stage.global_batch}, {stage.clip_frames}, {inside}] = "
            f"{config.cluster.num_workers} workers x {_accumulation(config, stage)} accumulated x "
            f"micro-batch {stage.micro_batch}"
        )
    return Text("\n".join(lines))


def _accumulation(config: PretrainConfig, stage: StageConfig) -> int:
    return stage.global_batch // (stage.micro_batch * config.cluster.num_workers)


def _tokenizer_size(config: PretrainConfig, tokenizer: Tokenizer) -> StageSize:
    stage, size = config.tokenizer_stage, config.tokenizer.image_size
    num_frames = stage.micro_batch * stage.clip_frames
    perceptual = Lpips("vgg16") if stage.lpips_weight > 0 else None  # the file may lie elsewhere, and vgg16 needs most
    inputs = {"images": torch.empty(num_frames, 3, size, size), "weights": torch.empty(num_frames, 1, size, size)}
    return _size(config, stage, TokenizerObjective(tokenizer, stage, perceptual), inputs)


def _flam_size(config: PretrainConfig, flam: Flam) -> StageSize:
    stage, tokenizer, model = config.flam_stage, config.tokenizer, config.flam
    batch = (stage.micro_batch, stage.clip_frames)
    inputs = {
        "features": torch.empty(*batch, tokenizer.num_tokens, tokenizer.feature_channels),
        "noise": torch.empty(batch[0], batch[1] - 1, model.num_slots, model.action_width),
        "beta": torch.empty(()),
    }
    return _size(config, stage, FlamObjective(flam, stage), inputs)


def _size(config: PretrainConfig, stage: StageConfig, objective: nn.Module, inputs: dict[str, Tensor]) -> StageSize:
    """Memory of one stage by MEMORY_FORMULA."""
    with (
        count_saved_bytes(objective) as activations,
        torch.autocast("cpu", torch.bfloat16, enabled=stage.precision == "bf16"),
    ):
        loss, _ = objective(**inputs)  # alive until its activations are counted
        num_bytes = activations()
    del loss
    states = state_bytes(count_parameters(objective), config.cluster.num_workers, config.cluster.zero_stage)
    return StageSize(*states, activations=num_bytes)


def state_bytes(num_parameters: int, num_workers: int, zero_stage: int) -> tuple[int, int, int]:
    """Bytes of parameters, gradients and optimiser on one device, by MEMORY_FORMULA."""
    shares = [num_workers if zero_stage >= least else 1 for least in (3, 2, 1)]
    bytes_each = (4, 4, 12 if zero_stage else 8)
    parameters, gradients, optimizer = (
        num_parameters * size // share for size, share in zip(bytes_each, shares, strict=True)
    )
    return parameters, gradients, optimizer


@contextlib.contextmanager
def count_saved_bytes(module: nn.Module) -> Iterator[Any]:
    """Yields a function that returns the bytes autograd has kept inside the block, the module's parameters left out."""
    own = {parameter.untyped_storage()._cdata for parameter in module.parameters()}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept.setdefault(tensor.untyped_storage()._cdata, tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield lambda: sum(value.untyped_storage().nbytes() for key, value in kept.items() if key not in own)


def _memory_table(sizes: dict[str, StageSize]) -> Table:
    table = Table("memory a device (MiB)", *sizes, box=None)
    for column in table.columns[1:]:
        column.justify = "right"
    for part in dataclasses.fields(StageSize):
        table.add_row(part.name, *(f"{getattr(size, part.name) / 2**20:,.1f}" for size in sizes.values()))
    totals = (sum(dataclasses.astuple(size)) for size in sizes.values())
    table.add_row("together", *(f"{total / 2**20:,.1f}" for total in totals), style="bold")
    return table


def _steps(config: PretrainConfig) -> Text:
    lines = []
    data = Mixture.load(config.data.url, config.data.weights) if config.data.url else None
    for name in ("tokenizer_stage", "flam_stage"):
        stage = getattr(config, name)
        clips = stage.num_steps * stage.global_batch
        line = f"{name}: {stage.num_steps:,} steps, {clips:,} clips, {clips * stage.clip_frames:,} frames"
        if data is not None:
            space = ClipSpace(data.of_split("train"), stage.clip_frames, stage.frame_stride, stage.clip_hop)
            line += f"; {clips / space.num_clips:,.1f} epochs of {space.num_clips:,} clips"
        lines.append(line)
    if data is None:
        lines.append("data: no data URL was given, so there is nothing to say of shards and epochs")
    for manifest in data.manifests if data else ():
        size_mib = sum(shard.size_bytes for shard in manifest.shards) / 2**20
        episodes = sum(len(shard) for shard in manifest.shards)
        lines.append(
            f"data: {manifest.url}, {len(manifest.shards)} shards, {size_mib:,.1f} MiB, {episodes:,} episodes, "
            f"{manifest.width} x {manifest.height} pixels, {manifest.fps:g} fps"
        )
    return Text("\n".join(lines))
