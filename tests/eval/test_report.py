"""What a run leaves for its reader: result.json, report.md, curves.png; whole files, relative links."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from flamscale.config import FlamConfig
from flamscale.eval.curves import draw_curves
from flamscale.eval.files import replacing
from flamscale.eval.report import headline, write_report, write_result
from flamscale.eval.rollout import RolloutEvaluation

SETTINGS: dict[str, Any] = {"seed": 3, "flam": {"num_slots": 3, "width": 16}}
AS_DATACLASS = SETTINGS | {"flam": FlamConfig(num_slots=3, width=16)}


def records() -> list[dict[str, Any]]:
    """Records as the trainer writes them, of two stages."""
    lines = []
    for stage, loss in (("tokenizer", "mse"), ("flam", "prediction_loss")):
        for step in (10, 20, 30):
            terms = {"loss": 1.0 / step, loss: 0.9 / step, "kl_0": 3.0, "kl_1": 0.1 * step, "frames_per_s": 500.0}
            lines.append({"stage": stage, "step": step, "kind": "train", **terms, "losses": [1.0] * 10})
        lines.append({"stage": stage, "step": 30, "kind": "validation", loss: 0.1})
    return lines


@pytest.fixture
def report(evaluation: RolloutEvaluation, tmp_path: Path) -> Path:
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records()))
    result = {**evaluation.result, "timings": {"flam_stage_s": 12.34}}
    write_report(tmp_path, result, evaluation.pictures, settings=AS_DATACLASS, command="python recipes/x.py --seed 3")
    return tmp_path


def test_the_report_links_pictures_that_lie_beside_it(report: Path) -> None:
    text = (report / "report.md").read_text()
    for name in ("rollout.gif", "rollout.png", "curves.png"):
        assert f"]({name})" in text
        with Image.open(report / name) as image:
            image.verify()


def test_the_report_has_numbers_settings_timings_and_command(report: Path, evaluation: RolloutEvaluation) -> None:
    text = (report / "report.md").read_text()
    rollout = evaluation.result["rollout"]
    for expected in (
        "python recipes/x.py --seed 3",
        f"| {rollout['psnr']:.2f} | {rollout['ssim']:.3f} |",
        "num_slots `3`",
        "seed `3`",
        "| flam stage | 12.3 |",
        "95 % interval of the mean over clips (bootstrap): PSNR {:.2f} to {:.2f} dB".format(*rollout["psnr_interval"]),
    ):
        assert expected in text
    assert json.loads((report / "result.json").read_text())["rollout"]["psnr"] == rollout["psnr"]


def test_settings_may_be_plain_dicts_and_curves_may_be_missing(evaluation: RolloutEvaluation, tmp_path: Path) -> None:
    write_report(tmp_path, evaluation.result, evaluation.pictures, settings=SETTINGS)
    text = (tmp_path / "report.md").read_text()
    assert "width `16`" in text
    assert "curves.png" not in text


def test_what_is_not_a_number_becomes_null(tmp_path: Path) -> None:
    write_result(tmp_path / "result.json", {"rollout": {"psnr": 1.5, "moving_psnr": float("nan")}, "kl": [1.0]})
    assert json.loads((tmp_path / "result.json").read_text()) == {
        "rollout": {"psnr": 1.5, "moving_psnr": None},
        "kl": [1.0],
    }


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.write_text("old")

    def write_half() -> None:
        with replacing(path) as partial:
            partial.write_text("half")
            raise ValueError("disk full")

    with pytest.raises(ValueError, match="disk full"):
        write_half()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_headline_names_rollout_baselines_shuffling_and_tokenizer(evaluation: RolloutEvaluation) -> None:
    text = "\n".join(headline(evaluation.result))
    for part in (
        "rollout, 3 steps, 5 held-out clips",
        "copy last",
        "median frame",
        "another clip's actions",
        "tokenizer",
    ):
        assert part in text


def test_curves_of_a_run_that_recorded_nothing_are_not_drawn(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("")
    draw_curves(tmp_path / "metrics.jsonl", tmp_path / "curves.png")
    assert not (tmp_path / "curves.png").exists()
