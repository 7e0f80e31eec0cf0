"""Plans: their arithmetic, what they refuse, and the memory model against a process that really trains."""

import io
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from torch import nn

from flamscale.config import ClusterConfig, DataConfig, PretrainConfig
from flamscale.data.clips import ClipSpace
from flamscale.data.mixture import Mixture
from flamscale.errors import ConfigError
from flamscale.models.flam import Flam
from flamscale.plan import Plan, gradient_bytes, make_plan, mean_clip_bytes, network_bytes, print_plan
from flamscale.plan_config import PlanConfig
from flamscale.presets import PRESETS
from flamscale.training.devices import GPUS
from flamscale.training.sizes import count_parameters, stage_size

ROOT = Path(__file__).parents[1]


def one_worker(preset: str) -> PretrainConfig:
    return replace(PRESETS[preset](), cluster=ClusterConfig(num_workers=1))


HALF_PRECISION = replace(
    one_worker("quickstart"),
    flam_stage=replace(one_worker("quickstart").flam_stage, precision="bf16", global_batch=512, micro_batch=8),
)


@pytest.fixture(scope="module")
def plan() -> Plan:
    """A stage on every number of GPUs that is possible."""
    return make_plan(HALF_PRECISION, PlanConfig(gpu="h200", zero_stage=3, mfu=0.4, clip_kib=100.0))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("width", "micro_batch", "predict_steps", "activation_share"),
    [(384, 1, 1, 0.1), (320, 8, 2, 0.5)],
    ids=["states", "states and activations"],
)
def test_computed_memory_is_within_10_percent_of_what_a_training_process_takes(
    width, micro_batch, predict_steps, activation_share
):
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "kernels"))),
        "MALLOC_MMAP_THRESHOLD_": "65536",
    }
    done = subprocess.run(
        [sys.executable, ROOT / "tests/memory_worker.py", str(width), str(micro_batch), str(predict_steps)],
        env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    found = json.loads(done.stdout)
    assert found["measured"] == pytest.approx(found["computed"], rel=0.1)
    assert found["computed"] > 200 * 2**20
    assert found["activations"] / found["computed"] == pytest.approx(activation_share, abs=0.1)


def test_every_power_of_two_that_divides_the_batch_is_planned(plan):
    assert [row.num_gpus for row in plan.rows] == [1, 2, 4, 8, 16, 32, 64]
    assert [row.micro_batches for row in plan.rows] == [64, 32, 16, 8, 4, 2, 1]


def test_time_follows_from_the_utilisation_and_scales_with_the_gpus(plan):
    first, last = plan.rows[0], plan.rows[-1]
    flops_per_s = plan.clip_flops.total * 512 / first.step_s
    assert flops_per_s == pytest.approx(0.4 * GPUS["h200"].bf16_tflops * 1e12)
    assert first.step_s == pytest.approx(64 * last.step_s)
    assert first.days == pytest.approx(3_000 * first.step_s / 86_400)
    assert {round(row.gpu_hours, 6) for row in plan.rows} == {round(first.days * 24, 6)}
    assert last.store_mib_per_s == pytest.approx(last.clips_per_s * 100 / 1024)


def test_memory_is_the_dry_runs(plan):
    workers = ClusterConfig(num_workers=64, zero_stage=3)
    config = replace(
        HALF_PRECISION, tokenizer_stage=replace(HALF_PRECISION.tokenizer_stage, global_batch=1_024), cluster=workers
    )
    assert plan.rows[-1].memory == stage_size(config, "flam")
    assert plan.rows[-1].fits


def test_a_measured_rate_takes_the_place_of_a_utilisation():
    plan = make_plan(one_worker("quickstart"), PlanConfig(clips_per_s=50.0, num_clips=36_000, num_gpus=(2,)))
    (row,) = plan.rows
    assert (row.step_s, row.clips_per_s) == (32 / 100, 100.0)
    assert (row.days * 24 * 60, row.gpu_hours * 60) == (pytest.approx(6), pytest.approx(12))
    assert "stated to be measured" in plan.assumptions[0]


@pytest.mark.parametrize(
    ("zero_stage", "expected"),
    [(0, 8 * 100), (1, 2 * 250 + 400), (2, 2 * 250 * 3 + 400), (3, 3 * 250 * 3)],
)
def test_each_zero_stage_sends_what_its_collectives_send(zero_stage, expected):
    sent = [network_bytes(100, 250, workers, micro_batches=3, zero_stage=zero_stage) for workers in (1, 2, 10)]
    assert sent == [0, expected // 2, expected * 9 // 10]


def test_bf16_halves_the_gradients_of_linear_and_convolutional_layers_alone():
    module = nn.Sequential(nn.Linear(3, 5), nn.LayerNorm(5), nn.Conv2d(2, 2, 1), nn.GRUCell(2, 2))
    halved, whole = 3 * 5 + 5 + 4 + 2, 2 * 5 + 2 * 12 + 2 * 6
    assert gradient_bytes(module, "bf16") == 2 * halved + 4 * whole
    assert gradient_bytes(module, "fp32") == 4 * (halved + whole)


def test_a_checkpoint_is_as_large_as_the_engines_tensors(plan):
    parameters = count_parameters(Flam(HALF_PRECISION.flam, HALF_PRECISION.tokenizer))
    assert plan.checkpoint_bytes == 3 * 4 * parameters
    assert plan.checkpoint_s == pytest.approx(plan.checkpoint_bytes / 2**30)


def test_the_bytes_of_a_clip_are_the_mean_over_all_training_clips(tiny_data):
    data, stage = Mixture.load([tiny_data]), one_worker("quickstart").flam_stage
    space = ClipSpace(data.of_split("train"), stage.clip_frames, stage.frame_stride, stage.clip_hop)
    clips = [space.clip(number) for number in range(space.num_clips)]
    sizes = [space.samples(clip.shard).members["mp4"].sizes[clip.sample] for clip in clips]
    assert mean_clip_bytes(data, stage) == pytest.approx(np.mean(sizes))
    config = replace(one_worker("quickstart"), data=DataConfig(url=(tiny_data,)))
    (row,) = make_plan(config, PlanConfig(num_gpus=(1,), clips_per_s=1.0)).rows
    assert row.store_mib_per_s == pytest.approx(np.mean(sizes) / 2**20)


def test_a_number_of_gpus_that_cannot_share_the_batch_is_refused_with_the_nearest_that_can():
    with pytest.raises(ConfigError, match=r"flam-stage.global-batch .* got 512; .*; of workers: 32 or 64\.$"):
        make_plan(one_worker("large"), PlanConfig(num_gpus=(1, 48)))
    with pytest.raises(ConfigError, match=r"the nearest possible: 1024; of workers: 64\.$"):
        make_plan(one_worker("large"), PlanConfig(num_gpus=(128,)))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"gpu": "h300"}, "gpu must be one of a100-40gb, .*, got h300"),
        ({"mfu": 0.3, "clips_per_s": 5.0}, "mfu 0.3 cannot take effect beside clips-per-s 5.0"),
        ({"mfu": 1.5}, "mfu must lie between 0 and 1, got 1.5"),
        ({"num_gpus": (0,)}, "num-gpus must each be at least 1, got 0"),
        ({"storage_mib_per_s": 0.0}, "storage-mib-per-s must be above 0"),
    ],
)
def test_impossible_questions_are_refused(settings, said):
    with pytest.raises(ConfigError, match=said):
        PlanConfig(**settings)


def test_the_printed_plan_says_what_is_assumed_and_computed(plan):
    text = io.StringIO()
    print_plan(plan, Console(file=text, width=120))
    for words in ("assumed: a GPU does 40% of its peak, 989 TFLOP/s in bf16", "computed:", "GiB a GPU, computed"):
        assert words in text.getvalue()
    assert max(map(len, text.getvalue().splitlines())) <= 120
