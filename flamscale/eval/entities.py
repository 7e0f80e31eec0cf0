"""Slots and latent actions against what a simulator knew: models and labelled clips in; a dict of numbers out."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor, cat

from flamscale.config import EvaluationConfig
from flamscale.data.labels import LabelledClips
from flamscale.eval.factors import action_entropy, action_information, fit_importances, fit_probes, match
from flamscale.eval.inference import batches, device_of, evaluation_mode
from flamscale.eval.segmentation import foreground_ari, mean_iou, to_pixels
from flamscale.eval.slots import entity_owners, entity_swap_rate, slot_swap_rate
from flamscale.models.tokenizer import Tokenizer, to_images
from flamscale.models.world_model import WorldModel


@dataclass(frozen=True)
class InferredFactors:
    """What FLAM makes of M true clips: slots, their masks, and the means of their latent actions."""

    slots: Float[np.ndarray, "M T K D"]
    masks: Float[np.ndarray, "M T K N"]
    actions: Float[np.ndarray, "M L K A"]


def evaluate_entities(
    tokenizer: Tokenizer, flam: WorldModel, fitting: LabelledClips, held_out: LabelledClips, config: EvaluationConfig
) -> dict[str, Any]:
    """Measures how slots and latent actions stand for entities; see `measure_entities`.

    Args:
        tokenizer, flam: the trained models, on one device.
        fitting: clips of the training split, which the linear probes are fitted on.
        held_out: clips that all numbers are of.
        config: how many clips to put through the models at once.
    """
    known, factors = (infer_factors(tokenizer, flam, clips.frames, config.batch_clips) for clips in (fitting, held_out))
    return measure_entities(known, fitting, factors, held_out)


def measure_entities(
    known: InferredFactors, fitting: LabelledClips, factors: InferredFactors, held_out: LabelledClips
) -> dict[str, Any]:
    """Returns DCI, information of actions and segmentation, as far as labels go; numbers are of the held-out clips.

    Args:
        known, fitting: factors and labels of the clips that linear probes are fitted on.
        factors, held_out: those of the held-out clips.

    Raises:
        DataError: an entity never leaves its cell.
    """
    result: dict[str, Any] = {
        "num_clips": len(held_out.frames),
        "num_probe_clips": len(fitting.frames),
        "num_entities": held_out.cells.shape[2],
        "clip_frames": held_out.frames.shape[1],
        **_dci_result(known, fitting, factors, held_out),
        "slot_swap_rate": slot_swap_rate(factors.masks),
    }
    if held_out.actions is not None:
        result |= _action_result(factors, held_out.actions)
    if held_out.entity_map is not None:
        result |= _segmentation_result(factors, held_out.entity_map)
    return result


def infer_factors(tokenizer: Tokenizer, flam: WorldModel, clips: Tensor, batch_clips: int) -> InferredFactors:
    """Runs tokenizer, factorizer and IDM over uint8 clips [M, T, H, W, 3]."""
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    with evaluation_mode(tokenizer, flam):
        for batch in batches(len(clips), batch_clips):
            frames = clips[batch].to(device_of(flam))
            indices = tokenizer.encode(to_images(frames)).unflatten(0, frames.shape[:2])
            output = flam(tokenizer.lookup(indices))
            slots, actions = output.slots, output.action_mean
            if output.selection is not None:  # a dropped slot takes no part, whatever it is
                kept = output.selection.kept.unsqueeze(-1)  # [B, 1, K, 1]
                slots, actions = slots * kept, actions * kept
            parts.append((slots, output.masks, actions))
    return InferredFactors(*(cat(of).double().cpu().numpy() for of in zip(*parts, strict=True)))


def _dci_result(
    known: InferredFactors, fitting: LabelledClips, factors: InferredFactors, held_out: LabelledClips
) -> dict[str, Any]:
    slots, held_out_slots = _frames(known.slots), _frames(factors.slots)
    cells, held_out_cells = _frames(fitting.cells), _frames(held_out.cells)
    probes = fit_probes(slots, cells, held_out_slots, held_out_cells)
    importances = fit_importances(slots, _frames(fitting.positions), held_out_slots, _frames(held_out.positions))
    commonest = [np.bincount(of_entity).argmax() for of_entity in cells.T]
    return {
        "dci_flam": asdict(probes.dci()),
        "dci_eastwood_williams": asdict(importances.dci()),
        "probe_accuracy": probes.accuracy.tolist(),
        "probe_accuracy_commonest_cell": float((held_out_cells == commonest).mean()),
    }


def _action_result(factors: InferredFactors, actions: np.ndarray) -> dict[str, Any]:
    latents, true_actions = _frames(factors.actions), _frames(actions)
    information = action_information(latents, true_actions)
    of_others = action_information(latents, _frames(np.roll(actions, len(actions) // 2, axis=0)))
    return {
        "action_information": float(information[match(information)].mean()),
        "action_information_other_clips": float(of_others[match(of_others)].mean()),
        "action_entropy": float(action_entropy(true_actions).mean()),
    }


def _segmentation_result(factors: InferredFactors, entity_map: np.ndarray) -> dict[str, Any]:
    num_slots, size = factors.masks.shape[2], entity_map.shape[-1]
    owners = to_pixels(factors.masks.argmax(axis=2), size)  # [M, T, H, W]
    frames, clips = (-1, size * size), (len(owners), -1)
    num_entities = int(entity_map.max()) + 1
    return {
        "fg_ari": float(np.nanmean(foreground_ari(owners.reshape(frames), entity_map.reshape(frames)))),
        "fg_ari_whole_clips": float(np.nanmean(foreground_ari(owners.reshape(clips), entity_map.reshape(clips)))),
        "mean_iou": float(np.nanmean(mean_iou(owners.reshape(frames), entity_map.reshape(frames), num_slots))),
        "entity_swap_rate": entity_swap_rate(entity_owners(to_pixels(factors.masks, size), entity_map, num_entities)),
    }


def _frames(values: np.ndarray) -> np.ndarray:
    """Joins clips and frames: [M, T, ...] to [M * T, ...]."""
    return values.reshape(-1, *values.shape[2:])
