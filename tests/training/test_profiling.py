"""Profiled steps: a trace of just those, in a run that learns the same."""

import gzip
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from flamscale.config import ClusterConfig, ProfileConfig, StageConfig
from flamscale.errors import ConfigError
from flamscale.presets import quickstart
from flamscale.training.engine import TorchEngine
from flamscale.training.metrics import read_records
from flamscale.training.profiling import StepProfiler
from tests.training.toy import CPU, ToyObjective, prepare, run_toy, toy_config


def trace_names(path: Path) -> list[str]:
    with gzip.open(path, "rt") as file:
        return [event["name"] for event in json.load(file)["traceEvents"]]


def profiled_run(folder: Path, config: StageConfig, steps: range) -> list[str]:
    """Trains the toy; returns what the profiler said."""
    lines: list[str] = []
    run_toy(folder, config, profiler=StepProfiler(folder / "profile", "toy", steps, CPU, lines.append))
    return lines


def test_the_trace_holds_the_chosen_steps_with_their_phases(tmp_path: Path) -> None:
    lines = profiled_run(tmp_path, toy_config(num_steps=8), range(3, 5))
    names = trace_names(tmp_path / "profile/toy-rank0.json.gz")
    assert {name for name in names if name.startswith("step ")} == {"step 3", "step 4"}
    for phase, count in (("data_wait_s", 4), ("forward_backward_s", 4), ("optimizer_s", 2)):
        assert names.count(phase) == count
    assert "aten::addmm" in names
    assert lines == [f"toy: steps 3 to 4 profiled, see {tmp_path}/profile/toy-rank0.json.gz"]
    assert [path.name for path in (tmp_path / "profile").iterdir()] == ["toy-rank0.json.gz"]  # no snapshot of a CPU


def test_a_profiled_run_learns_the_same(tmp_path: Path) -> None:
    profiled_run(tmp_path / "with", toy_config(num_steps=8), range(3, 5))
    run_toy(tmp_path / "without", toy_config(num_steps=8))
    there, here = (
        [record["losses"] for record in read_records(tmp_path / name / "metrics.jsonl")] for name in ("with", "without")
    )
    assert there == here


def test_a_run_resumed_inside_the_steps_profiles_the_rest(tmp_path: Path) -> None:
    run_toy(tmp_path, toy_config(num_steps=6))
    profiled_run(tmp_path, toy_config(num_steps=10), range(6, 9))
    names = trace_names(tmp_path / "profile/toy-rank0.json.gz")
    assert {name for name in names if name.startswith("step ")} == {"step 7", "step 8"}


def test_a_run_resumed_behind_the_steps_says_that_none_is_profiled(tmp_path: Path) -> None:
    run_toy(tmp_path, toy_config(num_steps=6))
    lines = profiled_run(tmp_path, toy_config(num_steps=10), range(2, 4))
    assert lines == ["toy: steps 2 to 3 were done before this start, so that none is profiled"]
    assert not (tmp_path / "profile").exists()


@pytest.mark.parametrize("steps", ["20", "0-2", "5-3", "a-b", "-3", "1-2-3"])
def test_a_range_that_names_no_steps_is_refused_in_one_sentence(steps: str) -> None:
    with pytest.raises(ConfigError, match=rf"^profile.steps must be the first and last step, .*, got {steps}\.$"):
        ProfileConfig(steps=steps)


def test_steps_that_a_stage_never_reaches_are_refused() -> None:
    config = replace(quickstart(), cluster=ClusterConfig(num_workers=1))
    replace(config, profile=ProfileConfig(steps="799-800"))
    with pytest.raises(ConfigError, match="must end at step 800 or before, which every stage has, got 799-801"):
        replace(config, profile=ProfileConfig(steps="799-801"))
    replace(config, tokenizer_from="elsewhere", profile=ProfileConfig(steps="2999-3000"))  # stage 1 is left out


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="memory snapshots are CUDA's")
def test_a_gpu_also_gives_a_memory_snapshot(tmp_path: Path) -> None:
    device, config = torch.device("cuda"), toy_config(num_steps=4)
    run_toy(
        tmp_path,
        config,
        engine=TorchEngine(ToyObjective(), config, device, seed=0),
        make_inputs=lambda batch, step: {name: x.to(device) for name, x in prepare(batch, step).items()},
        profiler=StepProfiler(tmp_path / "profile", "toy", range(2, 4), device, print),
    )
    assert (tmp_path / "profile/toy-rank0-memory.pickle").stat().st_size > 0
