"""What the monolithic baselines promise: one action a step for the whole scene, a Gaussian sample or a code."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from flamscale.config import MonolithicConfig
from flamscale.errors import ConfigError
from flamscale.models.actions import QuantizedBottleneck
from tests.models.test_flam import changed, gradients, random
from tests.small_models import MONOLITHIC, TRUE_ACTIONS, small_flam, small_monolithic

B, T, N, C, D, A = 2, 5, 9, 8, 16, 4
QUANTIZED = replace(MONOLITHIC, action="quantized", action_levels=(4, 3))
CONFIGS = pytest.mark.parametrize("config", [MONOLITHIC, QUANTIZED], ids=["gaussian", "quantized"])


@pytest.fixture
def features() -> Tensor:
    return random(B, T, N, C)


@pytest.fixture
def noise() -> Tensor:
    return random(B, T - 1, 1, A, seed=1)


@CONFIGS
def test_a_step_has_one_action_and_the_masks_one_factor(
    config: MonolithicConfig, features: Tensor, noise: Tensor
) -> None:
    output = small_monolithic(config)(features, noise, 2)
    assert output.predictions.shape == (2, B, T - 1, N, C)
    assert output.actions.shape == (B, T - 1, 1, A)
    assert_close(output.masks, torch.ones(B, T, 1, N, dtype=torch.float64))


@CONFIGS
@pytest.mark.parametrize("frame", range(T))
def test_a_frame_changes_nothing_before_it(config: MonolithicConfig, features: Tensor, frame: int) -> None:
    model = small_monolithic(config)
    other = features.clone()
    other[:, frame] += random(B, N, C, seed=2)
    before, after = model(features, None, 3), model(other, None, 3)
    moved = changed(before.predictions, after.predictions, dims=(0, 2))
    assert not moved[:, : max(frame - 1, 0)].any()
    assert moved[:, frame:].all()


def test_the_action_is_inferred_from_every_token_of_both_frames_and_from_no_other_frame(features: Tensor) -> None:
    model = small_monolithic()
    actions = model.infer_actions(features)
    for frame in range(T):
        for token in range(N):
            other = features.clone()
            other[:, frame, token] += random(B, C, seed=2)
            moved = changed(actions, model.infer_actions(other), dims=(1,))
            assert moved.tolist() == [step in (frame - 1, frame) for step in range(T - 1)]


def test_the_action_moves_every_token(features: Tensor) -> None:
    model = small_monolithic()
    tokens, _ = model.encode(features)
    actions = random(B, T, 1, A, seed=1)
    other = actions.clone()
    other[:, 2] += 1.0
    moved = changed(model.predict(features, tokens, actions), model.predict(features, tokens, other), dims=(1, 2))
    assert not moved[:2].any()
    assert moved[2].all()


@CONFIGS
def test_a_rollout_of_one_step_is_the_teacher_forced_prediction(config: MonolithicConfig, features: Tensor) -> None:
    model = small_monolithic(config)
    output = model(features)
    for num_context in range(1, T):
        rollout = model.rollout(features[:, :num_context], output.actions[:, :num_context], lambda x: x)
        assert_close(rollout.features, output.predictions[0, :, num_context - 1 : num_context])


@CONFIGS
def test_every_parameter_has_a_gradient(config: MonolithicConfig, features: Tensor, noise: Tensor) -> None:
    found = gradients(small_monolithic(config), features, noise)
    largest = max(gradient.norm() for gradient in found.values())
    assert [name for name, gradient in found.items() if gradient.norm() < 1e-10 * largest] == []


def test_a_quantised_action_is_one_of_the_codes_and_tells_at_most_log_v_nats() -> None:
    torch.manual_seed(0)
    bottleneck = QuantizedBottleneck((4, 3), A)
    latent = bottleneck(3.0 * torch.randn(50, 7, 1, 2))
    codes = bottleneck.action(bottleneck.fsq.codes(torch.arange(12)))
    assert latent.codes is not None
    assert latent.codes.unique().tolist() == list(range(12))
    assert_close(latent.mean, codes[latent.codes])
    assert_close(latent.sample, latent.mean)
    assert_close(latent.kl, torch.full((50, 7, 1), math.log(12)))


def test_noise_does_not_move_a_quantised_action(features: Tensor, noise: Tensor) -> None:
    model = small_monolithic(QUANTIZED)
    assert_close(model(features, noise).actions, model(features).actions)


@pytest.fixture
def true_actions() -> Tensor:
    return torch.randint(3, (B, T - 1, 2), generator=torch.Generator().manual_seed(0))


def test_a_true_action_tells_who_does_what(true_actions: Tensor) -> None:
    embed = small_monolithic(TRUE_ACTIONS).embed
    swapped, vectors = embed(true_actions.flip(2)).sample, embed(true_actions).sample
    assert vectors.shape == (B, T - 1, 1, A)
    is_same = (true_actions[..., 0] == true_actions[..., 1])[..., None]
    assert torch.equal((swapped == vectors).all(dim=-1), is_same)
    joint = torch.cartesian_prod(torch.arange(3), torch.arange(3))
    assert torch.pdist(embed(joint[None]).sample[0, :, 0]).min() > 0


def test_a_true_action_moves_every_token_from_the_next_frame_on(features: Tensor, true_actions: Tensor) -> None:
    model = small_monolithic(TRUE_ACTIONS)
    for step in range(T - 1):
        other = true_actions.clone()
        other[:, step, 1] = (other[:, step, 1] + 1) % 3
        before, after = model(features, None, 3, true_actions), model(features, None, 3, other)
        moved = changed(before.predictions, after.predictions, dims=(0, 2, 3))
        assert not moved[:, :step].any()
        assert moved[:, step:].all()


def test_with_true_actions_nothing_is_inferred(features: Tensor, true_actions: Tensor) -> None:
    model = small_monolithic(TRUE_ACTIONS)
    output = model(features, None, 2, true_actions)
    assert output.kl.tolist() == [[[0.0]] * (T - 1)] * B
    assert output.action_log_var is None
    for infer in (model, model.infer_actions):
        with pytest.raises(
            ConfigError, match=r"takes true actions and infers none .*: pass actions, integers \[B, T - 1"
        ):
            infer(features)


def test_a_model_that_infers_its_actions_takes_no_true_ones(features: Tensor, true_actions: Tensor) -> None:
    for model in (small_monolithic(), small_flam()):
        with pytest.raises(ConfigError, match="infers its actions from frames and takes no true ones: leave them out"):
            model(features, None, 1, true_actions)


def test_a_rollout_of_true_actions_begins_with_the_teacher_forced_prediction(
    features: Tensor, true_actions: Tensor
) -> None:
    model = small_monolithic(TRUE_ACTIONS)
    output = model(features, actions=true_actions)
    rollout = model.rollout(features[:, :2], output.actions, lambda x: x)
    assert_close(rollout.features[:, 0], output.predictions[0, :, 1])


def test_every_parameter_of_a_model_of_true_actions_has_a_gradient(features: Tensor) -> None:
    model = small_monolithic(TRUE_ACTIONS)
    all_values = torch.arange(B * (T - 1) * 2).view(B, T - 1, 2) // 2 % 3
    model(features, None, 2, all_values).predictions.square().sum().backward()
    assert [name for name, parameter in model.named_parameters() if not parameter.grad.norm() > 0] == []


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"num_agents": 2}, "num-agents 2 cannot take effect where actions are inferred; leave it out"),
        ({"action": "true", "num_agent_actions": 3}, "num-agents must be at least 1 for true actions, got 0"),
        ({"action": "true", "num_agents": 2}, "num-agent-actions must be at least 1 for true actions, got 0"),
    ],
)
def test_settings_of_true_actions_stand_together_or_are_refused(changes: dict, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        replace(MONOLITHIC, **changes)
