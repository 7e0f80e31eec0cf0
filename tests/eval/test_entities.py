"""The measures of slots against entities as a whole: slots that see agents perfectly, and ways to break them."""

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from flamscale.data.labels import LabelledClips
from flamscale.eval.entities import InferredFactors, infer_factors, measure_entities
from flamscale.eval.report import report_text
from flamscale.eval.rollout import RolloutEvaluation
from flamscale.models.flam import Flam
from flamscale.models.tokenizer import Tokenizer, to_images

SIDE, NUM_AGENTS, NUM_FRAMES, SIZE = 8, 3, 6, 16


def walks(num_clips: int, seed: int) -> LabelledClips:
    """Agents on rings of their own, a row each, that step by -1, 0 or 1 column: these are their actions."""
    rng = np.random.default_rng(seed)
    actions = rng.integers(-1, 2, (num_clips, NUM_FRAMES - 1, NUM_AGENTS))
    start = rng.integers(0, SIDE, (num_clips, 1, NUM_AGENTS))
    x = np.concatenate([start, start + actions.cumsum(axis=1)], axis=1) % SIDE
    y = np.broadcast_to(np.arange(NUM_AGENTS) + 2, x.shape)
    clip, frame, agent = np.indices(x.shape)
    tiles = np.full((num_clips, NUM_FRAMES, SIDE, SIDE), -1, dtype=np.int8)
    tiles[clip, frame, y, x] = agent
    return LabelledClips(
        frames=torch.zeros(num_clips, NUM_FRAMES, SIZE, SIZE, 3, dtype=torch.uint8),
        actions=actions,
        positions=(np.stack([x, y], axis=-1).astype(np.float32) + 0.5) * (SIZE // SIDE),
        cells=y * SIDE + x,
        entity_map=tiles.repeat(SIZE // SIDE, axis=2).repeat(SIZE // SIDE, axis=3),
    )


def perfect(clips: LabelledClips, seed: int) -> InferredFactors:
    """Slot k is agent k and its latent action that agent's; slot 3 is the rest of the scene."""
    assert clips.actions is not None
    noise = np.random.default_rng(seed)
    columns = np.eye(SIDE)[clips.cells % SIDE]
    slots = np.concatenate([columns, clips.positions / SIZE], axis=-1)
    slots = np.concatenate([slots, np.zeros_like(slots[:, :, :1])], axis=2)
    shown = np.eye(SIDE**2)[clips.cells]  # [M, T, E, N]
    masks = np.concatenate([shown, 1.0 - shown.sum(axis=2, keepdims=True)], axis=2)
    actions = np.concatenate([clips.actions, np.zeros_like(clips.actions[:, :, :1])], axis=2)[..., None]
    return InferredFactors(
        slots + 0.02 * noise.normal(size=slots.shape), masks, actions + 0.05 * noise.normal(size=actions.shape)
    )


def broken(factors: InferredFactors, how: str) -> InferredFactors:
    """Spoils perfect factors in one way."""
    rng = np.random.default_rng(9)
    if how == "frozen first frame":
        first = replace(factors, slots=factors.slots[:, :1], masks=factors.masks[:, :1])
        repeats = ((0, 0), (0, NUM_FRAMES - 1), (0, 0), (0, 0))
        return replace(factors, slots=np.pad(first.slots, repeats, "edge"), masks=np.pad(first.masks, repeats, "edge"))
    if how == "shuffled slots":
        order = rng.permuted(np.broadcast_to(np.arange(4), factors.slots.shape[:3]), axis=2)[..., None]
        slots, masks = (np.take_along_axis(of, order, axis=2) for of in (factors.slots, factors.masks))
        return replace(factors, slots=slots, masks=masks)
    if how == "one slot for all agents":
        masks = factors.masks.copy()
        masks[:, :, 0], masks[:, :, 1:3] = masks[:, :, :3].sum(axis=2), 0.0
        return replace(factors, masks=masks)
    assert how == "actions of other clips"
    return replace(factors, actions=np.roll(factors.actions, 7, axis=0))


def measured(how: str = "") -> dict[str, Any]:
    fitting, held_out = walks(80, seed=0), walks(60, seed=1)
    known, factors = perfect(fitting, seed=2), perfect(held_out, seed=3)
    if how:
        known, factors = broken(known, how), broken(factors, how)
    return measure_entities(known, fitting, factors, held_out)


@pytest.fixture(scope="module")
def best() -> dict[str, Any]:
    return measured()


def test_perfect_slots_get_the_best_of_every_measure(best: dict[str, Any]) -> None:
    assert best["dci_flam"]["informativeness"] > 0.99
    assert min(best["dci_eastwood_williams"].values()) > 0.9
    assert best["fg_ari"] == best["fg_ari_whole_clips"] == best["mean_iou"] == 1.0
    assert best["entity_swap_rate"] == 0.0
    assert best["action_information"] == pytest.approx(best["action_entropy"], abs=0.1)
    assert best["action_entropy"] == pytest.approx(math.log(3), abs=0.01)
    assert best["action_information_other_clips"] < 0.15
    assert best["probe_accuracy_commonest_cell"] < 0.25


def test_shuffled_slots_lose_dci_identity_and_whole_clips_but_no_single_frame(best: dict[str, Any]) -> None:
    worse = measured("shuffled slots")
    for form in ("dci_flam", "dci_eastwood_williams"):
        assert worse[form]["informativeness"] < best[form]["informativeness"] - 0.4
        assert worse[form]["completeness"] < best[form]["completeness"] / 4
    assert worse["fg_ari"] == 1.0
    assert worse["fg_ari_whole_clips"] < 0.3
    assert worse["entity_swap_rate"] == pytest.approx(3 / 4, abs=0.05)
    assert worse["slot_swap_rate"] > best["slot_swap_rate"] + 0.1


def test_a_frozen_first_frame_loses_positions_and_masks(best: dict[str, Any]) -> None:
    worse = measured("frozen first frame")
    for form in ("dci_flam", "dci_eastwood_williams"):
        assert worse[form]["informativeness"] < best[form]["informativeness"] - 0.3
    assert worse["fg_ari"] < 0.8
    assert worse["mean_iou"] < 0.8


def test_one_slot_for_all_agents_loses_the_segmentation_alone(best: dict[str, Any]) -> None:
    worse = measured("one slot for all agents")
    assert worse["fg_ari"] == 0.0
    assert worse["mean_iou"] == pytest.approx(1 / 9)
    assert worse["dci_flam"] == best["dci_flam"]


def test_actions_of_other_clips_lose_their_information_alone(best: dict[str, Any]) -> None:
    worse = measured("actions of other clips")
    assert worse["action_information"] < 0.15
    changed = {name for name in best if worse[name] != best[name]}
    assert changed <= {"action_information", "action_information_other_clips"}


def test_what_the_labels_do_not_tell_is_left_out() -> None:
    fitting, held_out = (replace(walks(20, seed), actions=None, entity_map=None) for seed in (0, 1))
    result = measure_entities(perfect(walks(20, 0), 2), fitting, perfect(walks(20, 1), 3), held_out)
    assert not {"action_information", "fg_ari", "mean_iou", "entity_swap_rate"} & result.keys()
    assert result["dci_flam"]["informativeness"] > 0.5


def test_factors_are_those_of_the_models_in_batches_of_any_size(models: tuple[Tokenizer, Flam], clips: Tensor) -> None:
    tokenizer, flam = models
    factors = infer_factors(tokenizer, flam, clips, batch_clips=2)
    with torch.inference_mode():
        output = flam(tokenizer.lookup(tokenizer.encode(to_images(clips)).unflatten(0, clips.shape[:2])))
    assert factors.slots == pytest.approx(output.slots.numpy(), abs=1e-5)
    assert factors.masks == pytest.approx(output.masks.numpy(), abs=1e-5)
    assert factors.actions == pytest.approx(output.action_mean.numpy(), abs=1e-5)


def test_the_report_tells_which_dci_is_which(best: dict[str, Any], evaluation: RolloutEvaluation) -> None:
    result = json.loads(json.dumps(evaluation.result | {"entities": best}))
    text = report_text(result, settings={}, command="", pictures=[])
    for form, name in (("dci_flam", "FLAM: a linear probe"), ("dci_eastwood_williams", "Eastwood and Williams")):
        assert f"{best[form]['disentanglement']:.3f} | {best[form]['completeness']:.3f}" in next(
            line for line in text.splitlines() if line.startswith(f"| {name}")
        )
    assert "| FG-ARI, frame by frame | 1.000 |" in text
