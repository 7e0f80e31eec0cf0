"""A process that stands still ends by itself and says where; one that moves on is left alone."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = """
import sys, time
from pathlib import Path
from flamscale.training.watchdog import Watchdog

def wait_for_ever():
    time.sleep(60)

with Watchdog(Path(sys.argv[1]), rank=3, timeout_s=float(sys.argv[2])) as watchdog:
    for _ in range(6):
        time.sleep(0.1)
        watchdog.beat()
    if sys.argv[3] == "hangs":
        wait_for_ever()
"""


def run(folder: Path, timeout_s: float, behaviour: str) -> int:
    command = [sys.executable, "-c", SCRIPT, str(folder), str(timeout_s), behaviour]
    return subprocess.run(command, cwd=ROOT, timeout=30, capture_output=True, check=False).returncode


def test_a_process_that_hangs_ends_and_leaves_its_stack(tmp_path: Path) -> None:
    assert run(tmp_path, 0.5, "hangs") == 1
    (written,) = tmp_path.glob("rank-00003-*.txt")
    assert written.read_text().startswith("No step was finished for 0.5 s. Where the threads stood:")
    assert "in wait_for_ever" in written.read_text()


@pytest.mark.parametrize("timeout_s", [0.4, 0.0])
def test_a_process_that_moves_on_leaves_nothing(tmp_path: Path, timeout_s: float) -> None:
    assert run(tmp_path, timeout_s, "ends") == 0
    assert list(tmp_path.glob("*")) == []
