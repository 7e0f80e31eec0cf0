"""How fast is causal attention over tens of thousands of short sequences, in the layout the model holds?

Command: python kernels/benchmarks/temporal_attention.py    (--gate-only: numbers alone, also without a GPU)

Peers get [B, T, S, H, E] tensors, as a model has them, and pay for the copies their own layout needs. Floor: forward
reads query, key and value and writes the output; backward reads those and its gradient and writes three gradients.
"""

import sys
from functools import partial

import torch
import torch.nn.functional as F
from flamscale_kernels import reference, temporal_attention
from harness import Forward, Row, copy_bandwidth_gb_s, gate, measure, need_gpu, publish, run
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

CASES = {  # B, T, S, H, E
    "32,768 sequences, T = 16, 8 heads of 32": (128, 16, 256, 8, 32),
    "32,768 sequences, T = 32, 8 heads of 64": (128, 32, 256, 8, 64),
}
GATE_CASE = (2, 16, 24, 2, 32)
SDPA_BACKENDS = (
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.MATH,
)
SDPA_LIMIT = 65_535
"""Largest batch that SDPA's backends take, whose grid has it on an axis of 16 bits (count)."""


def to_sdpa(x: Tensor) -> Tensor:
    """[B, T, S, H, E] -> [B*S, H, T, E]."""
    return x.permute(0, 2, 3, 1, 4).flatten(0, 1)


def from_sdpa(x: Tensor, num_clips: int) -> Tensor:
    return x.unflatten(0, (num_clips, -1)).permute(0, 3, 1, 2, 4)


def sdpa(backend: SDPBackend, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    parts = [to_sdpa(x).split(SDPA_LIMIT) for x in (query, key, value)]
    with sdpa_kernel(backend):
        mixed = [F.scaled_dot_product_attention(*chunk, is_causal=True) for chunk in zip(*parts, strict=True)]
    return from_sdpa(torch.cat(mixed) if len(mixed) > 1 else mixed[0], len(query))


def packed_flex(num_sequences: int, num_frames: int) -> Forward:
    """FlexAttention over all sequences as one, with a mask that is block-diagonal and causal."""
    from torch.nn.attention.flex_attention import BlockMask, flex_attention

    size = 128
    num_blocks = num_sequences * num_frames // size
    ones = torch.ones(1, 1, num_blocks, dtype=torch.int32, device="cuda")
    indices = torch.zeros(1, 1, num_blocks, num_blocks, dtype=torch.int32, device="cuda")
    indices[..., 0] = torch.arange(num_blocks)

    def visible(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return (i // num_frames == j // num_frames) & (i >= j)

    mask = BlockMask.from_kv_blocks(ones, indices, BLOCK_SIZE=size, mask_mod=visible)
    compiled = torch.compile(flex_attention, fullgraph=True, dynamic=False)

    def forward(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        # [B, T, S, H, E] -> [1, H, B*S*T, E]
        packed = [x.permute(3, 0, 2, 1, 4).flatten(1, 3)[None] for x in (query, key, value)]
        mixed = compiled(*packed, block_mask=mask)[0]
        num_clips, _, num_slots = query.shape[:3]
        return mixed.unflatten(1, (num_clips, num_slots, num_frames)).permute(1, 3, 2, 0, 4)

    return forward


def packed_xformers(num_sequences: int, num_frames: int) -> Forward:
    import xformers.ops as xops
    from xformers.ops.fmha.attn_bias import BlockDiagonalCausalMask

    bias = BlockDiagonalCausalMask.from_seqlens([num_frames] * num_sequences)

    def forward(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        packed = [x.transpose(1, 2).flatten(0, 2)[None] for x in (query, key, value)]  # [1, B*S*T, H, E]
        mixed = xops.memory_efficient_attention(*packed, attn_bias=bias)[0]
        return mixed.unflatten(0, (len(query), -1, num_frames)).transpose(1, 2)

    return forward


def peers(shape: tuple[int, ...]) -> dict[str, Forward]:
    """Ours first, then all that this machine has."""
    num_sequences, num_frames = shape[0] * shape[2], shape[1]
    found: dict[str, Forward] = {"flamscale_kernels": partial(temporal_attention, backend="triton")}
    found["eager (the reference)"] = reference.temporal_attention
    if not torch.cuda.is_available():
        return found
    found["torch.compile of eager, max-autotune"] = torch.compile(
        reference.temporal_attention, mode="max-autotune-no-cudagraphs", fullgraph=True, dynamic=False
    )
    for backend in SDPA_BACKENDS:
        found[f"SDPA {backend.name.lower()}"] = partial(sdpa, backend)
    found["FlexAttention, packed"] = packed_flex(num_sequences, num_frames)
    try:
        found["xformers, packed"] = packed_xformers(num_sequences, num_frames)
    except ImportError:
        print("xformers is not installed: left out")
    return found


def inputs(shape: tuple[int, ...]) -> list[Tensor]:
    """Query, key and value as views of one projection's output, as the model has them."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    generator = torch.Generator(device).manual_seed(0)
    *rest, num_heads, width = shape
    packed = torch.randn(*rest, 3, num_heads, width, generator=generator, device=device, dtype=dtype)
    return list(packed.unbind(3))


def main() -> None:
    """Gate, then times."""
    gate_only = "--gate-only" in sys.argv[1:]
    for shape in [GATE_CASE, *(CASES.values() if torch.cuda.is_available() else ())]:
        for peer, forward in peers(shape).items():
            gate(peer, forward, reference.temporal_attention, inputs(shape))
    print("gate: green")
    if gate_only:
        return
    need_gpu()
    bandwidth = copy_bandwidth_gb_s()
    results: dict[str, list[Row]] = {}
    for name, shape in CASES.items():
        tensors = inputs(shape)
        floor_bytes = 11 * tensors[0].numel() * tensors[0].element_size()
        results[name] = [measure(peer, f, tensors, floor_bytes, bandwidth) for peer, f in peers(shape).items()]
    publish("temporal_attention", results, {"copy_gb_s": bandwidth})


if __name__ == "__main__":
    run(main)
