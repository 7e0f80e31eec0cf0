"""Health of slots: their masks over a clip in; dead slots, and how often slots and entities change hands, out."""

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment

DEAD_BELOW_TOKENS = 0.5
"""A slot that holds fewer tokens of a frame than this, on average, is dead (count)."""


def count_dead_slots(slot_mass: Float[np.ndarray, " K"], num_tokens: int) -> int:
    """Returns how many slots are dead, given each one's mean share of the tokens (0 to 1, sum 1)."""
    return int((slot_mass * num_tokens < DEAD_BELOW_TOKENS).sum())


def slot_swap_rate(masks: Float[np.ndarray, "M T K N"]) -> float:
    """Returns the share of slots that take over another slot's tokens from one frame to the next; needs no labels.

    Slots of successive frames are matched by the overlap of their masks (Hungarian method); a slot is swapped where its
    match is another one. 0 where slots keep their places, about 1 - 1/K where they are drawn anew in every frame.
    """
    overlaps = np.einsum("mtkn,mtln->mtkl", masks[:, :-1], masks[:, 1:])
    swapped = [
        (linear_sum_assignment(overlap, maximize=True)[1] != np.arange(len(overlap))).mean()
        for overlap in overlaps.reshape(-1, *overlaps.shape[2:])
    ]
    return float(np.mean(swapped))


def entity_swap_rate(owners: Int[np.ndarray, "M T E"]) -> float:
    """Returns the share of steps after which another slot holds an entity than before; 0 is a lasting identity."""
    return float((owners[:, 1:] != owners[:, :-1]).mean())


def entity_owners(
    masks: Float[np.ndarray, "M T K H W"], entity_map: Int[np.ndarray, "M T H W"], num_entities: int
) -> Int[np.ndarray, "M T E"]:
    """Returns the slot with the largest share of each entity's pixels; entity_map is -1 where there is none."""
    of_entity = entity_map[:, :, None] == np.arange(num_entities)[:, None, None]  # [M, T, E, H, W]
    return np.einsum("mtkhw,mtehw->mtek", masks, of_entity).argmax(axis=-1)
