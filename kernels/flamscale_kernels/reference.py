"""The specification of the fused operations, in torch alone, in the equations' order and exact in float64.

Letters: F frames (clips x frames), N tokens, C token channels, K slots, B clips, T frames of a clip, S sequences of a
frame, H heads, E head width, R rows (frames x slots), D slot width, U width of what a slot reads.
"""

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def slot_attention_masks(
    tokens: Float[Tensor, "F N C"], queries: Float[Tensor, "F K C"], scale: float
) -> Float[Tensor, "F K N"]:
    """Returns how each token is shared among the slots: a softmax over slots, so that a token's shares sum to 1.

    Source: Locatello et al., arXiv 2006.15055, Algorithm 1, lines 7-8, with the key projection absorbed into `queries`.
    """
    return torch.softmax(torch.einsum("fkc,fnc->fkn", queries, tokens) * scale, dim=1)


def slot_attention(
    tokens: Float[Tensor, "F N *Ht C"],
    queries: Float[Tensor, "F *H K C"],
    scale: float,
    *,
    values: Float[Tensor, "F N *Hv V"] | None = None,
    logit_bias: Float[Tensor, "F *H K"] | None = None,
    slot_mask: Bool[Tensor, "F K"] | None = None,
    token_mask: Bool[Tensor, "F N"] | None = None,
    token_weight: Float[Tensor, "F N"] | None = None,
    epsilon: float = 1e-6,
    epsilon_on: Literal["mass", "attention"] = "mass",
) -> tuple[Float[Tensor, "F *H K V"], Float[Tensor, "F *H K"]]:
    """One slot-attention read: softmax over slots, renormalise over tokens, weighted mean of the values.

    Key and value projections are linear, so a caller with few slots absorbs them, and keys and values of the N tokens
    are never formed. With keys W_k x + b_k, values W_v x + b_v and projected queries q:

        queries = W_k^T q,  logit_bias = scale q^T b_k,  update = W_v means + b_v mass / (mass + epsilon)

    (the factor of b_v is 1 where epsilon is on the attention). Where x is a layer norm's result y * g + b, the same
    holds on the tokens y with W g^T (each column scaled) for W and W b + bias for each bias.

    Args:
        tokens: tokens that all heads share [F, N, C], or each head's keys [F, N, H, C].
        queries: queries [F, K, C], or each head's [F, H, K, C].
        scale: factor on the logits.
        values: what the slots average, shared by the heads [F, N, V] or not [F, N, H, V]; None for the tokens.
        logit_bias: added to the scaled logits of each slot.
        slot_mask: False where a slot takes no part: its attention, mean and mass are 0.
        token_mask: False where a token reaches no slot.
        token_weight: how much each token's attention counts in means and mass; a constant, it gets no gradient.
        epsilon: keeps the division finite.
        epsilon_on: "mass" divides by mass + epsilon; "attention" adds epsilon to every attention weight first.

    Returns:
        Weighted means of the values [F, (H,) K, V] in the inputs' type, and each slot's mass, the sum of its attention
        over all tokens [F, (H,) K], in float32 where the inputs are of half precision.

    Source: Locatello et al., arXiv 2006.15055, Algorithm 1, lines 7-9, for "attention"; SAVi, arXiv 2111.12594, for
    "mass". Masks, heads and the logits' bias are ours.
    """
    heads = "h" if queries.ndim == 4 else ""
    if values is None:
        values = tokens
    token_axes, value_axes = ("fnhc" if x.ndim == 4 else "fnc" for x in (tokens, values))

    logits = torch.einsum(f"f{heads}kc,{token_axes}->f{heads}kn", queries, tokens) * scale
    if logit_bias is not None:
        logits = logits + logit_bias[..., None]
    valid = _valid_pairs(slot_mask, token_mask, num_heads=len(heads))
    if valid is not None:
        logits = logits.masked_fill(~valid, torch.finfo(logits.dtype).min)
    attention = torch.softmax(logits, dim=-2, dtype=torch.promote_types(tokens.dtype, torch.float32))
    if valid is not None:
        attention = attention.masked_fill(~valid, 0.0)
    if token_weight is not None:
        attention = attention * token_weight.detach().unflatten(1, (*[1] * (attention.ndim - 2), -1))

    mass = attention.sum(dim=-1)
    weights, total = attention, mass + epsilon
    if epsilon_on == "attention":
        weights = attention + epsilon if valid is None else (attention + epsilon).masked_fill(~valid, 0.0)
        total = weights.sum(dim=-1)
    if valid is not None:
        total = total.masked_fill(total == 0, 1.0)
    sums = torch.einsum(f"f{heads}kn,{value_axes}->f{heads}kc", weights.to(values.dtype), values)
    return (sums / total[..., None]).to(values.dtype), mass


def _valid_pairs(
    slot_mask: Bool[Tensor, "F K"] | None, token_mask: Bool[Tensor, "F N"] | None, num_heads: int
) -> Bool[Tensor, "F *H k n"] | None:
    """Returns which slots may meet which tokens, with a head's dimension where asked for; None for all."""
    valid = None if slot_mask is None else slot_mask[:, :, None]
    if token_mask is not None:
        tokens = token_mask[:, None, :]
        valid = tokens if valid is None else valid & tokens
    return valid[:, None] if valid is not None and num_heads else valid


def slot_update(
    updates: Float[Tensor, "R U"],
    slots: Float[Tensor, "R D"],
    *,
    input_weight: Float[Tensor, "3*D U"],
    hidden_weight: Float[Tensor, "3*D D"],
    input_bias: Float[Tensor, "3*D"],
    hidden_bias: Float[Tensor, "3*D"],
    norm_weight: Float[Tensor, "D"],
    norm_bias: Float[Tensor, "D"],
    epsilon: float = 1e-5,
) -> tuple[Float[Tensor, "R D"], Float[Tensor, "R D"]]:
    """GRU cell on every slot, and the layer norm of what it gives, which the slot's MLP takes.

    Args:
        updates: what each of R slots read, the cell's input.
        slots: the slots before, the cell's hidden state.
        input_weight, hidden_weight, input_bias, hidden_bias: of reset gate, update gate and candidate, one below the
            other, as `torch.nn.GRUCell` holds them.
        norm_weight, norm_bias: of the layer norm.
        epsilon: added to the variance.

    Returns:
        The new slots and their layer norm, both in the new slots' type.

    Source: Locatello et al., arXiv 2006.15055, Algorithm 1, lines 10-11, up to the MLP's first product.
    """
    slots = torch.gru_cell(updates, slots, input_weight, hidden_weight, input_bias, hidden_bias)
    normed = torch.layer_norm(slots, slots.shape[1:], norm_weight, norm_bias, epsilon)
    return slots, normed.to(slots.dtype)


def temporal_attention(
    query: Float[Tensor, "B T S H E"],
    key: Float[Tensor, "B T S H E"],
    value: Float[Tensor, "B T S H E"],
    *,
    rotary: tuple[Float[Tensor, "T half"], Float[Tensor, "T half"]] | None = None,
    bias: Float[Tensor, "H T T"] | None = None,
    frame_mask: Bool[Tensor, "B T"] | None = None,
) -> Float[Tensor, "B T S H E"]:
    """Causal attention of every sequence over its own frames: frame t attends to the frames up to and including t.

    Args:
        query, key, value: S independent sequences of T frames, in the layout the model holds.
        rotary: cosine and sine of each frame's angles, by which query and key are rotated first.
        bias: finite, added to the scaled logits of [head, querying frame, frame looked at].
        frame_mask: False where a clip has no frame: nobody attends to it, whatever it holds, and its output is 0.

    Source: Vaswani et al., arXiv 1706.03762, Eq. 1, masked to frames <= t, logits scaled by 1/sqrt(E).
    """
    num_frames = query.shape[1]
    visible = torch.ones(num_frames, num_frames, dtype=torch.bool, device=query.device).tril()
    if frame_mask is not None:
        query, key, value = (x.masked_fill(~frame_mask[:, :, None, None, None], 0.0) for x in (query, key, value))
        visible = (visible & frame_mask[:, :, None] & frame_mask[:, None, :])[:, None, None]  # [B, 1, 1, T, T]
    if rotary is not None:
        query, key = rotate(query, *rotary), rotate(key, *rotary)
    logits = torch.einsum("btshe,bushe->bshtu", query, key) * query.shape[-1] ** -0.5
    if bias is not None:
        logits = logits + bias.to(logits.dtype)
    weights = torch.softmax(logits.masked_fill(~visible, torch.finfo(logits.dtype).min), dim=-1)
    return torch.einsum("bshtu,bushe->btshe", weights.masked_fill(~visible, 0.0), value)


def temporal_attention_packed(
    query_key_value: Float[Tensor, "B T S 3 H E"],
    *,
    rotary: tuple[Float[Tensor, "T half"], Float[Tensor, "T half"]] | None = None,
    bias: Float[Tensor, "H T T"] | None = None,
    frame_mask: Bool[Tensor, "B T"] | None = None,
) -> Float[Tensor, "B T S H E"]:
    """`temporal_attention` of the query, key and value along axis 3 of one tensor."""
    query, key, value = query_key_value.unbind(dim=3)
    return temporal_attention(query, key, value, rotary=rotary, bias=bias, frame_mask=frame_mask)


def rotate(
    x: Float[Tensor, "B T S H E"], cos: Float[Tensor, "T half"], sin: Float[Tensor, "T half"]
) -> Float[Tensor, "B T S H E"]:
    """Rotates every channel pair (e, e + E/2) by its frame's angle.

    Source: Su et al., arXiv 2104.09864, Eq. 34, in the half-split layout.
    """
    cos, sin = cos.to(x.dtype)[:, None, None], sin.to(x.dtype)[:, None, None]
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)
