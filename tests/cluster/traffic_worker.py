"""One of two gloo processes that count what ZeRO sends in a step: traffic_worker.py FILE; rank 0 writes it."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from flamscale_cluster.zero import ZeroEngine

from flamscale.plan import gradient_bytes, network_bytes
from flamscale.training.sizes import count_parameters
from tests.training.toy import CPU, ToyObjective, toy_config

ACCUMULATION = 2
PASSES = {"all_reduce": 2, "all_gather_into_tensor": 1, "reduce_scatter_tensor": 1}
"""Passes of a ring over its larger tensor, of which each process sends (W - 1) / W."""

sent_bytes = 0.0


def counted(collective: Callable[..., Any], passes: int) -> Callable[..., Any]:
    def count(*tensors: Any, **arguments: Any) -> Any:
        global sent_bytes
        largest = max(item.nbytes for item in (*tensors, *arguments.values()) if isinstance(item, torch.Tensor))
        sent_bytes += passes * largest * (dist.get_world_size() - 1) / dist.get_world_size()
        return collective(*tensors, **arguments)

    return count


def one_step(zero_stage: int, precision: str) -> dict[str, float]:
    """Bytes that a step really sends, once the engine runs as it always will, and those that the plan tells."""
    global sent_bytes
    config = toy_config(global_batch=8, micro_batch=2, precision=precision)
    objective = ToyObjective(width=64)
    del objective.scale  # a frozen parameter would count as one that is sent
    objective.register_buffer("scale", torch.ones(15))
    planned = network_bytes(
        count_parameters(objective), gradient_bytes(objective, config.precision), 2, ACCUMULATION, zero_stage
    )
    engine = ZeroEngine(objective, config, zero_stage=zero_stage, device=CPU, seed=0)
    for _ in range(3):
        sent_bytes = 0.0
        for _ in range(ACCUMULATION):
            engine.forward_backward({"images": torch.randn(2, 64), "target": torch.randn(2, 15)}, ACCUMULATION)
        engine.step(1e-3)
    engine.close()
    return {"sent": sent_bytes, "planned": planned}


def main() -> None:
    torch.set_num_threads(1)
    for name, passes in PASSES.items():  # before DeepSpeed looks them up
        setattr(dist, name, counted(getattr(dist, name), passes))
    found = {f"{stage} {precision}": one_step(stage, precision) for stage in range(4) for precision in ("fp32", "bf16")}
    if dist.get_rank() == 0:
        Path(sys.argv[1]).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
