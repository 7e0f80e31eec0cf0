"""Adaptive slots: a dropped slot is as good as none, the first frame decides, and the choice can be learned."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from flamscale.config import FlamConfig
from flamscale.errors import ConfigError
from flamscale.models.flam import Flam
from tests.models.test_flam import changed, random
from tests.small_models import ADAPTIVE, small_flam

B, T, N, C, K, D, A = 4, 5, 9, 8, 3, 16, 4


def undecided_flam(features: Tensor, config: FlamConfig = ADAPTIVE) -> Flam:
    """A FLAM that keeps about half of the slots of these clips, not the same ones of all."""
    flam = small_flam(config)
    with torch.no_grad():
        flam.selector.logit.weight.mul_(20.0)
        logits = flam.select(flam.encode(features)[0]).probability.logit()
        flam.selector.logit.bias.sub_(logits.median())
    return flam


@pytest.fixture
def features() -> Tensor:
    return random(B, T, N, C)


@pytest.fixture
def noise() -> Tensor:
    return random(B, T - 1, K, A, seed=1)


@pytest.mark.parametrize("coupling", ["factored", "global"])
@pytest.mark.parametrize("dropped", range(K))
def test_a_model_without_a_slot_and_one_that_drops_it_predict_the_same(coupling: str, dropped: int) -> None:
    flam = small_flam(replace(ADAPTIVE, coupling=coupling))
    slots, actions, features = random(B, T, K, D), random(B, T - 1, K, A, seed=1), random(B, T, N, C, seed=2)
    kept = torch.ones(B, 1, K, dtype=torch.float64)
    kept[..., dropped] = 0.0
    others = [slot for slot in range(K) if slot != dropped]
    inferred = flam.infer(slots[:, :-1], slots[:, 1:], None, kept)
    without = flam.infer(slots[:, :-1, others], slots[:, 1:, others])
    assert_close(inferred.mean[:, :, others], without.mean)
    assert_close(inferred.kl[:, :, others], without.kl)
    assert not inferred.kl[:, :, dropped].any()
    predicted = flam.predict(features[:, :-1], slots[:, :-1], actions, kept)
    assert_close(predicted, flam.predict(features[:, :-1], slots[:, :-1, others], actions[:, :, others]))
    assert_close(flam.reconstruct(slots, kept), flam.reconstruct(slots[:, :, others]))


def test_a_model_that_keeps_all_slots_is_the_plain_one(features: Tensor, noise: Tensor) -> None:
    flam = small_flam(ADAPTIVE)  # its logits are about 3
    output = flam(features, noise, 2)
    assert output.selection.kept.all()
    flam.selector = None
    plain = flam(features, noise, 2)
    for name in ("predictions", "masks", "actions", "kl"):
        assert_close(getattr(output, name), getattr(plain, name))


def test_a_clip_without_any_slot_is_still_predicted(features: Tensor) -> None:
    flam = small_flam(ADAPTIVE)
    none = torch.zeros(B, 1, K, dtype=torch.float64)
    slots, _ = flam.encode(features)
    predicted = flam.predict(features, slots, random(B, T, K, A), none)
    assert_close(predicted, flam.predict(features, random(B, T, K, D, seed=3), random(B, T, K, A), none))


def test_the_first_frame_decides_for_the_whole_clip(features: Tensor) -> None:
    flam = undecided_flam(features)
    kept = flam(features).selection.kept
    assert 0 < kept.sum() < kept.numel()
    assert (kept != kept[:1]).any()
    later = features.clone()
    later[:, 1:] += random(B, T - 1, N, C, seed=2)
    assert torch.equal(flam(later).selection.kept, kept)


def test_forward_inference_and_rollout_keep_the_same_slots(features: Tensor) -> None:
    flam = undecided_flam(features, replace(ADAPTIVE, history_frames=T - 1))
    output = flam(features)
    assert_close(flam.infer_actions(features), output.action_mean)
    for num_context in range(1, T):
        rollout = flam.rollout(features[:, :num_context], output.actions[:, :num_context], lambda x: x)
        assert_close(rollout.features, output.predictions[0, :, num_context - 1 : num_context])
        assert_close(rollout.masks[:, :num_context], output.masks[:, :num_context])


def test_a_long_rollout_keeps_what_its_first_frame_chose(features: Tensor) -> None:
    flam = undecided_flam(features, replace(ADAPTIVE, history_frames=2))
    dropped = flam(features).selection.kept[:, 0] == 0  # [B, K]
    actions = flam.infer_actions(features)
    rollout = flam.rollout(features[:, :1], actions, lambda x: x)
    assert not rollout.masks.movedim(2, 1)[dropped].any()
    other = actions + random(*actions.shape, seed=3) * dropped[:, None, :, None]
    assert_close(flam.rollout(features[:, :1], other, lambda x: x).features, rollout.features)
    assert changed(flam.rollout(features[:, :1], actions + 1.0, lambda x: x).features, rollout.features, (0,)).all()


def test_tokens_are_shared_among_the_slots_that_are_kept(features: Tensor) -> None:
    output = undecided_flam(features)(features)
    kept = output.selection.kept[:, 0].bool()
    masks = output.masks.movedim(2, 1)  # [B, K, T, N]
    assert not masks[~kept].any()
    assert_close(masks.sum(dim=1), torch.ones(B, T, N, dtype=torch.float64) * kept.any(dim=1)[:, None, None])


def test_a_slot_is_kept_as_often_as_its_probability_says(features: Tensor) -> None:
    flam = undecided_flam(features)
    slots = flam.encode(features[:1])[0].expand(4_000, -1, -1, -1)
    uniform = torch.rand(4_000, K, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    selection = flam.select(slots, torch.logit(uniform))
    assert ((selection.kept == 0) | (selection.kept == 1)).all()
    assert_close(selection.kept.mean(dim=(0, 1)), selection.probability[0], atol=0.03, rtol=0.0)


def test_the_gradient_tells_what_a_dropped_slot_would_add() -> None:
    flam = small_flam(ADAPTIVE)
    slots, actions, features = random(2, 2, K, D), random(2, 2, K, A, seed=1), random(2, 2, N, C, seed=2)
    kept = torch.tensor([[[1.0, 0.2, 0.7]], [[0.5, 1.0, 0.1]]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda kept: flam.predict(features, slots, actions, kept), kept)
    dropped = torch.tensor([[[1.0, 0.0, 1.0]]], dtype=torch.float64).repeat(2, 1, 1).requires_grad_()
    flam.predict(features, slots, actions, dropped).square().mean().backward()
    assert dropped.grad[..., 1].abs().min() > 1e-6


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"slots_learn_from": "reconstruction"},
            r"^flam\.adaptive-slots needs flam\.slots-learn-from prediction, got reconstruction",
        ),
        ({"attention": "flash-attn"}, r"^flam\.adaptive-slots needs flam\.attention sdpa, got flash-attn"),
    ],
)
def test_settings_that_cannot_leave_slots_out_are_refused(changes: dict[str, str], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        replace(ADAPTIVE, **changes)
