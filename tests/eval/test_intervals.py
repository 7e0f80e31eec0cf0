"""Confidence intervals of means over clips."""

import math

import numpy as np
import pytest
import torch

from flamscale.eval.intervals import bootstrap_interval


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
