"""What passes between data, models and training."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """One micro-batch of clips.

    Attributes:
        video: uint8 [B, T, H, W, 3] frames, or int64 [B, T, N] codebook indices where the loader tokenises.
        positions: int64 [B], each clip's place in the endless data order; seeds the clip's own random numbers, so that
            they do not depend on world size or micro-batch.
        actions: int64 [B, T-1, E], true actions of E agents, actions[:, t] leading from frame t to t + 1; None where
            they are not asked for.
    """

    video: Tensor
    positions: Tensor
    actions: Tensor | None = None
