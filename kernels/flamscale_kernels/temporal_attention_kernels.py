"""Triton kernels of causal temporal attention: strided query, key and value in, output or gradients out.

A program owns one head of a tile of sequences. A tile has GROUPS groups of ROWS rows, and a group holds PACK whole
sequences one after the other, so that a row is one frame of one sequence and the mask within a group is block-diagonal.
With up to 32 rows a group is one warp's and products are 3-D `tl.dot`, which use mma.sync; with 64 rows there is one
group and products are 2-D. The backward pass computes the weights anew, and needs nothing from the forward pass.

Every head is held as two half tiles, the partners of the rotation. Heads are fastest in the grid, so that programs
that run together read neighbouring memory. Letters as in reference.py; `sequence` counts the S sequences of a clip.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from flamscale_kernels.aot import AotCase
from flamscale_kernels.dispatch import is_interpreted, on_device_of

MAX_FRAMES, MAX_WIDTH = 64, 128
"""Longest sequence and widest head that the kernels take."""


@no_type_check
@triton.jit
def _rows(
    frame_mask, num_sequences, sequences_per_clip, num_frames, num_heads,
    ROWS: tl.constexpr, GROUPS: tl.constexpr, PACK: tl.constexpr,
):  # fmt: skip
    """Says what this program's rows are: their frame, and whether they exist and are to be attended to."""
    tile = tl.program_id(0) // num_heads
    head = (tl.program_id(0) % num_heads).to(tl.int64)
    row = tl.arange(0, ROWS)
    group = tile * GROUPS
    if GROUPS > 1:
        row = row[None, :]
        group += tl.arange(0, GROUPS)[:, None]
    place = tl.zeros_like(row)
    if PACK > 1:
        place = row // num_frames
    frame = row - place * num_frames
    index = group * PACK + place
    clip = index // sequences_per_clip
    sequence = (index - clip * sequences_per_clip).to(tl.int64)
    exists = (row < PACK * num_frames) & (index < num_sequences)
    inside = exists
    clip = clip.to(tl.int64)
    if frame_mask is not None:
        inside = exists & (tl.load(frame_mask + clip * num_frames + frame, mask=exists, other=0) != 0)
    return tile.to(tl.int64), head, clip, sequence, frame, place, exists, inside


@no_type_check
@triton.jit
def _offset(clip, frame, sequence, head, stride_b, stride_t, stride_s, stride_h):
    return clip * stride_b + frame.to(tl.int64) * stride_t + sequence * stride_s + head * stride_h


@no_type_check
@triton.jit
def _load(pointer, offset, inside, first, NUM: tl.constexpr, TILE: tl.constexpr, TYPE: tl.constexpr):
    """Loads columns first .. first + NUM of every row, 0 where there is none."""
    column = tl.arange(0, TILE)
    mask = tl.expand_dims(inside, -1)
    if NUM < TILE:
        mask = mask & (column < NUM)
    return tl.load(pointer + tl.expand_dims(offset, -1) + (first + column), mask=mask, other=0.0).to(TYPE)


@no_type_check
@triton.jit
def _store(pointer, offset, exists, first, values, NUM: tl.constexpr, TILE: tl.constexpr):
    column = tl.arange(0, TILE)
    mask = tl.expand_dims(exists, -1)
    if NUM < TILE:
        mask = mask & (column < NUM)
    tl.store(pointer + tl.expand_dims(offset, -1) + (first + column), values.to(pointer.dtype.element_ty), mask=mask)


@no_type_check
@triton.jit
def _load_rotated(
    pointer, offset, inside, cos, sin, frame, num_frames,
    WIDTH: tl.constexpr, TILE: tl.constexpr, DOT: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Loads a head; where there are angles, rotates it to its frame and leaves the partners interleaved.

    Products of two heads do not depend on the order of columns.
    """
    if cos is None:
        head = _load(pointer, offset, inside, 0, WIDTH, TILE, DOT)
    else:
        HALF: tl.constexpr = WIDTH // 2
        first = _load(pointer, offset, inside, 0, HALF, TILE // 2, ACC)
        second = _load(pointer, offset, inside, HALF, HALF, TILE // 2, ACC)
        cosine = _load(cos, frame * HALF, frame < num_frames, 0, HALF, TILE // 2, ACC)
        sine = _load(sin, frame * HALF, frame < num_frames, 0, HALF, TILE // 2, ACC)
        shape: tl.constexpr = first.shape[:-1] + [TILE]  # noqa: RUF005, Triton has no starred lists
        from_first = tl.reshape(tl.join(first * cosine, first * sine), shape)
        from_second = tl.reshape(tl.join(-second * sine, second * cosine), shape)
        # The sum, as a reduction: Triton then rotates once, and not anew in the register layout of every product.
        head = tl.sum(tl.join(from_first, from_second), -1).to(DOT)
    return head


@no_type_check
@triton.jit
def _store_rotated_back(
    pointer, offset, exists, cos, sin, frame, num_frames, values,
    WIDTH: tl.constexpr, TILE: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Stores the gradient of a head from that of the rotated head: a rotation by the opposite angle."""
    if cos is None:
        _store(pointer, offset, exists, 0, values, WIDTH, TILE)
    else:
        HALF: tl.constexpr = WIDTH // 2
        cosine = _load(cos, frame * HALF, frame < num_frames, 0, HALF, TILE // 2, ACC)
        sine = _load(sin, frame * HALF, frame < num_frames, 0, HALF, TILE // 2, ACC)
        pairs = tl.reshape(values, values.shape[:-1] + [TILE // 2, 2])  # noqa: RUF005, as above
        first, second = tl.split(pairs)
        _store(pointer, offset, exists, 0, first * cosine + second * sine, HALF, TILE // 2)
        _store(pointer, offset, exists, HALF, second * cosine - first * sine, HALF, TILE // 2)


@no_type_check
@triton.jit
def _dot(a, b, ACC: tl.constexpr):
    return tl.dot(a, b, input_precision="ieee", out_dtype=ACC)


@no_type_check
@triton.jit
def _logits(
    rows, columns, scale, bias, head, frame, place, inside, num_frames,
    PACK: tl.constexpr, MASKED: tl.constexpr, TRANSPOSED: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Returns the masked logits of queries (rows) and keys (columns), or of keys and queries if TRANSPOSED."""
    QUERY: tl.constexpr = -2 if TRANSPOSED else -1  # the axis that a row's vector gets to lie along the queries
    KEY: tl.constexpr = -1 if TRANSPOSED else -2
    logits = _dot(rows, tl.trans(columns), ACC) * scale
    frame_q, frame_k = tl.expand_dims(frame, QUERY), tl.expand_dims(frame, KEY)
    if bias is not None:
        offset = (head * num_frames + frame_q) * num_frames + frame_k
        logits += tl.load(bias + offset, mask=(frame_q < num_frames) & (frame_k < num_frames), other=0.0).to(ACC)
    visible = frame_q >= frame_k
    if PACK > 1:
        visible = visible & (tl.expand_dims(place, QUERY) == tl.expand_dims(place, KEY))
    if MASKED:
        visible = visible & tl.expand_dims(inside, QUERY) & tl.expand_dims(inside, KEY)
    return tl.where(visible, logits, float("-inf"))


@no_type_check
@triton.jit
def _softmax_parts(logits, MASKED: tl.constexpr):
    """Returns every query's largest logit and the sum of exponentials, such that a query that sees nothing gets 0."""
    largest = tl.max(logits, -1)
    if MASKED:
        largest = tl.where(largest == float("-inf"), 0.0, largest)
    weights = tl.exp(logits - tl.expand_dims(largest, -1))
    total = tl.sum(weights, -1)
    if MASKED:
        total = tl.where(total == 0.0, 1.0, total)
    return weights, largest, total


@no_type_check
@triton.jit
def forward_kernel(
    query, key, value, output, cos, sin, bias, frame_mask,
    query_b, query_t, query_s, query_h, key_b, key_t, key_s, key_h, value_b, value_t, value_s, value_h,
    num_sequences, sequences_per_clip, num_frames, num_heads, scale,
    WIDTH: tl.constexpr, TILE: tl.constexpr, ROWS: tl.constexpr, GROUPS: tl.constexpr, PACK: tl.constexpr,
    DOT: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """output = softmax(rotate(query) rotate(key)^T scale + bias) value. Stride of x over clips: x_b, and so on."""
    MASKED: tl.constexpr = frame_mask is not None
    _, head, b, s, t, place, exists, inside = _rows(
        frame_mask, num_sequences, sequences_per_clip, num_frames, num_heads, ROWS, GROUPS, PACK
    )
    q = _offset(b, t, s, head, query_b, query_t, query_s, query_h)
    k = _offset(b, t, s, head, key_b, key_t, key_s, key_h)
    v = _offset(b, t, s, head, value_b, value_t, value_s, value_h)
    queries = _load_rotated(query, q, inside, cos, sin, t, num_frames, WIDTH, TILE, DOT, ACC)
    keys = _load_rotated(key, k, inside, cos, sin, t, num_frames, WIDTH, TILE, DOT, ACC)
    values = _load(value, v, inside, 0, WIDTH, TILE, DOT)
    logits = _logits(queries, keys, scale, bias, head, t, place, inside, num_frames, PACK, MASKED, False, ACC)
    weights, _, total = _softmax_parts(logits, MASKED)
    mixed = _dot(weights.to(DOT), values, ACC) / tl.expand_dims(total, -1)
    o = (((b * num_frames + t) * sequences_per_clip + s) * num_heads + head) * WIDTH  # contiguous
    _store(output, o, exists, 0, mixed, WIDTH, TILE)


@no_type_check
@triton.jit
def backward_kernel(
    query, key, value, grad_output, grad_query, grad_key, grad_value, grad_bias, cos, sin, bias, frame_mask,
    query_b, query_t, query_s, query_h, key_b, key_t, key_s, key_h, value_b, value_t, value_s, value_h,
    output_b, output_t, output_s, output_h, grad_b, grad_t, grad_s, grad_h,
    num_sequences, sequences_per_clip, num_frames, num_heads, scale,
    WIDTH: tl.constexpr, TILE: tl.constexpr, ROWS: tl.constexpr, GROUPS: tl.constexpr, PACK: tl.constexpr,
    DOT: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Writes the gradients of query, key and value, which share strides, and this program's part of the bias's."""
    MASKED: tl.constexpr = frame_mask is not None
    tile, head, b, s, t, place, exists, inside = _rows(
        frame_mask, num_sequences, sequences_per_clip, num_frames, num_heads, ROWS, GROUPS, PACK
    )
    q = _offset(b, t, s, head, query_b, query_t, query_s, query_h)
    k = _offset(b, t, s, head, key_b, key_t, key_s, key_h)
    v = _offset(b, t, s, head, value_b, value_t, value_s, value_h)
    o = _offset(b, t, s, head, output_b, output_t, output_s, output_h)
    g = _offset(b, t, s, head, grad_b, grad_t, grad_s, grad_h)
    queries = _load_rotated(query, q, inside, cos, sin, t, num_frames, WIDTH, TILE, DOT, ACC)
    keys = _load_rotated(key, k, inside, cos, sin, t, num_frames, WIDTH, TILE, DOT, ACC)
    values = _load(value, v, inside, 0, WIDTH, TILE, DOT)
    grads = _load(grad_output, o, inside, 0, WIDTH, TILE, DOT)
    logits = _logits(queries, keys, scale, bias, head, t, place, inside, num_frames, PACK, MASKED, False, ACC)
    weights, largest, total = _softmax_parts(logits, MASKED)
    weights = weights / tl.expand_dims(total, -1)
    grad_weights = _dot(grads, tl.trans(values), ACC)
    mean = tl.sum(weights * grad_weights, -1)
    grad_logits = weights * (grad_weights - tl.expand_dims(mean, -1))
    if grad_bias is not None:
        _store_bias_part(grad_bias, grad_logits, tile, head, t, place, num_frames, num_heads, ROWS, GROUPS, PACK)
    grad_scaled = (grad_logits * scale).to(DOT)
    grads_q = _dot(grad_scaled, keys, ACC)
    _store_rotated_back(grad_query, g, exists, cos, sin, t, num_frames, grads_q, WIDTH, TILE, ACC)
    if ROWS < 64:
        weights_t, grad_scaled_t = tl.trans(weights.to(DOT)), tl.trans(grad_scaled)
    else:  # a transposed wgmma accumulator makes wrong code in some Triton versions: compute the transposes anew
        logits_t = _logits(keys, queries, scale, bias, head, t, place, inside, num_frames, PACK, MASKED, True, ACC)
        weights_t = tl.exp(logits_t - largest[None, :]) / total[None, :]
        grad_scaled_t = (weights_t * (_dot(values, tl.trans(grads), ACC) - mean[None, :]) * scale).to(DOT)
        weights_t = weights_t.to(DOT)
    _store(grad_value, g, exists, 0, _dot(weights_t, grads, ACC), WIDTH, TILE)
    grads_k = _dot(grad_scaled_t, queries, ACC)
    _store_rotated_back(grad_key, g, exists, cos, sin, t, num_frames, grads_k, WIDTH, TILE, ACC)


@no_type_check
@triton.jit
def _store_bias_part(
    grad_bias, grad_logits, tile, head, frame, place, num_frames, num_heads,
    ROWS: tl.constexpr, GROUPS: tl.constexpr, PACK: tl.constexpr,
):  # fmt: skip
    """Stores the sum over groups of the gradient of the logits as parts [tiles, PACK, H, T, T] of the bias's."""
    if GROUPS > 1:
        part = tl.sum(grad_logits, 0)
        frame, place = tl.reshape(frame, (ROWS,)), tl.reshape(place, (ROWS,))
    else:
        part = grad_logits
    place_q, place_k, frame_q, frame_k = place[:, None], place[None, :], frame[:, None], frame[None, :]
    offset = (((tile * PACK + place_q) * num_heads + head) * num_frames + frame_q) * num_frames + frame_k
    mask = (place_q == place_k) & (place_q < PACK) & (frame_q < num_frames) & (frame_k < num_frames)
    tl.store(grad_bias + offset, part, mask=mask)


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
