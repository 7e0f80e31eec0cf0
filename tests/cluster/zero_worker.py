"""One of two gloo processes, started with torchrun's variables: zero_worker.py FOLDER; writes its findings as JSON."""

import json
import math
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from flamscale_cluster.zero import ZeroEngine
from torch import Tensor, nn

from flamscale.config import FlamStageConfig, StageConfig, TokenizerStageConfig
from flamscale.errors import ConfigError
from flamscale.models.flam import Flam
from flamscale.models.tokenizer import Tokenizer
from flamscale.training import metrics
from flamscale.training.checkpoint import CheckpointStore
from flamscale.training.engine import Engine, TorchEngine
from flamscale.training.engine_state import read_frozen
from flamscale.training.metrics import Meter, read_records
from flamscale.training.objectives import FlamObjective, TokenizerObjective, flow_start
from flamscale.types import Batch
from tests.small_models import FLAM, TOKENIZER
from tests.training.toy import CPU, LoaderWithout, ToyLoader, ToyObjective, prepare, run_toy, spoiled, toy_config

FOLDER = Path(sys.argv[1])
CONFIG = toy_config(global_batch=8, micro_batch=2, grad_clip=0.5, checkpoint_every=3, log_every=3)  # 2 micro-batches
RANK = int(os.environ["RANK"])
Prepare = Callable[[Batch, int], dict[str, Tensor]]


def flam_objective(seed: int) -> FlamObjective:
    """Stage 2's real objective, with everything in it that runs modules more than once a step."""
    torch.manual_seed(seed)
    flam = Flam(replace(FLAM, activation_checkpointing=True), TOKENIZER)
    return FlamObjective(flam, FlamStageConfig(clip_frames=4, predict_steps=2, reconstruction_weight=0.5))


def prepare_flam(batch: Batch, step: int) -> dict[str, Tensor]:
    """Draws features and noise of 4 frames from each clip's position alone."""
    draws = [torch.Generator().manual_seed(int(position)) for position in batch.positions]
    features = torch.stack([torch.randn(4, TOKENIZER.num_tokens, 8, generator=draw) for draw in draws])
    noise = torch.stack([torch.randn(3, FLAM.num_slots, FLAM.action_width, generator=draw) for draw in draws])
    return {"features": features, "noise": noise, "beta": torch.tensor(1e-3)}


def flow_objective(seed: int) -> TokenizerObjective:
    """Stage 1's with a flow decoder, whose network runs once in training and several times in validation."""
    torch.manual_seed(seed)
    return TokenizerObjective(Tokenizer(replace(TOKENIZER, decoder="flow", flow_steps=2)), TokenizerStageConfig())


def prepare_flow(batch: Batch, step: int) -> dict[str, Tensor]:
    """Draws a frame of each clip from its position alone."""
    images, _ = flow_start(1, batch.positions, (1, 3, 12, 12))
    noise, times = flow_start(0, batch.positions, (1, 3, 12, 12))
    return {"images": images, "weights": torch.ones(len(images), 1, 12, 12), "noise": noise, "times": times}


OBJECTIVES: dict[str, tuple[Callable[[int], nn.Module], Prepare]] = {
    "toy": (lambda seed: ToyObjective(seed=seed), prepare),
    "flam": (flam_objective, prepare_flam),
    "flow": (flow_objective, prepare_flow),
}


def make(stage: int, config: StageConfig = CONFIG, name: str = "toy") -> ZeroEngine:
    objective = OBJECTIVES[name][0](RANK)  # rank 0's weights must win
    return ZeroEngine(objective, config, zero_stage=stage, device=CPU, seed=0)


def take_steps(engine: Engine, config: StageConfig, prepare: Prepare, count: int) -> list[float]:
    """Loss and gradient norm of some steps, as every process agrees on them."""
    batches = iter(ToyLoader(config, engine.rank, engine.world_size))
    accumulation = config.global_batch // config.micro_batch // engine.world_size
    values = []
    for _ in range(count):
        terms = [engine.forward_backward(prepare(next(batches), 0), accumulation) for _ in range(accumulation)]
        loss = torch.stack([term["loss"] for term in terms]).mean()
        values += engine.mean({"loss": loss, "norm": engine.step(1e-3)}).values()
    return values


def compare_with_torch(engine: ZeroEngine, precision: str, name: str = "toy") -> dict[str, float]:
    """Largest differences to a TorchEngine after three steps on the same global batches."""
    config = toy_config(global_batch=8, micro_batch=2, grad_clip=0.5, precision=precision)
    objective, prepare = OBJECTIVES[name]
    reference = TorchEngine(objective(0), config, CPU, seed=0)
    expected, found = (take_steps(one, config, prepare, 3) for one in (reference, engine))
    state, whole = engine.full_state_dict(), reference.full_state_dict()
    assert list(state) == (list(whole) if engine.rank == 0 else [])
    inputs = prepare(next(iter(ToyLoader(config))), 0)
    held_out = engine.evaluate(inputs)["loss"] - reference.evaluate(inputs)["loss"]
    return {
        "steps": max(abs(a / b - 1) for a, b in zip(found, expected, strict=True)),
        "weights": max((float((state[name] - whole[name]).abs().max()) for name in state), default=0.0),
        "held_out": abs(float(held_out)),
    }


def compare_resumed(stage: int) -> dict[str, bool]:
    """Whether a run that was cut short repeats the losses and weights of one that was not."""
    states: list[dict[str, Tensor]] = []
    losses = []
    for name, lengths in (("whole", (9,)), ("cut", (5, 9))):
        folder = FOLDER / f"{name}-{stage}"
        for num_steps in lengths:
            config = toy_config(
                global_batch=8, micro_batch=2, checkpoint_every=3, log_every=3, num_steps=num_steps, warmup_steps=2
            )
            engine = make(stage, config)
            run_toy(folder, config, engine=engine, loader=ToyLoader(config, RANK, 2), recorder_enabled=RANK == 0)
            state = engine.full_state_dict()
            engine.close()
        states.append(state)
        if RANK == 0:
            records = read_records(folder / "metrics.jsonl")
            losses.append([loss for record in records for loss in record["losses"]])
    same = all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    return {"weights": same, "losses": RANK > 0 or (losses[0] == losses[1] and len(losses[0]) == 9)}


def compare_rewound(stage: int) -> bool:
    """Whether a run whose fifth batch is damaged goes back and repeats one that had neither it nor the one before."""
    config, losses = replace(CONFIG, num_steps=12), []
    for name, make_inputs, loader in (
        ("spoiled", spoiled(4, math.nan), ToyLoader(config, RANK, 2)),
        ("without", prepare, LoaderWithout(config, RANK, 2, left_out=(3, 4))),
    ):
        folder = FOLDER / f"{name}-{stage}"
        engine = make(stage, config)
        run_toy(folder, config, engine=engine, loader=loader, make_inputs=make_inputs, recorder_enabled=RANK == 0)
        engine.close()
        if RANK == 0:
            records = read_records(folder / "metrics.jsonl")
            losses.append([loss for record in records for loss in record.get("losses", [])])
    return RANK > 0 or (losses[0] == losses[1] and len(losses[0]) == 12)


def compare_other_engines() -> dict[str, float]:
    """Largest differences between what engines of other kinds and sizes hold and do after loading one checkpoint."""
    config = toy_config(global_batch=8, micro_batch=2, grad_clip=0.5)
    folder = CheckpointStore(FOLDER / "whole-2" / "checkpoints", 2).latest()
    assert folder is not None
    frozen = read_frozen(folder)
    expected: tuple[dict[str, Tensor], list[float]] = {}, []
    differences: dict[str, float] = {}
    for kind in ("torch", 0, 1, 2, 3):
        objective = ToyObjective(seed=7)
        engine = (
            TorchEngine(objective, config, CPU, seed=0)
            if kind == "torch"
            else ZeroEngine(objective, config, zero_stage=int(kind), device=CPU, seed=0)
        )
        engine.load(folder)
        state = engine.full_state_dict()
        if kind == "torch":
            assert all(torch.equal(state[name], value) for name, value in frozen.items())
            assert len(frozen) == 2
        losses = take_steps(engine, config, prepare, 3)
        if kind == "torch":
            expected = state, losses
        weights = [float((value - expected[0][name]).abs().max()) for name, value in state.items()]
        differences[f"{kind}-weights"] = max(weights, default=0.0)
        differences[f"{kind}-losses"] = max(abs(a / b - 1) for a, b in zip(losses, expected[1], strict=True))
        engine.close()
    return differences


def flushed_record(engine: ZeroEngine) -> dict[str, Any]:
    """What a record says where rank 0 took 100 MiB and saw one reader die, rank 1 took 200 and saw two."""
    metrics.memory_peak_mib = lambda device: 100.0 * (RANK + 1)
    meter = Meter(CPU)
    meter.add_step([{"loss": torch.ones(())}], torch.ones(()))
    return meter.flush(engine, CONFIG, {"reader_restarts": RANK + 1})


def message(error: type[Exception], action: object) -> str:
    try:
        action()  # type: ignore[operator]
    except error as caught:
        return str(caught)
    return ""


def main() -> None:
    torch.set_num_threads(1)
    findings: dict[str, object] = {}
    for name, stage in (("toy", 1), ("flam", 0), ("flam", 2), ("flam", 3), ("flow", 3)):
        engine = make(stage, name=name)
        findings[f"parity-{name}-{stage}"] = compare_with_torch(engine, "fp32", name)
        engine.close()
    for stage in (0, 2, 3):
        findings[f"resume-{stage}"] = compare_resumed(stage)
    for stage in (0, 1, 2, 3):
        findings[f"rewound-{stage}"] = compare_rewound(stage)
    findings["files"] = sorted({path.suffix for path in FOLDER.rglob("step-*/*")})
    for name, stage in (("toy", 1), ("flam", 3)):
        engine = make(stage, toy_config(global_batch=8, micro_batch=2, grad_clip=0.5, precision="bf16"), name)
        findings[f"bf16-{stage}"] = compare_with_torch(engine, "bf16", name)
        findings[f"bf16-{stage}-dtypes"] = sorted({str(value.dtype) for value in engine.full_state_dict().values()})
        engine.close()

    engine = make(2)
    findings["accumulation"] = message(ConfigError, lambda: engine.forward_backward({}, 7))
    findings["other-engines"] = compare_other_engines()
    findings["record"] = flushed_record(engine)
    findings["mean"] = engine.mean({"rank": float(engine.rank), "one": torch.ones(())})
    engine.close()
    torch.distributed.destroy_process_group()
    (FOLDER / f"findings-{engine.rank}.json").write_text(json.dumps(findings))


if __name__ == "__main__":
    main()
