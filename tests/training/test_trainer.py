"""The loop with a TorchEngine: records, resume, accumulation, divergence."""

import math
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from flamscale.config import StageConfig
from flamscale.errors import FlamError, LeaveError
from flamscale.training.checkpoint import CheckpointStore
from flamscale.training.engine import TorchEngine
from flamscale.training.flops import Compute
from flamscale.training.metrics import read_records
from flamscale.training.trainer import average_over
from flamscale.types import Batch
from tests.training.toy import CPU, LoaderWithout, ToyLoader, ToyObjective, prepare, run_toy, spoiled, toy_config

ROOT = Path(__file__).parents[2]


def losses(folder: Path) -> list[float]:
    return [loss for record in read_records(folder / "metrics.jsonl") for loss in record.get("losses", [])]


def test_every_record_carries_what_a_run_reports(tmp_path: Path) -> None:
    run_toy(tmp_path, toy_config(num_steps=10))
    records = read_records(tmp_path / "metrics.jsonl")
    assert [record["step"] for record in records] == [4, 6, 8, 10]
    assert [len(record["losses"]) for record in records] == [4, 2, 2, 2]
    names = (
        "stage step kind loss mse bias grad_norm learning_rate clips_per_s frames_per_s step_s data_wait_s "
        "forward_backward_s optimizer_s checkpoint_s skipped_samples reader_restarts data_wait_share memory_peak_mib "
        "losses grad_norms"
    )
    for record in records:
        assert set(names.split()) <= record.keys()
        assert record["loss"] == pytest.approx(sum(record["losses"]) / len(record["losses"]))
        assert record["frames_per_s"] == pytest.approx(8 * record["clips_per_s"])
        assert record["data_wait_share"] == pytest.approx(record["data_wait_s"] / record["step_s"])
        assert not {"model_tflops_per_s", "mfu"} & record.keys()  # nobody told what a clip costs
    assert records[2]["checkpoint_s"] > 0


def test_the_loss_falls(tmp_path: Path) -> None:
    def always_the_same(batch: Batch, step: int) -> dict[str, Tensor]:
        return prepare(Batch(video=torch.arange(4), positions=torch.arange(4)), step)

    run_toy(tmp_path, toy_config(num_steps=60), make_inputs=always_the_same)
    assert losses(tmp_path)[-1] < 0.2 * losses(tmp_path)[0]


def test_resume_after_sigkill_repeats_the_uninterrupted_run_bit_for_bit(tmp_path: Path) -> None:
    run_toy(tmp_path / "whole", toy_config())
    killed = tmp_path / "killed"
    at_step = random.randrange(4, 21)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels")])}
    process = subprocess.Popen([sys.executable, ROOT / "tests/training/toy.py", killed], env=environment)
    try:
        deadline = time.monotonic() + 60
        path = killed / "metrics.jsonl"
        while not (path.exists() and f'"step": {at_step // 4 * 4},' in path.read_text()):
            assert process.poll() is None, "the run ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(random.uniform(0, 0.1))
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert process.returncode == -signal.SIGKILL
    assert len(losses(killed)) < 30
    run_toy(killed, toy_config())
    assert losses(killed) == losses(tmp_path / "whole")
    lines: list[str] = []
    run_toy(killed, toy_config(), progress=lines.append)
    assert lines == ["toy: going on from step 30 of 30"]


def test_micro_batches_leave_the_steps_the_same_to_rounding(tmp_path: Path) -> None:
    for micro_batch in (8, 4, 1):
        run_toy(tmp_path / str(micro_batch), toy_config(num_steps=12, micro_batch=micro_batch))
    for micro_batch in (4, 1):
        torch.testing.assert_close(
            torch.tensor(losses(tmp_path / str(micro_batch))),
            torch.tensor(losses(tmp_path / "8")),
            rtol=1e-4,
            atol=1e-6,
        )


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_both_precisions_train_fp32_parameters(tmp_path: Path, precision: str) -> None:
    config = toy_config(num_steps=6, precision=precision)
    engine = TorchEngine(ToyObjective(), config, CPU, seed=0)
    run_toy(tmp_path, config, engine=engine)
    assert {value.dtype for value in engine.full_state_dict().values()} == {torch.float32}


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_stays_not_finite_ends_the_run_at_the_last_good_checkpoint(tmp_path: Path, bad: float) -> None:
    def diverging(batch: Batch, step: int) -> dict[str, Tensor]:
        inputs = prepare(batch, step)
        return inputs if step != 9 else inputs | {"target": inputs["target"] * bad}

    message = r"at step 10 of stage toy, after going back 3 times; start a new --out with a lower learning rate"
    with pytest.raises(FlamError, match=message):
        run_toy(tmp_path, toy_config(), make_inputs=diverging)
    assert len(losses(tmp_path)) == 8
    assert CheckpointStore(tmp_path / "checkpoints", keep=1).latest() == tmp_path / "checkpoints/step-000006"


@pytest.mark.parametrize(
    ("factor", "changes"), [(math.nan, {}), (math.inf, {}), (100.0, {"spike_factor": 20.0, "num_steps": 90})]
)
def test_bad_data_are_left_out_after_going_back_and_nothing_else_changes(
    tmp_path: Path, factor: float, changes: dict[str, Any]
) -> None:
    bad_batch = 63 if changes else 9
    config, lines = toy_config(**changes), []
    run_toy(tmp_path / "spoiled", config, make_inputs=spoiled(bad_batch, factor), progress=lines.append)
    run_toy(tmp_path / "without", config, loader=LoaderWithout(config, left_out=(bad_batch - 1, bad_batch)))
    assert losses(tmp_path / "spoiled") == losses(tmp_path / "without")
    assert [line for line in lines if f"to leave out global batches [{bad_batch - 1}, {bad_batch}]" in line]
    records = read_records(tmp_path / "spoiled/metrics.jsonl")
    assert [record["kind"] for record in records].count("rewind") == 1
    assert records[-1]["left_out_batches"] == 2


def test_a_run_killed_after_it_went_back_goes_on_as_it_would_have(tmp_path: Path) -> None:
    make_inputs = spoiled(9, math.nan)
    run_toy(tmp_path / "whole", toy_config(), make_inputs=make_inputs)
    for num_steps in (12, 18, 30):  # each time from a checkpoint that the one before left
        run_toy(tmp_path / "cut", toy_config(num_steps=num_steps), make_inputs=make_inputs)
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")


def test_bad_data_at_the_very_start_are_left_out_too(tmp_path: Path) -> None:
    config = toy_config()
    run_toy(tmp_path / "spoiled", config, make_inputs=spoiled(0, math.nan))
    run_toy(tmp_path / "without", config, loader=LoaderWithout(config, left_out=(0,)))
    assert losses(tmp_path / "spoiled") == losses(tmp_path / "without")


def test_told_to_leave_it_saves_and_goes_on_from_there_the_next_time(tmp_path: Path) -> None:
    run_toy(tmp_path / "whole", toy_config())
    asked = []

    def at_the_third_time() -> bool:
        asked.append(True)
        return len(asked) == 3

    with pytest.raises(LeaveError, match=r"^Told to leave, stage toy saved step 15; submit the job again"):
        run_toy(tmp_path / "left", toy_config(), shall_leave=at_the_third_time)
    lines: list[str] = []
    run_toy(tmp_path / "left", toy_config(), progress=lines.append)
    assert lines[0] == "toy: going on from step 15 of 30"
    assert losses(tmp_path / "left") == losses(tmp_path / "whole")


def test_validation_is_recorded_and_does_not_disturb_training(tmp_path: Path) -> None:
    config = toy_config(num_steps=10, validate_every=5)
    engine = TorchEngine(ToyObjective(), config, CPU, seed=0)
    held_out = [prepare(Batch(video=torch.arange(4), positions=torch.arange(900, 904)), 0)]

    run_toy(tmp_path / "with", config, engine=engine, validate=lambda: average_over(engine, held_out * 2))
    run_toy(tmp_path / "without", config)
    records = [record for record in read_records(tmp_path / "with/metrics.jsonl") if record["kind"] == "validation"]
    assert [record["step"] for record in records] == [5, 10]
    assert records[0].keys() == {"stage", "step", "kind", "loss", "mse", "bias"}
    assert losses(tmp_path / "with") == losses(tmp_path / "without")


def test_progress_lines_tell_stage_step_loss_speed_and_time_left(tmp_path: Path) -> None:
    lines: list[str] = []
    run_toy(tmp_path, toy_config(num_steps=8), progress=lines.append)
    assert lines[0].startswith("toy 4/8  loss ")
    assert re.search(r" clips/s  0:00:00 left(  data wait \d+%)?$", lines[0])
    run_toy(tmp_path, toy_config(num_steps=12), progress=lines.append)
    assert "toy: going on from step 8 of 12" in lines


def test_flop_rates_and_utilisation_are_recorded_where_the_cost_and_the_peak_are_known(tmp_path: Path) -> None:
    lines: list[str] = []
    run_toy(tmp_path, toy_config(num_steps=4), compute=Compute(10**6, 1e10), progress=lines.append)
    (record,) = read_records(tmp_path / "metrics.jsonl")
    assert record["model_tflops_per_s"] == pytest.approx(record["clips_per_s"] * 1e-6)
    assert record["mfu"] == pytest.approx(record["clips_per_s"] * 1e6 / 1e10)
    assert f"left  MFU {record['mfu']:.1%}" in lines[0]
    run_toy(tmp_path, toy_config(num_steps=8), compute=Compute(10**6, None), progress=lines.append)
    assert "mfu" not in read_records(tmp_path / "metrics.jsonl")[-1]
    assert "MFU" not in lines[-1]


def test_a_slow_loader_shows_in_record_and_progress_line(tmp_path: Path) -> None:
    class SlowLoader(ToyLoader):
        def __iter__(self) -> Iterator[Batch]:
            for batch in super().__iter__():
                time.sleep(0.02)
                yield batch

    lines: list[str] = []
    config = toy_config(num_steps=4)
    loader = SlowLoader(config)
    loader.restarts = 3
    run_toy(tmp_path, config, loader=loader, progress=lines.append)
    (record,) = read_records(tmp_path / "metrics.jsonl")
    assert record["data_wait_share"] > 0.5
    assert record["reader_restarts"] == 3
    assert lines[0].endswith(f"  data wait {record['data_wait_share']:.0%}")


def test_a_batch_that_does_not_divide_is_refused(tmp_path: Path) -> None:
    config = StageConfig(global_batch=10, micro_batch=4)
    with pytest.raises(FlamError, match="global-batch must be a multiple"):
        run_toy(tmp_path, config, loader=ToyLoader(config))
