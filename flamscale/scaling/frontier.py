"""The frontier of a study: its points in; the best models, in Hugging Face form with the study on their cards, out."""

import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path

from flamscale.models.huggingface import FlamForWorldModeling, write_model_card
from flamscale.run_directory import RunDirectory
from flamscale.scaling.conclusions import Group
from flamscale.scaling.findings import findings
from flamscale.scaling.records import Point
from flamscale.scaling.study import Study


def frontier(groups: Sequence[Group]) -> list[Point]:
    """Returns the best run of each budget where there are budgets, else the best run of each data set.

    Best is what the study's fit is about: the highest rollout PSNR where K varies, else the lowest prediction loss.
    """
    best: dict[tuple[str, object], Point] = {}
    for group in groups:
        for point in group.points:
            key = (group.label, point.values.get("flops"))
            if math.isfinite(_score(point)) and (key not in best or _score(point) > _score(best[key])):
                best[key] = point
    return list(best.values())


def _score(point: Point) -> float:
    return point.psnr if "k" in point.values else -point.loss


def export_frontier(study: Study, groups: Sequence[Group], command: str) -> None:
    """Writes the model of each run on the frontier to frontier/RUN in the study's folder, in place of what was there.

    Raises:
        CheckpointError: a run's model is missing or damaged.
    """
    folder = Path(study.base.out) / "frontier"
    partial, old = folder.with_name("frontier.partial"), folder.with_name("frontier.old")
    for rest in (partial, old):  # of a process that was killed
        shutil.rmtree(rest, ignore_errors=True)
    for point in frontier(groups):
        root = Path(point.directory)
        model = FlamForWorldModeling.from_pretrained(RunDirectory(root).model)
        shutil.copytree(RunDirectory(root).model, partial / point.name)
        result = json.loads((root / "result.json").read_text())
        write_model_card(partial / point.name, model, result, origin=_origin(study, groups, point, command))
    if folder.exists():
        folder.rename(old)
    if partial.exists():
        partial.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def _origin(study: Study, groups: Sequence[Group], point: Point, command: str) -> str:
    """Returns where a model comes from, as a section of its card."""
    numbers = {
        **{name: f"{value:g}" if isinstance(value, float) else str(value) for name, value in point.values.items()},
        "parameters, without the tokenizer": f"{point.cost.parameters:,}",
        "clips trained on": f"{point.cost.num_clips:,}",
        "FLOPs of training": f"{point.cost.flops:.3g}",
        "prediction loss": f"{point.loss:.4g}",
        "rollout PSNR (dB)": f"{point.psnr:.2f}",
        **{name: f"{value:.2f}".replace("nan", "n/a") for name, value in point.scores.items()},
        "commit": point.commit,
    }
    return "\n\n".join(
        [
            "## Study",
            f"The best run {'of its budget' if 'flops' in point.values else 'on its data set'} in the scaling study "
            f"*{study.name}*: {study.question} Chosen by the numbers below, which therefore flatter it a little.",
            "\n".join(f"- {line}" for group in groups for line in findings(group)),
            "\n".join(["| | |", "|---|---:|", *(f"| {name} | {value} |" for name, value in numbers.items())]),
            f"```\n{command}\n```",
        ]
    )
