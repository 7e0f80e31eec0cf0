"""The Frechet distance against scipy's matrix root and by hand, and FVD of clips that are spoilt more and more."""

import math

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from torch import Tensor

from flamscale.config import EvaluationConfig
from flamscale.errors import ConfigError
from flamscale.eval.fvd import KINDS, FvdScores, frechet_distance
from flamscale.models.i3d import I3d


def features(count: int, width: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(width, width, generator=generator, dtype=torch.float64)
    shift = torch.randn(width, generator=generator, dtype=torch.float64)
    return torch.randn(count, width, generator=generator, dtype=torch.float64) @ mixed + shift


@pytest.mark.parametrize(("count", "other_count", "width"), [(50, 50, 5), (40, 90, 20)])
def test_the_distance_is_that_of_scipys_matrix_root(count: int, other_count: int, width: int) -> None:
    first, second = features(count, width, 0), features(other_count, width, 1)
    covariances = [np.cov(of.numpy(), rowvar=False) for of in (first, second)]
    shift = (first.mean(dim=0) - second.mean(dim=0)).square().sum().item()
    expected = shift + np.trace(sum(covariances) - 2.0 * sqrtm(covariances[0] @ covariances[1]).real)
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-9)


def test_fewer_clips_than_dimensions_are_no_matter() -> None:
    few = features(6, 30, 0)
    wide = torch.cat([few, torch.zeros(6, 70, dtype=torch.float64)], dim=1)
    assert frechet_distance(few, few) == pytest.approx(0.0, abs=1e-9)
    assert frechet_distance(wide, wide + 2.0) == pytest.approx(100 * 4.0)


def test_one_clip_and_diverged_ones_have_no_distance() -> None:
    assert math.isnan(frechet_distance(torch.zeros(1, 3), torch.zeros(5, 3)))
    assert math.isnan(frechet_distance(torch.zeros(5, 3), torch.full((5, 3), math.nan)))


def test_the_distance_of_two_normal_distributions_in_one_dimension() -> None:
    first, second = torch.tensor([[-1.0], [1.0]]), torch.tensor([[2.0], [8.0]])
    sigmas = 2.0**0.5, 18.0**0.5
    assert frechet_distance(first, second) == pytest.approx(5.0**2 + (sigmas[0] - sigmas[1]) ** 2)


def test_kinds_are_compared_with_the_truth_and_the_truth_with_itself(brightness_for_i3d: I3d) -> None:
    generator = torch.Generator().manual_seed(0)
    truth = torch.rand(12, 5, 3, 4, 4, generator=generator)
    scores = FvdScores(brightness_for_i3d)
    for batch in truth.split(4):
        still = (0.5 * batch[:, :1]).expand_as(batch)
        scores.add({"truth": batch, "tokenizer": batch, "prediction": 0.9 * batch, "copy_last": still})
    tokenizer, prediction, copy_last = (scores.distance(name) for name in ("tokenizer", "prediction", "copy_last"))
    assert set(KINDS) == {"tokenizer", "prediction", "copy_last"}
    assert tokenizer == pytest.approx(0.0, abs=1e-9)
    assert 0.001 < prediction < copy_last
    brightness = truth.mean(dim=(2, 3, 4))
    assert scores.floor() == pytest.approx(frechet_distance(brightness[::2], brightness[1::2]))


def test_too_short_rollouts_are_refused_before_anything_is_computed() -> None:
    with pytest.raises(ConfigError, match=r"rollout-steps must be at least 9 for FVD, got 8; predict more steps"):
        EvaluationConfig(rollout_steps=8, fvd_weights="i3d.safetensors")
