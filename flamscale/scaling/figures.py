"""Figures of a study: groups of points with their fits in; PNG files out."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from flamscale.eval.files import replacing
from flamscale.scaling.conclusions import Group, law_sizes
from flamscale.scaling.estimate import Estimate
from flamscale.scaling.fit import LossLaw
from flamscale.scaling.records import Point

_PANEL_INCHES = (4.2, 3.4)
_LOSS, _ROLLOUT = "Prediction loss", "Rollout of held-out clips"
_MEASURES: dict[str, tuple[str, Callable[[Point], float | None]]] = {
    _LOSS: ("mean squared error", lambda point: point.loss),
    _ROLLOUT: ("PSNR (dB)", lambda point: point.psnr),
    "Disentanglement": ("D (0 to 1)", lambda point: point.scores.get("disentanglement")),
    "Completeness": ("C (0 to 1)", lambda point: point.scores.get("completeness")),
    "Informativeness": ("I (0 to 1)", lambda point: point.scores.get("informativeness")),
}


def draw_measures(path: Path, groups: Sequence[Group]) -> None:
    """Draws every measure over what the study varies.

    Dots are runs; lines are means, over compute the best so far (the frontier); dashed lines are fitted laws, dotted
    ones the K at which the score bends.
    """
    axis_name, of_point, base = _abscissa(groups[0].points[0])
    shown = [
        (title, unit, measure)
        for title, (unit, measure) in _MEASURES.items()
        if measure(groups[0].points[0]) is not None
    ]
    figure, axes = _panels(len(shown))
    for panel, (title, unit, measure) in zip(axes, shown, strict=True):
        for number, group in enumerate(groups):
            x = np.array([of_point(point) for point in group.points])
            y = np.array([measure(point) for point in group.points], dtype=float)
            colour = f"C{number}"
            panel.scatter(x, y, s=14, color=colour, alpha=0.6)
            ticks = np.unique(x)
            best = np.min if title == _LOSS else np.max
            line = [best(y[x <= tick]) if base == 10 else y[x == tick].mean() for tick in ticks]
            panel.plot(ticks, line, color=colour, label=group.label or None)
            if title == _LOSS and group.law and len(group.law.names) == 1:
                grid = np.geomspace(x.min(), x.max(), 50)
                fitted = [group.law.predict({group.law.names[0]: value}).value for value in grid]
                panel.plot(grid, fitted, color=colour, linestyle="--")
            if title == _ROLLOUT and group.saturation:
                panel.axvline(group.saturation.knee.value, color=colour, linestyle=":", linewidth=1)
        panel.set_xscale("log", base=base)
        if base == 2:
            panel.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        if title == _LOSS:
            panel.set_yscale("log")
        _label(panel, title, axis_name, unit)
    if groups[0].label:
        axes[0].legend(frameon=False, fontsize=8)
    _save(figure, path)


def draw_sizes_over_videos(path: Path, groups: Sequence[Group]) -> None:
    """Draws loss and rollout PSNR over training videos in a colour for each size; dashed lines are the fitted law."""
    figure, axes = _panels(2)
    for panel, title in zip(axes, (_LOSS, _ROLLOUT), strict=True):
        unit, measure = _MEASURES[title]
        series = [
            (group, size, sorted(same, key=lambda point: point.values["videos"]))
            for group in groups
            for size, same in _by_size(group.points).items()
        ]
        for number, (group, size, points) in enumerate(series):
            videos = [point.values["videos"] for point in points]
            measured = np.array([measure(point) for point in points], dtype=float)
            label = f"{group.label}, {size}" if group.label else size
            law = group.law if title == _LOSS else None
            joined = "none" if law else "-"
            panel.plot(videos, measured, "o", linestyle=joined, markersize=4, color=f"C{number}", label=label)
            if law:
                panel.plot(videos, _predicted(law, points), color=f"C{number}", linestyle="--")
        panel.set_xscale("log", base=2)
        ticks = sorted({point.values["videos"] for group in groups for point in group.points})
        panel.set_xticks(ticks, [str(tick) for tick in ticks])
        if title == _LOSS:
            panel.set_yscale("log")
        _label(panel, title, "training videos", unit)
    axes[0].legend(frameon=False, fontsize=8)
    _save(figure, path)


def _by_size(points: Sequence[Point]) -> dict[str, list[Point]]:
    found: dict[str, list[Point]] = defaultdict(list)
    for point in points:
        found[str(point.values["size"])].append(point)
    return found


def _predicted(law: LossLaw, points: Sequence[Point]) -> list[float]:
    """Returns a law's loss at each point."""
    sizes = law_sizes(points)
    return [
        law.predict({name: float(values[row]) for name, values in sizes.items()}).value for row in range(len(points))
    ]


def draw_predictions(path: Path, groups: Sequence[Group]) -> None:
    """Draws a law's loss over the measured one: dots are the runs it is fitted to, crosses those held out of it."""
    figure, (panel,) = _panels(1)
    losses = []
    for number, group in enumerate(group for group in groups if group.law):
        law = group.held_out.law if group.held_out else group.law
        assert law is not None
        measured = np.array([point.loss for point in group.points])
        losses += measured.tolist()
        seen = ~group.held_out.is_held_out if group.held_out else np.full(len(measured), True)
        fitted = np.array(_predicted(law, group.points))[seen]
        prefix = f"{group.label}: " if group.label else ""
        panel.scatter(measured[seen], fitted, s=14, color=f"C{2 * number}", label=f"{prefix}fitted")
        if group.held_out:
            predicted = group.held_out.predicted
            panel.errorbar(
                group.held_out.measured,
                [found.value for found in predicted],
                yerr=np.hstack([reach(found) for found in predicted]),
                fmt="x",
                elinewidth=0.8,
                color=f"C{2 * number + 1}",
                label=f"{prefix}held out",
            )
    panel.axline((min(losses), min(losses)), (max(losses), max(losses)), color="grey", linewidth=0.8)
    panel.set_xscale("log")
    panel.set_yscale("log")
    panel.legend(frameon=False, fontsize=8)
    _label(panel, "Predicted against measured", "measured loss", "predicted loss")
    _save(figure, path)


def draw_isoflops(path: Path, groups: Sequence[Group]) -> None:
    """Draws the parabola of each budget with its lowest point, and the frontier: best size over budget."""
    figure, (valleys, frontier) = _panels(2)
    for group in (group for group in groups if group.isoflops):
        for number, valley in enumerate(group.isoflops.valleys if group.isoflops else ()):
            mine = [point for point in group.points if point.values["flops"] == valley.flops]
            size = np.array([point.cost.parameters for point in mine], dtype=float)
            colour = f"C{number}"
            valleys.scatter(size, [point.loss for point in mine], s=14, color=colour, label=f"{valley.flops:.2g} FLOPs")
            grid = np.geomspace(size.min(), size.max(), 50)
            valleys.plot(grid, np.exp(np.polyval(valley.coefficients, np.log(grid))), color=colour)
            valleys.scatter(valley.best_size.value, valley.least_loss, marker="*", s=70, color=colour)
            best = valley.best_size
            frontier.errorbar([valley.flops], [best.value], yerr=reach(best), fmt="o", color=colour)
    for panel in (valleys, frontier):
        panel.set_xscale("log")
        panel.set_yscale("log")
    valleys.legend(frameon=False, fontsize=8)
    _label(valleys, "Runs of equal compute", "parameters", "prediction loss")
    _label(frontier, "Best size", "FLOPs", "parameters")
    _save(figure, path)


def reach(found: Estimate) -> list[list[float]]:
    """How far the interval reaches below and above the value, which it need not hold."""
    return [[max(0.0, found.value - found.low)], [max(0.0, found.high - found.value)]]


def _abscissa(point: Point) -> tuple[str, Callable[[Point], float], int]:
    """Returns what a study's points are drawn over, and the base of its logarithm."""
    if "k" in point.values:
        return "K", lambda point: float(point.values["k"]), 2
    if "size" in point.values:
        return "training compute (FLOPs)", lambda point: point.cost.flops, 10
    if "videos" in point.values:
        return "training videos", lambda point: float(point.values["videos"]), 2
    return "clips trained on", lambda point: float(point.cost.num_clips), 10


def _panels(count: int) -> tuple[Figure, Sequence[Axes]]:
    figure = Figure(figsize=(_PANEL_INCHES[0] * count, _PANEL_INCHES[1]), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(1, count, squeeze=False)[0].tolist()


def _label(panel: Axes, title: str, x: str, y: str) -> None:
    panel.set_title(title, fontsize=10)
    panel.set_xlabel(x, fontsize=9)
    panel.set_ylabel(y, fontsize=9)
    panel.tick_params(which="both", labelsize=8)
    panel.grid(alpha=0.3)
    panel.spines[["top", "right"]].set_visible(False)


def _save(figure: Figure, path: Path) -> None:
    with replacing(path) as partial:
        figure.savefig(partial, format="png", dpi=120)
