"""Ahead-of-time builds for sm_90 with the oldest and the newest supported Triton: nothing spills, no growth unseen.

After a deliberate change of a kernel: python tests/kernels/test_resources.py    (writes the table anew)
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
TABLE = ROOT / "kernels" / "benchmarks" / "results" / "resources-sm90.json"
OLDEST = Path(sys.prefix) / "triton-oldest"
"""Where the Makefile installs the oldest supported Triton, beside the newest in the environment itself."""
SHARED_MEMORY_BYTES = 232_448
"""What a block may use on sm_90."""


def build_all(triton: Path | None) -> dict[str, Any]:
    """Triton's version and every kernel's resources, built in a process of its own with the Triton in a folder."""
    paths = [str(triton)] if triton else []
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([*paths, str(ROOT / "kernels")]), "TRITON_INTERPRET": "0"}
    command = [sys.executable, "-m", "flamscale_kernels.aot"]
    built = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    return json.loads(built.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("triton", [OLDEST, None], ids=["oldest Triton", "newest Triton"])
def test_kernels_build_within_budget_and_as_the_table_says(triton: Path | None) -> None:
    built = build_all(triton)
    for name, resources in built["kernels"].items():
        assert resources["stack_bytes"] == resources["spill_instructions"] == 0, name
        assert resources["shared_memory_bytes"] <= SHARED_MEMORY_BYTES, name
    table = json.loads(TABLE.read_text())
    assert built["kernels"] == table[built["triton"]], "run tests/kernels/test_resources.py if this change is meant"


if __name__ == "__main__":
    built = [build_all(triton) for triton in (OLDEST, None)]
    TABLE.write_text(json.dumps({one["triton"]: one["kernels"] for one in built}, indent=2) + "\n")
