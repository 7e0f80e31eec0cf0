"""Aggregator: features and slots in, features changed to what the slots say out."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from flamscale.config import FlamConfig
from flamscale.models.blocks import CrossAttention, Mlp


class Aggregator(nn.Module):
    """z^_{t+1} = z_t + Agg(queries: z_t, keys and values: s^_{t+1}^{1:K}) (Section 4.2, arXiv 2602.16229).

    Beside the slots stands one learned key and value, for a token that no slot is about.
    """

    def __init__(self, config: FlamConfig, position: Float[Tensor, "N D"], feature_channels: int) -> None:
        super().__init__()
        self.input = nn.Linear(feature_channels, config.width)
        self.position = nn.Parameter(position.clone())
        self.no_slot = nn.Parameter(0.1 * torch.randn(1, config.width))
        self.attention = nn.ModuleList(
            CrossAttention(config.width, config.num_heads, config.attention) for _ in range(config.num_blocks)
        )
        self.mlps = nn.ModuleList(Mlp(config.width, config.mlp_ratio) for _ in range(config.num_blocks))
        self.norm = nn.LayerNorm(config.width)
        self.output = nn.Linear(config.width, feature_channels)

    def forward(
        self,
        features: Float[Tensor, "B T N C"],
        slots: Float[Tensor, "B T K D"],
        kept: Float[Tensor, "B 1 K"] | None = None,
    ) -> Float[Tensor, "B T N C"]:
        """Returns the features of the frames that the slots describe, as far as kept, drawn over the given ones."""
        x = self.input(features) + self.position
        no_slot = self.no_slot.expand(*slots.shape[:2], -1, -1)
        context = torch.cat([slots, no_slot], dim=2)  # [B, T, K + 1, D]
        weight = None if kept is None else functional.pad(kept, (0, 1), value=1.0)  # [B, 1, K + 1]
        for attention, mlp in zip(self.attention, self.mlps, strict=True):
            x = mlp(attention(x, context, weight))
        return features + self.output(self.norm(x))
