"""ZeroEngine in two real gloo processes: the numbers of a TorchEngine, at every ZeRO stage, and exact resume."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What both processes found, and all they printed; one start for all tests, since DeepSpeed's import takes long."""
    folder = tmp_path_factory.mktemp("zero")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(str(ROOT / part) for part in (".", "kernels", "cluster")),
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
    }
    processes = [
        subprocess.Popen(
            [sys.executable, ROOT / "tests/cluster/zero_worker.py", folder],
            env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        printed = [process.communicate(timeout=240)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(printed)
    findings = [json.loads((folder / f"findings-{rank}.json").read_text()) for rank in range(2)]
    return {"findings": findings, "printed": printed}


@pytest.mark.parametrize("case", ["toy-1", "flam-0", "flam-2", "flam-3", "flow-3"])
def test_three_clipped_and_accumulated_steps_equal_a_single_process(outcome: dict[str, Any], case: str) -> None:
    for findings in outcome["findings"]:
        differences = findings[f"parity-{case}"]
        assert differences["steps"] < 1e-5
        assert differences["weights"] < 1e-5
        assert differences["held_out"] < 1e-5


@pytest.mark.parametrize("stage", [1, 3])
def test_bf16_stays_close_and_keeps_fp32_parameters(outcome: dict[str, Any], stage: int) -> None:
    for findings in outcome["findings"]:
        assert findings[f"bf16-{stage}"]["steps"] < 2e-2
        assert findings[f"bf16-{stage}"]["held_out"] < 2e-2
    assert outcome["findings"][0][f"bf16-{stage}-dtypes"] == ["torch.float32"]


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_a_resumed_run_repeats_the_whole_one_bit_for_bit(outcome: dict[str, Any], stage: int) -> None:
    for findings in outcome["findings"]:
        assert findings[f"resume-{stage}"] == {"weights": True, "losses": True}


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_run_goes_back_from_a_loss_that_is_not_finite(outcome: dict[str, Any], stage: int) -> None:
    assert all(findings[f"rewound-{stage}"] for findings in outcome["findings"])


@pytest.mark.parametrize("kind", ["torch", "0", "1", "2", "3"])
def test_every_engine_goes_on_from_a_checkpoint_of_zero_2_in_two_processes(outcome: dict[str, Any], kind: str) -> None:
    for findings in outcome["findings"]:
        assert findings["other-engines"][f"{kind}-weights"] == 0.0  # buffers and frozen parameters too
        assert findings["other-engines"][f"{kind}-losses"] < 1e-5


def test_another_accumulation_is_refused_in_one_sentence(outcome: dict[str, Any]) -> None:
    for findings in outcome["findings"]:
        assert "was built for 2 micro-batches a step" in findings["accumulation"]


def test_checkpoints_hold_nothing_pickled(outcome: dict[str, Any]) -> None:
    assert [findings["files"] for findings in outcome["findings"]] == [[".json", ".safetensors"]] * 2


def test_counts_are_summed_over_all_processes(outcome: dict[str, Any]) -> None:
    assert [findings["record"]["reader_restarts"] for findings in outcome["findings"]] == [3, 3]


def test_the_peak_memory_is_the_largest_of_all_processes(outcome: dict[str, Any]) -> None:
    assert [findings["record"]["memory_peak_mib"] for findings in outcome["findings"]] == [200.0, 200.0]


def test_means_are_taken_over_both_processes(outcome: dict[str, Any]) -> None:
    assert [findings["mean"] for findings in outcome["findings"]] == [{"one": 1.0, "rank": 0.5}] * 2


def test_deepspeed_prints_nothing(outcome: dict[str, Any]) -> None:
    assert outcome["printed"] == ["", ""]
