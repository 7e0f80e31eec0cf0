"""How fast is the token side of slot attention: I iterations' reads of one frame's tokens, forward and backward?

Command: python kernels/benchmarks/slot_attention.py    (--gate-only: numbers alone, also without a GPU)

Every iteration has its own queries, as slots change in between; the update of the slots themselves is in
slot_update.py. Textbook peers project tokens to keys and values once (Locatello et al., arXiv 2006.15055); absorbed
ones move both projections to the slots, which is the same function. Floor: every iteration reads the tokens once,
forward and backward, and the backward pass writes their gradient.
"""

import sys
from functools import partial

import torch
from flamscale_kernels import reference, slot_attention
from harness import Forward, Row, copy_bandwidth_gb_s, gate, measure, need_gpu, publish, run
from torch import Tensor

NUM_ITERATIONS = 3
CASES = {  # frames, tokens, width, slots
    "F = 512, N = 256, D = 256, K = 16, three iterations": (512, 256, 256, 16),
    "F = 512, N = 784, D = 512, K = 16, three iterations": (512, 784, 512, 16),
}
GATE_CASE = (3, 21, 32, 5)


def textbook(tokens: Tensor, queries: Tensor, key_weight: Tensor, value_weight: Tensor) -> Tensor:
    """Keys and values once, then every iteration's softmax over slots and weighted mean: [F, I, K, D]."""
    keys, values = tokens @ key_weight.mT, tokens @ value_weight.mT
    updates = []
    for query in queries.unbind(1):
        attention = torch.softmax(query @ keys.mT * keys.shape[-1] ** -0.5, dim=1)
        updates.append((attention / (attention.sum(-1, keepdim=True) + 1e-6)) @ values)
    return torch.stack(updates, dim=1)


def absorbed(op: Forward, tokens: Tensor, queries: Tensor, key_weight: Tensor, value_weight: Tensor) -> Tensor:
    """The same with both projections on the slots' side."""
    scale = tokens.shape[-1] ** -0.5
    means = [op(tokens, query @ key_weight, scale)[0] for query in queries.unbind(1)]
    return torch.stack(means, dim=1) @ value_weight.mT


def peers() -> dict[str, Forward]:
    """Ours first, then all that this machine has."""
    found: dict[str, Forward] = {
        "flamscale_kernels": partial(absorbed, partial(slot_attention, backend="triton")),
        "eager": textbook,
        "eager, absorbed (the reference)": partial(absorbed, reference.slot_attention),
    }
    if torch.cuda.is_available():
        fast = partial(torch.compile, mode="max-autotune-no-cudagraphs", fullgraph=True, dynamic=False)
        found["torch.compile, max-autotune"] = fast(textbook)
        found["torch.compile, max-autotune, absorbed"] = fast(partial(absorbed, reference.slot_attention))
    return found


def inputs(shape: tuple[int, int, int, int]) -> list[Tensor]:
    """Layer-normalised tokens, queries of every iteration, key and value weights."""
    num_frames, num_tokens, width, num_slots = shape
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    draw = partial(torch.randn, generator=torch.Generator(device).manual_seed(0), device=device)
    tensors = [
        draw(num_frames, num_tokens, width),
        draw(num_frames, NUM_ITERATIONS, num_slots, width),
        draw(width, width) * width**-0.5,
        draw(width, width) * width**-0.5,
    ]
    return [tensor.to(dtype) for tensor in tensors]


def main() -> None:
    """Gate, then times."""
    gate_only = "--gate-only" in sys.argv[1:]
    for shape in [GATE_CASE, *(CASES.values() if torch.cuda.is_available() else ())]:
        for peer, forward in peers().items():
            gate(peer, forward, textbook, inputs(shape))
    print("gate: green")
    if gate_only:
        return
    need_gpu()
    bandwidth = copy_bandwidth_gb_s()
    results: dict[str, list[Row]] = {}
    for name, shape in CASES.items():
        tensors = inputs(shape)
        floor_bytes = (2 * NUM_ITERATIONS + 1) * tensors[0].numel() * tensors[0].element_size()
        results[name] = [measure(peer, f, tensors, floor_bytes, bandwidth) for peer, f in peers().items()]
    publish("slot_attention", results, {"copy_gb_s": bandwidth})


if __name__ == "__main__":
    run(main)
