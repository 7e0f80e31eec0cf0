"""Which runs are given up, by the records of their validations."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from flamscale_cluster.early_stopping import EarlyStopping
from flamscale_cluster.sweep_config import SweepConfig

from flamscale.errors import ConfigError
from flamscale.scaling.axes import Entities, Seeds
from flamscale.scaling.records import RunRecord
from flamscale.scaling.study import Run, Study
from tests.tiny import tiny_config

NUM_STEPS = 100


def runs_of(folder: Path, num_seeds: int) -> list[Run]:
    """Runs on each of two data sets."""
    base = tiny_config("room", folder)
    base = replace(base, flam_stage=replace(base.flam_stage, num_steps=NUM_STEPS))
    axes = (Entities(values=(2, 4), folder="data"), Seeds(values=tuple(range(num_seeds))))
    return Study(name="s", question="?", base=base, axes=axes).runs()


@pytest.fixture
def runs(tmp_path: Path) -> list[Run]:
    """Four runs on each of two data sets."""
    return runs_of(tmp_path, 4)


def record(run: Run, *losses: float) -> None:
    """Leaves a validation every tenth of a run, as training does."""
    folder = Path(run.config.out)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "metrics.jsonl").open("w") as file:
        for number, loss in enumerate(losses, start=1):
            step = number * NUM_STEPS // 10
            file.write(
                json.dumps({"stage": "flam", "kind": "validation", "step": step, "prediction_loss": loss}) + "\n"
            )


def hopeless(stopping: EarlyStopping, runs: list[Run]) -> list[bool]:
    return [stopping.is_hopeless(run) for run in runs]


def test_a_run_behind_three_others_is_hopeless_once_the_grace_is_over(runs: list[Run]):
    stopping = EarlyStopping(runs, grace=0.3)
    for run in runs[:3]:
        record(run, *[0.9, 0.5, 0.3, 0.2])
    record(runs[3], 0.9, 0.9)
    assert hopeless(stopping, runs[:4]) == [False] * 4
    record(runs[3], 0.9, 0.9, 0.9)
    assert hopeless(stopping, runs[:4]) == [False, False, False, True]


def test_a_run_that_was_behind_and_has_caught_up_goes_on_after_a_restart(runs: list[Run]):
    for run in runs[:3]:
        record(run, 0.5, 0.5, 0.5, 0.5)
    record(runs[3], 0.9, 0.9, 0.9, 0.2)
    assert not EarlyStopping(runs, grace=0.1).is_hopeless(runs[3])


def test_all_runs_that_finished_before_count_the_bad_ones_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    *finished, later = runs_of(tmp_path, 8)[:8]
    for run, loss in zip(finished, (0.1, 0.1, 0.1, 0.6, 0.6, 0.6, 0.6), strict=True):
        record(run, *[loss] * 10)
    monkeypatch.setattr(RunRecord, "state", property(lambda self: "waiting" if self.run is later else "finished"))
    stopping = EarlyStopping([*finished, later], grace=0.1)
    record(later, *[0.4] * 5)
    assert not stopping.is_hopeless(later)


def test_runs_on_other_data_are_no_measure(runs: list[Run]):
    stopping = EarlyStopping(runs, grace=0.3)
    for run in runs[:3]:
        record(run, 0.9, 0.5, 0.3)
    record(runs[4], 0.9, 0.9, 0.9)
    assert hopeless(stopping, runs[:5]) == [False] * 5


def test_two_others_are_too_few(runs: list[Run]):
    stopping = EarlyStopping(runs, grace=0.3)
    for run in runs[:2]:
        record(run, 0.9, 0.5, 0.3)
    record(runs[3], 0.9, 0.9, 0.9)
    assert hopeless(stopping, runs[:4]) == [False] * 4


def test_a_run_at_its_end_is_left_to_finish(runs: list[Run]):
    stopping = EarlyStopping(runs, grace=0.3)
    for run in runs[:3]:
        record(run, *[0.1] * 10)
    record(runs[3], *[0.9] * 10)
    assert hopeless(stopping, runs[:4]) == [False] * 4


def test_a_run_whose_loss_is_no_number_is_hopeless(runs: list[Run]):
    stopping = EarlyStopping(runs, grace=0.3)
    for run in runs[:3]:
        record(run, 0.9, 0.5, 0.3)
    record(runs[3], float("nan"), float("nan"), float("nan"))
    assert hopeless(stopping, runs[:4]) == [False, False, False, True]


def test_a_share_that_stops_all_or_is_negative_is_refused():
    for share in (-0.1, 1.0):
        with pytest.raises(ConfigError, match=r"early-stop must be 0 or more and below 1, got "):
            SweepConfig(early_stop=share)
