"""The plan recipe as a user meets it."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, ROOT / "recipes" / "plan.py", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


def test_a_plan_is_printed_and_written(tmp_path):
    out = tmp_path / "plan.json"
    done = run("--preset", "quickstart", "--flam.num-slots", "8", "--num-gpus", "1", "4", "--mfu", "0.2",
               "--flam-stage.micro-batch", "8", "--out", str(out))  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "flam stage on h100-sxm, ZeRO-2: GiB a GPU, computed" in done.stdout
    plan = json.loads(out.read_text())
    assert plan["computed"] is True
    assert [row["num_gpus"] for row in plan["rows"]] == [1, 4]
    assert plan["question"]["mfu"] == 0.2
    assert plan["rows"][0]["step_s"] == 4 * plan["rows"][1]["step_s"]


def test_impossible_numbers_of_gpus_end_with_code_2_and_one_sentence():
    done = run("--preset", "multigrid", "--num-gpus", "3")
    assert done.returncode == 2
    assert done.stderr.startswith("error: flam-stage.global-batch must be a multiple of micro-batch x workers = 32 x 3")
    assert done.stderr.endswith("the nearest possible: 96; of workers: 1.\n")


def test_help_names_the_assumptions():
    done = run("--help")
    assert done.returncode == 0
    for flag in ("--mfu", "--clips-per-s", "--clip-kib", "--num-gpus", "--flam.width", "--zero-stage"):
        assert f" {flag}" in done.stdout
