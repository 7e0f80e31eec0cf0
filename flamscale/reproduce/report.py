"""A table as its reader meets it: rows in; OUT/<table>.md, .json and .png out."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from flamscale.config import FlamConfig, PretrainConfig, ReproduceConfig
from flamscale.eval.files import replacing
from flamscale.eval.report import write_result
from flamscale.reproduce.budgets import BUDGETS
from flamscale.reproduce.figure import draw_rows
from flamscale.reproduce.paper import PAPER_SETTING
from flamscale.reproduce.policy import describe_policies, policy_comparisons, policy_rows, try_policies
from flamscale.reproduce.rows import Difference, Metric, Row, paper_rows, read_rows
from flamscale.reproduce.tables import TABLES, Comparison, Table
from flamscale.scaling.estimate import LEVEL, Estimate
from flamscale.scaling.records import RunRecord
from flamscale.scaling.study import Run, Study

_NOT_MEASURED = "not measured"


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """What made a table."""

    command: str
    settings: str
    """The runs' settings, a sentence."""
    runs: tuple[dict[str, Any], ...]
    """Name, run directory and commit of every run, and whether it is finished."""


def write_report(config: ReproduceConfig, studies: Sequence[Study], command: str) -> Path:
    """Writes OUT/<table>.md, .json and .png of what is finished of a table's studies; returns the table's path.

    Policies are fitted and played first, where the table is of them.
    """
    table, budget, out = TABLES[config.table], BUDGETS[config.budget], Path(config.out)
    base = studies[0].base
    settings = describe(base, config.budget)
    runs = [run for study in studies for run in study.runs()]
    if table.of_policies:
        for run in runs:
            try_policies(run, budget.policy, "cuda" if base.cluster.accelerator == "gpu" else "cpu")
        table = replace(table, comparisons=policy_comparisons(budget.policy))
        rows = policy_rows(runs, budget.policy)
        settings += f" {describe_policies(budget.policy)}"
    else:
        variants = table.variants(budget)
        titles = {variant.name: variant.title for variant in variants}
        rows = read_rows(runs, variants)
        rows += [row for data in table.paper_data for row in paper_rows(data, titles)]
    made = Provenance(command=command, settings=settings, runs=tuple(_run_json(run, Path(base.out)) for run in runs))
    return write_table(out, table, rows, made)


def write_table(out: Path, table: Table, rows: Sequence[Row], made: Provenance) -> Path:
    """Writes the table, its numbers and its picture; returns the table's path."""
    differences = differences_of(table.comparisons, rows)
    picture = f"{table.name}.png"
    draw_rows(out / picture, rows, table.metrics)
    numbers = {
        "table": table.name,
        "question": table.question,
        "command": made.command,
        "settings": made.settings,
        "rows": [_row_json(row, table.metrics) for row in rows],
        "differences": [_difference_json(difference) for difference in differences],
        "runs": made.runs,
    }
    write_result(out / f"{table.name}.json", numbers)
    path = out / f"{table.name}.md"
    with replacing(path) as partial:
        partial.write_text(table_text(table, rows, differences, made, picture))
    return path


def differences_of(comparisons: Sequence[Comparison], rows: Sequence[Row]) -> list[Difference]:
    """Returns the differences that can be taken on each data set."""
    found = []
    for data in dict.fromkeys(row.data for row in rows):
        by_name = {row.name: row for row in rows if row.data == data}
        for asked in comparisons:
            if asked.first in by_name and asked.second in by_name:
                pair = by_name[asked.first], by_name[asked.second]
                found += [Difference.of(*pair, metric) for metric in asked.metrics]
    return [difference for difference in found if difference is not None]


def table_text(
    table: Table, rows: Sequence[Row], differences: Sequence[Difference], made: Provenance, picture: str
) -> str:
    """Returns the table as Markdown: question, numbers beside the paper's, what the intervals cover, differences."""
    parts = [f"# Reproduced: {table.name}", table.question, f"`{made.command}`", made.settings]
    parts += [_markdown(table.metrics, rows), _covers(table)]
    columns = {metric.name for metric in table.metrics}
    sources = sorted({known.source for row in rows for known in row.paper if known.values.keys() & columns})
    if sources:
        parts.append(f"The paper: arXiv 2602.16229 ({'; '.join(sources)}), {PAPER_SETTING}.")
    if differences:
        parts.append("\n".join(f"- {sentence(difference)}" for difference in differences))
    missing = [run["name"] for run in made.runs if not run["finished"]]
    if missing:
        parts.append(f"Not finished: {', '.join(missing)}.")
    parts.append(f"![{table.name}]({picture})\n\n*Means with their intervals. Hollow: no model. Cross: the paper's.*")
    return "\n\n".join(parts) + "\n"


def sentence(difference: Difference) -> str:
    """Returns a difference in words."""
    metric = difference.metric
    return (
        f"{difference.first.data}: {difference.first.title} minus {difference.second.title}, {metric.title}: "
        f"{_bracketed(difference.value, metric, '+')}; above it with {difference.num_above} of {difference.num_seeds} "
        "seed(s)."
    )


def describe(config: PretrainConfig, budget: str) -> str:
    """Returns the settings of FLAM's runs, a sentence."""
    flam, stage = config.flam, config.flam_stage
    slots = f"K = {flam.num_slots}, " if isinstance(flam, FlamConfig) else ""
    beta = stage.beta * config.tokenizer.num_tokens * config.tokenizer.feature_channels
    redrawn = f", reconstruction weight {stage.reconstruction_weight:g}" if stage.reconstruction_weight else ""
    return (
        f"Budget {budget}: {config.tokenizer.image_size} x {config.tokenizer.image_size} pixels, {slots}D = "
        f"{flam.width}, beta = {beta:.2g} as the paper counts it{redrawn}, {stage.num_steps:,} steps of "
        f"{stage.global_batch} clips; rollouts of "
        f"{config.evaluation.rollout_steps} steps on {config.evaluation.num_clips} held-out clips."
    )


def _covers(table: Table) -> str:
    if table.of_policies:
        return "Brackets: least and most of the seeds of models and policies, too few for an interval."
    return (
        f"Brackets: {LEVEL:.0%} intervals of the mean, from resamples of the seeds and, apart from them, of the clips, "
        "which are the same in all rows; numbers of a whole run (FVD; disentanglement, completeness, informativeness) "
        "have seeds alone. They do not cover another tokenizer or data set: all seeds share them. So few seeds make "
        "them too narrow; where a row has one seed, they are of its clips alone."
    )


def _markdown(metrics: Sequence[Metric], rows: Sequence[Row]) -> str:
    head, ours = ["data", "model", "seeds"], []
    for metric in metrics:
        in_paper = any(row.reported(metric) is not None for row in rows)
        head += [metric.title, *(["paper"] if in_paper else [])]
        ours.append((metric, in_paper))
    lines = [head, ["---", "---", *["---:"] * (len(head) - 2)]]
    for row in rows:
        cells = [row.data, row.title, _seeds(row)]
        for metric, in_paper in ours:
            cells += [_cell(row, metric), *([_paper_cell(row, metric)] if in_paper else [])]
        lines.append(cells)
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _seeds(row: Row) -> str:
    if not row.num_seeds:
        return ""
    return str(row.num_seeds) if len(row.runs) == row.num_seeds else f"{len(row.runs)} of {row.num_seeds}"


def _cell(row: Row, metric: Metric) -> str:
    found = row.mean(metric)
    if found is not None:
        return _bracketed(found, metric)
    if not row.runs:
        return _NOT_MEASURED
    return metric.lacks if row.num_seeds else ""


def _paper_cell(row: Row, metric: Metric) -> str:
    value = row.reported(metric)
    return "" if value is None else f"{value:g}"


def _bracketed(found: Estimate, metric: Metric, sign: str = "") -> str:
    form = f"{sign}.{metric.decimals}f"
    if math.isfinite(found.low):
        return f"{found.value:{form}} ({found.low:{form}} to {found.high:{form}})"
    return f"{found.value:{form}}" if math.isfinite(found.value) else "n/a"


def _run_json(run: Run, out: Path) -> dict[str, Any]:
    record = RunRecord(run)
    attempts = record.read()["attempts"]
    return {
        "name": run.name,
        "directory": str(Path(run.config.out).relative_to(out)),
        "commit": attempts[-1]["commit"] if attempts else "",
        "finished": record.is_finished,
    }


def _row_json(row: Row, metrics: Sequence[Metric]) -> dict[str, Any]:
    return {
        "data": row.data,
        "row": row.name,
        "seeds": sorted(row.runs),
        "ours": {metric.name: found and vars(found) for metric in metrics for found in [row.mean(metric)]},
        "paper": {name: value for known in row.paper for name, value in known.values.items()},
    }


def _difference_json(difference: Difference) -> dict[str, Any]:
    return {
        "data": difference.first.data,
        "first": difference.first.name,
        "second": difference.second.name,
        "metric": difference.metric.name,
        **vars(difference.value),
        "num_seeds": difference.num_seeds,
        "num_above": difference.num_above,
    }
