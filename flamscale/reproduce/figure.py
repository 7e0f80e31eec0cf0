"""The picture of a table: rows in; a PNG file with a panel a metric out."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from flamscale.eval.files import replacing
from flamscale.reproduce.rows import Metric, Row
from flamscale.scaling.figures import reach

_PANEL_INCHES, _ROW_INCHES = 3.2, 0.26


def draw_rows(path: Path, rows: Sequence[Row], metrics: Sequence[Metric]) -> None:
    """Draws every row's means with their intervals, a colour for each data set; hollow is no model, x the paper's."""
    shown = [metric for metric in metrics if any(row.values(metric).size for row in rows)] or list(metrics)
    height = 1.2 + _ROW_INCHES * len(rows)
    figure = Figure(figsize=(2.4 + _PANEL_INCHES * len(shown), height), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(shown), squeeze=False, sharey=True)[0]
    colours = {data: f"C{number}" for number, data in enumerate(dict.fromkeys(row.data for row in rows))}
    for panel, metric in zip(panels, shown, strict=True):
        for place, row in enumerate(rows):
            found, reported = row.mean(metric), row.reported(metric)
            if found is not None:
                filled = colours[row.data] if row.num_seeds else "white"
                panel.errorbar(
                    [found.value],
                    [place],
                    xerr=reach(found),
                    fmt="o",
                    color=colours[row.data],
                    mfc=filled,
                    ms=5,
                    capsize=2,
                )
            if reported is not None:
                panel.scatter([reported], [place], marker="x", color="black", s=30, zorder=3)
        panel.set_title(metric.title, fontsize=10)
        panel.tick_params(labelsize=8)
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_yticks(range(len(rows)), [f"{row.title}  [{row.data}]" for row in rows])
    panels[0].invert_yaxis()
    with replacing(path) as partial:
        figure.savefig(partial, format="png", dpi=120)
