"""Transformer parts shared by factorizer, IDM, FDM and aggregator."""

import math

import torch
import torch.nn.functional as F
from flamscale_kernels import temporal_attention
from jaxtyping import Float
from torch import Tensor, nn


class Mlp(nn.Module):
    """Pre-norm residual MLP: x + W2 gelu(W1 norm(x))."""

    def __init__(self, width: int, ratio: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, ratio * width)
        self.down = nn.Linear(ratio * width, width)

    def forward(self, x: Float[Tensor, "... D"]) -> Float[Tensor, "... D"]:
        return x + self.down(F.gelu(self.up(self.norm(x)), approximate="tanh"))


class CrossAttention(nn.Module):
    """Pre-norm residual multi-head attention from `x` to `context`; pass the same tensor twice for self-attention."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm = nn.LayerNorm(width)
        self.context_norm = nn.LayerNorm(width)
        self.query = nn.Linear(width, width, bias=False)
        self.key_value = nn.Linear(width, 2 * width, bias=False)
        self.out = nn.Linear(width, width)

    def forward(
        self, x: Float[Tensor, "*batch Q D"], context: Float[Tensor, "*batch M D"]
    ) -> Float[Tensor, "*batch Q D"]:
        query = self._heads(self.query(self.norm(x)))
        key, value = (self._heads(part) for part in self.key_value(self.context_norm(context)).chunk(2, dim=-1))
        mixed = F.scaled_dot_product_attention(query, key, value)  # [F, H, Q, E]
        return x + self.out(mixed.transpose(1, 2).reshape(x.shape))

    def _heads(self, x: Float[Tensor, "*batch M D"]) -> Float[Tensor, "F H M E"]:
        return x.reshape(-1, x.shape[-2], self.num_heads, x.shape[-1] // self.num_heads).transpose(1, 2)


class TemporalAttention(nn.Module):
    """Pre-norm residual causal attention of every slot over its own values in frames <= t, with rotary positions."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width)

    def forward(self, x: Float[Tensor, "B T K D"]) -> Float[Tensor, "B T K D"]:
        heads = self.query_key_value(self.norm(x)).unflatten(-1, (3, self.num_heads, -1))  # [B, T, K, 3, H, E]
        query, key, value = heads.unbind(dim=3)
        mixed = temporal_attention(rotate(query), rotate(key), value)
        return x + self.out(mixed.flatten(-2))


def grid_embedding(num_tokens: int, width: int) -> Float[Tensor, "N D"]:
    """Initial position embedding of a square grid: a random vector for each row plus one for each column."""
    side = math.isqrt(num_tokens)
    rows, columns = 0.7 * torch.randn(2, side, width)
    return (rows[:, None] + columns[None]).flatten(0, 1)


def rotate(x: Float[Tensor, "B T S H E"]) -> Float[Tensor, "B T S H E"]:
    """Rotates channel pairs by an angle proportional to the frame number, so that attention sees distances in time.

    Source: Su et al., arXiv 2104.09864, Eq. 34, in the half-split layout.
    """
    half = x.shape[-1] // 2
    frames = torch.arange(x.shape[1], device=x.device, dtype=torch.float32)
    frequencies = 10_000.0 ** (-torch.arange(half, device=x.device, dtype=torch.float32) / half)
    angles = (frames[:, None] * frequencies)[:, None, None]  # [T, 1, 1, E/2]
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    first, second = x[..., :half], x[..., half:]
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)
