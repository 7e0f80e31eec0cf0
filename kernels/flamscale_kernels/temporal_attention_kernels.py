"""Triton kernels of causal temporal attention: strided query, key and value in, output or gradients out.

A program owns one head of a tile of sequences. A tile has GROUPS groups of ROWS rows, and a group holds PACK whole
sequences one after the other, so that a row is one frame of one sequence and the mask within a group is block-diagonal.
With up to 32 rows a group is one warp's and products are 3-D `tl.dot`, which use mma.sync; with 64 rows there is one
group and products are 2-D. The backward pass computes the weights anew, and needs nothing from the forward pass.

Every head is held as two half tiles, the partners of the rotation. Heads are fastest in the grid, so that programs
that run together read neighbouring memory. Letters as in reference.py; `sequence` counts the S sequences of a clip.
"""

from typing import no_type_check

import triton
import triton.language as tl


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
