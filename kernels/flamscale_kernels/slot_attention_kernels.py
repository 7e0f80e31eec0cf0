"""Slot attention in Triton: tokens and queries in, means and masses out, then gradients in, gradients out.

One program reads the tokens of one frame and head once and gives one block of columns of the result; where the slots
are too many or too wide for one program's registers, further programs give further columns and recompute the
attention. Slots lie on the rows of every product, so that a softmax over slots is a reduction over rows.
Imported only once Triton is chosen.
"""

# ruff: noqa: SIM102, SIM108 - a branch at compile time and one at run time stay apart

from typing import no_type_check

import triton
import triton.language as tl


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
