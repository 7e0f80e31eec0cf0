"""What the plan says a ZeRO step sends against what DeepSpeed's collectives send, counted in two real processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def counted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, float]]:
    """Bytes a process sends in a step of two micro-batches, as counted and as planned; one start for all tests."""
    found = tmp_path_factory.mktemp("traffic") / "found.json"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(str(ROOT / part) for part in (".", "kernels", "cluster")),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [*command, ROOT / "tests/cluster/traffic_worker.py", found], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(found.read_text())


@pytest.mark.parametrize("case", ["0 fp32", "0 bf16", "1 fp32", "1 bf16", "2 fp32", "2 bf16"])
def test_stages_0_to_2_send_what_is_planned(counted: dict[str, dict[str, float]], case: str) -> None:
    assert counted[case]["sent"] == pytest.approx(counted[case]["planned"], rel=0.01)


@pytest.mark.parametrize("case", ["3 fp32", "3 bf16"])
def test_stage_3_gathers_a_small_model_once_where_the_plan_has_two_gathers(
    counted: dict[str, dict[str, float]], case: str
) -> None:
    assert counted[case]["sent"] == pytest.approx(2 / 3 * counted[case]["planned"], rel=0.01)
