"""Segmentation by slots: the slot and the entity of every pixel in, FG-ARI and mean IoU of every scene out.

A scene is a frame or, where slots shall keep their entities, all frames of a clip: P pixels in any order.
"""

import math

import numpy as np
from jaxtyping import Float, Int, Shaped
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import adjusted_rand_score


def foreground_ari(slots: Int[np.ndarray, "S P"], entities: Int[np.ndarray, "S P"]) -> Float[np.ndarray, " S"]:
    """Returns each scene's adjusted Rand index of slots against entities, over the pixels of entities alone.

    1 where every entity has a slot for itself, 0 for slots at random. Background (entity -1) does not count; NaN where
    there is nothing else. Source: Hubert and Arabie (1985); over the foreground as in IODINE (arXiv 1903.00450).
    """
    return np.array(
        [
            adjusted_rand_score(truth[truth >= 0], found[truth >= 0]) if (truth >= 0).any() else math.nan
            for found, truth in zip(slots, entities, strict=True)
        ]
    )


def mean_iou(
    slots: Int[np.ndarray, "S P"], entities: Int[np.ndarray, "S P"], num_slots: int
) -> Float[np.ndarray, " S"]:
    """Returns each scene's mean intersection over union of its entities and their slots, NaN where it has none.

    Slots are matched to entities one to one, so that the mean is largest (Hungarian method); an entity left without a
    slot counts 0. A slot's background counts into the union: only a slot that holds an entity and nothing else gets 1.
    Source: as in SAVi (arXiv 2111.12594).
    """
    scores = []
    for found, truth in zip(slots, entities, strict=True):
        present = np.unique(truth[truth >= 0])
        if not len(present):
            scores.append(math.nan)
            continue
        of_slot = found == np.arange(num_slots)[:, None]  # [K, P]
        of_entity = truth == present[:, None]  # [E, P]
        shared = of_slot.astype(np.int64) @ of_entity.T.astype(np.int64)
        iou = shared / (of_slot.sum(axis=1)[:, None] + of_entity.sum(axis=1) - shared)
        scores.append(iou[linear_sum_assignment(iou, maximize=True)].sum() / len(present))
    return np.array(scores)


def to_pixels(tokens: Shaped[np.ndarray, "*any N"], size: int) -> Shaped[np.ndarray, "*any H W"]:
    """Returns values of the N tokens of square frames, repeated over the `size` x `size` pixels they cover."""
    side = math.isqrt(tokens.shape[-1])
    assert side**2 == tokens.shape[-1]
    assert size % side == 0
    grid = tokens.reshape(*tokens.shape[:-1], side, side)
    return grid.repeat(size // side, axis=-2).repeat(size // side, axis=-1)
