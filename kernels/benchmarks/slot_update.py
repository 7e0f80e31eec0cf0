"""How fast is one update of the slots, GRU cell, layer norm and residual MLP, forward and backward?

Command: python kernels/benchmarks/slot_update.py    (--gate-only: numbers alone, also without a GPU)

The matrix products are cuBLAS's for every peer; what differs is all between them. No floor is given, as the products
take longer than the memory. In bf16 throughout; under autocast, as training runs, eager torch also pays for casts of
the norm.
"""

import sys
from functools import partial
from typing import Any

import torch
from flamscale_kernels import reference, slot_update
from harness import Forward, Row, gate, measure, need_gpu, publish, run
from torch import Tensor
from torch.nn import functional

CASES = {  # frames x slots, width
    "F = 512, K = 16, D = 256": (8192, 256),
    "F = 512, K = 16, D = 512": (8192, 512),
    "F = 256, K = 4, D = 256": (1024, 256),
}
GATE_CASE = (21, 32)
NAMES = ("input_weight", "hidden_weight", "input_bias", "hidden_bias", "norm_weight", "norm_bias")


def updated(op: Any, updates: Tensor, slots: Tensor, up: Tensor, down: Tensor, *weights: Tensor) -> Tensor:
    """The new slots after their MLP (Locatello et al., arXiv 2006.15055, Algorithm 1, lines 10-11)."""
    slots, normed = op(updates, slots, **dict(zip(NAMES, weights, strict=True)))
    return slots + functional.linear(functional.gelu(functional.linear(normed, up), approximate="tanh"), down)


def peers() -> dict[str, Forward]:
    """Ours first, then all that this machine has."""
    ours, eager = (partial(updated, op) for op in (partial(slot_update, backend="triton"), reference.slot_update))
    found: dict[str, Forward] = {"flamscale_kernels": ours, "eager (the reference)": eager}
    if torch.cuda.is_available():
        fast = partial(torch.compile, mode="max-autotune-no-cudagraphs", fullgraph=True, dynamic=False)
        found["torch.compile, max-autotune"] = fast(eager)
        found["flamscale_kernels, torch.compile"] = fast(ours)
    return found


def inputs(shape: tuple[int, int]) -> list[Tensor]:
    """Updates, slots and all weights, an MLP of ratio 4."""
    num_rows, width = shape
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    draw = partial(torch.randn, generator=torch.Generator(device).manual_seed(0), device=device)
    matrices = (4 * width, width), (width, 4 * width), (3 * width, width), (3 * width, width)
    tensors = [draw(num_rows, width), draw(num_rows, width), *(draw(shape) * shape[1] ** -0.5 for shape in matrices)]
    tensors += [draw(size) for size in (3 * width, 3 * width, width, width)]
    return [tensor.to(dtype) for tensor in tensors]


def main() -> None:
    """Gate, then times."""
    gate_only = "--gate-only" in sys.argv[1:]
    for shape in [GATE_CASE, *(CASES.values() if torch.cuda.is_available() else ())]:
        for peer, forward in peers().items():
            gate(peer, forward, partial(updated, reference.slot_update), inputs(shape))
    print("gate: green")
    if gate_only:
        return
    need_gpu()
    results: dict[str, list[Row]] = {}
    for name, shape in CASES.items():
        tensors = inputs(shape)
        results[name] = [measure(peer, forward, tensors) for peer, forward in peers().items()]
    publish("slot_update", results, {})


if __name__ == "__main__":
    run(main)
