"""Running trained models over many clips: batches of a bounded size, and modules in evaluation mode."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def evaluation_mode(*modules: nn.Module) -> Iterator[None]:
    """Switches modules to evaluation and autograd off; gives every module its own mode back."""
    training = [module.training for module in modules]
    for module in modules:
        module.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for module, was_training in zip(modules, training, strict=True):
            module.train(was_training)


def batches(num_clips: int, batch_clips: int) -> Iterator[slice]:
    """Yields successive ranges of at most `batch_clips` clips."""
    for start in range(0, num_clips, batch_clips):
        yield slice(start, min(start + batch_clips, num_clips))


def device_of(module: nn.Module) -> torch.device:
    """Returns the device of the module's parameters."""
    return next(module.parameters()).device
