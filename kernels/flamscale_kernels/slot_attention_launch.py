"""How slot attention's kernels are launched: a shape and a type in, tiles and constant arguments out.

The tables are static, as tuning at run time would let ranks diverge. Imported only once Triton is chosen.
"""

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl

from flamscale_kernels.aot import AotCase
from flamscale_kernels.dispatch import is_interpreted
from flamscale_kernels.slot_attention_kernels import slot_attention_backward_kernel, slot_attention_forward_kernel


@dataclass(frozen=True, kw_only=True)
class Tiles:
    """What one program holds on chip at a time.

    Attributes:
        slots: rows of every product.
        tokens: tokens per step of the loop.
        channels: columns of tokens and queries per product.
        values: columns of the values per product; forward, columns of the means per program.
        columns: backward, columns of the queries' gradient per program.
        num_warps, num_stages: launch options.
    """

    slots: int
    tokens: int
    channels: int
    values: int
    columns: int
    num_warps: int
    num_stages: int


def tiles(num_slots: int, channels: int, value_channels: int | None, itemsize: int, *, backward: bool) -> Tiles:
    """Returns the tiles for a shape; `value_channels` is None where the tokens are the values.

    Half precision keeps all columns of a shape on chip, so that tokens are loaded once, up to 16,384 accumulators and
    128 KiB of token tiles; beyond, programs share the columns. Float32 products run without tensor cores, which takes
    more registers. Numbers come from ahead-of-time builds for sm_90 without spills, by Triton 3.6.0 and 3.9.0.
    """
    slots = max(16, triton.next_power_of_2(num_slots))
    c = max(16, triton.next_power_of_2(channels))
    v = c if value_channels is None else max(16, triton.next_power_of_2(value_channels))
    loaded = c if value_channels is None else c + v  # columns of a token's tiles
    if itemsize > 2:
        if backward:
            token_block, columns, chunk = (16, 64, 32) if slots == 16 else (32, 32, 1024 // slots)
        else:
            token_block, columns, chunk = (32, 64, 32) if slots == 16 else (16, 2 * max(slots, 32), 32)
        num_warps, num_stages = (4 if slots == 16 else 8), 2
        c, v, columns = min(c, chunk), min(v, chunk if backward else columns), min(c, columns)
    elif slots * loaded <= (8192 if backward and slots == 64 else 16384):
        columns, num_warps = c, (8 if slots * loaded >= (4096 if backward else 8192) else 4)
        if loaded <= 512:
            token_block = 32 if backward and (loaded > 256 or slots == 64) else 64
            num_stages = 3 if loaded <= 128 and not backward else 2
        else:
            token_block, num_stages = (16, 3) if backward or value_channels is None else (32, 2)
    else:
        token_block, columns, num_warps, num_stages = (32 if backward else 64), min(c, 8192 // slots), 8, 2
        c, v = min(c, 128), min(v, 128 if backward else 16384 // slots)
    return Tiles(
        slots=slots,
        tokens=token_block,
        channels=c,
        values=v,
        columns=columns,
        num_warps=num_warps,
        num_stages=num_stages,
    )


def constants(
    block: Tiles,
    num_slots: int,
    channels: int,
    value_channels: int,
    dtype: torch.dtype,
    *,
    epsilon_on_attention: bool,
    backward: bool,
) -> dict[str, Any]:
    """Returns the constant arguments of a kernel.

    The interpreter computes with wrong results in bfloat16, so there every tile is widened as it is loaded.
    """
    accumulator = tl.float64 if dtype == torch.float64 else tl.float32
    element = {torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}.get(dtype, accumulator)
    shape = {"K": num_slots, "C": channels, "V": value_channels, "EPSILON_ON_ATTENTION": epsilon_on_attention}
    blocks = {
        "SLOT_BLOCK": block.slots,
        "TOKEN_BLOCK": block.tokens,
        "CHANNEL_BLOCK": block.channels,
        "VALUE_BLOCK": block.values,
        "STAGES": block.num_stages,
    }
    if backward:
        blocks["COLUMN_BLOCK"] = block.columns
    return shape | blocks | {"DOT": accumulator if is_interpreted() else element, "ACC": accumulator}


def _aot_case(
    num_slots: int,
    channels: int,
    value_channels: int | None = None,
    *,
    dtype: torch.dtype = torch.bfloat16,
    backward: bool = False,
    extras: bool = False,
) -> AotCase:
    """Returns the launch of one shape; `extras` adds bias, mask and weight, and epsilon on the attention."""
    width = channels if value_channels is None else value_channels
    block = tiles(num_slots, channels, value_channels, dtype.itemsize, backward=backward)
    kernel = slot_attention_backward_kernel if backward else slot_attention_forward_kernel
    element = {torch.bfloat16: "*bf16", torch.float32: "*fp32"}[dtype]
    pointers = ["tokens", "queries", "means"] + ["values"] * (value_channels is not None)
    types = dict.fromkeys(pointers, element) | {"mass": "*fp32", "scale": "fp32", "epsilon": "fp32"}
    strides = [name for name in kernel.arg_names if "_stride_" in name]
    types |= dict.fromkeys(["num_heads", "num_tokens", *strides], "i32")
    if backward:
        types |= dict.fromkeys(["grad_means", "grad_queries", "weights"], element) | {"row_stride": "i32"}
    if extras:
        types |= {"logit_bias": "*fp32", "token_mask": "*i1", "token_weight": "*fp32"}
        types |= {"grad_mass": "*fp32", "grad_bias": "*fp32"} if backward else {}
    absent = {name: None for name in kernel.arg_names if name not in types and name.islower()}
    fixed = constants(block, num_slots, channels, width, dtype, epsilon_on_attention=extras, backward=backward)
    return AotCase(
        kernel=kernel,
        types=types,
        constexprs=absent | fixed,
        num_warps=block.num_warps,
        num_stages=block.num_stages,
        aligned=(*strides, *(["row_stride"] if backward else [])),
    )


_AOT_SHAPES: dict[str, dict[str, Any]] = {
    "6 slots, 128 channels": {"num_slots": 6, "channels": 128},
    "16 slots, 256 channels": {"num_slots": 16, "channels": 256},
    "16 slots, 256 channels, all options": {"num_slots": 16, "channels": 256, "extras": True},
    "16 slots, 256 channels, float32": {"num_slots": 16, "channels": 256, "dtype": torch.float32},
    "6 slots, 128 channels, 128 values, all options": {
        "num_slots": 6,
        "channels": 128,
        "value_channels": 128,
        "extras": True,
    },
    "16 slots, 512 channels, 512 values": {"num_slots": 16, "channels": 512, "value_channels": 512},
    "16 slots, 1024 channels": {"num_slots": 16, "channels": 1024},
    "32 slots, 512 channels": {"num_slots": 32, "channels": 512},
    "64 slots, 1024 channels": {"num_slots": 64, "channels": 1024},
}
AOT_CASES: dict[str, AotCase] = {
    f"slot attention {'backward' if backward else 'forward'}, {name}": _aot_case(**shape, backward=backward)
    for name, shape in _AOT_SHAPES.items()
    for backward in (False, True)
}
