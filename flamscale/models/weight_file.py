"""Files of frozen networks' weights: tensors and the network's name in, one safetensors file out, and back, checked.

Recipes make such files from arrays that pip packages ship; nothing is ever downloaded.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from flamscale.errors import CheckpointError, ConfigError


@dataclass(frozen=True)
class WeightFile:
    """What a file holds, not checked against its checksum yet."""

    path: Path
    kind: str
    """Whose weights were expected, for messages: LPIPS, I3D."""
    remedy: str
    """What to do about a bad file, for messages."""
    network: str | None
    """Name of the network, as saved."""
    sha256: str
    """Checksum of the tensors (hex), as saved."""
    state: dict[str, Tensor]

    @classmethod
    def read(cls, path: Path, kind: str, remedy: str) -> "WeightFile":
        """Reads a file.

        Raises:
            ConfigError: it is missing or cannot be read.
            CheckpointError: it is no whole safetensors file.
        """
        try:
            with safe_open(path, framework="pt") as file:
                description = file.metadata() or {}
                state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        except OSError as error:
            raise ConfigError(
                f"Expected a file of {kind} weights at {path}, found none ({error.strerror or error}); {remedy}."
            ) from error
        except SafetensorError as error:
            raise CheckpointError(
                f"Expected {kind} weights in safetensors form in {path}, found no whole such file ({error}); {remedy}."
            ) from error
        return cls(path, kind, remedy, description.get("network"), description.get("sha256", "none"), state)

    def load_into(self, model: nn.Module) -> None:
        """Gives the model these weights.

        Raises:
            CheckpointError: a tensor is missing or of another shape, or the file is damaged.
        """
        expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
        for name in sorted(expected.keys() | self.state.keys()):
            found = tuple(self.state[name].shape) if name in self.state else None
            if found != expected.get(name):
                raise CheckpointError(
                    f"Expected tensor {name} of {self.network} with shape {expected.get(name)} in {self.path}, found "
                    f"{found}; {self.remedy} again."
                )
        checksum = _checksum(self.state)
        if checksum != self.sha256:
            raise CheckpointError(
                f"Expected {self.kind} weights with checksum {self.sha256[:12]} in {self.path}, found {checksum[:12]}: "
                f"the file is damaged; {self.remedy} again."
            )
        model.load_state_dict(self.state)


def save_weights(path: Path, network: str, state: Mapping[str, Tensor]) -> None:
    """Writes tensors as float32; the file is whole or absent."""
    plain = {name: value.float().cpu().contiguous() for name, value in state.items()}
    partial = path.with_name(path.name + ".partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial.write_bytes(save(plain, {"network": network, "sha256": _checksum(plain)}))
    partial.replace(path)


def _checksum(state: dict[str, Tensor]) -> str:
    """sha256 of names, types, shapes and values."""
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(f"{name} {state[name].dtype} {tuple(state[name].shape)}\n".encode())
        digest.update(state[name].contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()
