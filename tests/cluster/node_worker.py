"""One process on a node with a disk of its own: node_worker.py DATA OUT URL DIE_AFTER.

Trains tests/tiny.py's run with checkpoints at URL; dies, where told to, in the middle of a step of stage 2, once the
checkpoint before it is in the store.
"""

import os
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from flamscale_cluster.zero import ZeroEngine

from flamscale.config import ClusterConfig, PretrainConfig, StageConfig
from flamscale.data import storage
from flamscale.data.loader import ClipLoader
from flamscale.pretrain import pretrain
from flamscale.types import Batch
from tests.tiny import CHECKPOINT_EVERY, tiny_config

CPU = torch.device("cpu")


def node_config(data: str, out: str, url: str) -> PretrainConfig:
    """Two workers on nodes that share no disk; a short stage 1."""
    config = tiny_config(data, Path(out))
    tokenizer_stage = replace(config.tokenizer_stage, num_steps=2)
    cluster = ClusterConfig(num_workers=2, local_out=True)
    return replace(config, copy_to=url, tokenizer_stage=tokenizer_stage, cluster=cluster)


def die_after(count: int, url: str) -> None:
    """Ends the process after so many micro-batches of stage 2."""
    original, seen = ClipLoader.__next__, 0

    def counted(loader: ClipLoader) -> Batch:
        nonlocal seen
        seen += loader._reader._space.clip_frames == 4 and loader._config.prefetch_batches > 0  # not in validation
        if seen == count:
            while f"step-{CHECKPOINT_EVERY:06d}/meta.json" not in storage.find(f"{url}/checkpoints/flam"):
                time.sleep(0.1)
            os._exit(17)
        return original(loader)

    ClipLoader.__next__ = counted  # type: ignore[method-assign]


def main() -> None:
    torch.set_num_threads(1)
    config = node_config(*sys.argv[1:4])
    if int(sys.argv[4]):
        die_after(int(sys.argv[4]), config.copy_to)
    dist.init_process_group("gloo")  # as Ray does before it starts a worker's function

    def make_engine(objective: torch.nn.Module, stage: StageConfig) -> ZeroEngine:
        return ZeroEngine(objective, stage, zero_stage=2, device=CPU, seed=config.seed)

    pretrain(config, make_engine, dist.get_rank(), dist.get_world_size(), CPU)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
