"""What a study's points support: points in; fitted laws, or the sentence that says why there is none, out.

Which fit is tried follows from the axes: K asks for a saturation curve, videos and sizes for laws of loss, sizes at
several budgets for iso-FLOP parabolas too. Points of different data sets are never fitted together.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Bool

from flamscale.errors import FitError
from flamscale.scaling.fit import HeldOut, LossLaw, fit_law, predict_held_out
from flamscale.scaling.isoflop import IsoFlops, fit_isoflops
from flamscale.scaling.records import Point
from flamscale.scaling.saturation import Saturation, fit_saturation

Fit = TypeVar("Fit")
_DATA_AXIS = "agents"  # its values are different data sets


@dataclass(frozen=True, kw_only=True)
class Group:
    """Points of one data set, and what they support."""

    label: str
    """Value of the axis that tells data sets apart; empty where there is one."""
    points: tuple[Point, ...]
    saturation: Saturation | None = None
    """Of rollout PSNR in K."""
    law: LossLaw | None = None
    held_out: HeldOut | None = None
    """Of `largest_runs`, in the order of `points`."""
    isoflops: IsoFlops | None = None
    refusals: tuple[str, ...] = field(default=())
    """Why a fit is missing, a sentence each."""


def conclude(points: Sequence[Point]) -> tuple[Group, ...]:
    """Fits what the points of each data set support."""
    values = list(dict.fromkeys(point.values.get(_DATA_AXIS) for point in points))
    return tuple(
        _conclude(
            "" if value is None else f"{value} {_DATA_AXIS}", [p for p in points if p.values.get(_DATA_AXIS) == value]
        )
        for value in values
    )


def _conclude(label: str, points: list[Point]) -> Group:
    refusals: list[str] = []

    def attempt(fit: Callable[[], Fit], lacking: str = "fit") -> Fit | None:
        try:
            return fit()
        except FitError as error:
            refusals.append(f"No {lacking}: {error}")
            return None

    loss = np.array([point.loss for point in points])
    sizes = law_sizes(points)
    axes = points[0].values.keys()
    found: dict[str, Any] = {}
    if "k" in axes:
        num_slots, psnr = np.array([point.values["k"] for point in points]), np.array([point.psnr for point in points])
        found["saturation"] = attempt(lambda: fit_saturation(num_slots, psnr))
    if sizes:
        found["law"] = attempt(lambda: fit_law(sizes, loss))
        found["held_out"] = found["law"] and attempt(
            lambda: predict_held_out(sizes, loss, largest_runs(points)[1]), "check of the law on its largest runs"
        )
    if {"size", "flops"} <= axes:
        flops = np.array([float(point.values["flops"]) for point in points])
        parameters = np.array([float(point.cost.parameters) for point in points])
        found["isoflops"] = attempt(lambda: fit_isoflops(flops, parameters, loss))
    return Group(label=label, points=tuple(points), refusals=tuple(dict.fromkeys(refusals)), **found)


def law_sizes(points: Sequence[Point]) -> dict[str, np.ndarray]:
    """Returns the sizes that a law of these points is one of: parameters, videos, or clips trained on."""
    axes = points[0].values.keys()
    sizes = {}
    if "size" in axes:
        sizes["parameters"] = np.array([float(point.cost.parameters) for point in points])
    if "videos" in axes:
        sizes["videos"] = np.array([float(point.values["videos"]) for point in points])
    elif {"steps", "epochs", "flops"} & axes:
        sizes["clips"] = np.array([float(point.cost.num_clips) for point in points])
    return sizes


def largest_runs(points: Sequence[Point]) -> tuple[str, Bool[np.ndarray, " M"]]:
    """Returns what a law's check holds out, in words and as a mask: runs beyond all that the law has then seen.

    With budgets, all runs of the largest one (Hoffmann et al., arXiv 2203.15556, who predict the largest budget from
    smaller ones); without, all runs with the largest value of any size, so that the law is fitted to smaller models on
    less data alone (Rosenfeld et al., arXiv 1909.12673, Section 6).
    """
    if "flops" in points[0].values:
        flops = np.array([float(point.values["flops"]) for point in points])
        return f"{flops.max():.3g} FLOPs", flops == flops.max()
    sizes = law_sizes(points)
    common = " or ".join(f"{values.max():,.0f} {name}" for name, values in sizes.items())
    return common, np.logical_or.reduce([values == values.max() for values in sizes.values()])
