"""The report of a study: its finished runs in; report.md, results.json, figures and the best models out.

All of it lies in the study's folder.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flamscale.eval.files import replacing
from flamscale.eval.report import write_result
from flamscale.scaling.conclusions import Group, conclude
from flamscale.scaling.estimate import LEVEL
from flamscale.scaling.figures import draw_isoflops, draw_measures, draw_predictions, draw_sizes_over_videos
from flamscale.scaling.findings import findings
from flamscale.scaling.frontier import export_frontier, frontier
from flamscale.scaling.records import Point, RunRecord, read_point
from flamscale.scaling.study import Study
from flamscale.scaling.usage import Usage, read_usage


def write_study_report(study: Study, tflops_per_s: float, command: str) -> Path:
    """Writes report.md, results.json, figures and frontier/ of a study's finished runs; returns the report's path.

    Args:
        study: the grid; runs that are not finished, or were stopped early, are named.
        tflops_per_s: see `run_cost`.
        command: what started the study, for the reader who wants it again.
    """
    folder = Path(study.base.out)
    runs = study.runs()
    states = {run.name: RunRecord(run).state for run in runs}
    points = [read_point(run, tflops_per_s) for run in runs if states[run.name] == "finished"]
    missing, stopped = ([name for name in states if states[name] == state] for state in ("waiting", "stopped"))
    groups = conclude(points) if points else ()
    usage = read_usage(folder)
    figures = _draw(folder, groups) if points else []
    results = {
        "study": study.name,
        "question": study.question,
        "command": command,
        "usage": usage and dataclasses.asdict(usage),
        "points": [point.to_json(folder) for point in points],
        "missing": missing,
        "stopped": stopped,
        "conclusions": [_to_json(group) for group in groups],
        "frontier": [point.name for point in frontier(groups)],
    }
    write_result(folder / "results.json", results)
    with replacing(folder / "report.md") as partial:
        partial.write_text(report_text(study, command, groups, missing, stopped, figures, usage))
    export_frontier(study, groups, command)
    return folder / "report.md"


def _draw(folder: Path, groups: Sequence[Group]) -> list[str]:
    """Returns the names of the figures there is something to show in."""
    draw_measures(folder / "measures.png", groups)
    figures = ["measures.png"]
    if {"size", "videos"} <= groups[0].points[0].values.keys():
        draw_sizes_over_videos(folder / "videos.png", groups)
        figures.append("videos.png")
    if any(group.law for group in groups):
        draw_predictions(folder / "predictions.png", groups)
        figures.append("predictions.png")
    if any(group.isoflops for group in groups):
        draw_isoflops(folder / "isoflops.png", groups)
        figures.append("isoflops.png")
    return figures


def _to_json(group: Group) -> dict[str, Any]:
    found: dict[str, Any] = {"group": group.label, "refusals": group.refusals}
    if group.saturation:
        found["saturation"] = {
            "knee": vars(group.saturation.knee),
            "plateau_db": vars(group.saturation.plateau),
            "per_doubling_db": vars(group.saturation.per_doubling),
            "per_doubling_above_db": group.saturation.per_doubling_above and vars(group.saturation.per_doubling_above),
            "is_seen": group.saturation.is_seen,
        }
    if group.law:
        found["law"] = {
            "irreducible": vars(group.law.irreducible),
            "coefficients": {name: vars(group.law.coefficient(name)) for name in group.law.names},
            "exponents": {name: vars(group.law.exponent(name)) for name in group.law.names},
        }
    if group.held_out:
        found["held_out"] = {
            "runs": [group.points[row].name for row in group.held_out.is_held_out.nonzero()[0]],
            "predicted": [vars(loss) for loss in group.held_out.predicted],
            "measured": group.held_out.measured.tolist(),
            "mean_error": group.held_out.mean_error,
            "worst_error": group.held_out.worst_error,
        }
    if group.isoflops:
        found["isoflops"] = {
            "exponent": vars(group.isoflops.exponent),
            "best_sizes": {f"{valley.flops:g}": vars(valley.best_size) for valley in group.isoflops.valleys},
        }
    return found


def report_text(
    study: Study,
    command: str,
    groups: Sequence[Group],
    missing: Sequence[str],
    stopped: Sequence[str],
    figures: Sequence[str],
    usage: Usage | None = None,
) -> str:
    """Returns report.md: question, findings, figures, and every run with its numbers and where they come from."""
    points = [point for group in groups for point in group.points]
    parts = [f"# Scaling study: {study.name}", study.question, f"`{command}`"]
    if usage:
        parts.append(f"Took {usage}.")
    parts.append("## Findings")
    parts.append(f"Brackets hold intervals at {LEVEL:.0%}, from resamples of the runs.")
    if any("videos" in point.values for point in points):
        parts.append(
            "Tokenizer and median frame are shared, and made of all training videos: `videos` is what stage 2 sees."
        )
    for group in groups:
        parts.append("\n".join(f"- {line}" for line in findings(group)))
    parts += [f"![{name.partition('.')[0]}]({name})" for name in figures]
    if missing:
        parts.append(f"Not finished: {', '.join(missing)}.")
    if stopped:
        parts.append(f"Stopped early, behind the others on their data, and left out of all fits: {', '.join(stopped)}.")
    best = [f"- [{point.name}](frontier/{point.name}/README.md)" for point in frontier(groups)]
    if best:
        parts += ["## Frontier", "The best models, in Hugging Face form:", "\n".join(best)]
    if points:
        parts += ["## Runs", _runs_table(Path(study.base.out), points)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _runs_table(folder: Path, points: Sequence[Point]) -> str:
    names = list(points[0].values)
    scores = list(points[0].scores)
    head = [*names, "parameters", "clips", "FLOPs", "loss", "PSNR (dB)", *scores, "run directory", "commit"]
    rows = [
        [
            *(
                f"{point.values[name]:g}" if isinstance(point.values[name], float) else str(point.values[name])
                for name in names
            ),
            f"{point.cost.parameters:,}",
            f"{point.cost.num_clips:,}",
            f"{point.cost.flops:.3g}",
            f"{point.loss:.4g}",
            f"{point.psnr:.2f}",
            *(f"{point.scores[name]:.2f}".replace("nan", "n/a") for name in scores),
            f"[config]({Path(point.directory).relative_to(folder)}/config.json)",
            point.commit[:9] + ("+" if point.commit.endswith("+") else ""),
        ]
        for point in points
    ]
    lines = [head, ["---:"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
