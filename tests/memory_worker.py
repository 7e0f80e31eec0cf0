"""One process that trains stage 2 and tells what its resident memory grew by; run as a script by tests/test_plan.py.

python tests/memory_worker.py WIDTH MICRO_BATCH PREDICT_STEPS; with MALLOC_MMAP_THRESHOLD_ set it gives
back what it frees.
"""

import gc
import json
import sys
from pathlib import Path

import torch
from torch import Tensor

from flamscale.config import ClusterConfig, FlamConfig, FlamStageConfig, PretrainConfig, TokenizerConfig
from flamscale.training.engine import TorchEngine
from flamscale.training.sizes import build_objective, stage_size

NUM_MICRO_BATCHES = 2  # in the second, gradients of the first stand beside the activations


def make_config(width: int, micro_batch: int, predict_steps: int) -> PretrainConfig:
    """Stage 2 on 64 tokens a frame."""
    stage = FlamStageConfig(
        clip_frames=4,
        predict_steps=predict_steps,
        global_batch=NUM_MICRO_BATCHES * micro_batch,
        micro_batch=micro_batch,
    )
    return PretrainConfig(
        tokenizer=TokenizerConfig(image_size=64, downsample=8, feature_channels=64),
        flam=FlamConfig(num_slots=6, width=width, num_heads=4, num_blocks=2, history_frames=3),
        flam_stage=stage,
        cluster=ClusterConfig(num_workers=1, zero_stage=0),
    )


def random_inputs(config: PretrainConfig) -> dict[str, Tensor]:
    stage, tokens, flam = config.flam_stage, config.tokenizer, config.flam
    batch = (stage.micro_batch, stage.clip_frames)
    return {
        "features": torch.randn(*batch, tokens.num_tokens, tokens.feature_channels),
        "noise": torch.randn(batch[0], batch[1] - 1, flam.num_slots, flam.action_width),
        "beta": torch.tensor(1e-3),
    }


def train_steps(config: PretrainConfig, num_steps: int) -> None:
    engine = TorchEngine(build_objective(config, "flam"), config.flam_stage, torch.device("cpu"), seed=0)
    for _ in range(num_steps):  # the optimiser's moments come with the first
        for _ in range(NUM_MICRO_BATCHES):
            engine.forward_backward(random_inputs(config), NUM_MICRO_BATCHES)
        engine.step(1e-4)
    engine.close()


def resident_bytes(name: str) -> int:
    """Memory of this process by Linux: VmRSS now, VmHWM at most so far."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 2**10


def main() -> None:
    torch.set_num_threads(1)
    config = make_config(*map(int, sys.argv[1:]))
    computed = stage_size(config, "flam")
    train_steps(config, num_steps=1)  # what libraries keep for themselves belongs to the baseline
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # starts VmHWM anew
    before = resident_bytes("VmRSS")
    train_steps(config, num_steps=2)
    measured = resident_bytes("VmHWM") - before
    print(json.dumps({"measured": measured, "computed": computed.total, "activations": computed.activations}))


if __name__ == "__main__":
    main()
