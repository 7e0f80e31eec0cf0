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
from flamscale.errors import ConfigError
from flamscale.training.engine import clip_gradients, stack_scalars, with_loss
from flamscale.training.engine_state import (
    MOMENTS,
    check_frozen,
    key,
    open_state,
    read_frozen,
    trainable,
    write_frozen,
    write_state,
)
from flamscale.training.optimizer import build_optimizer, set_learning_rate


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
        for buffer in self.module.buffers():  # DeepSpeed does the same for parameters
            dist.broadcast(buffer, src=0)

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
        if not self._torch_optimizer.state:  # before the first step
            self._prepare_moments(torch.zeros(()))
        self._link_moments()
        parameters, tensors = trainable(self.module), {}
        for index, (name, parameter) in enumerate(parameters.items()):
            for part in ("parameter", *MOMENTS):
                whole = self._gather(parameter, part)  # by all processes, one tensor at a time
                if index % self.world_size == self.rank:
                    tensors[key(part, name)] = whole.to("cpu", copy=True)
        write_state(folder, self.rank, tensors, next(iter(self._torch_optimizer.state.values()))["step"])
        frozen = self._frozen()
        if self.rank == 0:
            write_frozen(folder, frozen)

    def load(self, folder: Path) -> None:
        parameters, frozen = trainable(self.module), read_frozen(folder)
        with open_state(folder) as read:
            self._prepare_moments(read.step)
            self._link_moments()
            for name, parameter in parameters.items():
                for part in ("parameter", *MOMENTS):
                    self._scatter(parameter, part, read(key(part, name)).to(self.device))
        if self.zero_stage in (1, 2):
            self._engine.optimizer.update_lp_params()
        state = self.module.state_dict(keep_vars=True)
        for name, value in frozen.items():
            self._set_whole(state[name], value)
        check_frozen(self._frozen(), frozen, folder)

    def _gather(self, parameter: nn.Parameter, part: str) -> Tensor:
        """Returns a whole parameter or moment on every process."""
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        if self.zero_stage == 0:
            return parameter.detach() if part == "parameter" else self._torch_optimizer.state[parameter][part]
        if part == "parameter":
            return safe_get_full_fp32_param(parameter)
        return safe_get_full_optimizer_state(parameter, part)

    def _scatter(self, parameter: nn.Parameter, part: str, whole: Tensor) -> None:
        """Keeps this process's share of a whole parameter or moment."""
        import deepspeed.utils as ds

        is_parameter = part == "parameter"
        if self.zero_stage == 0:
            target = parameter.data if is_parameter else self._torch_optimizer.state[parameter][part]
            target.copy_(whole)
        elif self.zero_stage < 3:
            if is_parameter:
                ds.safe_set_full_fp32_param(parameter, whole)
            else:
                ds.safe_set_full_optimizer_state(parameter, whole, part)
        else:
            share_size = parameter.ds_tensor.numel()  # type: ignore[attr-defined]
            padding = share_size * self.world_size - whole.numel()
            share = nn.functional.pad(whole.flatten(), (0, padding)).narrow(0, share_size * self.rank, share_size)
            if is_parameter:
                ds.safe_set_local_fp32_param(parameter, share)
                self._set_whole(parameter, whole)
            else:
                ds.safe_set_local_optimizer_state(parameter, share, part)

    def _prepare_moments(self, step: Tensor) -> None:
        """Gives the optimiser the state it would else make in its first step."""
        optimizer = self._engine.optimizer
        flat = {
            0: list(trainable(self.module).values()),
            1: getattr(optimizer, "single_partition_of_fp32_groups", []),
            2: getattr(optimizer, "single_partition_of_fp32_groups", []),
            3: getattr(optimizer, "fp32_partitioned_groups_flat", []),
        }[self.zero_stage]
        for tensor in flat:
            moments = {moment: torch.zeros_like(tensor) for moment in MOMENTS}
            self._torch_optimizer.state[tensor] = moments | {"step": step.to(tensor.device, copy=True)}

    def _link_moments(self) -> None:
        """Has stages 1 and 2 find each parameter's moments; DeepSpeed looks when only the first group has any."""
        if self.zero_stage in (1, 2):
            self._engine.optimizer._hp_optimizer_states_linked = False
            self._engine.optimizer._lazy_init_hp_params_optimizer_state()

    @property
    def _torch_optimizer(self) -> torch.optim.Optimizer:
        return getattr(self._engine.optimizer, "optimizer", self._engine.optimizer)

    def _frozen(self) -> dict[str, Tensor]:
        """Returns buffers and frozen parameters, whole, on every process."""
        frozen: dict[str, Tensor] = {}
        parameters = trainable(self.module)
        for name, tensor in self.module.state_dict(keep_vars=True).items():
            if name not in parameters:
                with self._gathered([tensor], enabled=hasattr(tensor, "ds_id")):
                    frozen[name] = tensor.detach().clone()
        return frozen

    def _set_whole(self, tensor: Tensor, value: Tensor) -> None:
        with torch.no_grad(), self._gathered([tensor], modifier_rank=0, enabled=hasattr(tensor, "ds_id")):
            if self.rank == 0 or not hasattr(tensor, "ds_id"):
                tensor.data.copy_(value)

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
