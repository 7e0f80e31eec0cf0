"""Slot health on masks whose fate is known."""

import numpy as np
import pytest

from flamscale.eval.slots import count_dead_slots, entity_owners, entity_swap_rate, slot_swap_rate

NOISE = np.random.default_rng(0)


def lasting_masks(num_clips: int = 8, num_frames: int = 20, num_slots: int = 4, num_tokens: int = 16) -> np.ndarray:
    """[M, T, K, N]: slots that hold the same tokens all the time, with some doubt."""
    hard = np.eye(num_slots)[np.arange(num_tokens) % num_slots].T
    masks = hard + 0.5 * NOISE.random((num_clips, num_frames, num_slots, num_tokens))
    return masks / masks.sum(axis=2, keepdims=True)


def test_a_slot_with_less_than_half_a_token_is_dead() -> None:
    assert count_dead_slots(np.array([0.5, 0.47, 0.03]), num_tokens=16) == 1
    assert count_dead_slots(np.array([0.5, 0.46, 0.04]), num_tokens=16) == 0


def test_slots_that_keep_their_tokens_are_never_swapped() -> None:
    assert slot_swap_rate(lasting_masks()) == 0.0


def test_slots_shuffled_in_every_frame_are_swapped_at_the_rate_of_chance() -> None:
    shuffled = NOISE.permuted(np.arange(4)[None].repeat(8 * 20, axis=0), axis=1).reshape(8, 20, 4, 1)
    rate = slot_swap_rate(np.take_along_axis(lasting_masks(), shuffled, axis=2))
    assert rate == pytest.approx(3 / 4, abs=0.06)


def test_one_exchange_of_two_slots_counts_once_for_each() -> None:
    masks = lasting_masks(num_clips=1, num_frames=11)
    masks[:, 6:] = masks[:, 6:, [1, 0, 2, 3]]
    assert slot_swap_rate(masks) == pytest.approx(2 / 4 / 10)


def test_an_entity_is_owned_by_the_slot_with_most_of_its_pixels() -> None:
    entity_map = np.full((1, 1, 2, 4), -1)
    entity_map[0, 0, :, 0], entity_map[0, 0, :, 3] = 0, 1
    masks = np.zeros((1, 1, 2, 2, 4))
    masks[0, 0, 1] = 0.4
    masks[0, 0, 1, :, 0] = 0.9
    masks[0, 0, 0] = 1.0 - masks[0, 0, 1]
    assert entity_owners(masks, entity_map, 2).tolist() == [[[1, 0]]]


def test_entities_that_change_their_slot_are_counted_step_by_step() -> None:
    assert entity_swap_rate(np.zeros((2, 5, 3), dtype=np.int64)) == 0.0
    owners = np.array([[[0, 1], [0, 1], [1, 0], [1, 0], [1, 2]]])
    assert entity_swap_rate(owners) == 3 / 8
