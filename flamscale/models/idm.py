"""Inverse dynamics model: slots of two successive frames in, one latent action a slot out (Eq. 4)."""

from jaxtyping import Float
from torch import Tensor, nn

from flamscale.config import FlamConfig
from flamscale.models.blocks import CrossAttention, Mlp


class InverseDynamicsBlock(nn.Module):
    """Spatial attention to all current slots (which carry no next value), this slot's own next value, MLP."""

    def __init__(self, config: FlamConfig) -> None:
        super().__init__()
        self.spatial = CrossAttention(config.width, config.num_heads, config.attention)
        self.next_norm = nn.LayerNorm(config.width)
        self.next_value = nn.Linear(config.width, config.width)
        self.mlp = Mlp(config.width, config.mlp_ratio)

    def forward(
        self, x: Float[Tensor, "B T K D"], slots: Float[Tensor, "B T K D"], next_slots: Float[Tensor, "B T K D"]
    ) -> Float[Tensor, "B T K D"]:
        x = self.spatial(x, slots)
        x = x + self.next_value(self.next_norm(next_slots))  # attention to one key is that key's value
        return self.mlp(x)


class InverseDynamics(nn.Module):
    """q(a_t^i | s_t^{1:K}, s_{t+1}^i): a diagonal Gaussian a slot, one network for all slots (Eq. 4)."""

    def __init__(self, config: FlamConfig) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(InverseDynamicsBlock(config) for _ in range(config.num_blocks))
        self.norm = nn.LayerNorm(config.width)
        self.mean = nn.Linear(config.width, config.action_width)
        self.log_var = nn.Linear(config.width, config.action_width)
        nn.init.zeros_(self.log_var.weight)
        nn.init.constant_(self.log_var.bias, -4.0)  # nearly deterministic at first, so that actions carry signal

    def forward(
        self, slots: Float[Tensor, "B T K D"], next_slots: Float[Tensor, "B T K D"]
    ) -> tuple[Float[Tensor, "B T K A"], Float[Tensor, "B T K A"]]:
        """Returns mean and log-variance of the actions that lead from `slots` to `next_slots`."""
        x = slots
        for block in self.blocks:
            x = block(x, slots, next_slots)
        x = self.norm(x)
        return self.mean(x), self.log_var(x).clamp(-12.0, 4.0)
