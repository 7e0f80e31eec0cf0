"""A tiny objective, loader and run that follow the real ones' interfaces; also a process that gets killed."""

import dataclasses
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flamscale.config import StageConfig
from flamscale.training.checkpoint import CheckpointStore
from flamscale.training.engine import Engine, TorchEngine
from flamscale.training.metrics import MetricsRecorder
from flamscale.training.mirror import Mirror
from flamscale.training.trainer import Trainer
from flamscale.types import Batch

CPU = torch.device("cpu")


class ToyObjective(nn.Module):
    """Regression with normalised layers, a buffer, a frozen parameter, and one that ZeRO has to pad (15 elements)."""

    def __init__(self, width: int = 16, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.layers = nn.ModuleList(nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width)) for _ in range(2))
        self.head = nn.Linear(width, 15)
        self.head.weight.learning_rate_ratio = 0.25  # type: ignore[assignment]
        self.register_buffer("offset", 0.1 * torch.rand(15))
        self.scale = nn.Parameter(1 + torch.rand(15), requires_grad=False)

    def forward(self, images: Tensor, target: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        for layer in self.layers:
            images = images + torch.nn.functional.gelu(layer(images))
        error = self.scale * self.head(images).float() + self.offset - target
        loss = error.square().mean()
        return loss, {"mse": loss.detach(), "bias": error.detach().mean()}


@dataclass(frozen=True, kw_only=True)
class ToyState:
    position: int
    seed: int
    manifest_hash: str


class ToyLoader:
    """Hands out positions; `prepare` makes clips of them."""

    def __init__(self, config: StageConfig, rank: int = 0, world_size: int = 1, manifest_hash: str = "a" * 64) -> None:
        self.config, self.rank, self.share = config, rank, config.global_batch // world_size
        self.manifest_hash = manifest_hash
        self.position = 0
        self.skipped_samples = self.restarts = 0

    def __iter__(self) -> Iterator[Batch]:
        while True:
            first = self.position + self.rank * self.share
            shares = torch.arange(first, first + self.share).split(self.config.micro_batch)
            for number, positions in enumerate(shares, start=1):
                if number == len(shares):
                    self.position += self.config.global_batch
                yield Batch(video=positions, positions=positions)

    def state(self) -> ToyState:
        return ToyState(position=self.position, seed=0, manifest_hash=self.manifest_hash)

    def load_state(self, state: ToyState) -> None:
        self.position = state.position


class LoaderWithout(ToyLoader):
    """Leaves some global batches out."""

    def __init__(self, config: StageConfig, rank: int = 0, world_size: int = 1, *, left_out: tuple[int, ...]) -> None:
        super().__init__(config, rank, world_size)
        self.left_out = left_out

    def __iter__(self) -> Iterator[Batch]:
        for batch in super().__iter__():
            if int(batch.positions[0]) // self.config.global_batch not in self.left_out:
                yield batch


def prepare(batch: Batch, step: int) -> dict[str, Tensor]:
    """Draws inputs of width 16 and targets from each clip's position alone."""
    generator = torch.Generator()
    rows = [torch.randn(31, generator=generator.manual_seed(int(position))) for position in batch.positions]
    images, target = torch.stack(rows).split([16, 15], dim=1)
    return {"images": images, "target": target}


def spoiled(bad_batch: int, factor: float) -> Callable[[Batch, int], dict[str, Tensor]]:
    """Returns a `prepare` that spoils the targets of one global batch."""

    def make_inputs(batch: Batch, step: int) -> dict[str, Tensor]:
        inputs = prepare(batch, step)
        is_bad = int(batch.positions[0]) // 8 == bad_batch
        return inputs | {"target": inputs["target"] * factor} if is_bad else inputs

    return make_inputs


def toy_config(**changes: Any) -> StageConfig:
    quick = StageConfig(
        num_steps=30, global_batch=8, micro_batch=4, learning_rate=1e-2, warmup_steps=5, weight_decay=0.1,
        log_every=4, checkpoint_every=6, validate_every=0,
    )  # fmt: skip
    return dataclasses.replace(quick, **changes)


def run_toy(
    folder: Path,
    config: StageConfig,
    *,
    engine: Engine | None = None,
    loader: ToyLoader | None = None,
    make_inputs: Callable[[Batch, int], dict[str, Tensor]] = prepare,
    recorder_enabled: bool = True,
    mirror: Mirror | None = None,
    **arguments: Any,
) -> None:
    """Trains the toy objective in `folder`, from the newest checkpoint there."""
    recorder = MetricsRecorder(folder, recorder_enabled)
    try:
        Trainer(
            stage="toy",
            engine=engine or TorchEngine(ToyObjective(), config, CPU, seed=0),
            loader=loader or ToyLoader(config),
            prepare=make_inputs,
            config=config,
            checkpoints=CheckpointStore(folder / "checkpoints", config.keep_checkpoints, config.keep_every, mirror),
            recorder=recorder,
            **({"progress": None} | arguments),
        ).run()
    finally:
        recorder.close()


def main() -> None:
    """Trains slowly, so that there is time to kill it: python toy.py FOLDER."""

    def slowly(batch: Batch, step: int) -> dict[str, Tensor]:
        time.sleep(0.02)
        return prepare(batch, step)

    torch.set_num_threads(1)
    run_toy(Path(sys.argv[1]), toy_config(), make_inputs=slowly)


if __name__ == "__main__":
    main()
