"""Confidence intervals of means over clips."""

import math

import numpy as np
import pytest
import torch

from flamscale.eval.intervals import bootstrap_interval, crossed_interval


def draws(num_clips: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(30.0, 2.0, num_clips))


def test_the_interval_is_about_that_of_the_normal_distribution() -> None:
    values = draws(400)
    low, high = bootstrap_interval(values)
    half = 1.96 * float(values.std()) / math.sqrt(len(values))
    assert low == pytest.approx(float(values.mean()) - half, abs=0.1 * half)
    assert high == pytest.approx(float(values.mean()) + half, abs=0.1 * half)


def test_95_of_100_intervals_hold_the_true_mean() -> None:
    intervals = [bootstrap_interval(draws(60, seed)) for seed in range(100)]
    assert 90 <= sum(low <= 30.0 <= high for low, high in intervals) <= 99


def test_it_is_the_same_every_time_and_narrower_at_a_lower_level() -> None:
    values = draws(50)
    assert bootstrap_interval(values) == bootstrap_interval(values)
    assert bootstrap_interval(values) != bootstrap_interval(values, seed=1)
    (low, high), (low_half, high_half) = bootstrap_interval(values), bootstrap_interval(values, level=0.5)
    assert low < low_half < high_half < high


def test_equal_clips_leave_no_doubt_and_a_diverged_one_leaves_no_interval() -> None:
    assert bootstrap_interval(torch.full((5,), 22.5)) == (22.5, 22.5)
    assert all(math.isnan(bound) for bound in bootstrap_interval(torch.tensor([1.0, math.nan])))


def test_over_runs_and_clips_it_is_as_wide_as_either_makes_the_mean() -> None:
    """Without spread between runs it is that over clips, without spread between clips that over runs."""
    clips = draws(400)
    low, high = bootstrap_interval(clips)
    assert crossed_interval(np.stack([clips] * 3)) == pytest.approx((low, high), abs=0.1 * (high - low))
    assert crossed_interval(np.stack([clips] * 3, axis=1)) == pytest.approx((low, high), abs=0.1 * (high - low))


def test_95_of_100_intervals_over_runs_and_clips_hold_the_true_mean() -> None:
    found = []
    for seed in range(100):
        rng = np.random.default_rng(seed)
        values = 30.0 + rng.normal(0, 1, (40, 1)) + rng.normal(0, 1, (1, 40)) + rng.normal(0, 1, (40, 40))
        found.append(crossed_interval(values))
    assert 90 <= sum(low <= 30.0 <= high for low, high in found) <= 100


def test_over_runs_and_clips_of_two_it_is_that_computed_by_hand() -> None:
    """One run, clips of 0 and 2: resamples have the means 0, 1, 2 with probabilities 1/4, 1/2, 1/4."""
    assert crossed_interval(np.array([[0.0, 2.0]])) == (0.0, 2.0)
    assert crossed_interval(np.array([[0.0, 2.0]]), level=0.3) == (1.0, 1.0)


def test_a_single_number_and_a_diverged_clip_leave_no_interval_over_runs_and_clips() -> None:
    assert all(math.isnan(bound) for bound in crossed_interval(np.array([[1.0]])))
    assert all(math.isnan(bound) for bound in crossed_interval(np.array([[1.0, math.nan]])))
