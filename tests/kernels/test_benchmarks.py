"""Benchmarks: each checks numbers before it prints a speed, and says so where there is nothing to time."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

FOLDER = Path(__file__).parents[2] / "kernels" / "benchmarks"
ROOT = FOLDER.parents[1]


def run(name: str, *flags: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels")])}
    command = [sys.executable, FOLDER / f"{name}.py", *flags]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


@pytest.fixture
def harness(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("harness", FOLDER / "harness.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "harness", module)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["temporal_attention", "slot_attention", "slot_update", "training_step"])
def test_the_gate_is_green(name: str) -> None:
    finished = run(name, "--gate-only")
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout == "gate: green\n"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_no_speed_is_printed() -> None:
    finished = run("slot_attention")
    assert finished.returncode == 1
    assert finished.stdout == "gate: green\n"
    assert finished.stderr.startswith("Expected a CUDA GPU to time, found none;")


@pytest.mark.parametrize("wrong", [lambda x: x * 1.03, lambda x: x + (x - x.detach()) * 0.03])
def test_a_wrong_value_or_gradient_turns_the_gate_red(harness: ModuleType, wrong: object) -> None:
    x = torch.linspace(-1, 1, 12)
    harness.gate("ours", torch.sin, torch.sin, [x])
    with pytest.raises(harness.GateError, match=r"^ours: (the output|gradient 1) is off by \d\.\d+% of float64"):
        harness.gate("ours", lambda x: wrong(torch.sin(x)), torch.sin, [x])
