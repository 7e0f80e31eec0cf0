"""The smallest whole run: 32 x 32 MultiGrid with two agents, a dozen steps a stage; run as a script, it trains one.

python tests/tiny.py DATA OUT
"""

import sys
from pathlib import Path

import torch

from flamscale.config import (
    ClusterConfig,
    DataConfig,
    EvaluationConfig,
    FlamConfig,
    FlamStageConfig,
    PretrainConfig,
    StageConfig,
    TokenizerConfig,
    TokenizerStageConfig,
)
from flamscale.data.encode import LOSSLESS_CRF
from flamscale.data.shards import ShardWriter
from flamscale.data.sources.multigrid import MultigridSource
from flamscale.pretrain import pretrain
from flamscale.training.engine import TorchEngine

NUM_STEPS = 12
CHECKPOINT_EVERY = 5


def make_data(url: str, seed: int = 0, num_agents: int = 2) -> str:
    """Writes 20 episodes of 14 frames; returns their URL."""
    source = MultigridSource(num_agents=num_agents, size=32, episodes=20, episode_frames=14, seed=seed)
    with ShardWriter(
        url, name="tiny", source="multigrid", arguments={"seed": seed}, crf=LOSSLESS_CRF, shard_bytes=2**20
    ) as writer:
        for episode in source:
            writer.write(episode)
    return url


def tiny_config(url: str, out: Path, num_workers: int = 1) -> PretrainConfig:
    """Settings of a run that takes seconds, and says what it does at every step."""
    steps = {
        "num_steps": NUM_STEPS,
        "global_batch": 8,
        "micro_batch": 2,
        "learning_rate": 1e-3,
        "warmup_steps": 2,
        "log_every": 1,
        "validate_every": 6,
        "validation_clips": 8,
        "checkpoint_every": CHECKPOINT_EVERY,
    }
    return PretrainConfig(
        out=str(out),
        data=DataConfig(url=(url,), cache_mib=16),
        tokenizer=TokenizerConfig(
            image_size=32, downsample=8, base_channels=8, max_channels=16, num_residual_blocks=1, feature_channels=16
        ),
        tokenizer_stage=TokenizerStageConfig(**steps),
        flam=FlamConfig(
            num_slots=2, width=16, action_width=8, num_heads=2, num_blocks=1, history_frames=3, slot_iterations=1
        ),
        flam_stage=FlamStageConfig(**steps, clip_frames=4, predict_steps=2),
        evaluation=EvaluationConfig(num_clips=4, rollout_steps=4, num_pictures=2),
        cluster=ClusterConfig(num_workers=num_workers),
    )


def run_tiny(config: PretrainConfig) -> dict:
    """Runs it in this process."""
    device = torch.device("cpu")

    def make_engine(objective: torch.nn.Module, stage: StageConfig) -> TorchEngine:
        return TorchEngine(objective, stage, device, config.seed)

    result = pretrain(config, make_engine, 0, 1, device, "python tests/tiny.py")
    assert result is not None
    return result


if __name__ == "__main__":
    torch.set_num_threads(1)
    run_tiny(tiny_config(sys.argv[1], Path(sys.argv[2])))
