"""What a table's runs measured: finished run directories in; rows with a number for every seed and clip out."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Float

from flamscale.errors import ConfigError
from flamscale.eval.intervals import crossed_interval
from flamscale.reproduce.paper import REPORTED, Reported, reported
from flamscale.reproduce.variants import Variant
from flamscale.scaling.axes import Value
from flamscale.scaling.estimate import Estimate
from flamscale.scaling.records import ENTITIES, RunRecord
from flamscale.scaling.study import Run

Measured = dict[str, list[float]]
"""By the metric's name: a number a clip, or one of the whole run."""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A column."""

    name: str
    title: str
    decimals: int
    lacks: str = ""
    """What a model without it has not."""
    by_seed: bool = False
    """Whether its numbers are of a few seeds, of which the least and the most are told in place of an interval."""


PSNR = Metric(name="psnr", title="PSNR (dB)", decimals=2)
SSIM = Metric(name="ssim", title="SSIM", decimals=3)
LPIPS = Metric(name="lpips", title="LPIPS", decimals=3, lacks="no weights")
FVD = Metric(name="fvd", title="FVD", decimals=1, lacks="no weights")
DCI = tuple(
    Metric(name=name, title=name.capitalize(), decimals=2, lacks="no slots")
    for name in ("disentanglement", "completeness", "informativeness")
)
RETURN = Metric(name="return", title="return", decimals=3, by_seed=True)

_BESIDE_MODELS = {
    "copy_last": "copy of the last frame",
    "median_frame": "median frame",
    "tokenizer": "tokenizer alone",
}
_FVD_OF = {
    "prediction": ("rollout", "fvd"),
    "copy_last": ("rollout", "copy_last_fvd"),
    "tokenizer": ("tokenizer", "fvd"),
}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One model, or what stands beside the models, on one data set."""

    data: str
    name: str
    title: str
    runs: dict[int, Measured] = field(default_factory=dict)
    """What each finished seed measured."""
    num_seeds: int = 0
    """Seeds it shall have (count); 0 for what is not trained."""
    paper: tuple[Reported, ...] = ()
    """What the paper says of it."""

    def values(self, metric: Metric) -> Float[np.ndarray, "S M"]:
        """Returns a number for every seed and clip; there is none of a metric that was not measured."""
        found = [measured[metric.name] for _, measured in sorted(self.runs.items()) if metric.name in measured]
        return _matrix(found)

    def mean(self, metric: Metric) -> Estimate | None:
        """Returns the mean over seeds and clips, None where there is nothing."""
        return _mean(self.values(metric), metric)

    def reported(self, metric: Metric) -> float | None:
        """Returns the paper's number, None where it has none."""
        found = [known.values[metric.name] for known in self.paper if metric.name in known.values]
        return found[0] if found else None


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How far one row lies above another on the same clips, seed by seed."""

    first: Row
    second: Row
    metric: Metric
    value: Estimate
    num_seeds: int
    num_above: int
    """Seeds in which the first lies above the second."""

    @classmethod
    def of(cls, first: Row, second: Row, metric: Metric) -> "Difference | None":
        """Pairs the seeds that both have; None where there is none."""
        seeds = [
            seed
            for seed in sorted(first.runs.keys() & second.runs.keys())
            if metric.name in first.runs[seed] and metric.name in second.runs[seed]
        ]
        differences = _matrix(
            [np.subtract(first.runs[seed][metric.name], second.runs[seed][metric.name]) for seed in seeds]
        )
        value = _mean(differences, metric)
        if value is None:
            return None
        num_above = int((differences.mean(axis=1) > 0).sum())
        return cls(first=first, second=second, metric=metric, value=value, num_seeds=len(seeds), num_above=num_above)


def read_rows(runs: Sequence[Run], variants: Sequence[Variant]) -> list[Row]:
    """Returns a row for every data set and variant, then what stands beside the models on that data set."""
    rows = []
    for data in dict.fromkeys(data_title(run.values) for run in runs):
        mine = [run for run in runs if data_title(run.values) == data]
        read = {run.name: read_run(Path(run.config.out)) for run in mine if RunRecord(run).is_finished}
        for variant in variants:
            of_variant = [run for run in mine if run.values["variant"] == variant.name]
            measured = {int(run.values["seed"]): read[run.name]["prediction"] for run in of_variant if run.name in read}
            rows.append(
                Row(
                    data=data,
                    name=variant.name,
                    title=variant.title,
                    runs=measured,
                    num_seeds=len(of_variant),
                    paper=reported(data, variant.paper or variant.name),
                )
            )
        for kind, title in _BESIDE_MODELS.items():
            # Runs of one seed share tokenizer, median frame, clips and weights, so any of them will do.
            same = {int(run.values["seed"]): read[run.name][kind] for run in mine if run.name in read}
            rows.append(Row(data=data, name=kind, title=title, runs=same, paper=reported(data, kind)))
    return rows


def check_weights(runs: Sequence[Run]) -> None:
    """Raises ConfigError where a finished run was measured without weights that are given now."""
    for run in runs:
        if not RunRecord(run).is_finished:
            continue
        measured, asked = read_run(Path(run.config.out))["prediction"], run.config.evaluation
        for metric, weights in ((LPIPS, asked.lpips_weights), (FVD, asked.fvd_weights)):
            if weights and metric.name not in measured:
                raise ConfigError(
                    f"{run.config.out} was finished without {metric.title} weights, and {weights} is given now; pass "
                    "them for every table from the first on, or choose another --out."
                )


def paper_rows(data: str, titles: Mapping[str, str]) -> list[Row]:
    """Returns the paper's rows on a data set that no run of ours is of, as far as they have a title here."""
    titles = {**titles, **_BESIDE_MODELS}
    names = [known.row for known in REPORTED if known.data == data and known.row in titles]
    return [Row(data=data, name=name, title=titles[name], paper=reported(data, name)) for name in names]


def read_run(root: Path) -> dict[str, Measured]:
    """Returns what a finished run measured: of its prediction, and of what stands beside it."""
    result = json.loads((root / "result.json").read_text())
    found: dict[str, Measured] = {kind: dict(measured) for kind, measured in result["by_clip"].items()}
    for kind, (section, name) in _FVD_OF.items():
        if name in result[section]:
            found[kind]["fvd"] = [result[section][name]]
    entities = root / ENTITIES
    if entities.exists():
        scores = json.loads(entities.read_text())["dci_flam"]
        found["prediction"] |= {name: [value] for name, value in scores.items()}
    return {kind: {name: _numbers(values) for name, values in of.items()} for kind, of in found.items()}


def data_title(values: Mapping[str, Value]) -> str:
    """Returns what a table calls the data set of a run."""
    return str(values["game"]).capitalize() if "game" in values else f"MultiGrid, {values['agents']} agents"


def _matrix(rows: Sequence[Sequence[float] | np.ndarray]) -> Float[np.ndarray, "S M"]:
    return np.array(rows, dtype=float).reshape(len(rows), -1 if rows else 0)


def _mean(values: Float[np.ndarray, "S M"], metric: Metric) -> Estimate | None:
    if not values.size:
        return None
    spread = (float(values.min()), float(values.max())) if metric.by_seed else crossed_interval(values)
    return Estimate(float(values.mean()), *spread)


def _numbers(values: Sequence[float | None]) -> list[float]:
    return [math.nan if value is None else value for value in values]
