"""The recipe as a user meets it: one row of a table from nothing, and a second table from the same run."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from flamscale.reproduce.tables import TABLES
from flamscale.reproduce.variants import FLAM


@pytest.fixture(scope="module")
def reproduce(recipe: Callable[[str], Callable[..., None]]) -> Callable[..., None]:
    return recipe("reproduce")


def attempts(out: Path) -> dict[str, int]:
    return {path.parent.name: len(json.loads(path.read_text())["attempts"]) for path in out.glob("runs/*/run.json")}


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_smoke_row_is_made_end_to_end_and_a_second_table_trains_nothing_that_is_there(
    reproduce: Callable[..., None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("prediction", "ablations"):
        monkeypatch.setitem(TABLES, name, replace(TABLES[name], variants=lambda budget: (FLAM,)))
    places = ("--data", tmp_path / "data", "--out", tmp_path / "out")
    reproduce("--table", "prediction", *places)
    run = "agents-2_variant-flam_seed-0"
    assert attempts(tmp_path / "out") == {run: 1}
    text = (tmp_path / "out" / "prediction.md").read_text()
    for title in ("FLAM", "copy of the last frame", "median frame", "tokenizer alone"):
        assert f"| MultiGrid, 2 agents | {title} | " in text
    assert "- MultiGrid, 2 agents: FLAM minus copy of the last frame, PSNR (dB): " in text
    assert (tmp_path / "out" / "prediction.png").exists()

    reproduce("--table", "ablations", *places)
    assert attempts(tmp_path / "out") == {run: 1}
    (row, *_) = json.loads((tmp_path / "out" / "ablations.json").read_text())["rows"]
    measured = json.loads((tmp_path / "out" / "runs" / run / "result.json").read_text())["rollout"]
    assert row["ours"]["psnr"]["value"] == pytest.approx(measured["psnr"])
    assert 0 <= row["ours"]["informativeness"]["value"] <= 1
    assert "table: " in capsys.readouterr().out


def test_a_dry_run_tells_the_cost_of_every_run_and_writes_nothing(
    reproduce: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--table", "dci", "--data", tmp_path / "data", "--out", tmp_path / "out")
    reproduce(*flags, "--dry-run")
    printed = capsys.readouterr().out
    assert "3 runs" in printed
    assert "assumed: a device does 0.016 TFLOP/s" in printed
    assert list(tmp_path.iterdir()) == []
