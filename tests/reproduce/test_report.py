"""What a table looks like: numbers beside the paper's, what is missing, sentences, JSON and picture."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from flamscale.presets import PRESETS
from flamscale.reproduce.paper import reported
from flamscale.reproduce.report import Provenance, describe, differences_of, write_table
from flamscale.reproduce.rows import DCI, LPIPS, PSNR, Row
from flamscale.reproduce.tables import TABLES, Comparison, Table

DATA = "MultiGrid, 4 agents"
TABLE = replace(
    TABLES["ablations"],
    metrics=(PSNR, LPIPS, DCI[0]),
    comparisons=(
        Comparison(first="flam", second="adaworld", metrics=(PSNR, DCI[0])),
        Comparison(first="flam", second="copy_last", metrics=(PSNR,)),
        Comparison(first="flam", second="genie", metrics=(PSNR,)),
    ),
)
ROWS = [
    Row(
        data=DATA,
        name="flam",
        title="FLAM",
        runs={seed: {"psnr": [40.0 + seed, 42.0 + seed], "disentanglement": [0.5 + 0.1 * seed]} for seed in (0, 1)},
        num_seeds=2,
        paper=reported(DATA, "flam"),
    ),
    Row(data=DATA, name="adaworld", title="AdaWorld", runs={0: {"psnr": [30.0, 33.0]}}, num_seeds=2),
    Row(data=DATA, name="genie", title="Genie", num_seeds=2),
    Row(
        data=DATA,
        name="copy_last",
        title="copy of the last frame",
        runs={seed: {"psnr": [22.0, 22.0]} for seed in (0, 1)},
    ),
]
MADE = Provenance(
    command="python recipes/reproduce.py --table ablations",
    settings="Budget made up.",
    runs=(
        {"name": "flam_seed-0", "directory": "d", "commit": "c", "finished": True},
        {"name": "genie_seed-1", "directory": "d", "commit": "", "finished": False},
    ),
)


@pytest.fixture
def text(tmp_path: Path) -> str:
    return write_table(tmp_path, TABLE, ROWS, MADE).read_text()


def test_ours_stand_beside_the_paper_s_and_what_is_missing_says_why(text: str):
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert lines[0] == "| data | model | seeds | PSNR (dB) | paper | LPIPS | Disentanglement | paper |"
    flam, adaworld, genie, copies = lines[2:]
    assert flam.startswith(f"| {DATA} | FLAM | 2 | 41.50 (4")
    assert flam.endswith("| 56.5 | no weights | 0.55 (0.50 to 0.60) | 0.91 |")
    assert adaworld == f"| {DATA} | AdaWorld | 1 of 2 | 31.50 (30.00 to 33.00) |  | no weights | no slots |  |"
    assert genie == f"| {DATA} | Genie | 0 of 2 | not measured |  | not measured | not measured |  |"
    assert copies == f"| {DATA} | copy of the last frame |  | 22.00 (22.00 to 22.00) |  |  |  |  |"


def test_it_says_what_the_intervals_cover_where_the_paper_s_are_from_and_what_is_not_finished(text: str):
    assert "95% intervals of the mean, from resamples of the seeds" in text
    assert "where a row has one seed, they are of its clips alone." in text
    assert "arXiv 2602.16229 (DCI, Appendix C.2; ten-step prediction)" in text
    assert "Not finished: genie_seed-1." in text
    assert "`python recipes/reproduce.py --table ablations`" in text


def test_differences_are_sentences_and_only_of_what_both_have(text: str):
    lines = [line for line in text.splitlines() if line.startswith("- ")]
    assert lines == [
        f"- {DATA}: FLAM minus AdaWorld, PSNR (dB): +9.50 (+9.00 to +10.00); above it with 1 of 1 seed(s).",
        f"- {DATA}: FLAM minus copy of the last frame, PSNR (dB): +19.50 (+18.00 to +21.00); above it with 2 of 2 "
        "seed(s).",
    ]


def test_rows_of_other_data_are_not_compared():
    elsewhere = replace(ROWS[1], data="MultiGrid, 2 agents")
    assert differences_of(TABLE.comparisons, [ROWS[0], elsewhere]) == []


def test_the_json_has_every_number_and_run_and_the_picture_is_one(text: str, tmp_path: Path):
    numbers = json.loads((tmp_path / "ablations.json").read_text())
    assert numbers["rows"][0]["ours"]["psnr"]["value"] == 41.5
    assert numbers["rows"][0]["ours"]["lpips"] is None
    assert numbers["rows"][0]["paper"]["psnr"] == 56.5
    assert numbers["differences"][0]["second"] == "adaworld"
    assert len(numbers["runs"]) == 2
    assert "](ablations.png)" in text
    with Image.open(tmp_path / "ablations.png") as image:
        image.verify()


def test_a_table_of_nothing_finished_is_still_one(tmp_path: Path):
    empty = [replace(row, runs={}) for row in ROWS]
    table: Table = replace(TABLE, comparisons=())
    assert write_table(tmp_path, table, empty, MADE).read_text().count("not measured") == 3 * len(empty)


def test_settings_name_what_was_trained():
    assert describe(PRESETS["quickstart"](), "hour").startswith(
        "Budget hour: 64 x 64 pixels, K = 6, D = 64, beta = 0.002 as the paper counts it, reconstruction weight 1, "
    )
