"""A run that is moved from 2 processes to 1 to 3 in mid-epoch goes on as if nothing had happened."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from flamscale.training.metrics import read_records

ROOT = Path(__file__).parents[2]
BATCH = 12
STEPS = 12


def _run(data: str, out: Path, log: Path, world_size: int, zero_stage: int, die_after: int = 0) -> None:
    """Trains in so many real processes, until they end or die."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(str(ROOT / part) for part in (".", "kernels", "cluster")),
        "WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
    }
    script = [sys.executable, str(ROOT / "tests/cluster/moving_worker.py"), data, str(out), str(zero_stage), str(log)]
    processes = [
        subprocess.Popen(
            [*script, str(die_after)],
            env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(world_size)
    ]
    try:
        printed = [process.communicate(timeout=200)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    codes = {process.returncode for process in processes}
    assert (17 in codes) if die_after else codes == {0}, "\n".join(printed)


def _clips(log: Path) -> list[tuple[int, str]]:
    """Position and content of every clip that any process of a run was given, by position."""
    files = log.parent.glob(f"{log.name}-*.jsonl")
    return sorted({tuple(json.loads(line)) for file in files for line in file.read_text().splitlines()})


def _losses(out: Path) -> list[float]:
    records = read_records(out / "metrics.jsonl")
    return [
        loss
        for record in records
        if record["stage"] == "flam" and record["kind"] == "train"
        for loss in record["losses"]
    ]


@pytest.mark.slow
def test_a_run_moved_from_2_to_1_to_3_processes_sees_the_same_batches_and_losses(
    tiny_data: str, tmp_path: Path
) -> None:
    _run(tiny_data, tmp_path / "whole", tmp_path / "undisturbed", world_size=2, zero_stage=2)
    moved = tmp_path / "moved"
    _run(tiny_data, moved, tmp_path / "two", world_size=2, zero_stage=2, die_after=7 * 3 + 1)  # in step 8
    _run(tiny_data, moved, tmp_path / "one", world_size=1, zero_stage=1, die_after=6 * 6 + 2)  # in step 12, from 5 on
    _run(tiny_data, moved, tmp_path / "three", world_size=3, zero_stage=3)  # from 10 on
    expected = _clips(tmp_path / "undisturbed")
    assert [position for position, _ in expected] == list(range(STEPS * BATCH))
    steps = {"two": (0, 5), "one": (5, 10), "three": (10, 12)}
    found = []
    for log, (first, last) in steps.items():
        found += [clip for clip in _clips(tmp_path / log) if first * BATCH <= clip[0] < last * BATCH]
    assert found == expected
    assert {position for position, _ in _clips(tmp_path / "three")} == set(range(10 * BATCH, STEPS * BATCH))
    assert _losses(moved)[:5] == _losses(tmp_path / "whole")[:5]
    assert _losses(moved) == pytest.approx(_losses(tmp_path / "whole"), rel=1e-4)
    assert len(_losses(moved)) == STEPS
