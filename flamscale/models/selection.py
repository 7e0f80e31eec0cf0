"""Adaptive number of slots: the slots of a clip's first frame in; which of them the clip keeps out."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from flamscale.config import FlamConfig
from flamscale.models.blocks import Mlp


@dataclass(frozen=True)
class SlotSelection:
    """Which of K slots each clip keeps in all its frames."""

    kept: Float[Tensor, "B 1 K"]
    """1 where a slot is kept, 0 where it takes no part; gradients are those of the relaxed choice."""
    probability: Float[Tensor, "B K"]
    """Probability that a slot is kept."""

    def share(self, masks: Float[Tensor, "B T K N"]) -> Float[Tensor, "B T K N"]:
        """Returns masks that share every token among the slots that are kept; 0 where none is."""
        of_kept = masks * self.kept.unsqueeze(-1)
        return of_kept / of_kept.sum(dim=2, keepdim=True).clamp_min(1e-6)


class SlotSelector(nn.Module):
    """Keeps or drops each slot for a whole clip, by what it is in the first frame, which no later one has seen.

    A network that all slots share gives the logit of keeping a slot. Training draws the choice (Gumbel softmax with two
    outcomes: a logistic draw on the logit, gradients straight through, temperature 1); without noise the likelier
    outcome is taken. A dropped slot is no key of any attention of IDM, FDM and aggregator, and its action has no KL.

    Source: AdaSlot (Fan et al., arXiv 2406.09196, Section 3), where slots compete in slot attention before the choice,
    too, so that the gradient tells what a dropped one would add. Where we differ: it chooses anew for every image.

    No use of it has been shown yet.
    """

    def __init__(self, config: FlamConfig) -> None:
        super().__init__()
        self.mlp = Mlp(config.width, config.mlp_ratio)
        self.norm = nn.LayerNorm(config.width)
        self.logit = nn.Linear(config.width, 1)
        nn.init.zeros_(self.logit.weight)
        nn.init.constant_(self.logit.bias, 3.0)  # nearly always kept at first, whatever it is

    def forward(self, slots: Float[Tensor, "B K D"], noise: Float[Tensor, "B K"] | None = None) -> SlotSelection:
        """Returns the choice for each clip; `noise` are standard logistic draws, None takes the likelier outcome."""
        logits = self.logit(self.norm(self.mlp(slots))).squeeze(-1)
        relaxed = torch.sigmoid(logits if noise is None else logits + noise)
        kept = (relaxed > 0.5).to(relaxed) + (relaxed - relaxed.detach())
        return SlotSelection(kept.unsqueeze(1), torch.sigmoid(logits))
