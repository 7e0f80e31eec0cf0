"""What each Ray worker runs: a config in; on rank 0 the run's result, and the last lines for the terminal, out."""

import functools
import logging
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch

from flamscale.config import PretrainConfig, from_dict
from flamscale.pretrain import pretrain, summary
from flamscale_cluster.ray_metrics import RayMetrics
from flamscale_cluster.zero import ZeroEngine


def run_worker(settings: dict[str, Any]) -> tuple[dict[str, Any], list[str]] | None:
    """Runs this worker's part of the main job.

    Args:
        settings: its config as a dict, its command line, and who sees the notice to leave if it does not itself.
    """
    config = from_dict(PretrainConfig, settings["config"])
    context = ray.train.get_context()
    device = torch.device("cpu")
    if config.cluster.accelerator == "gpu":
        device = ray.train.torch.get_device()
        torch.cuda.set_device(device)
    for client in ("aiobotocore", "botocore"):  # each connection tells where it found its address and keys
        logging.getLogger(client).setLevel(logging.WARNING)
    torch.set_num_threads(config.cluster.cpus_per_worker)
    make_engine = functools.partial(ZeroEngine, zero_stage=config.cluster.zero_stage, device=device, seed=config.seed)
    rank, world_size = context.get_world_rank(), context.get_world_size()
    observers = [RayMetrics(run=config.out)]
    notice = settings["leave_notice"]
    shall_leave = None if notice is None else functools.partial(_is_told, notice, rank)
    result = pretrain(config, make_engine, rank, world_size, device, settings["command"], observers, shall_leave)
    return None if result is None else (result, summary(config, result))


def _is_told(notice: Any, rank: int) -> bool:
    """Whether the driver's notice to leave is there; one worker asks for all."""
    return rank == 0 and ray.get(notice.exists.remote())
