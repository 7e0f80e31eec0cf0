"""Studies: the grid and its rules, what a run costs, and training on a part of the data."""

import io
from dataclasses import replace

import pytest
import torch
from rich.console import Console
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from flamscale.config import DataConfig, PretrainConfig
from flamscale.data.clips import ClipSpace
from flamscale.data.loader import ClipLoader
from flamscale.data.mixture import Mixture
from flamscale.errors import ConfigError
from flamscale.presets import PRESETS
from flamscale.scaling.axes import (
    SIZES,
    Axis,
    Budgets,
    Entities,
    Epochs,
    Factors,
    Seeds,
    Setting,
    Sizes,
    Steps,
    UniqueVideos,
    clip_flops,
)
from flamscale.scaling.cost import print_costs, run_cost
from flamscale.scaling.studies import with_workers
from flamscale.scaling.study import Study
from flamscale.training.sizes import build_objective, count_parameters, empty_inputs

BASE = replace(
    PRESETS["quickstart"](),
    out="study",
    data=DataConfig(url=("shards/room",)),
    cluster=replace(PRESETS["quickstart"]().cluster, num_workers=1),
)


def configs(*axes: Axis, base: PretrainConfig = BASE) -> list[PretrainConfig]:
    return [run.config for run in Study(name="test", question="?", base=base, axes=axes).runs()]


def test_the_grid_has_every_combination_once_the_first_axis_slowest():
    axes = (Factors(values=(1, 4)), Entities(values=(2, 4), folder="d/"), Seeds(values=(0, 1)))
    runs = Study(name="factors", question="?", base=BASE, axes=axes).runs()
    assert [run.name for run in runs][:3] == ["k-1_agents-2_seed-0", "k-1_agents-2_seed-1", "k-1_agents-4_seed-0"]
    assert len({run.name for run in runs}) == len(runs) == 8
    assert {run.config.out for run in runs} == {f"study/runs/{run.name}" for run in runs}
    assert runs[2].config.data.url == ("d/agents-4",)
    assert runs[2].config.tokenizer_from == "study/shared/agents-4/tokenizer"
    assert runs[3].config.data.latents == runs[2].config.data.latents == ("study/shared/agents-4/latents",)


def test_more_slots_share_the_same_action_width():
    assert [(run.flam.num_slots, run.flam.action_width) for run in configs(Factors(values=(1, 4, 8)))] == [
        (1, 64),
        (4, 16),
        (8, 8),
    ]
    with pytest.raises(ConfigError, match=r"K must divide the action width .*, got K = 3 and 64;"):
        configs(Factors(values=(3,)))


def test_warm_ups_move_along_with_the_number_of_steps():
    (run,) = configs(Steps(values=(300,)))
    stage = run.flam_stage
    assert (stage.num_steps, stage.beta_warmup_start, stage.beta_warmup_steps, stage.warmup_steps) == (300, 150, 50, 5)
    assert stage.checkpoint_every == 100


def test_wider_models_learn_at_a_lower_rate():
    small, large = configs(Sizes(values=(SIZES["xs"], SIZES["m"])))
    assert (small.flam.width, large.flam.width) == (64, 256)
    assert large.flam_stage.learning_rate == pytest.approx(small.flam_stage.learning_rate / 2)


def test_wider_models_may_have_a_larger_batch_in_whole_micro_batches():
    small, large = configs(Sizes(values=(SIZES["xxs"], SIZES["m"]), batch_exponent=0.5))
    assert (small.flam_stage.global_batch, large.flam_stage.global_batch) == (16, 64)


def test_runs_of_one_budget_cost_the_same_whatever_their_size():
    study = Study(
        name="model", question="?", base=BASE, axes=(Sizes(values=(SIZES["xxs"], SIZES["s"])), Budgets(values=(1e13,)))
    )
    costs = [run_cost(run, tflops_per_s=0.1) for run in study.runs()]
    assert [cost.flops for cost in costs] == pytest.approx([1e13, 1e13], rel=0.01)
    assert [cost.device_hours for cost in costs] == pytest.approx([100 / 3_600] * 2, rel=0.01)
    assert costs[0].num_clips > 10 * costs[1].num_clips


def test_workers_are_the_same_for_all_runs_or_go_with_the_size():
    sizes = Study(
        name="s", question="?", base=BASE, axes=(Sizes(values=(SIZES["xxs"], SIZES["s"])), Seeds(values=(0,)))
    )
    assert [run.config.cluster.num_workers for run in with_workers(sizes, (2,)).runs()] == [2, 2]
    one, four = (run.config for run in with_workers(sizes, (1, 4)).runs())
    assert (one.cluster.num_workers, one.flam_stage.micro_batch) == (1, 16)
    assert (four.cluster.num_workers, four.flam_stage.micro_batch, four.flam_stage.global_batch) == (4, 8, 32)
    with pytest.raises(ConfigError, match=r"one number for all runs, or one for each of the 2 sizes, got 3 numbers\.$"):
        with_workers(sizes, (1, 2, 4))
    with pytest.raises(ConfigError, match=r"or one for each size where the study varies it, got 2\.$"):
        with_workers(replace(sizes, axes=()), (1, 2))


@pytest.mark.parametrize(
    "size", [pytest.param(name, marks=pytest.mark.slow) if name in ("l", "xl") else name for name in SIZES]
)
def test_every_named_size_counts_as_torch_counts_its_real_model(size):
    (config,) = configs(Sizes(values=(SIZES[size],)))
    objective = build_objective(config, "flam")
    inputs = {name: torch.zeros_like(value) for name, value in empty_inputs(config, "flam", num_clips=1).items()}
    with (
        FlopCounterMode(display=False) as counter,
        sdpa_kernel(SDPBackend.MATH),
    ):  # it counts no fused attention of CPUs
        objective(**inputs)[0].backward()
    assert clip_flops(config) == pytest.approx(counter.get_total_flops(), rel=0.01)
    (run,) = Study(name="test", question="?", base=config, axes=()).runs()
    assert run_cost(run, tflops_per_s=1.0).parameters == count_parameters(objective)


def test_any_setting_can_be_an_axis_and_an_unknown_one_is_refused():
    assert [run.flam_stage.beta for run in configs(Setting(path="flam_stage.beta", values=(0.0, 1e-5)))] == [0.0, 1e-5]
    with pytest.raises(ConfigError, match="must be one of FlamStageConfig, got gamma"):
        configs(Setting(path="flam_stage.gamma", values=(1,)))


def test_settings_of_the_shared_tokenizer_are_no_axis():
    with pytest.raises(ConfigError, match=r"share their tokenizer, got the setting tokenizer_stage\.num_steps;"):
        Setting(path="tokenizer_stage.num_steps", values=(10, 20))


def test_runs_of_one_name_are_refused():
    with pytest.raises(ConfigError, match="needs a name of its own, found 2 named beta-0_seed-1;"):
        configs(Setting(path="flam_stage.beta", values=(0.0,)), Seeds(values=(1, 2, 1)))


def test_an_axis_that_changes_what_steps_were_counted_for_is_refused(tiny_data):
    base = replace(BASE, data=DataConfig(url=(tiny_data,)))
    assert len(configs(Epochs(values=(1.0,)), Seeds(values=(0, 1)), base=base)) == 2
    with pytest.raises(ConfigError, match=r"The axis epochs counts .* and videos, after it, changes them; put epochs"):
        configs(Epochs(values=(1.0,)), UniqueVideos(values=(4, 16)), base=base)


def test_epochs_count_the_clips_of_the_videos_a_run_sees(tiny_data):
    base = replace(BASE, data=DataConfig(url=(tiny_data,)))
    few, many = configs(UniqueVideos(values=(4, 16)), Epochs(values=(2.0,)), base=base)
    clips_of_a_video = 14 - (base.flam_stage.clip_frames - 1)
    assert few.flam_stage.num_steps == -(-2 * 4 * clips_of_a_video // 32)
    assert many.flam_stage.num_steps == -(-2 * 16 * clips_of_a_video // 32)


def test_a_part_of_the_training_samples_is_the_first_ones(tiny_data):
    data = Mixture.load([tiny_data])
    whole = [key for shard in data.of_split("train") for key in shard.samples.keys]
    part = data.train_shards(5)
    assert [key for shard in part for key in shard.samples.keys] == whole[:5]
    assert ClipSpace(part, 4, 1, 1).num_clips == 5 * 11
    assert data.train_shards(0) == data.train_shards(len(whole)) == data.of_split("train")
    with pytest.raises(ConfigError, match=r"at most the 16 training samples of .*, got 17\.$"):
        data.train_shards(17)


@pytest.mark.parametrize(("split", "num_samples"), [("train", 5), ("validation", 2)])
def test_the_loader_trains_on_that_part_and_validates_on_all(tiny_data, split, num_samples):
    loader = ClipLoader(
        Mixture.load([tiny_data]), split, clip_frames=4, frame_stride=1, clip_hop=1, global_batch=2, micro_batch=2,
        rank=0, world_size=1, seed=0, config=DataConfig(train_samples=5, prefetch_batches=0),
    )  # fmt: skip
    with loader:
        assert loader.num_clips == 11 * num_samples


def test_the_printed_costs_name_every_run_and_the_total():
    runs = Study(name="s", question="?", base=BASE, axes=(Factors(values=(1, 2)), Seeds(values=(0, 1)))).runs()
    text = io.StringIO()
    print_costs(runs, tflops_per_s=0.05, console=Console(file=text, width=120))
    lines = text.getvalue().splitlines()
    assert sum(line.strip().startswith(("1 ", "2 ")) for line in lines) == 4
    assert "4 runs" in text.getvalue()
    assert "assumed: a device does 0.05 TFLOP/s" in text.getvalue()
