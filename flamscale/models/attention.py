"""Attention between sets (slots, patch tokens): heads of queries, keys and values in, mixed values out.

Every attention that is not over time goes through `attend`, so that a faster backend is chosen in one place.
"""

import importlib.util
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from flamscale.errors import ConfigError

AttentionBackend = Literal["sdpa", "flash-attn"]


def require(backend: AttentionBackend) -> None:
    """Raises ConfigError where a backend is not installed."""
    if backend == "flash-attn" and importlib.util.find_spec("flash_attn") is None:
        raise ConfigError(
            "flam.attention is flash-attn, which is not installed; pip install 'flamscale[gpu]', or choose sdpa."
        )


def attend(
    query: Float[Tensor, "F Q H E"],
    key: Float[Tensor, "F M H E"],
    value: Float[Tensor, "F M H E"],
    backend: AttentionBackend,
    weight: Float[Tensor, "F M"] | None = None,
) -> Float[Tensor, "F Q H E"]:
    """Multi-head attention of every query to all keys of its frame, logits scaled by 1/sqrt(E).

    With a `weight`, from 0 to 1, a key gets that part of its attention, and what is left sums to 1 again; where every
    weight is 0, so is the result. Torch computes that, whatever the backend.

    Raises:
        ConfigError: flash-attn was asked for and these tensors are not its: it wants half precision on CUDA.

    Source: Vaswani et al., arXiv 1706.03762, Eq. 1.
    """
    if weight is not None:
        logits = torch.einsum("fqhe,fmhe->fhqm", query, key) * query.shape[-1] ** -0.5
        attention = logits.softmax(dim=-1) * weight[:, None, None]
        attention = attention / attention.sum(dim=-1, keepdim=True).clamp_min(1e-6)
        return torch.einsum("fhqm,fmhe->fqhe", attention.to(value.dtype), value)
    if backend == "sdpa":
        query, key, value = (x.transpose(1, 2) for x in (query, key, value))  # [F, H, Q or M, E]
        return F.scaled_dot_product_attention(query, key, value).transpose(1, 2)
    if query.device.type != "cuda" or query.dtype.itemsize != 2:
        raise ConfigError(
            f"flam.attention is flash-attn, which takes bf16 or fp16 on CUDA, got {query.dtype} on {query.device.type};"
            " pass --flam-stage.precision bf16 on a GPU, or choose sdpa."
        )
    from flash_attn import flash_attn_func

    return flash_attn_func(query, key, value)
