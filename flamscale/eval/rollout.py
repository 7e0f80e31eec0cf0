"""Rollouts on held-out clips: tokenizer, FLAM and true clips in; a dict of numbers and the frames of a few clips out.

The latent actions are inferred from the true clip (`Flam.infer_actions`), or stand for its true actions; the prediction
sees the context frames and these alone, and every predicted frame is quantised before it is fed back (Section 4.3,
arXiv 2602.16229).
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from flamscale.config import EvaluationConfig
from flamscale.errors import DataError
from flamscale.eval.fvd import FvdScores
from flamscale.eval.inference import batches, device_of, evaluation_mode
from flamscale.eval.intervals import bootstrap_interval
from flamscale.eval.metrics import FrameScores, codebook_usage, mean, moving_pixels
from flamscale.eval.networks import MeasuringNetworks
from flamscale.eval.slots import count_dead_slots
from flamscale.models.tokenizer import Tokenizer, to_images
from flamscale.models.world_model import Rollout, WorldModel


@dataclass(frozen=True)
class RolloutPictures:
    """What the pictures show of a few clips: T = T0 + S frames each, on the CPU.

    Attributes:
        truth: true frames.
        prediction: the S predicted frames.
        masks: how each of the h x w tokens of the T0 true and S predicted frames is shared among the slots.
        psnr: PSNR of every predicted frame (dB).
    """

    truth: UInt8[Tensor, "P T H W 3"]
    prediction: UInt8[Tensor, "P S H W 3"]
    masks: Float[Tensor, "P T K h w"]
    psnr: Float[Tensor, "P S"]

    @property
    def num_context(self) -> int:
        """Context frames T0."""
        return self.truth.shape[1] - self.prediction.shape[1]


@dataclass(frozen=True)
class RolloutEvaluation:
    """All numbers, in the form of result.json, and the pictured clips."""

    result: dict[str, Any]
    pictures: RolloutPictures


def evaluate_rollouts(
    tokenizer: Tokenizer,
    flam: WorldModel,
    clips: UInt8[Tensor, "M T H W 3"],
    median_frame: UInt8[Tensor, "H W 3"],
    config: EvaluationConfig,
    true_actions: Int[Tensor, "M L E"] | None = None,
) -> RolloutEvaluation:
    """Rolls FLAM out on held-out clips and scores it beside its baselines and the tokenizer's own reconstruction.

    Args:
        tokenizer, flam: the trained models, on one device; computed with `config.batch_clips` clips at a time.
        clips: M >= 2 true clips of T = context_frames + rollout_steps frames.
        median_frame: per-pixel median of training frames: the scene without its moving parts.
        config: context, horizon, and how many clips to picture.
        true_actions: those of the clips, for a model that takes them and infers none.

    Raises:
        DataError: fewer than two clips, or clips of another length.
        FlamError: weights for LPIPS or FVD are wanted, and not there or not the right ones.
    """
    _check_clips(clips, config)
    networks = MeasuringNetworks.load(config, clips.shape[2], device_of(flam))
    fvd = FvdScores(networks.i3d) if networks.i3d else None
    with evaluation_mode(tokenizer, flam):
        indices, actions, factors = _infer(tokenizer, flam, clips, config, true_actions)
        # Another clip's actions for every clip. Half the clips away, since neighbours may overlap in time.
        shuffled = actions.roll(len(clips) // 2, dims=0)
        names = ("prediction", "shuffled", "copy_last", "median_frame", "tokenizer")
        scores = {name: FrameScores(networks.lpips) for name in names}
        moving_shares, predictions, masks = [], [], []
        pictured = torch.linspace(0, len(clips) - 1, config.num_pictures).round().long().unique()
        for batch in batches(len(clips), config.batch_clips):
            images, rollout = _predict(
                tokenizer, flam, clips[batch], indices[batch], actions[batch], shuffled[batch], config.context_frames
            )
            if fvd is not None:
                fvd.add(images)
            truth, last = images.pop("truth"), images["copy_last"][:, 0]
            images["median_frame"] = to_images(median_frame[None].to(truth.device)).expand_as(truth)
            moving = moving_pixels(truth, last)
            for name, score in scores.items():
                score.add(images[name], truth, moving)
            moving_shares.append(moving.float().mean(dim=(1, 2, 3)).cpu())
            chosen = pictured[(pictured >= batch.start) & (pictured < batch.stop)] - batch.start
            predictions.append(images["prediction"][chosen].cpu())
            masks.append(rollout.masks[chosen].cpu())
    result = {
        "rollout": _rollout_result(scores, mean(moving_shares), len(clips), config)
        | {"true_actions": true_actions is not None},
        "tokenizer": scores["tokenizer"].means() | _codebook_result(indices, tokenizer.fsq.codebook_size),
        "factors": factors,
        "by_clip": {name: score.by_clip() for name, score in scores.items()},
        "timings": {},
    }
    if fvd is not None:
        _add_fvd(result, fvd)
    pictures = RolloutPictures(
        truth=clips[pictured],
        prediction=torch.cat(predictions).mul(255.0).round().to(torch.uint8).movedim(2, -1),
        masks=torch.cat(masks).unflatten(-1, (math.isqrt(masks[0].shape[-1]), -1)),
        psnr=torch.cat(scores["prediction"].psnr)[pictured],
    )
    return RolloutEvaluation(result, pictures)


def _check_clips(clips: Tensor, config: EvaluationConfig) -> None:
    needed = config.context_frames + config.rollout_steps
    if len(clips) < 2:
        raise DataError(
            f"Evaluation needs at least 2 held-out clips of {needed} frames, to swap their actions, found "
            f"{len(clips)}; make more or longer episodes, or lower evaluation.rollout-steps."
        )
    if clips.shape[1] != needed:
        raise DataError(
            f"Evaluation needs clips of context-frames + rollout-steps = {needed} frames, found {clips.shape[1]}."
        )


def _infer(
    tokenizer: Tokenizer, flam: WorldModel, clips: Tensor, config: EvaluationConfig, true_actions: Tensor | None
) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Returns the true clips' codebook indices [M, T, N] and latent actions [M, T-1, K, A], and the factor measures."""
    indices, actions, kl, masks_mean, entropy, codes, kept = [], [], [], [], [], [], []
    for batch in batches(len(clips), config.batch_clips):
        frames = clips[batch].to(device_of(flam))
        indices.append(tokenizer.encode(to_images(frames)).unflatten(0, frames.shape[:2]))
        features = tokenizer.lookup(indices[-1])
        given = None if true_actions is None else true_actions[batch].to(frames.device)
        output = flam(features, actions=given)
        actions.append(flam.infer_actions(features) if given is None else output.actions)
        if output.action_codes is not None:
            codes.append(output.action_codes)
        if output.selection is not None:
            kept.append(output.selection.kept.sum(dim=(1, 2)).cpu())  # [B]
        kl.append(output.kl.double().mean(dim=1).cpu())  # [B, K]
        masks = output.masks.double()
        masks_mean.append(masks.mean(dim=(1, 3)).cpu())  # [B, K]
        entropy.append(torch.special.entr(masks).sum(dim=2).mean(dim=(1, 2)).cpu())  # [B]
    slot_mass = torch.cat(masks_mean).mean(dim=0)
    num_tokens = indices[0].shape[-1]
    factor_kl = torch.cat(kl).mean(dim=0)
    factors = {
        "kl": factor_kl.tolist(),
        "kl_total": float(factor_kl.sum()),
        "slot_mass": slot_mass.tolist(),
        "dead_slot_mass": float(slot_mass.min()) * len(slot_mass),
        "dead_slots": count_dead_slots(slot_mass.numpy(), num_tokens),
        "assignment_entropy": mean(entropy),
        "max_assignment_entropy": math.log(len(slot_mass)),
    }
    if codes:
        used, perplexity = codebook_usage(torch.cat(codes), math.prod(flam.config.action_levels))
        factors |= {"action_codes_used": used, "action_perplexity": perplexity}
    if kept:
        counts = torch.cat(kept).round().long()
        factors |= {
            "slots_kept": mean([counts]),
            "slots_kept_clips": counts.bincount(minlength=len(slot_mass) + 1).tolist(),
        }
    return torch.cat(indices), torch.cat(actions), factors


def _predict(
    tokenizer: Tokenizer,
    flam: WorldModel,
    clips: Tensor,
    indices: Tensor,
    actions: Tensor,
    shuffled: Tensor,
    num_context: int,
) -> tuple[dict[str, Tensor], Rollout]:
    """Returns images [B, S, 3, H, W] of every kind, truth among them, and the rollout with the clips' own actions."""
    video = to_images(clips.to(device_of(flam))).unflatten(0, clips.shape[:2])
    features = tokenizer.lookup(indices)
    rollout = flam.rollout(features[:, :num_context], actions, tokenizer.quantize)
    with_others = flam.rollout(features[:, :num_context], shuffled, tokenizer.quantize)
    truth = video[:, num_context:]
    images = {
        "truth": truth,
        "prediction": _decode(tokenizer, rollout.features),
        "shuffled": _decode(tokenizer, with_others.features),
        "copy_last": video[:, num_context - 1, None].expand_as(truth),
        "tokenizer": _decode(tokenizer, features[:, num_context:]),
    }
    return images, rollout


def _rollout_result(
    scores: dict[str, FrameScores], moving_share: float, num_clips: int, config: EvaluationConfig
) -> dict[str, Any]:
    prediction, shuffled = scores["prediction"].means(), scores["shuffled"].means("shuffled_actions_")
    baselines = scores["copy_last"].means("copy_last_") | scores["median_frame"].means("median_frame_")
    best_baseline = max(baselines["copy_last_psnr"], baselines["median_frame_psnr"])
    return {
        **prediction,
        **baselines,
        **shuffled,
        "gain_over_best_baseline_db": prediction["psnr"] - best_baseline,
        "shuffled_actions_drop_db": prediction["psnr"] - shuffled["shuffled_actions_psnr"],
        "psnr_interval": list(bootstrap_interval(scores["prediction"].psnr_by_clip())),
        "ssim_interval": list(bootstrap_interval(scores["prediction"].ssim_by_clip())),
        "psnr_by_step": scores["prediction"].psnr_by_step(),
        "copy_last_psnr_by_step": scores["copy_last"].psnr_by_step(),
        "median_frame_psnr_by_step": scores["median_frame"].psnr_by_step(),
        "shuffled_actions_psnr_by_step": scores["shuffled"].psnr_by_step(),
        "moving_pixel_share": moving_share,
        "num_clips": num_clips,
        "context_frames": config.context_frames,
        "rollout_steps": config.rollout_steps,
        "frame_stride": config.frame_stride,
    }


def _add_fvd(result: dict[str, Any], fvd: FvdScores) -> None:
    result["rollout"]["fvd"] = fvd.distance("prediction")
    result["rollout"]["copy_last_fvd"] = fvd.distance("copy_last")
    result["rollout"]["fvd_floor"] = fvd.floor()
    result["tokenizer"]["fvd"] = fvd.distance("tokenizer")


def _codebook_result(indices: Int[Tensor, "M T N"], codebook_size: int) -> dict[str, Any]:
    used, perplexity = codebook_usage(indices, codebook_size)
    return {"codebook_size": codebook_size, "codebook_used": used, "codebook_perplexity": perplexity}


def _decode(tokenizer: Tokenizer, features: Float[Tensor, "B S N C"]) -> Float[Tensor, "B S 3 H W"]:
    return tokenizer.decode(features.flatten(0, 1)).unflatten(0, features.shape[:2])
