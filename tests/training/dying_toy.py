"""Trains the toy objective with a copy in an object store, and kills itself at the n-th call of one function.

Command: python -m tests.training.dying_toy FOLDER URL FUNCTION COUNT
"""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from flamscale.data import storage
from flamscale.training import checkpoint
from flamscale.training.engine import TorchEngine
from flamscale.training.mirror import Mirror
from tests.training.toy import run_toy, toy_config

PLACES = {
    "snapshot": (TorchEngine, "save"),
    "description": (checkpoint, "write_json"),
    "commit": (checkpoint.CheckpointStore, "_commit"),
    "retention": (checkpoint.CheckpointStore, "_drop_old"),
    "upload": (storage, "upload"),
    "removal from the store": (storage, "remove"),
}
CONFIG = toy_config(keep_checkpoints=1, keep_every=12)


def die_after(call: Callable[..., Any], count: int) -> Callable[..., Any]:
    """Returns a function that does the same, and is the process's last at the `count`-th call."""
    left = count

    def counted(*arguments: Any, **settings: Any) -> Any:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*arguments, **settings)

    return counted


def main() -> None:
    folder, url, place, count = Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])
    owner, name = PLACES[place]
    setattr(owner, name, die_after(getattr(owner, name), count))
    torch.set_num_threads(1)
    mirror = Mirror(folder, url, [folder / "metrics.jsonl"])
    run_toy(folder, CONFIG, mirror=mirror)
    mirror.close(60.0)


if __name__ == "__main__":
    main()
