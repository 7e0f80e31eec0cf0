"""Factorizer: features of a clip in, K slots a frame out (Eq. 2-3)."""

import torch
from flamscale_kernels import slot_attention, slot_attention_masks, slot_update
from flamscale_kernels.dispatch import Backend
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from flamscale.config import FlamConfig
from flamscale.models.blocks import Mlp, TemporalAttention


class FactorizerIteration(nn.Module):
    """Slot attention over each frame's tokens, then causal attention of every slot over its own past.

    Slots bound by the previous frame go without that attention.
    """

    def __init__(self, config: FlamConfig) -> None:
        super().__init__()
        width = config.width
        self.norm = nn.LayerNorm(width, bias=False)  # a bias would add the same logit to every slot
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        for projection in (self.query, self.key):  # logits with a spread of about 2: slots differ from the start
            nn.init.normal_(projection.weight, std=1.5 * width**-0.5)
        self.gru = nn.GRUCell(width, width)
        self.mlp = Mlp(width, config.mlp_ratio)
        self.temporal: nn.Module = nn.Identity()
        if config.binding == "temporal-attention":
            self.temporal = TemporalAttention(width, config.num_heads, config.kernels)
        self.kernels: Backend = config.kernels

    def forward(
        self,
        slots: Float[Tensor, "B T K D"],
        content: Float[Tensor, "F N D"],
        tokens: Float[Tensor, "F N D"],
        change: Float[Tensor, "F N"],
    ) -> Float[Tensor, "B T K D"]:
        queries = self.absorbed_queries(slots)
        means, _ = slot_attention(
            content, queries, self.scale, values=tokens, token_weight=change, backend=self.kernels
        )
        new_slots, normed = self.update(self.value(means).flatten(0, 1), slots.flatten(0, 2))
        return self.temporal((new_slots + self.mlp.change(normed)).view_as(slots))

    def update(
        self, updates: Float[Tensor, "R D"], slots: Float[Tensor, "R D"]
    ) -> tuple[Float[Tensor, "R D"], Float[Tensor, "R D"]]:
        """New slots by the GRU, and their layer norm for the MLP."""
        return slot_update(
            updates,
            slots,
            input_weight=self.gru.weight_ih,
            hidden_weight=self.gru.weight_hh,
            input_bias=self.gru.bias_ih,
            hidden_bias=self.gru.bias_hh,
            norm_weight=self.mlp.norm.weight,
            norm_bias=self.mlp.norm.bias,
            epsilon=self.mlp.norm.eps,
            backend=self.kernels,
        )

    def absorbed_queries(self, slots: Float[Tensor, "B T K D"]) -> Float[Tensor, "F K D"]:
        """Queries with the key projection absorbed: W_k^T W_q norm(slots)."""
        return (self.query(self.norm(slots)) @ self.key.weight).flatten(0, 1)

    @property
    def scale(self) -> float:
        return self.query.out_features**-0.5


class Factorizer(nn.Module):
    """Splits every frame into K slots, bound over time by temporal attention inside each iteration (Eq. 2-3).

    The iterations share their weights, as in slot attention. Slots start from one learned embedding each. Where we
    differ: tokens are what differs from learned static features, projected without layer norm; slots compete for them
    by content alone, while what they take in is content and position; and a token counts in a slot's mean by how much
    it differs. A slot's mean then tells what an entity is and where, however much of the static scene the slot also
    holds. Static features and the missing layer norm were not measured apart.

    The ablation "previous-frame" drops temporal attention and starts a frame's slots from those of the frame before
    (Tables 6-7), as slot attention for video does.
    """

    def __init__(self, config: FlamConfig, position: Float[Tensor, "N D"], feature_channels: int) -> None:
        super().__init__()
        self.num_iterations = config.slot_iterations
        self.binding = config.binding
        self.activation_checkpointing = config.activation_checkpointing
        self.static_features = nn.Parameter(torch.zeros(len(position), feature_channels))
        self.content = nn.Linear(feature_channels, config.width, bias=False)
        nn.init.normal_(self.content.weight, std=feature_channels**-0.5)
        self.position = nn.Parameter(position.clone())
        self.initial_slots = nn.Parameter(torch.randn(config.num_slots, config.width))
        self.iteration = FactorizerIteration(config)

    @torch.no_grad()
    def set_static_features(self, features: Float[Tensor, "N C"]) -> None:
        """Starts the static features from given ones, such as those of the median training frame."""
        self.static_features.copy_(features)

    def forward(self, features: Float[Tensor, "B T N C"]) -> tuple[Float[Tensor, "B T K D"], Float[Tensor, "B T K N"]]:
        """Returns the slots of every frame, and the masks: how each token is shared among them (sum 1 over K)."""
        num_clips, num_frames = features.shape[:2]
        difference = (features - self.static_features).flatten(0, 1)  # [F, N, C]
        content = self.content(difference)
        tokens = content + self.position
        change = difference.detach().square().mean(dim=-1)
        if self.binding == "temporal-attention":
            slots = self._iterate(self.initial_slots.expand(num_clips, num_frames, -1, -1), content, tokens, change)
        else:
            slots = self._frame_by_frame(num_clips, content, tokens, change)
        masks = slot_attention_masks(content, self.iteration.absorbed_queries(slots), self.iteration.scale)
        return slots, masks.unflatten(0, (num_clips, num_frames))

    def _iterate(self, slots: Tensor, content: Tensor, tokens: Tensor, change: Tensor) -> Tensor:
        """Refines slots [B, T, K, D] by the tokens of their B x T frames."""
        for _ in range(self.num_iterations):
            if self.activation_checkpointing and torch.is_grad_enabled():
                slots = checkpoint(self.iteration, slots, content, tokens, change, use_reentrant=False)
            else:
                slots = self.iteration(slots, content, tokens, change)
        return slots

    def _frame_by_frame(self, num_clips: int, content: Tensor, tokens: Tensor, change: Tensor) -> Tensor:
        """Refines the slots of one frame after the other, each starting from the last one's."""
        slots = [self.initial_slots.expand(num_clips, 1, -1, -1)]
        of_frames = (x.unflatten(0, (num_clips, -1)).unbind(dim=1) for x in (content, tokens, change))
        for inputs in zip(*of_frames, strict=True):
            slots.append(self._iterate(slots[-1], *inputs))
        return torch.cat(slots[1:], dim=1)
