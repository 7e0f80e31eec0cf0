"""DeepSpeed ZeRO behind the `Engine` protocol: stages 0 to 3, gloo on CPUs, NCCL on GPUs, fp32 or bf16.

In: an objective and a StageConfig on every process of a torch.distributed group. The group may exist already (Ray);
otherwise RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT make it, and without them the process is on its own.
"""

import collections
import logging
import os
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn

from flamscale.config import StageConfig, check_batch_split
from flamscale.errors import CheckpointError, ConfigError
from flamscale.training.engine import clip_gradients, stack_scalars, with_loss
from flamscale.training.optimizer import build_optimizer, set_learning_rate

_TAG = "zero"  # folder of DeepSpeed's files inside a checkpoint


class ZeroEngine:
    """Engine of one process among many, its states sharded by DeepSpeed.

    bf16 means DeepSpeed's torch autocast: parameters and optimiser states stay fp32, the gradients of linear and
    convolutional layers travel as bf16.
    """

    def __init__(
        self, objective: nn.Module, config: StageConfig, *, zero_stage: int, device: torch.device, seed: int
    ) -> None:
        self.device = torch.device(device)
        _join_process_group(self.device)
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        check_batch_split(config, self.world_size, "stage")
        torch.manual_seed(seed + self.rank)
        self.module = objective.to(self.device)
        self.layout = f"deepspeed zero-{zero_stage} {config.precision}"
        self.zero_stage = zero_stage
        self._config = config
        self._accumulation = config.global_batch // (config.micro_batch * self.world_size)
        self._micro_batches = 0
        deepspeed = _import_deepspeed(self.device)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecations inside DeepSpeed, nothing a user could act on
            self._engine, *_ = deepspeed.initialize(
                model=self.module,
                optimizer=build_optimizer(self.module, config),
                config=deepspeed_config(config, zero_stage, self._accumulation, self.device),
                dist_init_required=False,
            )
        self._gathered = deepspeed.zero.GatheredParameters
        self._engine.checkpoint_engine.load = _load_tensors

    def forward_backward(self, inputs: dict[str, Tensor], accumulation: int) -> dict[str, Tensor]:
        if accumulation != self._accumulation:
            raise ConfigError(
                f"ZeroEngine was built for {self._accumulation} micro-batches a step (global_batch / micro_batch / "
                f"workers), got {accumulation}; build it with the StageConfig you train with."
            )
        self._micro_batches += 1
        self._engine.set_gradient_accumulation_boundary(self._micro_batches == accumulation)
        loss, metrics = self._engine(**inputs)
        self._engine.backward(loss)
        return with_loss(loss, metrics)

    def step(self, learning_rate: float) -> Float[Tensor, ""]:
        self._micro_batches = 0
        set_learning_rate(self._engine.optimizer, learning_rate)
        if self.zero_stage == 0:  # DeepSpeed would clip as well, but keep the norm to itself
            norm = clip_gradients(list(self.module.parameters()), self._config.grad_clip)
            self._engine.step()
            return norm
        self._engine.step()
        norm = torch.as_tensor(self._engine.get_global_grad_norm(), device=self.device).float()
        return torch.where(norm < 0, torch.nan, norm)  # DeepSpeed says -1 where the norm is not finite

    def evaluate(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        self._engine.eval()
        with torch.no_grad():
            loss, metrics = self._engine(**inputs)
        self._engine.train()
        return with_loss(loss, metrics)

    def mean(self, metrics: Mapping[str, Tensor | float]) -> dict[str, float]:
        values = stack_scalars(metrics, self.device)
        dist.all_reduce(values)
        return dict(zip(sorted(metrics), (values / self.world_size).tolist(), strict=True))

    def barrier(self) -> None:
        dist.barrier(device_ids=[self.device.index or 0] if self.device.type == "cuda" else None)

    def save(self, folder: Path) -> None:
        self._engine.save_checkpoint(str(folder), tag=_TAG, save_latest=False)
        self.barrier()
        if self.rank == 0:
            for script in folder.rglob("*.py"):  # copies of DeepSpeed's converters, which belong to no checkpoint
                script.unlink()

    def load(self, folder: Path) -> None:
        path, _ = self._engine.load_checkpoint(str(folder), tag=_TAG)
        if path is None:
            raise CheckpointError(f"Expected DeepSpeed's files in {folder / _TAG}, found none; delete that checkpoint.")

    def full_state_dict(self) -> dict[str, Tensor]:
        state: dict[str, Tensor] = {}
        for name, tensor in self.module.state_dict(keep_vars=True).items():
            with self._gathered([tensor], enabled=hasattr(tensor, "ds_id")):  # one at a time: little memory
                if self.rank == 0:
                    state[name] = tensor.detach().to("cpu", copy=True)
        return state

    def close(self) -> None:
        self._engine.destroy()
        for name in ("module_forward_pre_hook", "module_forward_post_hook"):
            hook = getattr(self._engine, name, None)  # not public: where it is gone, so is the hook
            if hook is not None:
                hook.remove()


def deepspeed_config(config: StageConfig, zero_stage: int, accumulation: int, device: torch.device) -> dict[str, Any]:
    """Returns DeepSpeed's settings, with everything that logs or times switched off.

    On CPUs the gradients are reduced where they lie, after the backward pass; on GPUs in buckets (elements), during it.
    ZeRO-3 shards every parameter on CPUs, where many small collectives cost more than one gather a module.
    """
    on_gpu = device.type == "cuda"
    zero: dict[str, Any] = {"stage": zero_stage, "overlap_comm": on_gpu, "contiguous_gradients": on_gpu}
    if on_gpu:
        zero |= {"reduce_bucket_size": 50_000_000, "allgather_bucket_size": 200_000_000}
    elif zero_stage == 3:
        zero |= {"stage3_param_persistence_threshold": 0}
    return {
        "train_micro_batch_size_per_gpu": config.micro_batch,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": config.grad_clip if zero_stage else 0.0,
        "zero_allow_untested_optimizer": True,
        "zero_optimization": zero,
        "torch_autocast": {"enabled": config.precision == "bf16", "dtype": "bfloat16"},
        "steps_per_print": sys.maxsize,
        "timers": {"throughput": {"enabled": False}},
        "checkpoint": {"tag_validation": "Ignore"},
    }


def _join_process_group(device: torch.device) -> None:
    """Initialises torch.distributed unless somebody has: from the environment, or for this process alone."""
    local_rank = str(device.index or 0) if device.type == "cuda" else os.environ.get("LOCAL_RANK", "0")
    os.environ["LOCAL_RANK"] = local_rank  # DeepSpeed takes the device from it
    if dist.is_initialized():
        return
    backend = "nccl" if device.type == "cuda" else "gloo"
    if "RANK" in os.environ:
        dist.init_process_group(backend)
    else:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)


def _import_deepspeed(device: torch.device) -> Any:
    """Imports DeepSpeed for this device, quietly and without its just-in-time builds."""
    os.environ.setdefault("DS_ACCELERATOR", device.type)  # read on import; a GPU machine may well train on its CPUs
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import deepspeed
        import deepspeed.ops
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)  # DeepSpeed calls them
    if device.type == "cpu":
        # The shared-memory collectives would be compiled for a minute at start; gloo carries our small messages.
        # Preset what DeepSpeed would otherwise find out by running compilers; without effect where it is unknown.
        vars(deepspeed.ops).setdefault("__compatible_ops__", collections.defaultdict(bool))
    return deepspeed


def _load_tensors(path: str, map_location: Any = None) -> Any:
    """Takes the place of DeepSpeed's reader, which unpickles anything: tensors and three of its own classes only."""
    from deepspeed.runtime.fp16.loss_scaler import LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    with torch.serialization.safe_globals([LossScaler, ZeroStageEnum, fragment_address]):
        return torch.load(path, map_location=map_location, weights_only=True)
