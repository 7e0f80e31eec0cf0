"""Slot update in Triton: the GRU's two products and the slots in, new slots and their layer norm out; then gradients.

A program holds whole rows, one slot each, so that the gates, the new slot and its norm take one pass. The backward pass
computes all of them anew and needs nothing from the forward pass. Imported only once Triton is chosen.
"""

from typing import Any, no_type_check

import torch
import triton
import triton.language as tl

from flamscale_kernels.aot import AotCase

NUM_WARPS = 4
TILE_SIZE = 1024
"""Elements of a tile of rows: eight a thread, 16 bytes of half precision."""
MAX_PROGRAMS = 264
"""Programs of the backward pass, two for each processor of an H200; each leaves one row of the weights' gradients."""


@no_type_check
@triton.jit
def _load(
    pointer, row, is_row, first: tl.constexpr, PITCH: tl.constexpr,
    D: tl.constexpr, COLUMN_BLOCK: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Returns D columns from column `first` of rows that are PITCH apart; 0 outside."""
    column = tl.arange(0, COLUMN_BLOCK)
    inside = is_row[:, None] & (column < D)[None, :]
    return tl.load(pointer + row[:, None] * PITCH + (first + column)[None, :], mask=inside, other=0.0).to(ACC)


@no_type_check
@triton.jit
def _store(
    pointer, row, is_row, first: tl.constexpr, PITCH: tl.constexpr, values,
    D: tl.constexpr, COLUMN_BLOCK: tl.constexpr,
):  # fmt: skip
    column = tl.arange(0, COLUMN_BLOCK)
    inside = is_row[:, None] & (column < D)[None, :]
    at = pointer + row[:, None] * PITCH + (first + column)[None, :]
    tl.store(at, values.to(pointer.dtype.element_ty), mask=inside)


@no_type_check
@triton.jit
def _load_vector(pointer, first: tl.constexpr, D: tl.constexpr, COLUMN_BLOCK: tl.constexpr, ACC: tl.constexpr):
    """Returns D elements from `first` on as one row, which every row of a tile shares."""
    column = tl.arange(0, COLUMN_BLOCK)
    return tl.load(pointer + first + column, mask=column < D, other=0.0).to(ACC)[None, :]


@no_type_check
@triton.jit
def _cell(
    input_gates, hidden_gates, slots, input_bias, hidden_bias, row, is_row,
    D: tl.constexpr, COLUMN_BLOCK: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Returns reset and update gate, candidate, what the reset gate scales in it, and the old slots."""
    for_reset = _load_vector(input_bias, 0, D, COLUMN_BLOCK, ACC) + _load_vector(hidden_bias, 0, D, COLUMN_BLOCK, ACC)
    for_reset += _load(input_gates, row, is_row, 0, 3 * D, D, COLUMN_BLOCK, ACC)
    reset = tl.sigmoid(for_reset + _load(hidden_gates, row, is_row, 0, 3 * D, D, COLUMN_BLOCK, ACC))
    for_update = _load_vector(input_bias, D, D, COLUMN_BLOCK, ACC) + _load_vector(hidden_bias, D, D, COLUMN_BLOCK, ACC)
    for_update += _load(input_gates, row, is_row, D, 3 * D, D, COLUMN_BLOCK, ACC)
    update = tl.sigmoid(for_update + _load(hidden_gates, row, is_row, D, 3 * D, D, COLUMN_BLOCK, ACC))
    recalled = _load(hidden_gates, row, is_row, 2 * D, 3 * D, D, COLUMN_BLOCK, ACC)
    recalled += _load_vector(hidden_bias, 2 * D, D, COLUMN_BLOCK, ACC)
    proposed = _load(input_gates, row, is_row, 2 * D, 3 * D, D, COLUMN_BLOCK, ACC)
    proposed += _load_vector(input_bias, 2 * D, D, COLUMN_BLOCK, ACC) + reset * recalled
    candidate = 2.0 * tl.sigmoid(2.0 * proposed) - 1.0  # tanh
    return reset, update, candidate, recalled, _load(slots, row, is_row, 0, D, D, COLUMN_BLOCK, ACC)


@no_type_check
@triton.jit
def _normalised(x, epsilon, D: tl.constexpr, COLUMN_BLOCK: tl.constexpr):
    """Returns rows with mean 0 and variance 1, and the reciprocal of what they were divided by."""
    centred = x - (tl.sum(x, 1) / D)[:, None]
    centred = tl.where((tl.arange(0, COLUMN_BLOCK) < D)[None, :], centred, 0.0)
    scale = 1.0 / tl.sqrt(tl.sum(centred * centred, 1) / D + epsilon)[:, None]
    return centred * scale, scale


@no_type_check
@triton.jit
def slot_update_forward_kernel(
    input_gates, hidden_gates, slots, input_bias, hidden_bias, norm_weight, norm_bias, new_slots, normed,
    num_rows, epsilon,
    D: tl.constexpr, ROW_BLOCK: tl.constexpr, COLUMN_BLOCK: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Writes ROW_BLOCK new slots and their layer norm."""
    row = tl.program_id(0).to(tl.int64) * ROW_BLOCK + tl.arange(0, ROW_BLOCK)
    is_row = row < num_rows
    _, update, candidate, _, old = _cell(
        input_gates, hidden_gates, slots, input_bias, hidden_bias, row, is_row, D, COLUMN_BLOCK, ACC
    )
    new = candidate + update * (old - candidate)
    _store(new_slots, row, is_row, 0, D, new, D, COLUMN_BLOCK)
    y, _ = _normalised(new, epsilon, D, COLUMN_BLOCK)
    y = y * _load_vector(norm_weight, 0, D, COLUMN_BLOCK, ACC) + _load_vector(norm_bias, 0, D, COLUMN_BLOCK, ACC)
    _store(normed, row, is_row, 0, D, y, D, COLUMN_BLOCK)


@no_type_check
@triton.jit
def slot_update_backward_kernel(
    input_gates, hidden_gates, slots, input_bias, hidden_bias, norm_weight, grad_new_slots, grad_normed,
    grad_input_gates, grad_hidden_gates, grad_slots, sums,
    num_rows, epsilon,
    D: tl.constexpr, ROW_BLOCK: tl.constexpr, COLUMN_BLOCK: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Writes the gradients of the products and the old slots, and this program's sums [6, D] over its rows.

    The sums are those of the gradients of reset gate, update gate, candidate and what the reset gate scales in it (the
    biases' gradients), then the gradients of the norm's weight and bias.
    """
    step = tl.num_programs(0) * ROW_BLOCK
    sum_reset = tl.zeros((ROW_BLOCK, COLUMN_BLOCK), ACC)
    sum_update, sum_proposed, sum_recalled = sum_reset, sum_reset, sum_reset
    sum_weight, sum_bias = sum_reset, sum_reset
    weight = _load_vector(norm_weight, 0, D, COLUMN_BLOCK, ACC)
    for first in tl.range(tl.program_id(0) * ROW_BLOCK, num_rows, step):
        row = (first + tl.arange(0, ROW_BLOCK)).to(tl.int64)
        is_row = row < num_rows
        reset, update, candidate, recalled, old = _cell(
            input_gates, hidden_gates, slots, input_bias, hidden_bias, row, is_row, D, COLUMN_BLOCK, ACC
        )
        grad = tl.zeros((ROW_BLOCK, COLUMN_BLOCK), ACC)
        if grad_new_slots is not None:
            grad = _load(grad_new_slots, row, is_row, 0, D, D, COLUMN_BLOCK, ACC)
        if grad_normed is not None:
            y, scale = _normalised(candidate + update * (old - candidate), epsilon, D, COLUMN_BLOCK)
            g = _load(grad_normed, row, is_row, 0, D, D, COLUMN_BLOCK, ACC)
            sum_weight += g * y
            sum_bias += g
            g = g * weight
            grad += scale * (g - (tl.sum(g, 1) / D)[:, None] - y * (tl.sum(g * y, 1) / D)[:, None])

        grad_proposed = grad * (1.0 - update) * (1.0 - candidate * candidate)
        grad_update = grad * (old - candidate) * update * (1.0 - update)
        grad_recalled = grad_proposed * reset
        grad_reset = grad_recalled * recalled * (1.0 - reset)
        _store(grad_input_gates, row, is_row, 0, 3 * D, grad_reset, D, COLUMN_BLOCK)
        _store(grad_hidden_gates, row, is_row, 0, 3 * D, grad_reset, D, COLUMN_BLOCK)
        _store(grad_input_gates, row, is_row, D, 3 * D, grad_update, D, COLUMN_BLOCK)
        _store(grad_hidden_gates, row, is_row, D, 3 * D, grad_update, D, COLUMN_BLOCK)
        _store(grad_input_gates, row, is_row, 2 * D, 3 * D, grad_proposed, D, COLUMN_BLOCK)
        _store(grad_hidden_gates, row, is_row, 2 * D, 3 * D, grad_recalled, D, COLUMN_BLOCK)
        _store(grad_slots, row, is_row, 0, D, grad * update, D, COLUMN_BLOCK)
        sum_reset += grad_reset
        sum_update += grad_update
        sum_proposed += grad_proposed
        sum_recalled += grad_recalled

    sums += tl.program_id(0).to(tl.int64) * 6 * D
    _store_sum(sums, 0, sum_reset, D, COLUMN_BLOCK)
    _store_sum(sums, D, sum_update, D, COLUMN_BLOCK)
    _store_sum(sums, 2 * D, sum_proposed, D, COLUMN_BLOCK)
    _store_sum(sums, 3 * D, sum_recalled, D, COLUMN_BLOCK)
    _store_sum(sums, 4 * D, sum_weight, D, COLUMN_BLOCK)
    _store_sum(sums, 5 * D, sum_bias, D, COLUMN_BLOCK)


@no_type_check
@triton.jit
def _store_sum(pointer, first: tl.constexpr, rows, D: tl.constexpr, COLUMN_BLOCK: tl.constexpr):
    column = tl.arange(0, COLUMN_BLOCK)
    tl.store(pointer + first + column, tl.sum(rows, 0), mask=column < D)


def constants(width: int, dtype: torch.dtype) -> dict[str, Any]:
    """Returns the constant arguments of both kernels."""
    columns = triton.next_power_of_2(width)
    return {
        "D": width,
        "ROW_BLOCK": max(1, TILE_SIZE // columns),
        "COLUMN_BLOCK": columns,
        "ACC": tl.float64 if dtype == torch.float64 else tl.float32,
    }


def _aot_case(width: int, dtype: torch.dtype = torch.bfloat16, *, backward: bool) -> AotCase:
    """Returns the launch of one width in a type, its weights and biases in float32 as under autocast."""
    kernel = slot_update_backward_kernel if backward else slot_update_forward_kernel
    fixed = constants(width, dtype)
    types = dict.fromkeys(kernel.arg_names, "*bf16" if dtype == torch.bfloat16 else "*fp32")
    types |= dict.fromkeys(("input_bias", "hidden_bias", "norm_weight"), "*fp32")
    types |= dict.fromkeys(("sums",) if backward else ("norm_bias",), "*fp32")
    types |= {"num_rows": "i32", "epsilon": "fp32"}
    types = {name: given for name, given in types.items() if name not in fixed}
    return AotCase(kernel=kernel, types=types, constexprs=fixed, num_warps=NUM_WARPS, num_stages=1)


_AOT_SHAPES: dict[str, dict[str, Any]] = {
    "64 channels": {"width": 64},
    "192 channels": {"width": 192},
    "256 channels": {"width": 256},
    "256 channels, float32": {"width": 256, "dtype": torch.float32},
    "1024 channels": {"width": 1024},
}
AOT_CASES: dict[str, AotCase] = {
    f"slot update {'backward' if backward else 'forward'}, {name}": _aot_case(**shape, backward=backward)
    for name, shape in _AOT_SHAPES.items()
    for backward in (False, True)
}
