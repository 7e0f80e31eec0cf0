"""The order benchmark as a user runs it, on a small manifest."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_it_goes_through_the_order_and_writes_a_row_for_each_size(tmp_path: Path) -> None:
    out = tmp_path / "order.json"
    recipe = [sys.executable, str(ROOT / "recipes" / "benchmark_order.py"), "--out", str(out)]
    done = subprocess.run([*recipe, "--num-clips", "25000", "100000"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    rows = json.loads(out.read_text())["rows"]
    assert [row["clips"] for row in rows] == [25_000, 100_000]
    assert all(row[step] > 0 for row in rows for step in row if step.endswith("(s)"))
    assert 3.5 < rows[1]["manifest (MB)"] / rows[0]["manifest (MB)"] < 4.5
    assert all(row["own memory (MiB)"] < 200 for row in rows)
