"""Forward dynamics model: current slots and their latent actions in, next slots out (Eq. 5)."""

from jaxtyping import Float
from torch import Tensor, nn

from flamscale.config import WorldModelConfig
from flamscale.models.blocks import CrossAttention, Mlp, TemporalAttention


class ForwardDynamicsBlock(nn.Module):
    """Spatial attention to the given slots, causal attention over this slot's past, MLP."""

    def __init__(self, config: WorldModelConfig) -> None:
        super().__init__()
        self.spatial = CrossAttention(config.width, config.num_heads, config.attention)
        self.temporal = TemporalAttention(config.width, config.num_heads, config.kernels)
        self.mlp = Mlp(config.width, config.mlp_ratio)

    def forward(
        self, x: Float[Tensor, "B T K D"], slots: Float[Tensor, "B T K D"], kept: Float[Tensor, "B 1 K"] | None
    ) -> Float[Tensor, "B T K D"]:
        return self.mlp(self.temporal(self.spatial(x, slots, kept)))


class ForwardDynamics(nn.Module):
    """s^_{t+1}^i = FDM(s_t^{1:K}, a_t^i): each slot moves by its own action alone, one network for all slots (Eq. 5).

    The action joins its slot's stream, while spatial attention reads the plain slots, so that no slot sees another's
    action. Coupled globally, it reads the streams with their actions.
    """

    def __init__(self, config: WorldModelConfig) -> None:
        super().__init__()
        self.coupling = config.coupling
        self.action = nn.Linear(config.action_width, config.width)
        self.blocks = nn.ModuleList(ForwardDynamicsBlock(config) for _ in range(config.num_blocks))
        self.norm = nn.LayerNorm(config.width)
        self.adapter = nn.Linear(config.width, config.width)

    def forward(
        self,
        slots: Float[Tensor, "B T K D"],
        actions: Float[Tensor, "B T #K A"],
        kept: Float[Tensor, "B 1 K"] | None = None,
    ) -> Float[Tensor, "B T K D"]:
        """Returns the predicted slots of the frames that follow `slots`; a single action is that of all slots.

        A slot that is not kept is seen by no other.
        """
        x = slots + self.action(actions)
        for block in self.blocks:
            x = block(x, slots if self.coupling == "factored" else x, kept)
        return slots + self.adapter(self.norm(x))
