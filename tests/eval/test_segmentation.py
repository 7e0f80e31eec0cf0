"""FG-ARI and mean IoU of scenes counted by hand."""

from math import comb, isnan

import numpy as np
import pytest

from flamscale.eval.segmentation import foreground_ari, mean_iou, to_pixels

TRUTH = np.array([[-1, -1, -1, -1, 0, 0, 0, 1, 1, 1]])


def test_a_slot_for_each_entity_scores_one_whatever_the_background_holds() -> None:
    slots = np.array([[0, 1, 2, 0, 2, 2, 2, 0, 0, 0]])
    assert foreground_ari(slots, TRUTH).tolist() == [1.0]
    assert foreground_ari(np.zeros_like(slots), TRUTH).tolist() == [0.0]


def test_fg_ari_is_that_of_the_contingency_table() -> None:
    rng = np.random.default_rng(0)
    slots, truth = rng.integers(0, 3, (20, 60)), rng.integers(-1, 3, (20, 60))
    truth[:, :20] = slots[:, :20]  # some agreement
    expected = []
    for found, true in zip(slots, truth, strict=True):
        table = np.array([[((found == k) & (true == e)).sum() for e in range(3)] for k in range(3)])
        pairs = sum(comb(int(n), 2) for n in table.ravel())
        rows, columns = (sum(comb(int(n), 2) for n in table.sum(axis=axis)) for axis in (1, 0))
        chance = rows * columns / comb(int(table.sum()), 2)
        expected.append((pairs - chance) / ((rows + columns) / 2 - chance))
    assert foreground_ari(slots, truth).tolist() == pytest.approx(expected)


def test_slots_at_random_score_about_zero() -> None:
    rng = np.random.default_rng(1)
    scores = foreground_ari(rng.integers(0, 4, (50, 400)), rng.integers(-1, 4, (50, 400)))
    assert abs(scores.mean()) < 0.01


def test_mean_iou_of_a_scene_counted_by_hand() -> None:
    slots = np.array([[0, 0, 0, 0, 1, 1, 0, 2, 2, 2]])
    assert mean_iou(slots, TRUTH, num_slots=3).tolist() == pytest.approx([(2 / 3 + 1) / 2])


def test_background_in_a_slot_and_entities_without_one_lower_mean_iou() -> None:
    with_background = np.array([[1, 1, 1, 0, 1, 1, 1, 2, 2, 2]])
    assert mean_iou(with_background, TRUTH, num_slots=3).tolist() == pytest.approx([(3 / 6 + 1) / 2])
    one_slot = np.array([[1, 1, 1, 1, 0, 0, 0, 0, 0, 0]])
    assert mean_iou(one_slot, TRUTH, num_slots=1).tolist() == pytest.approx([(3 / 6 + 0) / 2])


def test_mean_iou_does_not_depend_on_the_names_of_slots() -> None:
    rng = np.random.default_rng(2)
    slots, truth = rng.integers(0, 5, (10, 100)), rng.integers(-1, 4, (10, 100))
    assert mean_iou(rng.permutation(5)[slots], truth, 5).tolist() == pytest.approx(mean_iou(slots, truth, 5).tolist())


def test_slots_that_trade_entities_lose_the_whole_clip_but_no_frame() -> None:
    slots = np.where(TRUTH < 0, 2, TRUTH)
    frames, truth = np.concatenate([slots, np.array([1, 0, 2])[slots]]), TRUTH.repeat(2, axis=0)
    assert foreground_ari(frames, truth).tolist() == [1.0, 1.0]
    assert foreground_ari(frames.reshape(1, -1), truth.reshape(1, -1))[0] < 0.01
    assert mean_iou(frames.reshape(1, -1), truth.reshape(1, -1), 3)[0] < 0.4


def test_a_scene_without_entities_has_no_score() -> None:
    nothing = np.full((1, 4), -1)
    assert isnan(foreground_ari(np.zeros((1, 4), dtype=np.int64), nothing)[0])
    assert isnan(mean_iou(np.zeros((1, 4), dtype=np.int64), nothing, 2)[0])


def test_a_token_covers_its_square_of_pixels() -> None:
    pixels = to_pixels(np.arange(4.0)[None], size=4)
    assert pixels[0].tolist() == [[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3], [2, 2, 3, 3]]
