"""FVD: clips of several kinds in, batch by batch; how far the distribution of each lies from that of true clips out."""

import math
from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from flamscale.models.i3d import I3d


def frechet_distance(features: Float[Tensor, "n d"], others: Float[Tensor, "m d"]) -> float:
    """Returns the squared Frechet distance of the normal distributions that fit two sets of features.

    NaN where a set has fewer than two of them, or some that are not finite.

    The trace of the square root of the product of both covariances is the sum of the roots of its eigenvalues, and
    these are the squared singular values of one set's deviations times the other's: no matrix root, which fails where
    there are fewer clips than dimensions. Source: FVD (arXiv 1812.01717), Eq. 1; Dowson and Landau (1982).
    """
    if min(len(features), len(others)) < 2 or not (features.isfinite().all() and others.isfinite().all()):
        return math.nan
    means, roots = [], []
    for of in (features.double(), others.double()):
        means.append(of.mean(dim=0))
        deviations = (of - means[-1]) / (len(of) - 1) ** 0.5  # its square is the covariance
        roots.append(torch.linalg.qr(deviations, mode="r").R)  # the same square, in at most d rows
    trace = sum(root.square().sum() for root in roots)
    overlap = torch.linalg.svdvals(roots[0] @ roots[1].T).sum()
    return float((means[0] - means[1]).square().sum() + trace - 2.0 * overlap)


KINDS = ("prediction", "copy_last", "tokenizer")
"""Kinds of clips that are compared with the true ones."""


class FvdScores:
    """I3D's logits of true clips and of other kinds of the same clips, and the FVD of each kind.

    With few clips FVD is far above 0 even between true ones, and FVD of different I3D networks, clip lengths or numbers
    of clips does not compare.
    """

    def __init__(self, i3d: I3d) -> None:
        self._i3d = i3d
        self._logits: dict[str, list[Tensor]] = {name: [] for name in ("truth", *KINDS)}

    def add(self, clips: Mapping[str, Float[Tensor, "B S 3 H W"]]) -> None:
        """Adds a batch of clips of every kind, the truth among them, frames in [0, 1]."""
        for name, logits in self._logits.items():
            logits.append(self._i3d(clips[name]).cpu())

    def distance(self, name: str) -> float:
        """Returns the FVD of one kind."""
        return frechet_distance(torch.cat(self._logits[name]), torch.cat(self._logits["truth"]))

    def floor(self) -> float:
        """Returns the FVD of one half of the true clips to the other, which shows how much of an FVD is chance."""
        truth = torch.cat(self._logits["truth"])
        return frechet_distance(truth[::2], truth[1::2])
