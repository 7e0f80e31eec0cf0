"""The recipe as a user runs it: figures of every kind for our loader and the bare loop, without peers."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_a_smoke_run_measures_speed_start_survivors_and_memory_of_our_loader(tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    command = [sys.executable, str(ROOT / "recipes" / "benchmark_loader.py"), "--smoke", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text())
    rows = {(row["what"], row["contestant"]): row["rounds"][0] for row in result["rows"]}
    assert result["missing"] == {}
    for data in ("video", "latents"):
        assert rows[f"{data}, local disk", "flamscale"]["frames_per_s"] > 0
        assert rows[f"{data}, local disk", "bare loop"]["frames_per_s"] > 0
    assert rows["survivors of 250", "flamscale"] == {"survivors": 250, "error": None}
    assert rows["start at 90%", "flamscale"]["first_batch_s"] > 0
    assert rows["memory", "flamscale"]["memory_mib"] > 0
