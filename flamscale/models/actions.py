"""Actions of the scene or its slots: what the IDM says of a step, or its true actions, in; what the FDM gets, out."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from flamscale.config import WorldModelConfig
from flamscale.models.tokenizer import FiniteScalarQuantizer


@dataclass(frozen=True)
class LatentActions:
    """Latent actions of some steps; see `WorldModelOutput`."""

    mean: Float[Tensor, "B L K A"]
    log_var: Float[Tensor, "B L K A"] | None
    sample: Float[Tensor, "B L K A"]
    kl: Float[Tensor, "B L K"]
    codes: Int[Tensor, "B L K"] | None = None


class GaussianBottleneck(nn.Module):
    """A reparameterised sample of a diagonal Gaussian, and its KL to N(0, I) (Eq. 4 and 6, arXiv 2602.16229)."""

    def forward(
        self,
        mean: Float[Tensor, "B L K A"],
        log_var: Float[Tensor, "B L K A"],
        noise: Float[Tensor, "B L K A"] | None = None,
    ) -> LatentActions:
        sample = mean if noise is None else mean + torch.exp(0.5 * log_var) * noise
        kl = 0.5 * (mean.square() + log_var.exp() - 1.0 - log_var).sum(dim=-1)
        return LatentActions(mean, log_var, sample, kl)


class QuantizedBottleneck(nn.Module):
    """One of V codes a latent action, by finite scalar quantisation; gradients pass straight through.

    The posterior is certain and the prior uniform, so that the KL is log V, whatever the action. It stands in place of
    Genie's and PlaySlot's learned codebooks (VQ-VAE, arXiv 1711.00937): it has no loss of its own, and is the same at
    any world size. Both kinds fell to a single code within 100 steps while `ActionPool` was attention from a learned
    query; a learned codebook was not tried again with the pool as it is now.

    Source: Mentzer et al., arXiv 2309.15505.
    """

    def __init__(self, levels: tuple[int, ...], action_width: int) -> None:
        super().__init__()
        self.fsq = FiniteScalarQuantizer(levels)
        self.action = nn.Linear(len(levels), action_width)

    def forward(
        self, x: Float[Tensor, "B L K E"], log_var: None = None, noise: Float[Tensor, "B L K A"] | None = None
    ) -> LatentActions:
        """Quantises `x`; `log_var` and `noise` are the Gaussian's, and unused."""
        values, codes = self.fsq(x)
        actions = self.action(values)
        kl = torch.full_like(actions[..., 0], math.log(self.fsq.codebook_size))
        return LatentActions(actions, None, actions, kl, codes)

    def actions_of(self, codes: Int[Tensor, "..."]) -> Float[Tensor, "... A"]:
        """Returns the actions that codes stand for."""
        return self.action(self.fsq.codes(codes).to(self.action.weight))


class TrueActionEmbedding(nn.Module):
    """In place of a bottleneck: a vector for each agent and what it does, and their sum for a step; KL is 0."""

    def __init__(self, num_agents: int, num_agent_actions: int, action_width: int) -> None:
        super().__init__()
        self.num_agent_actions = num_agent_actions
        self.vectors = nn.Embedding(num_agents * num_agent_actions, action_width)

    def forward(self, actions: Int[Tensor, "B L E"]) -> LatentActions:
        first = self.num_agent_actions * torch.arange(actions.shape[2], device=actions.device)  # of each agent's rows
        vectors = self.vectors(actions + first).sum(dim=2, keepdim=True)  # [B, L, 1, A]
        return LatentActions(vectors, None, vectors, torch.zeros_like(vectors[..., 0]))


def build_bottleneck(config: WorldModelConfig) -> nn.Module:
    """Returns the bottleneck of the actions that `config` asks for."""
    if config.action == "true":
        return TrueActionEmbedding(config.num_agents, config.num_agent_actions, config.action_width)
    if config.action == "quantized":
        return QuantizedBottleneck(config.action_levels, config.action_width)
    return GaussianBottleneck()
