"""What the chaos study measures and checks, over records as a study leaves them; tests/cluster/test_sweep.py kills."""

import json
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType

import pytest

from flamscale.scaling.axes import Seeds
from flamscale.scaling.study import Run, Study
from tests.tiny import NUM_STEPS, tiny_config

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.fixture
def study_kills(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The recipe's measuring part."""
    monkeypatch.syspath_prepend(str(RECIPES))
    from support import study_kills

    return study_kills


@pytest.fixture
def runs(tmp_path: Path) -> list[Run]:
    """Three runs; only the last began after another one's end."""
    found = Study(name="s", question="?", base=tiny_config("d", tmp_path), axes=(Seeds(values=(0, 1, 2)),)).runs()
    for run, submitted, *moments in zip(
        found, (100.0, 100.0, 150.5), (99.0, 101.0, 151.0), (104.0, 105.0, 155.0), (150.0, 170.0, 190.0), strict=True
    ):
        timing = dict(zip(("process_started", "began", "ended"), moments, strict=True))
        started = datetime.fromtimestamp(submitted, UTC).isoformat(timespec="milliseconds")
        record = {"attempts": [{"commit": "abc", "started": started}], "finished": False, "timing": timing}
        Path(run.config.out).mkdir(parents=True)
        (Path(run.config.out) / "run.json").write_text(json.dumps(record))
    return found


def test_the_time_between_two_runs_is_told_apart(study_kills: ModuleType, runs: list[Run]):
    assert study_kills.overheads(runs, []) == [
        study_kills.Overhead(submitting_s=0.5, scheduling_s=0.5, starting_s=4.0),
    ]
    killed_meanwhile = study_kills.overheads(runs, [150.25])
    assert [found.submitting_s for found in killed_meanwhile] == [0.25]


def test_a_run_that_is_lost_or_has_done_a_step_twice_is_told(study_kills: ModuleType, runs: list[Run]):
    lost, doubled, sound = runs
    for run, steps in ((doubled, [*range(1, NUM_STEPS + 1), NUM_STEPS]), (sound, range(1, NUM_STEPS + 1))):
        folder = Path(run.config.out)
        record = json.loads((folder / "run.json").read_text()) | {"finished": True}
        (folder / "run.json").write_text(json.dumps(record))
        lines = [json.dumps({"stage": "flam", "kind": "train", "step": step}) + "\n" for step in steps]
        (folder / "metrics.jsonl").write_text("".join(lines))
    told = study_kills.problems(runs)
    assert told[0] == f"{lost.name} is not finished"
    assert told[1].startswith(f"{doubled.name} has recorded the steps [1, 2, ")
    assert len(told) == 2
