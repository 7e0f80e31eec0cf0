"""Model and optimiser as files that say nothing of how many processes wrote them, and back.

In: whole tensors by name, each from one of the processes. Out: `state-*.safetensors` in a checkpoint's folder, which
hold every trainable parameter with its optimiser state, and `frozen.safetensors` with all else: buffers and frozen
parameters. Any engine at any world size reads what any other wrote; nothing in them is pickled.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from flamscale.errors import CheckpointError

MOMENTS = ("exp_avg", "exp_avg_sq")
"""AdamW's running means of gradients and of their squares, by torch's names."""
_STEP = "optimizer/step"
_FROZEN = "frozen.safetensors"


def trainable(module: nn.Module) -> dict[str, nn.Parameter]:
    """Returns the parameters that are trained, by name; one that goes by two names, by its first."""
    return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}


def key(part: str, name: str) -> str:
    """Returns the name in a file of a parameter ("parameter") or of its state (one of MOMENTS)."""
    return f"{part}/{name}"


def write_state(folder: Path, rank: int, tensors: Mapping[str, Tensor], step: Tensor) -> None:
    """Writes one process's share of all parameters and moments, and the optimiser's number of steps."""
    file = folder / f"state-{rank:05d}.safetensors"
    whole = {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}
    save_file(whole | {_STEP: step.detach().cpu().float()}, file)


def write_frozen(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Writes buffers and frozen parameters; one process does."""
    save_file({name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}, folder / _FROZEN)


def read_frozen(folder: Path) -> dict[str, Tensor]:
    """Returns buffers and frozen parameters by name; raises CheckpointError if there is no such file."""
    if not (folder / _FROZEN).exists():
        raise CheckpointError(f"Expected {_FROZEN} in {folder}, found none; delete that checkpoint.")
    return load_file(folder / _FROZEN)


class StateReader:
    """Reads tensors by name, one at a time, from all processes' files."""

    def __init__(self, files: dict[str, Any], folder: Path) -> None:
        self._files = files
        self._folder = folder

    def __call__(self, name: str) -> Tensor:
        """Returns a tensor on the CPU; raises CheckpointError if no file has it."""
        if name not in self._files:
            raise CheckpointError(f"Expected {name} in the state files of {self._folder}, found none; delete it.")
        return self._files[name].get_tensor(name)

    @property
    def names(self) -> list[str]:
        """All that can be read."""
        return list(self._files)

    @property
    def step(self) -> Tensor:
        """Steps the optimiser has taken, float32 []."""
        return self(_STEP)


@contextmanager
def open_state(folder: Path) -> Iterator[StateReader]:
    """Opens what `write_state` wrote, whoever did."""
    with ExitStack() as opened:
        files: dict[str, Any] = {}
        for path in sorted(folder.glob("state-*.safetensors")):
            file = opened.enter_context(safe_open(path, "pt"))
            files |= dict.fromkeys(file.keys(), file)
        yield StateReader(files, folder)


def check_frozen(found: Mapping[str, Tensor], written: Mapping[str, Tensor], folder: Path) -> None:
    """Raises CheckpointError unless buffers and frozen parameters are now bit for bit what was written."""
    for name in sorted(found.keys() | written.keys()):
        if name not in found or name not in written or not torch.equal(found[name].cpu(), written[name]):
            raise CheckpointError(
                f"Expected {name} to be what {folder / _FROZEN} says after loading it, found another value; this is a "
                "fault of the engine: go on from an exported model."
            )


def read_module(folder: Path) -> dict[str, Tensor]:
    """Returns the state dict of the objective whose checkpoint this is, on the CPU, without the optimiser's state."""
    prefix = key("parameter", "")
    with open_state(folder) as read:
        parameters = {name.removeprefix(prefix): read(name) for name in read.names if name.startswith(prefix)}
    return parameters | read_frozen(folder)
