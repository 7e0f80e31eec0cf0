"""The scaling-study recipe as a user meets it."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, ROOT / "recipes" / "scaling_study.py", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


def test_a_dry_run_lists_every_run_and_the_total_and_writes_nothing(tmp_path):
    out = tmp_path / "out"
    done = run("--study", "data", "--data", str(tmp_path / "data"), "--out", str(out), "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "10 runs" in done.stdout
    assert "assumed: a device does 0.016 TFLOP/s" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_study_that_could_not_start_leaves_no_report(tmp_path):
    out = tmp_path / "out"
    done = run("--study", "data", "--data", str(tmp_path / "data"), "--out", str(out), "--ray", "127.0.0.1:1")
    assert done.returncode == 1
    assert done.stderr.startswith("error: No Ray cluster answers at 127.0.0.1:1 ")
    assert [path.name for path in out.iterdir()] == ["study.lock"]


def test_a_share_of_no_device_ends_with_code_2_and_one_sentence():
    done = run("--study", "data", "--data", "d", "--out", "o", "--device-share", "0")
    assert done.returncode == 2
    assert done.stderr == "error: device-share must be above 0, got 0.0.\n"
