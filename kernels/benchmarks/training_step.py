"""How much faster does FLAM train with the kernels: the factorizer alone, then a whole training step?

Command: python kernels/benchmarks/training_step.py    (--gate-only: numbers alone, also without a GPU)

The same model with Triton's kernels and with the reference ops, both under torch.compile, with and without CUDA graphs;
bf16 autocast, AdamW. Presets are the paper's (multigrid) and `large`; features are random, as the speed is the same.
"""

import sys
from collections.abc import Callable
from dataclasses import replace

import torch
from flamscale_kernels.dispatch import Backend
from harness import GateError, Row, measure, need_gpu, publish, relative_error, run, time_ms
from torch import Tensor, nn

from flamscale import presets
from flamscale.config import ClusterConfig, FlamConfig, FlamStageConfig, PretrainConfig, TokenizerConfig
from flamscale.models.flam import Flam
from flamscale.training.objectives import FlamObjective

PRESETS = {"multigrid (the paper's)": presets.multigrid, "large": presets.large}
MODES = {"": "max-autotune-no-cudagraphs", ", CUDA graphs": "max-autotune"}
KERNELS: tuple[Backend, ...] = ("triton", "reference")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def build(config: PretrainConfig, kernels: Backend) -> FlamObjective:
    """The objective with the same weights whatever the kernels."""
    torch.manual_seed(0)
    flam = Flam(replace(config.flam, kernels=kernels), config.tokenizer)
    return FlamObjective(flam, config.flam_stage).to(DEVICE)


def batch(config: PretrainConfig) -> dict[str, Tensor]:
    """One micro-batch of random features."""
    stage, flam = config.flam_stage, config.flam
    clips, frames = stage.micro_batch, stage.clip_frames
    draw = torch.Generator(DEVICE).manual_seed(0)
    features = (clips, frames, config.tokenizer.num_tokens, config.tokenizer.feature_channels)
    return {
        "features": torch.randn(features, generator=draw, device=DEVICE),
        "noise": torch.randn(clips, frames - 1, flam.num_slots, flam.action_width, generator=draw, device=DEVICE),
        "beta": torch.tensor(stage.beta, device=DEVICE),
    }


def loss_and_gradients(objective: FlamObjective, inputs: dict[str, Tensor], half: bool) -> list[Tensor]:
    with torch.autocast(DEVICE.type, torch.bfloat16, enabled=half):
        loss, _ = objective(**inputs)
    return [loss, *torch.autograd.grad(loss, list(objective.parameters()), materialize_grads=True)]


def gate(config: PretrainConfig) -> None:
    """Compares a step in bf16 with fp32: the kernels may err at most twice as much as the reference ops do.

    Raises:
        GateError: they err more.
    """
    inputs = batch(config)
    exact = loss_and_gradients(build(config, "reference"), inputs, half=False)
    errors = {}
    for kernels in KERNELS:
        found = loss_and_gradients(build(config, kernels), inputs, half=True)
        flat = [torch.cat([x.flatten() for x in tensors]) for tensors in (found, exact)]
        errors[kernels] = relative_error(*flat)
    if not errors["triton"] <= 2 * errors["reference"] + 1e-3:
        raise GateError(
            f"gradients of a step err by {errors['triton']:.2%}, the reference's by {errors['reference']:.2%}."
        )


def tiny() -> PretrainConfig:
    """A size that the interpreter can run."""
    return PretrainConfig(
        tokenizer=TokenizerConfig(image_size=32, downsample=8, feature_channels=8),
        flam=FlamConfig(
            num_slots=3, width=32, action_width=4, num_heads=2, num_blocks=1, slot_iterations=2, history_frames=2
        ),
        flam_stage=FlamStageConfig(clip_frames=3, micro_batch=2, global_batch=2),
        cluster=ClusterConfig(num_workers=1),
    )


class FirstResult(nn.Module):
    """The factorizer's slots, without its masks."""

    def __init__(self, factorizer: nn.Module) -> None:
        super().__init__()
        self.factorizer = factorizer

    def forward(self, features: Tensor) -> Tensor:
        with torch.autocast(DEVICE.type, torch.bfloat16):
            return self.factorizer(features)[0]


def factorizer_rows(config: PretrainConfig) -> list[Row]:
    """Times the factorizer, forward and backward, with gradients to its input."""
    rows = []
    features = batch(config)["features"]
    for graphs, mode in MODES.items():
        for kernels in KERNELS:
            module = FirstResult(build(config, kernels).flam.factorizer)
            compiled = torch.compile(module, mode=mode, fullgraph=True, dynamic=False)
            rows.append(measure(f"{kernels}{graphs}", compiled, [features]))
    return rows


def step(objective: FlamObjective, inputs: dict[str, Tensor], mode: str) -> Callable[[], None]:
    """A whole training step: forward, backward, AdamW."""
    compiled = torch.compile(objective, mode=mode, dynamic=False)
    optimizer = torch.optim.AdamW(objective.parameters(), lr=1e-4, fused=True)

    def run_step() -> None:
        torch.compiler.cudagraph_mark_step_begin()
        with torch.autocast(DEVICE.type, torch.bfloat16):
            loss, _ = compiled(**inputs)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return run_step


def step_rows(config: PretrainConfig) -> list[dict[str, object]]:
    """Times whole training steps: milliseconds (median, 20th, 80th percentile) and peak memory."""
    rows: list[dict[str, object]] = []
    for graphs, mode in MODES.items():
        for kernels in KERNELS:
            run_step = step(build(config, kernels), batch(config), mode)
            for _ in range(3):
                run_step()
            torch.cuda.reset_peak_memory_stats()
            timing = time_ms(run_step)
            peak_mib = torch.cuda.max_memory_allocated() / 2**20
            rows.append({"peer": f"{kernels}{graphs}", **vars(timing), "peak_mib": peak_mib})
            print(rows[-1])
    return rows


def main() -> None:
    """Gate, then times."""
    for preset in PRESETS.values() if torch.cuda.is_available() else (tiny,):
        gate(preset())
    print("gate: green")
    if "--gate-only" in sys.argv[1:]:
        return
    need_gpu()
    steps = {name: step_rows(preset()) for name, preset in PRESETS.items()}
    layers = {f"factorizer, {name}": factorizer_rows(preset()) for name, preset in PRESETS.items()}
    publish("training_step", layers, {"training_step": steps})


if __name__ == "__main__":
    run(main)
