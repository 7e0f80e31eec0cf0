"""The evaluation as a whole, on tiny models and clips whose baselines are known by hand."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from flamscale.errors import ConfigError, DataError
from flamscale.eval.metrics import frame_psnr
from flamscale.eval.report import rollout_table
from flamscale.eval.rollout import RolloutEvaluation, evaluate_rollouts
from flamscale.models.flam import Flam
from flamscale.models.i3d import I3d
from flamscale.models.lpips import Lpips
from flamscale.models.monolithic import Monolithic
from flamscale.models.tokenizer import Tokenizer, to_images
from flamscale.models.world_model import Rollout
from tests.small_models import TRUE_ACTIONS

from .conftest import EVALUATION, TOKENIZER


def test_the_result_has_the_promised_numbers_and_is_json(evaluation: RolloutEvaluation) -> None:
    result = json.loads(json.dumps(evaluation.result))
    for name in ("psnr", "ssim", "moving_psnr", "copy_last_psnr", "median_frame_psnr", "shuffled_actions_psnr"):
        assert math.isfinite(result["rollout"][name]), name
    assert len(result["rollout"]["psnr_by_step"]) == EVALUATION.rollout_steps
    assert math.isfinite(result["tokenizer"]["psnr"])
    assert result["timings"] == {}


def test_baselines_are_those_computed_by_hand(
    evaluation: RolloutEvaluation, clips: Tensor, median_frame: Tensor
) -> None:
    truth = to_images(clips[:, 2:])
    copied = to_images(clips[:, 1:2].expand(-1, 3, -1, -1, -1))
    median = to_images(median_frame[None]).expand_as(truth)
    rollout = evaluation.result["rollout"]
    assert rollout["copy_last_psnr"] == pytest.approx(frame_psnr(copied, truth).mean().item())
    assert rollout["median_frame_psnr"] == pytest.approx(frame_psnr(median, truth).mean().item())
    best = max(rollout["copy_last_psnr"], rollout["median_frame_psnr"])
    assert rollout["gain_over_best_baseline_db"] == pytest.approx(rollout["psnr"] - best)
    assert rollout["shuffled_actions_drop_db"] == pytest.approx(rollout["psnr"] - rollout["shuffled_actions_psnr"])


def test_the_numbers_do_not_depend_on_the_batch(
    evaluation: RolloutEvaluation, models: tuple[Tokenizer, Flam], clips: Tensor, median_frame: Tensor
) -> None:
    whole = evaluate_rollouts(*models, clips, median_frame, replace(EVALUATION, batch_clips=64)).result
    for section in ("rollout", "tokenizer", "factors"):
        for name, value in evaluation.result[section].items():
            assert whole[section][name] == pytest.approx(value, rel=1e-5), name


def test_the_model_sees_context_and_actions_alone_and_every_clip_also_gets_another_ones_actions(
    models: tuple[Tokenizer, Flam], clips: Tensor, median_frame: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer, flam = models
    calls: list[tuple[Tensor, Tensor]] = []

    def recorded(context: Tensor, actions: Tensor, quantize: Any) -> Rollout:
        calls.append((context, actions))
        return Flam.rollout(flam, context, actions, quantize)

    monkeypatch.setattr(flam, "rollout", recorded)
    evaluate_rollouts(tokenizer, flam, clips, median_frame, replace(EVALUATION, batch_clips=5))
    (context, own), (_, other) = calls
    assert context.shape[:2] == (5, 2)
    assert own.shape[:2] == (5, 4)
    torch.testing.assert_close(own, flam.infer_actions(tokenizer.lookup(_indices(tokenizer, clips))))
    assert all((other[clip] != own[clip]).any() for clip in range(5))
    assert sorted(other.sum(dim=(1, 2, 3)).tolist()) == pytest.approx(sorted(own.sum(dim=(1, 2, 3)).tolist()))


def test_a_model_of_true_actions_gets_the_clips_own_and_another_ones(
    models: tuple[Tokenizer, Flam], clips: Tensor, median_frame: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer, model = models[0], Monolithic(TRUE_ACTIONS, TOKENIZER)
    true_actions = torch.tensor([[[clip % 3, step % 3] for step in range(4)] for clip in range(5)])
    used: list[Tensor] = []

    def recorded(context: Tensor, actions: Tensor, quantize: Any) -> Rollout:
        used.append(actions)
        return Monolithic.rollout(model, context, actions, quantize)

    monkeypatch.setattr(model, "rollout", recorded)
    result = evaluate_rollouts(tokenizer, model, clips, median_frame, EVALUATION, true_actions).result
    own, others = torch.cat(used[::2]), torch.cat(used[1::2])
    torch.testing.assert_close(own, model.embed(true_actions).sample)
    torch.testing.assert_close(others, model.embed(true_actions.roll(2, dims=0)).sample)
    assert result["factors"]["kl"] == [0.0]
    assert "**model, given the true actions**" in rollout_table(result)


def test_clips_in_which_nothing_moves_have_no_moving_psnr(
    models: tuple[Tokenizer, Flam], clips: Tensor, median_frame: Tensor
) -> None:
    still = clips[:, :1].expand(-1, 5, -1, -1, -1)
    rollout = evaluate_rollouts(*models, still, median_frame, EVALUATION).result["rollout"]
    assert math.isnan(rollout["moving_psnr"])
    assert rollout["moving_pixel_share"] == 0.0
    assert rollout["copy_last_psnr"] == 100.0


def test_factor_measures_are_per_slot(evaluation: RolloutEvaluation) -> None:
    factors = evaluation.result["factors"]
    assert len(factors["kl"]) == len(factors["slot_mass"]) == 3
    assert sum(factors["slot_mass"]) == pytest.approx(1.0)
    assert factors["kl_total"] == pytest.approx(sum(factors["kl"]))
    assert 0.0 <= factors["assignment_entropy"] <= factors["max_assignment_entropy"] == pytest.approx(math.log(3))
    assert 0.0 < evaluation.result["tokenizer"]["codebook_used"] <= 1.0


def test_pictures_are_of_clips_spread_over_all(evaluation: RolloutEvaluation, clips: Tensor) -> None:
    pictures = evaluation.pictures
    assert torch.equal(pictures.truth, clips[[0, 4]])
    assert pictures.prediction.shape == (2, 3, 16, 16, 3)
    assert pictures.masks.shape == (2, 5, 3, 4, 4)
    assert pictures.num_context == 2
    predicted = to_images(pictures.prediction)
    assert pictures.psnr.flatten().tolist() == pytest.approx(
        frame_psnr(predicted, to_images(pictures.truth[:, 2:])).tolist(), abs=0.05
    )


def test_the_models_are_left_in_the_mode_they_were_in(
    models: tuple[Tokenizer, Flam], clips: Tensor, median_frame: Tensor
) -> None:
    tokenizer, flam = models
    tokenizer.eval()
    evaluate_rollouts(tokenizer, flam, clips, median_frame, EVALUATION)
    assert (tokenizer.training, flam.training) == (False, True)
    tokenizer.train()


def test_one_clip_is_refused_since_nothing_can_be_shuffled(
    models: tuple[Tokenizer, Flam], clips: Tensor, median_frame: Tensor
) -> None:
    with pytest.raises(DataError, match=r"at least 2 held-out clips of 5 frames.*found 1; make more"):
        evaluate_rollouts(*models, clips[:1], median_frame, EVALUATION)


def test_clips_of_another_length_are_refused(
    models: tuple[Tokenizer, Flam], clips: Tensor, median_frame: Tensor
) -> None:
    with pytest.raises(DataError, match=r"rollout-steps = 5 frames, found 4"):
        evaluate_rollouts(*models, clips[:, :4], median_frame, EVALUATION)


def _indices(tokenizer: Tokenizer, clips: Tensor) -> Tensor:
    return tokenizer.encode(to_images(clips)).unflatten(0, clips.shape[:2])


def test_intervals_hold_the_means_and_shrink_where_clips_agree(
    evaluation: RolloutEvaluation, models: tuple[Tokenizer, Flam], clips: Tensor, median_frame: Tensor
) -> None:
    rollout = evaluation.result["rollout"]
    for name in ("psnr", "ssim"):
        low, high = rollout[f"{name}_interval"]
        assert low < rollout[name] < high
    alike = evaluate_rollouts(*models, clips[:1].expand(5, -1, -1, -1, -1), median_frame, EVALUATION).result["rollout"]
    assert alike["psnr_interval"] == pytest.approx([alike["psnr"]] * 2)


def test_lpips_and_fvd_stand_beside_every_row_and_are_0_for_copies(
    models: tuple[Tokenizer, Flam], brightness_for_i3d: I3d, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    lpips = Lpips("vgg16")
    with torch.no_grad():
        for parameter in lpips.parameters():
            torch.nn.init.normal_(parameter, std=0.05).abs_()
    lpips.save(tmp_path / "lpips")
    monkeypatch.setattr(I3d, "load", lambda path: brightness_for_i3d)
    config = replace(
        EVALUATION, rollout_steps=9, lpips_weights=str(tmp_path / "lpips"), fvd_weights=str(tmp_path / "i3d")
    )
    still = torch.randint(0, 256, (4, 1, 16, 16, 3), dtype=torch.uint8).expand(-1, 11, -1, -1, -1)
    evaluation = evaluate_rollouts(*models, still, still[0, 0], config)
    rollout, tokenizer = evaluation.result["rollout"], evaluation.result["tokenizer"]
    assert rollout["copy_last_lpips"] == 0.0
    assert rollout["copy_last_fvd"] == pytest.approx(0.0, abs=1e-6)
    assert min(rollout["lpips"], rollout["shuffled_actions_lpips"], rollout["median_frame_lpips"]) > 0
    assert tokenizer["lpips"] > 0
    assert min(rollout["fvd"], tokenizer["fvd"], rollout["fvd_floor"]) > 0
    table = rollout_table(evaluation.result)
    assert "| LPIPS | FVD |" in table
    assert "| 100.00 | 1.000 | n/a | 0.0000 | 0.0 |" in next(
        line for line in table.splitlines() if "copy of the last" in line
    )


def test_weights_that_are_missing_stop_the_evaluation_at_once(
    models: tuple[Tokenizer, Flam], clips: Tensor, median_frame: Tensor, tmp_path: Path
) -> None:
    wanted = replace(EVALUATION, lpips_weights=str(tmp_path / "lpips.safetensors"))
    with pytest.raises(ConfigError, match=r"Expected a file of LPIPS weights at .*lpips\.safetensors, found none"):
        evaluate_rollouts(*models, clips, median_frame, wanted)
    Lpips("alexnet").save(tmp_path / "lpips.safetensors")
    with pytest.raises(ConfigError, match=r"31 x 31 pixels, got 16; use larger frames, or leave out evaluation\.lpips"):
        evaluate_rollouts(*models, clips, median_frame, wanted)


def test_actions_are_inferred_as_the_model_infers_them_in_use(
    models: tuple[Tokenizer, Flam], clips: Tensor, median_frame: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer, flam = models
    monkeypatch.setattr(flam, "config", replace(flam.config, history_frames=1))
    used: list[Tensor] = []

    def recorded(context: Tensor, actions: Tensor, quantize: Any) -> Rollout:
        used.append(actions)
        return Flam.rollout(flam, context, actions, quantize)

    monkeypatch.setattr(flam, "rollout", recorded)
    evaluate_rollouts(tokenizer, flam, clips, median_frame, replace(EVALUATION, batch_clips=5))
    features = tokenizer.lookup(_indices(tokenizer, clips))
    torch.testing.assert_close(used[0], flam.infer_actions(features))
    assert not torch.allclose(used[0], flam(features).action_mean)
