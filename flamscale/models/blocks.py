"""Transformer parts shared by factorizer, IDM, FDM and aggregator."""

import math

import torch
import torch.nn.functional as F
from flamscale_kernels import temporal_attention_packed
from flamscale_kernels.dispatch import Backend
from jaxtyping import Float
from torch import Tensor, nn

from flamscale.models.attention import AttentionBackend, attend, require


class Mlp(nn.Module):
    """Pre-norm residual MLP: x + W2 gelu(W1 norm(x))."""

    def __init__(self, width: int, ratio: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, ratio * width)
        self.down = nn.Linear(ratio * width, width)

    def forward(self, x: Float[Tensor, "... D"]) -> Float[Tensor, "... D"]:
        return x + self.change(self.norm(x))

    def change(self, normed: Float[Tensor, "... D"]) -> Float[Tensor, "... D"]:
        """Returns what is added to `x`, from norm(x)."""
        return self.down(F.gelu(self.up(normed), approximate="tanh"))


class CrossAttention(nn.Module):
    """Pre-norm residual multi-head attention from `x` to `context`; pass the same tensor twice for self-attention."""

    def __init__(self, width: int, num_heads: int, backend: AttentionBackend = "sdpa") -> None:
        super().__init__()
        require(backend)
        self.num_heads = num_heads
        self.backend: AttentionBackend = backend
        self.norm = nn.LayerNorm(width)
        self.context_norm = nn.LayerNorm(width)
        self.query = nn.Linear(width, width, bias=False)
        self.key_value = nn.Linear(width, 2 * width, bias=False)
        self.out = nn.Linear(width, width)

    def forward(
        self,
        x: Float[Tensor, "*batch Q D"],
        context: Float[Tensor, "*batch M D"],
        weight: Float[Tensor, "*#batch M"] | None = None,
    ) -> Float[Tensor, "*batch Q D"]:
        """Returns `x` and what it attends to; `weight` is that of each key, None for 1."""
        query = self._heads(self.query(self.norm(x)))
        key, value = (self._heads(part) for part in self.key_value(self.context_norm(context)).chunk(2, dim=-1))
        if weight is not None:
            weight = weight.expand(context.shape[:-1]).reshape(key.shape[:2])  # [F, M]
        mixed = attend(query, key, value, self.backend, weight)  # [F, Q, H, E]
        return x + self.out(mixed.reshape(x.shape))

    def _heads(self, x: Float[Tensor, "*batch M D"]) -> Float[Tensor, "F M H E"]:
        return x.reshape(-1, x.shape[-2], self.num_heads, x.shape[-1] // self.num_heads)


class TemporalAttention(nn.Module):
    """Pre-norm residual causal attention of every slot over its own values in frames <= t, with rotary positions."""

    def __init__(self, width: int, num_heads: int, kernels: Backend = "auto") -> None:
        super().__init__()
        self.num_heads = num_heads
        self.kernels: Backend = kernels
        self.norm = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width)

    def forward(self, x: Float[Tensor, "B T K D"]) -> Float[Tensor, "B T K D"]:
        heads = self.query_key_value(self.norm(x)).unflatten(-1, (3, self.num_heads, -1))  # [B, T, K, 3, H, E]
        rotary = rotary_angles(x.shape[1], heads.shape[-1], x.device)
        mixed = temporal_attention_packed(heads, rotary=rotary, backend=self.kernels)
        return x + self.out(mixed.flatten(-2))


def grid_embedding(num_tokens: int, width: int) -> Float[Tensor, "N D"]:
    """Initial position embedding of a square grid: a random vector for each row plus one for each column."""
    side = math.isqrt(num_tokens)
    rows, columns = 0.7 * torch.randn(2, side, width)
    return (rows[:, None] + columns[None]).flatten(0, 1)


def rotary_angles(
    num_frames: int, width: int, device: torch.device
) -> tuple[Float[Tensor, "T half"], Float[Tensor, "T half"]]:
    """Cosine and sine of angles proportional to the frame number, by which attention sees distances in time.

    Source: Su et al., arXiv 2104.09864, Eq. 34.
    """
    half = width // 2
    frames = torch.arange(num_frames, device=device, dtype=torch.float32)
    frequencies = 10_000.0 ** (-torch.arange(half, device=device, dtype=torch.float32) / half)
    angles = frames[:, None] * frequencies
    return angles.cos(), angles.sin()
