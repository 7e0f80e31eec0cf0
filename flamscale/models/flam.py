"""FLAM: features of a clip in; slots, latent actions and predicted features out (Eq. 2-6)."""

from dataclasses import replace

from jaxtyping import Float
from torch import Tensor

from flamscale.config import FlamConfig, TokenizerConfig
from flamscale.models.actions import LatentActions, build_bottleneck
from flamscale.models.aggregator import Aggregator
from flamscale.models.blocks import grid_embedding
from flamscale.models.factorizer import Factorizer
from flamscale.models.fdm import ForwardDynamics
from flamscale.models.idm import InverseDynamics
from flamscale.models.selection import SlotSelection, SlotSelector
from flamscale.models.world_model import WorldModel


class Flam(WorldModel):
    """Factored latent action model on a frozen tokenizer's features; its config also has the ablations.

    With `slots_learn_from="reconstruction"` two published models come of it. SlotFormer (Wu et al., arXiv 2210.05861)
    predicts slots without actions; PlaySlot (Villar-Corrales and Behnke, arXiv 2502.07600) gives each a quantised one.
    Where we differ from both: slots are ours and not SAVi's, they learn from reconstructed features and beside the
    dynamics, not in a stage before it, and the aggregator draws the predicted frame over the current one. PlaySlot's
    actions here are codes alone, without its vector of variability. Both compare predicted slots with true ones;
    here only the features drawn from them are compared.
    """

    def __init__(self, config: FlamConfig, tokenizer: TokenizerConfig) -> None:
        super().__init__()
        self.config: FlamConfig = config
        position = grid_embedding(tokenizer.num_tokens, config.width)  # where slots say and where tokens ask: one start
        self.factorizer = Factorizer(config, position, tokenizer.feature_channels)
        self.idm = InverseDynamics(config) if config.action != "none" else None
        self.fdm = ForwardDynamics(config)
        self.aggregator = Aggregator(config, position, tokenizer.feature_channels)
        self.bottleneck = build_bottleneck(config)
        self.selector = SlotSelector(config) if config.adaptive_slots else None

    def set_static_features(self, features: Float[Tensor, "N C"]) -> None:
        self.factorizer.set_static_features(features)

    def encode(self, features: Float[Tensor, "B T N C"]) -> tuple[Float[Tensor, "B T K D"], Float[Tensor, "B T K N"]]:
        """Returns the slots of every frame, and the masks (Eq. 2-3)."""
        return self.factorizer(features)

    def select(
        self, states: Float[Tensor, "B T K D"], noise: Float[Tensor, "B K"] | None = None
    ) -> SlotSelection | None:
        """Returns which slots the clip keeps, by what they are in its first frame; None if it keeps all."""
        return None if self.selector is None else self.selector(states[:, 0], noise)

    def infer(
        self,
        states: Float[Tensor, "B L K D"],
        next_states: Float[Tensor, "B L K D"],
        noise: Float[Tensor, "B L K A"] | None = None,
        kept: Float[Tensor, "B 1 K"] | None = None,
    ) -> LatentActions:
        """Returns the latent action of every slot (Eq. 4); zeros in a model without actions.

        That of a slot which is not kept has no KL, and reaches nothing.
        """
        if self.idm is None:
            none = states.new_zeros(*states.shape[:3], self.config.action_width)
            return LatentActions(none, None, none, none[..., 0])
        mean, log_var = self.idm(self._for_dynamics(states), self._for_dynamics(next_states), kept)
        latent = self.bottleneck(mean, log_var, noise)
        return latent if kept is None else replace(latent, kl=latent.kl * kept)

    def predict(
        self,
        features: Float[Tensor, "B T N C"],
        slots: Float[Tensor, "B T K D"],
        actions: Float[Tensor, "B T K A"],
        kept: Float[Tensor, "B 1 K"] | None = None,
    ) -> Float[Tensor, "B T N C"]:
        """Returns the features of the frame after each given one: FDM (Eq. 5), then the aggregator."""
        return self.aggregator(features, self.fdm(self._for_dynamics(slots), actions, kept), kept)

    def reconstruct(
        self, slots: Float[Tensor, "B T K D"], kept: Float[Tensor, "B 1 K"] | None = None
    ) -> Float[Tensor, "B T N C"]:
        """Returns the features of the slots' own frames, drawn over the factorizer's static features."""
        static = self.factorizer.static_features.detach()  # a canvas: only the factorizer may move it
        return self.aggregator(static.expand(*slots.shape[:2], -1, -1), slots, kept)

    def _for_dynamics(self, slots: Tensor) -> Tensor:
        return slots if self.config.slots_learn_from == "prediction" else slots.detach()
