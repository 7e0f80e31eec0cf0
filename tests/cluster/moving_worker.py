"""One process of a run that changes its world size: moving_worker.py DATA OUT ZERO_STAGE LOG [DIE_AFTER].

Trains tests/tiny.py's run; logs every clip that stage 2 is given, and dies, where told to, in the middle of a step.
"""

import hashlib
import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import torch
from flamscale_cluster.zero import ZeroEngine

from flamscale.config import PretrainConfig, StageConfig
from flamscale.data.loader import ClipLoader
from flamscale.pretrain import pretrain
from flamscale.types import Batch
from tests.tiny import tiny_config

CPU = torch.device("cpu")


def moving_config(url: str, out: Path) -> PretrainConfig:
    """12 clips a step, which 1, 2 and 3 processes can share."""
    config = tiny_config(url, out)
    tokenizer_stage = replace(config.tokenizer_stage, global_batch=12, num_steps=2)
    return replace(config, tokenizer_stage=tokenizer_stage, flam_stage=replace(config.flam_stage, global_batch=12))


def log_clips(path: Path, die_after: int) -> None:
    """Writes position and content of each clip of stage 2, and ends the process after so many micro-batches."""
    original = ClipLoader.__next__
    count = 0

    def logged(loader: ClipLoader) -> Batch:
        nonlocal count
        batch = original(loader)
        if loader._reader._space.clip_frames == 4 and loader._config.prefetch_batches:
            count += 1
            with path.open("a") as file:
                for position, clip in zip(batch.positions.tolist(), batch.video, strict=True):
                    print(json.dumps([position, hashlib.sha256(clip.numpy().tobytes()).hexdigest()]), file=file)
            if count == die_after:
                os._exit(17)
        return batch

    ClipLoader.__next__ = logged  # type: ignore[method-assign]


def main() -> None:
    torch.set_num_threads(1)
    url, out, zero_stage, log = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    log_clips(Path(f"{log}-{rank}.jsonl"), int(sys.argv[5]) if len(sys.argv) > 5 else 0)
    config = moving_config(url, out)

    def make_engine(objective: torch.nn.Module, stage: StageConfig) -> ZeroEngine:
        return ZeroEngine(objective, stage, zero_stage=zero_stage, device=CPU, seed=config.seed)

    pretrain(config, make_engine, rank, world_size, CPU)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
