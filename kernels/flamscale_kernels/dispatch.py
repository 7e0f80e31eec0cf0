"""Dispatch: a wish and the tensors' device in, which implementation runs out.

Triton runs on CUDA tensors, and on CPU tensors where TRITON_INTERPRET=1 was set before Triton's import, which is how
the tests prove the kernels without a GPU. The reference runs everywhere.
"""

import importlib.util
import os
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor

Backend = Literal["auto", "triton", "reference"]
"""auto: Triton on CUDA, reference elsewhere; triton: Triton or an error; reference: torch alone."""


class KernelUnavailableError(ValueError):
    """Triton kernels were asked for and cannot run."""


def is_interpreted() -> bool:
    """Whether Triton kernels run in Triton's interpreter, on CPU tensors."""
    return os.environ.get("TRITON_INTERPRET", "0") not in ("", "0")


def obstacle(device: torch.device) -> str | None:
    """Returns why Triton kernels cannot run on a device, and what to do, None where they can."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed; pip install 'triton>=3.6'"
    if device.type == "cuda" or (device.type == "cpu" and is_interpreted()):
        return None
    return f"they run on CUDA, and the tensors are on {device.type}; use kernels 'auto' or 'reference' there"


def use_triton(backend: Backend, device: torch.device, unsupported: str | None = None) -> bool:
    """Decides between Triton and the reference.

    Args:
        backend: what the caller wishes.
        device: where the tensors are.
        unsupported: what about these tensors the kernel cannot do, None where it can do it.

    Raises:
        KernelUnavailableError: `backend` is "triton", which this device or these tensors rule out.
    """
    if backend == "reference":
        return False
    reason = obstacle(device) or unsupported
    if backend == "triton" and reason:
        raise KernelUnavailableError(f"Triton kernels were asked for, but {reason}.")
    return reason is None and (backend == "triton" or device.type == "cuda")


def on_device_of(x: Tensor) -> AbstractContextManager[Any]:
    """Makes the tensor's GPU the current one, on which Triton launches."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()
