"""How temporal attention's kernels are launched: strided tensors in, one launch, output or gradients out.

The table of settings is static, as tuning at run time would let ranks diverge. Imported only once Triton is chosen.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from flamscale_kernels.aot import AotCase
from flamscale_kernels.dispatch import is_interpreted, on_device_of
from flamscale_kernels.temporal_attention_kernels import backward_kernel, forward_kernel


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a kernel is launched for some shape.

    Attributes:
        rows: rows of a group: 16, 32 or 64.
        groups: groups of a program: one a warp, or 1 that all warps share.
        num_warps: warps of a program.
    """

    rows: int
    groups: int
    num_warps: int


def settings(num_frames: int, width: int, dtype: torch.dtype) -> Settings:
    """Returns the launch settings of a shape, for both directions: few registers, no spills in half precision."""
    half_precision = dtype in (torch.bfloat16, torch.float16)
    if num_frames > 32:
        return Settings(rows=64, groups=1, num_warps=8 if half_precision else 16)
    if not half_precision:  # without tensor cores, products take registers: more warps share a group
        return Settings(rows=32, groups=1, num_warps=8)
    if num_frames <= 16 and width <= 64:
        return Settings(rows=16, groups=4, num_warps=4)
    if width <= 32:
        return Settings(rows=32, groups=4, num_warps=4)
    return Settings(rows=32, groups=1, num_warps=2 if width <= 64 else 8)


def constexprs(chosen: Settings, num_frames: int, width: int, dtype: torch.dtype, interpreted: bool) -> dict[str, Any]:
    """Returns the compile-time arguments of both kernels."""
    acc = tl.float64 if dtype == torch.float64 else tl.float32
    dot = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}.get(dtype, acc)
    return {
        "WIDTH": width,
        "TILE": max(16, triton.next_power_of_2(width)),
        "ROWS": chosen.rows,
        "GROUPS": chosen.groups,
        "PACK": chosen.rows // num_frames,
        "DOT": acc if interpreted else dot,  # the interpreter's bfloat16 arithmetic is wrong
        "ACC": acc,
    }


def forward(
    query: Tensor, key: Tensor, value: Tensor,
    cos: Tensor | None, sin: Tensor | None, bias: Tensor | None, frame_mask: Tensor | None,
) -> Tensor:  # fmt: skip
    """Returns the attention's output [B, T, S, H, E], contiguous."""
    output = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    if output.numel():
        query, key, value = (_with_dense_rows(x) for x in (query, key, value))
        grid, sizes, options = _plan(query)
        with on_device_of(query):
            forward_kernel[grid](
                query, key, value, output, *_dense(cos, sin, bias, frame_mask), *_strides(query, key, value), *sizes,
                **options,
            )  # fmt: skip
    return output


def backward(
    query: Tensor, key: Tensor, value: Tensor,
    cos: Tensor | None, sin: Tensor | None, bias: Tensor | None, frame_mask: Tensor | None,
    grad_output: Tensor, grads: Sequence[Tensor], wants_grad_bias: bool,
) -> Tensor:  # fmt: skip
    """Fills the gradients of query, key and value, which share strides; returns the bias's, empty if not wanted."""
    parts = _empty_bias_parts(query, bias) if wants_grad_bias and bias is not None else None
    if query.numel():
        query, key, value, grad_output = (_with_dense_rows(x) for x in (query, key, value, grad_output))
        grid, sizes, options = _plan(query)
        with on_device_of(query):
            backward_kernel[grid](
                query, key, value, grad_output, *grads, parts, *_dense(cos, sin, bias, frame_mask),
                *_strides(query, key, value, grad_output, grads[0]), *sizes, **options,
            )  # fmt: skip
    return query.new_empty(0) if parts is None or bias is None else parts.sum(dim=0).to(bias.dtype)


def _plan(query: Tensor) -> tuple[tuple[int], tuple[int | float, ...], dict[str, Any]]:
    """Returns grid, sizes and keyword arguments of a launch."""
    num_clips, num_frames, num_sequences, num_heads, width = query.shape
    chosen = settings(num_frames, width, query.dtype)
    options = constexprs(chosen, num_frames, width, query.dtype, is_interpreted())
    num_tiles = triton.cdiv(num_clips * num_sequences, options["GROUPS"] * options["PACK"])
    sizes = (num_clips * num_sequences, num_sequences, num_frames, num_heads, width**-0.5)
    return (num_tiles * num_heads,), sizes, options | {"num_warps": chosen.num_warps, "num_stages": 1}


def _empty_bias_parts(query: Tensor, bias: Tensor) -> Tensor:
    """Returns room for what every tile adds to the bias's gradient [tiles x PACK, H, T, T], in the sum's precision."""
    (num_programs,), _, options = _plan(query)
    dtype = torch.float64 if query.dtype == torch.float64 else torch.float32
    return torch.empty(num_programs // query.shape[3] * options["PACK"], *bias.shape, dtype=dtype, device=query.device)


def _with_dense_rows(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def _dense(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """Makes the small inputs contiguous, and booleans bytes."""
    dense = (None if x is None else x.contiguous() for x in tensors)
    return tuple(x.view(torch.uint8) if x is not None and x.dtype == torch.bool else x for x in dense)


def _strides(*tensors: Tensor) -> tuple[int, ...]:
    return tuple(stride for x in tensors for stride in x.stride()[:-1])


def _case(
    kernel: Any,
    num_frames: int,
    width: int,
    *,
    dtype: torch.dtype = torch.bfloat16,
    options: Sequence[str] = ("cos", "sin"),
) -> AotCase:
    """Returns the build of a launch in the model's layout, with angles, bias and mask as `options` name them."""
    chosen = settings(num_frames, width, dtype)
    fixed: dict[str, Any] = constexprs(chosen, num_frames, width, dtype, interpreted=False)
    optional = {"cos": "*fp32", "sin": "*fp32", "bias": "*fp32", "grad_bias": "*fp32", "frame_mask": "*u8"}
    fixed |= {name: None for name in kernel.arg_names if name in optional and name not in options}
    tensors = {"query", "key", "value", "output", "grad_output", "grad_query", "grad_key", "grad_value"}
    tensor_type = "*fp32" if dtype == torch.float32 else "*bf16"
    types = {name: "i32" for name in kernel.arg_names if name not in fixed} | {"scale": "fp32"}
    types |= {name: optional[name] for name in options if name in types}
    types |= {name: tensor_type for name in types if name in tensors}
    strides = tuple(name for name in types if name.endswith(("_b", "_t", "_s", "_h")))
    return AotCase(
        kernel=kernel, types=types, constexprs=fixed, num_warps=chosen.num_warps, num_stages=1, aligned=strides
    )


_EVERY_OPTION = ("cos", "sin", "bias", "grad_bias", "frame_mask")
_KERNELS = {"forward": forward_kernel, "backward": backward_kernel}
AOT_CASES: dict[str, AotCase] = {
    f"temporal_{direction}_t{num_frames}_e{width}": _case(kernel, num_frames, width)
    for direction, kernel in _KERNELS.items()
    for num_frames, width in ((4, 16), (16, 32), (16, 128), (32, 64), (64, 32), (64, 128))
} | {
    "temporal_backward_plain": _case(backward_kernel, 16, 64, options=()),
    "temporal_backward_t16_e64_options": _case(backward_kernel, 16, 64, options=_EVERY_OPTION),
    "temporal_backward_t64_e128_options": _case(backward_kernel, 64, 128, options=_EVERY_OPTION),
    "temporal_backward_float32": _case(backward_kernel, 16, 64, dtype=torch.float32),
}
"""Builds to hold to the budget: no stack, no spills."""
