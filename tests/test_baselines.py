"""Baselines by name: the same run with another model, trained, evaluated, exported and loaded like FLAM."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel

from flamscale.baselines import MODELS
from flamscale.config import FlamStageConfig, PretrainConfig, from_dict, to_json
from flamscale.errors import ConfigError
from flamscale.models.build import build_world_model
from flamscale.models.monolithic import Monolithic
from flamscale.presets import PRESETS
from flamscale.training.objectives import FlamObjective
from flamscale.training.sizes import count_parameters
from tests.small_models import TOKENIZER, TRUE_ACTIONS
from tests.tiny import run_tiny, tiny_config

OTHERS = [name for name in MODELS if name != "flam"]


@pytest.fixture(scope="module")
def tokenizer_from(tmp_path_factory: pytest.TempPathFactory, tiny_data: str) -> str:
    """A finished run, whose tokenizer the others take."""
    out = tmp_path_factory.mktemp("flam") / "out"
    run_tiny(short(tiny_config(tiny_data, out)))
    return str(out)


def short(run: PretrainConfig, num_steps: int = 2) -> PretrainConfig:
    """The run with fewer steps and nothing validated."""
    steps = {"num_steps": num_steps, "global_batch": 4, "validate_every": 0, "checkpoint_every": 1}
    return replace(
        run, tokenizer_stage=replace(run.tokenizer_stage, **steps), flam_stage=replace(run.flam_stage, **steps)
    )


@pytest.mark.parametrize("name", OTHERS)
def test_it_is_trained_evaluated_exported_and_loaded(
    name: str, tiny_data: str, tokenizer_from: str, tmp_path: Path
) -> None:
    run = MODELS[name](replace(short(tiny_config(tiny_data, tmp_path)), tokenizer_from=tokenizer_from))
    result = run_tiny(run)
    assert math.isfinite(result["rollout"]["psnr"])
    assert len(result["factors"]["kl"]) == run.flam.num_actions
    assert ("action_codes_used" in result["factors"]) == (name in ("genie", "playslot"))
    if name == "slotformer":
        assert result["rollout"]["shuffled_actions_drop_db"] == 0.0
    model = AutoModel.from_pretrained(tmp_path / "model")
    assert model.flam.config == run.flam
    frames = torch.randint(0, 256, (2, 6, 32, 32, 3), dtype=torch.uint8)
    if name == "true-actions":
        assert model.rollout(frames[:, :2], torch.zeros(2, 5, 2).long(), steps=4).frames.shape == (2, 4, 32, 32, 3)
        return
    assert model.infer_actions(frames).shape == (2, 5, run.flam.num_actions, run.flam.action_width)
    assert model.rollout(frames, steps=4).frames.shape == (2, 4, 32, 32, 3)


@pytest.mark.parametrize("name", ["genie", "true-actions"])
def test_a_resumed_baseline_learns_what_an_uninterrupted_one_does(
    name: str, tiny_data: str, tokenizer_from: str, tmp_path: Path
) -> None:
    def run(out: str) -> PretrainConfig:
        return MODELS[name](replace(short(tiny_config(tiny_data, tmp_path / out)), tokenizer_from=tokenizer_from))

    run_tiny(run("whole"))
    run_tiny(run("resumed"))
    shutil.rmtree(tmp_path / "resumed" / "checkpoints" / "flam" / "step-000002")
    run_tiny(run("resumed"))
    whole, resumed = (load_file(tmp_path / out / "model" / "model.safetensors") for out in ("whole", "resumed"))
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


@pytest.mark.parametrize("preset", ["quickstart", "multigrid", "procgen"])
@pytest.mark.parametrize("name", OTHERS)
def test_width_of_actions_and_tokenizer_and_data_are_those_of_flam(name: str, preset: str) -> None:
    run = PRESETS[preset]()
    other = MODELS[name](run)
    assert other.flam.num_actions * other.flam.action_width == run.flam.num_slots * run.flam.action_width
    stage = replace(run.flam_stage, reconstruction_weight=other.flam_stage.reconstruction_weight)
    assert other == replace(run, flam=other.flam, flam_stage=stage)


@pytest.mark.parametrize("preset", ["quickstart", "multigrid", "procgen"])
@pytest.mark.parametrize("name", ["adaworld", "genie", "true-actions", "playslot"])
def test_a_baseline_with_actions_has_about_as_many_weights_as_flam(name: str, preset: str) -> None:
    run = PRESETS[preset]()
    sizes = [count_parameters(build_world_model(of.flam, of.tokenizer)) for of in (run, MODELS[name](run))]
    assert 0.95 < sizes[1] / sizes[0] < 1.25


@pytest.mark.parametrize(
    ("flam", "sentence"),
    [
        ({"num_agents": 1}, r"num-agents is 1, and the true actions of .* are of 2 agents: pass --flam\.num-agents 2"),
        ({"num_agents": 2, "num_agent_actions": 2}, r"go from 0 to 2: pass --flam\.num-agent-actions 3"),
    ],
)
def test_true_actions_that_are_not_the_models_are_refused_before_anything_is_trained(
    flam: dict[str, int], sentence: str, tiny_data: str, tmp_path: Path
) -> None:
    run = MODELS["true-actions"](short(tiny_config(tiny_data, tmp_path / "out")))
    with pytest.raises(ConfigError, match=sentence):
        run_tiny(replace(run, flam=replace(run.flam, **flam)))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("section", ["flam_stage", "evaluation"])
def test_true_actions_are_refused_for_frames_that_lie_further_apart(section: str) -> None:
    run = MODELS["true-actions"](PRESETS["quickstart"]())
    name = section.replace("_", "-")
    with pytest.raises(ConfigError, match=rf"{name}\.frame-stride must be 1 for a model of true actions, .* got 2"):
        replace(run, **{section: replace(getattr(run, section), frame_stride=2)})


def test_a_config_comes_back_from_json_as_the_model_it_is_of() -> None:
    for of in MODELS.values():
        run = of(PRESETS["quickstart"]())
        assert from_dict(PretrainConfig, json.loads(to_json(run))) == run


def test_a_config_older_than_the_baselines_is_flams() -> None:
    values = json.loads(to_json(PRESETS["quickstart"]()))
    for name in ("model", "binding", "coupling", "slots_learn_from", "action", "action_levels"):
        del values["flam"][name]
    assert from_dict(PretrainConfig, values) == PRESETS["quickstart"]()


def test_settings_of_an_unknown_model_are_refused() -> None:
    values = json.loads(to_json(PRESETS["quickstart"]()))
    values["flam"]["model"] = "dreamer"
    with pytest.raises(ConfigError, match="Expected settings of a model of flam, monolithic, found dreamer; update"):
        from_dict(PretrainConfig, values)


def test_what_cannot_take_effect_is_refused() -> None:
    adaworld = MODELS["adaworld"](PRESETS["quickstart"]())
    with pytest.raises(ConfigError, match=r"reconstruction-weight 1\.0 cannot take effect in a monolithic model"):
        replace(adaworld, flam_stage=replace(adaworld.flam_stage, reconstruction_weight=1.0))
    with pytest.raises(ConfigError, match=r"contrastive-weight 1\.0 cannot take effect in a monolithic model"):
        replace(adaworld, flam_stage=replace(adaworld.flam_stage, contrastive_weight=1.0))
    with pytest.raises(ConfigError, match="slots-learn-from reconstruction needs flam-stage"):
        replace(MODELS["playslot"](PRESETS["quickstart"]()), flam_stage=FlamStageConfig(micro_batch=16))
    with pytest.raises(ConfigError, match="activation-checkpointing cannot take effect in a monolithic model"):
        replace(adaworld.flam, activation_checkpointing=True)


def test_a_baseline_of_a_baseline_is_refused() -> None:
    with pytest.raises(ConfigError, match="made of a run that trains FLAM, got one with a monolithic model"):
        MODELS["genie"](MODELS["adaworld"](PRESETS["quickstart"]()))


def test_a_model_of_true_actions_learns_what_they_do() -> None:
    torch.manual_seed(0)
    effects = torch.randn(2, 3, 9, 8)  # what each agent's action adds to the features of all that follows

    def clips(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        generator = torch.Generator().manual_seed(seed)
        actions = torch.randint(3, (32, 4, 2), generator=generator)
        first = torch.randn(32, 1, 9, 8, generator=generator)
        added = effects[0, actions[..., 0]] + effects[1, actions[..., 1]]
        return torch.cat([first, first + added.cumsum(dim=1)], dim=1), actions

    objective = FlamObjective(Monolithic(TRUE_ACTIONS, TOKENIZER), FlamStageConfig(clip_frames=5))
    optimizer = torch.optim.Adam(objective.parameters(), lr=1e-2)
    for step in range(80):
        features, actions = clips(step)
        loss, _ = objective(features, torch.zeros(32, 4, 1, 4), torch.zeros(()), actions)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    features, actions = clips(1000)
    with torch.no_grad():
        own, others = (
            objective(features, torch.zeros(32, 4, 1, 4), torch.zeros(()), of)[0]
            for of in (actions, actions.roll(1, 0))
        )
    assert own < 0.3 * others
