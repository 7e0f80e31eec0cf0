"""Slot attention in Triton: tokens and queries in, means and masses out, then gradients in, gradients out.

One program reads the tokens of one frame and head once and gives one block of columns of the result; where the slots
are too many or too wide for one program's registers, further programs give further columns and recompute the
attention. Slots lie on the rows of every product, so that a softmax over slots is a reduction over rows.
Imported only once Triton is chosen.
"""

# ruff: noqa: SIM102, SIM108 - a branch at compile time and one at run time stay apart

from dataclasses import dataclass
from typing import Any, no_type_check

import torch
import triton
import triton.language as tl

from flamscale_kernels.aot import AotCase
from flamscale_kernels.dispatch import is_interpreted


@no_type_check
@triton.jit
def _load_tile(pointer, rows, valid_rows, first, COLUMNS: tl.constexpr, BLOCK: tl.constexpr, DOT: tl.constexpr):
    """Returns BLOCK columns from column `first` of the rows that start at offsets `rows`; 0 outside."""
    columns = first + tl.arange(0, BLOCK)
    valid = valid_rows[:, None]
    if COLUMNS % BLOCK != 0:
        valid = valid & (columns < COLUMNS)[None, :]
    return tl.load(pointer + rows[:, None] + columns[None, :], mask=valid, other=0.0).to(DOT)


@no_type_check
@triton.jit
def _products(
    left, left_rows, valid_left, right, right_rows, valid_right,
    COLUMNS: tl.constexpr, BLOCK: tl.constexpr, SLOT_BLOCK: tl.constexpr, TOKEN_BLOCK: tl.constexpr,
    STAGES: tl.constexpr, DOT: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Returns left @ right^T [SLOT_BLOCK, TOKEN_BLOCK], summed over blocks of columns."""
    products = tl.zeros((SLOT_BLOCK, TOKEN_BLOCK), ACC)
    for first in tl.range(0, COLUMNS, BLOCK, num_stages=STAGES):
        left_tile = _load_tile(left, left_rows, valid_left, first, COLUMNS, BLOCK, DOT)
        right_tile = _load_tile(right, right_rows, valid_right, first, COLUMNS, BLOCK, DOT)
        products = tl.dot(left_tile, tl.trans(right_tile), products, input_precision="ieee", out_dtype=ACC)
    return products


@no_type_check
@triton.jit
def _softmax_over_slots(logits, valid_tokens):
    """Returns the softmax over rows; 0 where a column is no valid token or has no valid slot (all rows -inf)."""
    top = tl.max(logits, 0)
    top = tl.where(top == float("-inf"), 0.0, top)
    exponentials = tl.exp(logits - top[None, :])
    total = tl.sum(exponentials, 0)
    attention = exponentials / tl.where(total == 0.0, 1.0, total)[None, :]
    return tl.where(valid_tokens[None, :], attention, 0.0)


@no_type_check
@triton.jit
def _slot_bias(logit_bias, frame_head, slots, K: tl.constexpr, ACC: tl.constexpr):
    """Returns what is added to each slot's logits; -inf for the rows past the last slot."""
    if logit_bias is None:
        bias = tl.where(slots < K, 0.0, float("-inf")).to(ACC)
    else:
        bias = tl.load(logit_bias + frame_head * K + slots, mask=slots < K, other=float("-inf")).to(ACC)
    return bias


@no_type_check
@triton.jit
def _valid_tokens(token_mask, frame, token, num_tokens):
    valid = token < num_tokens
    if token_mask is not None:
        valid = valid & (tl.load(token_mask + frame * num_tokens + token, mask=valid, other=0) != 0)
    return valid


@no_type_check
@triton.jit
def _weighted(attention, token_weight, frame, token, num_tokens):
    """Returns each token's attention or gradient times the token's weight."""
    if token_weight is not None:
        weight = tl.load(token_weight + frame * num_tokens + token, mask=token < num_tokens, other=0.0)
        attention = attention * weight.to(attention.dtype)[None, :]
    return attention


@no_type_check
@triton.jit
def _added_mass(
    token_mask, frame, num_tokens, epsilon,
    TOKEN_BLOCK: tl.constexpr, EPSILON_ON_ATTENTION: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Returns what epsilon adds to a slot's mass: itself, or itself once for every valid token."""
    added = tl.full((), epsilon, ACC)
    if EPSILON_ON_ATTENTION:
        count = tl.full((), 0, tl.int32)
        for first in tl.range(0, num_tokens, TOKEN_BLOCK):
            valid = _valid_tokens(token_mask, frame, first + tl.arange(0, TOKEN_BLOCK), num_tokens)
            count += tl.sum(valid.to(tl.int32), 0)
        added = added * count.to(ACC)
    return added


@no_type_check
@triton.jit
def slot_attention_forward_kernel(
    tokens, queries, values, logit_bias, token_mask, token_weight, means, mass,
    num_heads, num_tokens, scale, epsilon,
    token_stride_f, token_stride_n, token_stride_h,
    query_stride_f, query_stride_h, query_stride_k,
    value_stride_f, value_stride_n, value_stride_h,
    K: tl.constexpr, C: tl.constexpr, V: tl.constexpr,
    SLOT_BLOCK: tl.constexpr, TOKEN_BLOCK: tl.constexpr, CHANNEL_BLOCK: tl.constexpr, VALUE_BLOCK: tl.constexpr,
    EPSILON_ON_ATTENTION: tl.constexpr, STAGES: tl.constexpr, DOT: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Means of VALUE_BLOCK columns of one frame and head, and, from the first block of columns, the masses."""
    column_blocks: tl.constexpr = (V + VALUE_BLOCK - 1) // VALUE_BLOCK
    program = tl.program_id(0)
    first_column = program % column_blocks * VALUE_BLOCK
    frame_head = (program // column_blocks).to(tl.int64)
    frame = (program // column_blocks // num_heads).to(tl.int64)
    head = program // column_blocks % num_heads
    tokens += frame * token_stride_f + head * token_stride_h
    queries += frame * query_stride_f + head * query_stride_h
    reuse: tl.constexpr = values is None and C <= CHANNEL_BLOCK and CHANNEL_BLOCK == VALUE_BLOCK
    if values is None:
        values = tokens
    else:
        values += frame * value_stride_f + head * value_stride_h

    slot = tl.arange(0, SLOT_BLOCK)
    is_slot = slot < K
    query_rows = slot.to(tl.int64) * query_stride_k
    bias = _slot_bias(logit_bias, frame_head, slot, K, ACC)
    if C <= CHANNEL_BLOCK:
        q = _load_tile(queries, query_rows, is_slot, 0, C, CHANNEL_BLOCK, DOT)
    sums = tl.zeros((SLOT_BLOCK, VALUE_BLOCK), ACC)
    slot_mass = tl.zeros((SLOT_BLOCK,), ACC)
    for first in tl.range(0, num_tokens, TOKEN_BLOCK, num_stages=STAGES):
        token = first + tl.arange(0, TOKEN_BLOCK)
        is_token = token < num_tokens
        valid = _valid_tokens(token_mask, frame, token, num_tokens)
        token_rows = token.to(tl.int64) * token_stride_n
        value_rows = token.to(tl.int64) * value_stride_n
        if C <= CHANNEL_BLOCK:
            x = _load_tile(tokens, token_rows, is_token, 0, C, CHANNEL_BLOCK, DOT)
            logits = tl.dot(q, tl.trans(x), input_precision="ieee", out_dtype=ACC)
        else:
            logits = _products(
                queries, query_rows, is_slot, tokens, token_rows, is_token,
                C, CHANNEL_BLOCK, SLOT_BLOCK, TOKEN_BLOCK, STAGES, DOT, ACC,
            )  # fmt: skip
        attention = _softmax_over_slots(logits * scale + bias[:, None], valid)
        attention = _weighted(attention, token_weight, frame, token, num_tokens)
        slot_mass += tl.sum(attention, 1)
        if EPSILON_ON_ATTENTION:
            attention = tl.where(valid[None, :], attention + epsilon, 0.0)
        if reuse:
            value = x
        else:
            value = _load_tile(values, value_rows, is_token, first_column, V, VALUE_BLOCK, DOT)
        sums = tl.dot(attention.to(DOT), value, sums, input_precision="ieee", out_dtype=ACC)

    total = slot_mass + _added_mass(token_mask, frame, num_tokens, epsilon, TOKEN_BLOCK, EPSILON_ON_ATTENTION, ACC)
    takes_part = (total > 0.0) & (bias > float("-inf"))
    mean = sums * tl.where(takes_part, 1.0 / tl.where(takes_part, total, 1.0), 0.0)[:, None]
    columns = first_column + tl.arange(0, VALUE_BLOCK)
    inside = is_slot[:, None] & (columns < V)[None, :]
    row = frame_head * K + slot
    tl.store(means + row[:, None] * V + columns[None, :], mean.to(means.dtype.element_ty), mask=inside)
    if first_column == 0:
        tl.store(mass + row, slot_mass, mask=is_slot)


@no_type_check
@triton.jit
def slot_attention_backward_kernel(
    tokens, queries, values, logit_bias, token_mask, token_weight, means, mass, grad_means, grad_mass,
    grad_queries, grad_bias, weights,
    num_heads, num_tokens, row_stride, scale, epsilon,
    token_stride_f, token_stride_n, token_stride_h,
    query_stride_f, query_stride_h, query_stride_k,
    value_stride_f, value_stride_n, value_stride_h,
    K: tl.constexpr, C: tl.constexpr, V: tl.constexpr,
    SLOT_BLOCK: tl.constexpr, TOKEN_BLOCK: tl.constexpr, CHANNEL_BLOCK: tl.constexpr, VALUE_BLOCK: tl.constexpr,
    COLUMN_BLOCK: tl.constexpr, EPSILON_ON_ATTENTION: tl.constexpr,
    STAGES: tl.constexpr, DOT: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Gradient of COLUMN_BLOCK columns of the queries of one frame and head, and what the tokens' gradient takes.

    That is, in `weights` [F, 2, H, K, row_stride]: each value's share in each mean, and the gradients of the unscaled
    logits. Both are recomputed from the tokens; only means and masses were kept.
    """
    column_blocks: tl.constexpr = (C + COLUMN_BLOCK - 1) // COLUMN_BLOCK
    program = tl.program_id(0)
    first_column = program % column_blocks * COLUMN_BLOCK
    frame_head = (program // column_blocks).to(tl.int64)
    frame = (program // column_blocks // num_heads).to(tl.int64)
    head = program // column_blocks % num_heads
    tokens += frame * token_stride_f + head * token_stride_h
    queries += frame * query_stride_f + head * query_stride_h
    whole: tl.constexpr = C <= CHANNEL_BLOCK and V <= VALUE_BLOCK and COLUMN_BLOCK == CHANNEL_BLOCK
    reuse: tl.constexpr = values is None and whole
    if values is None:
        values = tokens
    else:
        values += frame * value_stride_f + head * value_stride_h

    slot = tl.arange(0, SLOT_BLOCK)
    is_slot = slot < K
    row = frame_head * K + slot
    query_rows = slot.to(tl.int64) * query_stride_k
    mean_rows = row * V
    bias = _slot_bias(logit_bias, frame_head, slot, K, ACC)
    total = tl.load(mass + row, mask=is_slot, other=0.0).to(ACC)
    total += _added_mass(token_mask, frame, num_tokens, epsilon, TOKEN_BLOCK, EPSILON_ON_ATTENTION, ACC)
    takes_part = (total > 0.0) & (bias > float("-inf"))
    per_mass = tl.where(takes_part, 1.0 / tl.where(takes_part, total, 1.0), 0.0)

    # The mean's own share in the attention's gradient: d mean / d mass = -mean / mass.
    offset = tl.zeros((SLOT_BLOCK,), ACC)
    for first in tl.range(0, V, VALUE_BLOCK):
        u = _load_tile(means, mean_rows, is_slot, first, V, VALUE_BLOCK, ACC)
        g = _load_tile(grad_means, mean_rows, is_slot, first, V, VALUE_BLOCK, ACC)
        offset += tl.sum(u * g, 1)
    offset = offset * per_mass
    if grad_mass is not None:
        offset -= tl.load(grad_mass + row, mask=is_slot, other=0.0).to(ACC)

    if whole:
        q = _load_tile(queries, query_rows, is_slot, 0, C, CHANNEL_BLOCK, DOT)
        grad_mean = _load_tile(grad_means, mean_rows, is_slot, 0, V, VALUE_BLOCK, DOT)
    grad_q = tl.zeros((SLOT_BLOCK, COLUMN_BLOCK), ACC)
    grad_b = tl.zeros((SLOT_BLOCK,), ACC)
    for first in tl.range(0, num_tokens, TOKEN_BLOCK, num_stages=STAGES):
        token = first + tl.arange(0, TOKEN_BLOCK)
        is_token = token < num_tokens
        valid = _valid_tokens(token_mask, frame, token, num_tokens)
        token_rows = token.to(tl.int64) * token_stride_n
        value_rows = token.to(tl.int64) * value_stride_n
        x = _load_tile(tokens, token_rows, is_token, first_column, C, COLUMN_BLOCK, DOT)
        if whole:
            if reuse:
                value = x
            else:
                value = _load_tile(values, value_rows, is_token, 0, V, VALUE_BLOCK, DOT)
            logits = tl.dot(q, tl.trans(x), input_precision="ieee", out_dtype=ACC)
            grad_attention = tl.dot(grad_mean, tl.trans(value), input_precision="ieee", out_dtype=ACC)
        else:
            logits = _products(
                queries, query_rows, is_slot, tokens, token_rows, is_token,
                C, CHANNEL_BLOCK, SLOT_BLOCK, TOKEN_BLOCK, STAGES, DOT, ACC,
            )  # fmt: skip
            grad_attention = _products(
                grad_means, mean_rows, is_slot, values, value_rows, is_token,
                V, VALUE_BLOCK, SLOT_BLOCK, TOKEN_BLOCK, STAGES, DOT, ACC,
            )  # fmt: skip
        attention = _softmax_over_slots(logits * scale + bias[:, None], valid)
        grad_attention = grad_attention * per_mass[:, None] - offset[:, None]
        grad_attention = _weighted(grad_attention, token_weight, frame, token, num_tokens)
        grad_logits = attention * (grad_attention - tl.sum(attention * grad_attention, 0)[None, :])
        grad_b += tl.sum(grad_logits, 1)
        grad_logits = grad_logits * scale
        grad_q = tl.dot(grad_logits.to(DOT), x, grad_q, input_precision="ieee", out_dtype=ACC)
        if weights is not None:
            attention = _weighted(attention, token_weight, frame, token, num_tokens)
            if EPSILON_ON_ATTENTION:
                attention = tl.where(valid[None, :], attention + epsilon, 0.0)
            share = attention * per_mass[:, None]
            first_row = (frame * 2 * num_heads + head) * K
            at = weights + (first_row + slot)[:, None] * row_stride + token[None, :]
            inside = is_slot[:, None] & is_token[None, :]
            if first_column == 0:
                tl.store(at, share.to(weights.dtype.element_ty), mask=inside)
                tl.store(at + num_heads * K * row_stride, grad_logits.to(weights.dtype.element_ty), mask=inside)

    columns = first_column + tl.arange(0, COLUMN_BLOCK)
    inside = is_slot[:, None] & (columns < C)[None, :]
    tl.store(grad_queries + row[:, None] * C + columns[None, :], grad_q.to(grad_queries.dtype.element_ty), mask=inside)
    if grad_bias is not None:
        if first_column == 0:
            tl.store(grad_bias + row, grad_b, mask=is_slot)


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
