"""A device without enough memory for a stage: the allocator's error in, the largest micro-batch that fits out.

The same step would fail again, so that a run ends here instead of being started anew.
"""

import math
import os
import resource
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from flamscale.config import FlamStageConfig, PretrainConfig
from flamscale.errors import ConfigError
from flamscale.training.sizes import Stage, build_objective, clip_bytes, count_parameters, stage_config, state_bytes

_USABLE = 0.8  # of the free memory: allocators lose some between blocks, and kernels have buffers of their own
_TELLING = (  # what they say whose errors are not torch.OutOfMemoryError
    "out of memory",  # CUDA, NCCL, Triton
    "can't allocate memory",  # torch's CPU allocator
    "CUBLAS_STATUS_ALLOC_FAILED",  # handles and workspaces, which torch's allocator has no part in
    "CUDNN_STATUS_ALLOC_FAILED",
    "DEVICE_ALLOCATION_FAILED",  # cuDNN from version 9 on
)


@contextmanager
def naming_what_fits(config: PretrainConfig, stage: Stage, world_size: int, device: torch.device) -> Iterator[None]:
    """Turns an allocation that fails inside the block, which trains the stage, into one sentence.

    Raises:
        ConfigError: memory ran out; it names the largest micro-batch that would do and can share the global batch.
    """
    free = free_bytes(device)
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not ran_out(error):
            raise
        traceback.clear_frames(error.__traceback__)  # they hold the activations, and the search takes memory too
        found = f"{device}, which had {free / 2**30:.2f} GiB free when the stage began"
        what = remedy(config, stage, world_size, free)
        raise ConfigError(f"Memory ran out in stage {stage} on {found}; {what}.") from error


@contextmanager
def naming_batch_clips(config: PretrainConfig, device: torch.device) -> Iterator[None]:
    """Turns an allocation that fails inside the block, which rolls out held-out clips, into one sentence.

    Raises:
        ConfigError: memory ran out.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not ran_out(error):
            raise
        raise ConfigError(
            f"Memory ran out in the evaluation on {device}, which comes after training and starts anew when the job is "
            f"submitted again; pass --evaluation.batch-clips below {config.evaluation.batch_clips}, or choose a device "
            "with more memory."
        ) from error


def remedy(config: PretrainConfig, stage: Stage, world_size: int, free: int) -> str:
    """Returns what to do where a stage does not fit into free bytes of each worker, as the end of a sentence."""
    fits = largest_micro_batch(config, stage, world_size, free)
    micro_batch = stage_config(config, stage).micro_batch
    if fits:
        return (
            f"instead of micro-batch {micro_batch} pass --{stage}-stage.micro-batch {fits}, the largest that is "
            "computed to fit and shares the global batch"
        )
    return (
        f"no micro-batch smaller than {micro_batch} is computed to fit: choose a smaller model, or more workers at "
        "--cluster.zero-stage 3"
    )


def ran_out(error: BaseException) -> bool:
    """Whether an error says that no memory could be had."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return any(words in str(error) for words in _TELLING)


def largest_micro_batch(config: PretrainConfig, stage: Stage, world_size: int, free: int) -> int | None:
    """Returns the largest micro-batch, smaller than the config's, that is computed to fit into free bytes.

    Returns:
        Clips of a micro-batch that divides each worker's share of the global batch, also where there are as many
        workers as the run may have; None where not even one fits.
    """
    settings = stage_config(config, stage)
    with FakeTensorMode():
        num_parameters = count_parameters(build_objective(config, stage))
    states = sum(state_bytes(num_parameters, world_size, config.cluster.zero_stage))
    each = clip_bytes(config, stage)
    share = math.gcd(settings.global_batch // world_size, settings.global_batch // config.cluster.num_workers)
    group = 1  # clips that the contrastive term needs together
    if isinstance(settings, FlamStageConfig) and settings.contrastive_weight:
        group = settings.contrastive_clips
    fitting = (
        clips
        for clips in range(settings.micro_batch - 1, 0, -1)
        if share % clips == 0 and clips % group == 0 and states + clips * each <= _USABLE * free
    )
    return next(fitting, None)


def free_bytes(device: torch.device) -> int:
    """Returns the memory that this process can still have on a device (bytes).

    On a CPU: its part of what the machine has available, which it shares with the node's other workers, and no more
    than its limit of address space (ulimit -v) leaves.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    available = psutil.virtual_memory().available // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    return available if limit == resource.RLIM_INFINITY else min(available, limit - psutil.Process().memory_info().vms)
