"""Monolithic action models: features of a clip in; one action a step for the whole scene and predicted features out."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from flamscale.config import MonolithicConfig, TokenizerConfig
from flamscale.errors import ConfigError
from flamscale.models.actions import LatentActions, build_bottleneck
from flamscale.models.blocks import Mlp, grid_embedding
from flamscale.models.fdm import ForwardDynamics
from flamscale.models.idm import InverseDynamics
from flamscale.models.world_model import WorldModel


class ActionPool(nn.Module):
    """Gathers what the IDM says of each token into one vector a step: a mean in which a token counts by its change.

    As in FLAM's factorizer. With attention from a learned query, what moves was lost among what stands still, and a
    quantised action stayed at a single code for 800 steps (two agents, 32 x 32).
    """

    def __init__(self, config: MonolithicConfig) -> None:
        super().__init__()
        self.mlp = Mlp(config.width, config.mlp_ratio)

    def forward(self, x: Float[Tensor, "B L N D"], change: Float[Tensor, "B L N"]) -> Float[Tensor, "B L 1 D"]:
        weights = change / change.sum(dim=-1, keepdim=True).clamp_min(1e-9)
        return self.mlp(weights.unsqueeze(2) @ x)


class Monolithic(WorldModel):
    """One action a step for the whole scene: the latent action models of AdaWorld and Genie, on FLAM's terms.

    FLAM's own IDM and FDM blocks in their global form, over the N tokens in place of K slots: spatial attention among
    all tokens, then causal attention of every token over its past, as in a spatio-temporal transformer. The action is
    added to every token. A Gaussian action makes it AdaWorld's (Gao et al., arXiv 2503.18938, Section 3.1), a quantised
    one Genie's (Bruce et al., arXiv 2402.15391, Section 2.1).

    Where we differ from both: features of the tokenizer in place of pixels; the IDM sees two frames, as AdaWorld's does
    (Genie's sees all before them too); the FDM sees the frames before as well, where AdaWorld's decoder sees one; and
    the FDM, which regresses the next features, is the world model, where Genie trains a MaskGIT and AdaWorld a
    diffusion model beside it.

    With true actions in place of inferred ones there is no IDM: the world model "given the true actions" that FLAM is
    compared with (Section 5, arXiv 2602.16229).
    """

    def __init__(self, config: MonolithicConfig, tokenizer: TokenizerConfig) -> None:
        super().__init__()
        self.config: MonolithicConfig = config
        self.input = nn.Linear(tokenizer.feature_channels, config.width)
        self.position = nn.Parameter(grid_embedding(tokenizer.num_tokens, config.width))
        self.idm = InverseDynamics(config, pool=ActionPool(config)) if config.action != "true" else None
        self.fdm = ForwardDynamics(config)
        self.norm = nn.LayerNorm(config.width)
        self.output = nn.Linear(config.width, tokenizer.feature_channels)
        self.bottleneck = build_bottleneck(config)

    def encode(self, features: Float[Tensor, "B T N C"]) -> tuple[Float[Tensor, "B T N D"], Float[Tensor, "B T 1 N"]]:
        """Returns the tokens of every frame, and masks of 1: a single factor has them all."""
        return self.input(features) + self.position, torch.ones_like(features[..., 0]).unsqueeze(2)

    def infer(
        self,
        states: Float[Tensor, "B L N D"],
        next_states: Float[Tensor, "B L N D"],
        noise: Float[Tensor, "B L 1 A"] | None = None,
        kept: Tensor | None = None,
    ) -> LatentActions:
        """Returns the latent action of every step; raises ConfigError in a model of true actions."""
        if self.idm is None:
            raise ConfigError(
                f"This model takes true actions and infers none from frames: pass actions, integers [B, T - 1, "
                f"{self.config.num_agents}], or choose another model."
            )
        return self.bottleneck(*self.idm(states, next_states), noise)

    def embed(self, actions: Int[Tensor, "B L E"]) -> LatentActions:
        """Returns what true actions are to the FDM; raises ConfigError in a model that infers its actions."""
        return super().embed(actions) if self.idm is not None else self.bottleneck(actions)

    def predict(
        self,
        features: Float[Tensor, "B T N C"],
        slots: Float[Tensor, "B T N D"],
        actions: Float[Tensor, "B T 1 A"],
        kept: Tensor | None = None,
    ) -> Float[Tensor, "B T N C"]:
        """Returns the features of the frame after each given one, whose tokens are `slots`."""
        return features + self.output(self.norm(self.fdm(slots, actions)))
