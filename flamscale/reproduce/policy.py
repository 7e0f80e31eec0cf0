"""The table policy: finished runs of FLAM in; what policies cloned with their help earn, as rows, out.

The paper's returns are of Procgen's games, another task, so none stand beside ours.
"""

import json
from collections.abc import Sequence

from flamscale.config import PolicyConfig
from flamscale.eval.policy import ALL_LABELS, EXPERT, FEW_LABELS, PSEUDO_LABELS, RANDOM, evaluate_policies
from flamscale.eval.report import write_result
from flamscale.models.huggingface import FlamForWorldModeling
from flamscale.reproduce.rows import RETURN, Row, data_title
from flamscale.reproduce.tables import Comparison
from flamscale.scaling.records import RunRecord
from flamscale.scaling.study import Run

_POLICIES = "policy.json"


def try_policies(run: Run, config: PolicyConfig, device: str) -> None:
    """Fits and plays policies with a run's model, once it is finished; writes policy.json beside it, once."""
    record = RunRecord(run)
    path = record.directory.root / _POLICIES
    if path.exists() or not record.is_finished:
        return
    model = FlamForWorldModeling.from_pretrained(record.directory.model).to(device)
    write_result(path, evaluate_policies(model.tokenizer, model.flam, config))


def policy_rows(runs: Sequence[Run], config: PolicyConfig) -> list[Row]:
    """Returns a row for every kind of policy and number of labels: a return for each seed of model and policy."""
    earned: dict[int, dict[str, list[float]]] = {}
    for run in runs:
        path = RunRecord(run).directory.root / _POLICIES
        if path.exists():
            policies = json.loads(path.read_text())["policies"]
            earned[int(run.values["seed"])] = {
                _name(policy["policy"], policy["num_labels"]): policy["return_by_seed"] for policy in policies
            }
    learned = [_name(kind, count) for count in config.num_labels for kind in (FEW_LABELS, PSEUDO_LABELS)]
    return [
        Row(
            data=data_title(runs[0].values),
            name=name,
            title=name,
            runs={seed: {RETURN.name: returns[name]} for seed, returns in earned.items() if name in returns},
            num_seeds=0 if name in (RANDOM, EXPERT) else len(runs),
        )
        for name in (RANDOM, *learned, ALL_LABELS, EXPERT)
    ]


def policy_comparisons(config: PolicyConfig) -> tuple[Comparison, ...]:
    """Returns what pseudo-labels add to each number of labels."""
    return tuple(
        Comparison(first=_name(PSEUDO_LABELS, count), second=_name(FEW_LABELS, count), metrics=(RETURN,))
        for count in config.num_labels
    )


def describe_policies(config: PolicyConfig) -> str:
    """Returns how policies are fitted and played, a sentence."""
    return (
        f"{config.num_seeds} seeds of policies beside each model, {config.num_demonstrations:,} demonstrations and "
        f"{config.num_levels} unseen levels a seed."
    )


def _name(kind: str, num_labels: int) -> str:
    return f"{kind}, {num_labels:,} labels" if num_labels else kind
