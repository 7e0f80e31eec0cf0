"""The specification of the fused operations, in torch alone, in the equations' order and exact in float64.

Letters: F frames (clips x frames), N tokens, C token channels, K slots, B clips, T frames of a clip, S sequences of a
frame, H heads, E head width.
"""

import torch
from jaxtyping import Float
from torch import Tensor


def slot_attention_masks(
    tokens: Float[Tensor, "F N C"], queries: Float[Tensor, "F K C"], scale: float
) -> Float[Tensor, "F K N"]:
    """Returns how each token is shared among the slots: a softmax over slots, so that a token's shares sum to 1.

    Source: Locatello et al., arXiv 2006.15055, Algorithm 1, lines 7-8, with the key projection absorbed into `queries`.
    """
    return torch.softmax(torch.einsum("fkc,fnc->fkn", queries, tokens) * scale, dim=1)


def slot_attention(
    tokens: Float[Tensor, "F N C"], queries: Float[Tensor, "F K C"], scale: float, epsilon: float = 1e-6
) -> tuple[Float[Tensor, "F K C"], Float[Tensor, "F K"]]:
    """One slot-attention read: softmax over slots, renormalise over tokens, weighted mean of the tokens.

    Key and value projections are linear, so the caller absorbs them: `queries` = W_k^T W_q slots, and the slots'
    updates are W_v times the first result. Keys and values of the N tokens are never formed.

    Args:
        tokens: layer-normalised tokens.
        queries: queries with the key projection absorbed.
        scale: factor on the logits.
        epsilon: added to each slot's mass before it divides.

    Returns:
        Weighted means of the tokens [F, K, C], and each slot's mass over all tokens [F, K].

    Source: Locatello et al., arXiv 2006.15055, Algorithm 1, lines 7-9 (epsilon placed as in SAVi, arXiv 2111.12594).
    """
    attention = slot_attention_masks(tokens, queries, scale)
    mass = attention.sum(dim=-1)
    means = torch.einsum("fkn,fnc->fkc", attention, tokens) / (mass + epsilon)[..., None]
    return means, mass


def temporal_attention(
    query: Float[Tensor, "B T S H E"], key: Float[Tensor, "B T S H E"], value: Float[Tensor, "B T S H E"]
) -> Float[Tensor, "B T S H E"]:
    """Causal attention of every sequence over its own frames: frame t attends to the frames up to and including t.

    Args:
        query, key, value: S independent sequences of T frames, in the layout the model holds.

    Source: Vaswani et al., arXiv 1706.03762, Eq. 1, masked to frames <= t, logits scaled by 1/sqrt(E).
    """
    num_frames = query.shape[1]
    logits = torch.einsum("btshe,bushe->bshtu", query, key) * query.shape[-1] ** -0.5
    future = torch.ones(num_frames, num_frames, dtype=torch.bool, device=query.device).triu(1)
    weights = torch.softmax(logits.masked_fill(future, float("-inf")), dim=-1)
    return torch.einsum("bshtu,bushe->btshe", weights, value)
