"""Training curves: metrics.jsonl of both stages in, curves.png out."""

from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from flamscale.eval.files import replacing
from flamscale.training.metrics import read_records

_PANELS_A_ROW = 5
_MOST_LABELS = 12
_PANEL_INCHES = (3.6, 2.7)


@dataclass(frozen=True)
class Panel:
    """One pair of axes: the metrics drawn in it, by name or shell pattern."""

    title: str
    unit: str
    metrics: tuple[str, ...]
    log: bool = False
    from_zero: bool = True


PANELS = (
    Panel(
        "Loss and its error term",
        "squared error (mean)",
        ("loss", "mse", "velocity_error", "prediction_loss", "lpips"),
        log=True,
    ),
    Panel("Reconstruction", "PSNR (dB)", ("psnr",), from_zero=False),
    Panel("Error over copying the last frame", "ratio (1: no better)", ("copy_ratio",)),
    Panel("KL of each factor", "nats a step", ("kl_[0-9]*",)),
    Panel("Weight of the KL", "beta", ("beta",)),
    Panel("Least used slot", "share over fair share", ("dead_slot_mass",)),
    Panel("Assignment entropy of tokens", "nats", ("assignment_entropy",)),
    Panel("Learning rate", "a step", ("learning_rate",)),
    Panel("Gradient norm", "L2, before clipping", ("grad_norm",), log=True),
    Panel("Throughput", "frames/s", ("frames_per_s",)),
    Panel("Time of a step", "s", ("step_s", "forward_backward_s", "optimizer_s", "data_wait_s")),
)


def draw_curves(metrics: Path, path: Path) -> None:
    """Draws every known metric of every stage over the steps, validation dashed; nothing where nothing was recorded."""
    records = read_records(metrics)
    stages = list(dict.fromkeys(record["stage"] for record in records))
    if not stages:
        return
    drawn = {stage: _filled_panels([record for record in records if record["stage"] == stage]) for stage in stages}
    rows = {stage: -(-len(panels) // _PANELS_A_ROW) for stage, panels in drawn.items()}
    figure = Figure(
        figsize=(_PANEL_INCHES[0] * _PANELS_A_ROW, (_PANEL_INCHES[1] + 0.2) * sum(rows.values())), layout="constrained"
    )
    FigureCanvasAgg(figure)
    parts = figure.subfigures(len(stages), 1, height_ratios=[rows[stage] for stage in stages], squeeze=False)
    for part, stage in zip(parts[:, 0], stages, strict=True):
        part.suptitle(f"stage: {stage}", fontweight="bold")
        axes = part.subplots(rows[stage], _PANELS_A_ROW, squeeze=False).flatten()
        for axis, (panel, series) in zip(axes, drawn[stage], strict=False):
            _draw_panel(axis, panel, series)
        for axis in axes[len(drawn[stage]) :]:
            axis.set_axis_off()
    with replacing(path) as partial:
        figure.savefig(partial, format="png", dpi=110)


Series = dict[str, dict[str, list[tuple[int, float]]]]
"""Metric name -> kind of record (train or validation) -> points (step, value)."""


def _filled_panels(records: list[dict[str, Any]]) -> list[tuple[Panel, Series]]:
    """The panels for which a stage has anything to show, with their series."""
    panels = []
    for panel in PANELS:
        series: Series = {}
        for record in records:
            for name, value in record.items():
                if any(fnmatch(name, pattern) for pattern in panel.metrics):
                    points = series.setdefault(name, {}).setdefault(record["kind"], [])
                    points.append((record["step"], value))
        if series:
            panels.append((panel, series))
    return panels


def _draw_panel(axis: Axes, panel: Panel, series: Series) -> None:
    for colour, (name, kinds) in enumerate(series.items()):
        for kind, points in kinds.items():
            held_out = kind == "validation"
            axis.plot(
                *zip(*points, strict=True),
                color=f"C{colour % 10}",
                label=("validation " if held_out else "") + name.replace("_", " "),
                linestyle="--" if held_out else "-",
                marker="o" if held_out else None,
                markersize=3,
                linewidth=1.2,
            )
    values = [value for kinds in series.values() for points in kinds.values() for _, value in points]
    axis.set_title(panel.title, fontsize=10)
    axis.set_xlabel("step", fontsize=9)
    axis.set_ylabel(panel.unit, fontsize=9)
    if panel.log and min(values) > 0:
        axis.set_yscale("log")
    elif panel.from_zero:
        axis.set_ylim(bottom=min(0.0, *values))
    axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axis.xaxis.set_major_formatter(EngFormatter(sep=""))
    axis.tick_params(labelsize=8)
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    _, labels = axis.get_legend_handles_labels()
    if 1 < len(labels) <= _MOST_LABELS:
        axis.legend(fontsize=7, frameon=False, ncols=2 if len(labels) > 5 else 1)
