"""Workers of one group meet before they have an engine: this worker in; whether all see the same folder, out.

A worker alone, or one whose group is formed by its engine later, meets nobody.
"""

import uuid
from pathlib import Path

import torch
import torch.distributed as dist

from flamscale.errors import ConfigError


def meet(device: torch.device) -> None:
    """Returns when every worker of the group has called it."""
    if dist.is_initialized():
        dist.barrier(device_ids=[device.index or 0] if device.type == "cuda" else None)


def check_shared(folder: Path) -> None:
    """Raises ConfigError on all workers unless each of them sees what the first writes into the run directory."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return
    rank, world_size = dist.get_rank(), dist.get_world_size()
    name = [f".seen-by-all-{uuid.uuid4().hex}"]
    if rank == 0:
        (folder / name[0]).touch()
    dist.broadcast_object_list(name)
    seen = [False] * world_size
    dist.all_gather_object(seen, (folder / name[0]).exists())
    if rank == 0:
        (folder / name[0]).unlink()
    if not all(seen):
        blind = ", ".join(str(one) for one, sees in enumerate(seen) if not sees)
        raise ConfigError(
            f"Expected all workers to see the run directory {folder} as one folder, found that workers {blind} of "
            f"{world_size} do not see what worker 0 writes there; put --out on storage that all nodes share, or pass "
            "--cluster.local-out with --copy-to s3://bucket/folder."
        )
