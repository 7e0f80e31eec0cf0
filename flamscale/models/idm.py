"""Inverse dynamics model: slots of two successive frames in, one latent action a slot out (Eq. 4)."""

from jaxtyping import Float
from torch import Tensor, nn

from flamscale.config import WorldModelConfig
from flamscale.models.blocks import CrossAttention, Mlp


class InverseDynamicsBlock(nn.Module):
    """Spatial attention to all current slots (which carry no next value), this slot's own next value, MLP.

    Coupled globally, the slots attended to carry their next values too.
    """

    def __init__(self, config: WorldModelConfig) -> None:
        super().__init__()
        self.spatial = CrossAttention(config.width, config.num_heads, config.attention)
        self.next_norm = nn.LayerNorm(config.width)
        self.next_value = nn.Linear(config.width, config.width)
        self.mlp = Mlp(config.width, config.mlp_ratio)
        self.coupling = config.coupling

    def forward(
        self,
        x: Float[Tensor, "B T K D"],
        slots: Float[Tensor, "B T K D"],
        next_slots: Float[Tensor, "B T K D"],
        kept: Float[Tensor, "B 1 K"] | None,
    ) -> Float[Tensor, "B T K D"]:
        next_values = self.next_value(self.next_norm(next_slots))  # attention to one key is that key's value
        seen = slots if self.coupling == "factored" else slots + next_values
        return self.mlp(self.spatial(x, seen, kept) + next_values)


class InverseDynamics(nn.Module):
    """q(a_t^i | s_t^{1:K}, s_{t+1}^i): a diagonal Gaussian a slot, one network for all slots (Eq. 4).

    Where actions are quantised it gives no log-variance, and of the mean one channel for each of their dimensions.
    """

    def __init__(self, config: WorldModelConfig, pool: nn.Module | None = None) -> None:
        """Builds the network; `pool` gathers all streams into those that have an action, None leaves each its own."""
        super().__init__()
        self.blocks = nn.ModuleList(InverseDynamicsBlock(config) for _ in range(config.num_blocks))
        self.pool = pool
        self.norm = nn.LayerNorm(config.width)
        num_channels = len(config.action_levels) if config.action == "quantized" else config.action_width
        self.mean = nn.Linear(config.width, num_channels)
        if config.action == "quantized":
            nn.init.normal_(self.mean.weight, std=config.width**-0.5)  # codes spread over all levels from the start
        self.log_var = None
        if config.action == "gaussian":
            self.log_var = nn.Linear(config.width, config.action_width)
            nn.init.zeros_(self.log_var.weight)
            nn.init.constant_(self.log_var.bias, -4.0)  # nearly deterministic at first, so that actions carry signal

    def forward(
        self,
        slots: Float[Tensor, "B T S D"],
        next_slots: Float[Tensor, "B T S D"],
        kept: Float[Tensor, "B 1 S"] | None = None,
    ) -> tuple[Float[Tensor, "B T K E"], Float[Tensor, "B T K E"] | None]:
        """Returns mean and, of a Gaussian, log-variance of the actions that lead from `slots` to `next_slots`.

        A slot that is not kept is seen by no other.
        """
        x = slots
        for block in self.blocks:
            x = block(x, slots, next_slots, kept)
        if self.pool is not None:
            x = self.pool(x, (next_slots - slots).detach().square().mean(dim=-1))
        x = self.norm(x)
        return self.mean(x), None if self.log_var is None else self.log_var(x).clamp(-12.0, 4.0)
