"""Laws of loss: known exponents come back, published ones agree, and points that carry no law are refused."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import minimize

from flamscale.errors import FitError
from flamscale.scaling import robust
from flamscale.scaling.fit import LossLaw, fit_law, predict_held_out

NOISE = 0.01  # standard deviation of a loss's logarithm


def one_size(seed: int, num_sizes: int = 6, num_seeds: int = 2, noise: float = NOISE):
    clips = np.repeat(np.geomspace(1e3, 1e6, num_sizes), num_seeds)
    return {"clips": clips}, noisy(0.1 + 3 * clips**-0.3, seed, noise)


def two_sizes(seed: int, noise: float = NOISE):
    parameters, clips = (grid.ravel() for grid in np.meshgrid(np.geomspace(1e5, 1e8, 6), np.geomspace(1e4, 1e7, 6)))
    return {"parameters": parameters, "clips": clips}, noisy(
        1.7 + 40 * parameters**-0.34 + 30 * clips**-0.37, seed, noise
    )


def noisy(loss: np.ndarray, seed: int, noise: float) -> np.ndarray:
    return loss * np.exp(np.random.default_rng(seed).normal(0, noise, len(loss)))


@pytest.fixture(scope="module")
def chinchilla() -> LossLaw:
    """Fitted as published: without the five largest losses."""
    millions, exaflop, loss = np.loadtxt(
        Path(__file__).with_name("chinchilla.csv"), delimiter=",", skiprows=3, unpack=True
    )
    kept = loss < np.sort(loss)[-5]
    parameters, flops = 1e6 * millions[kept], 1e18 * exaflop[kept]
    return fit_law({"parameters": parameters, "tokens": flops / (6 * parameters)}, loss[kept])


def test_without_noise_the_law_comes_back_exactly():
    law = fit_law(*two_sizes(0, noise=0.0))
    assert law.irreducible.value == pytest.approx(1.7, rel=1e-3)
    assert law.coefficient("parameters").value == pytest.approx(40, rel=1e-2)
    assert law.exponent("parameters").value == pytest.approx(0.34, rel=1e-3)
    assert law.exponent("clips").value == pytest.approx(0.37, rel=1e-3)
    assert law.compute_exponent("parameters").value == pytest.approx(0.37 / 0.71, rel=1e-3)
    assert law.compute_exponent("clips").value == pytest.approx(0.34 / 0.71, rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("num_sizes", [4, 6])
def test_90_or_more_of_100_intervals_hold_the_true_exponent_and_irreducible_loss_of_one_size(num_sizes):
    laws = [fit_law(*one_size(seed, num_sizes)) for seed in range(100)]
    assert sum(law.exponent("clips").holds(0.3) for law in laws) >= 90
    assert sum(law.irreducible.holds(0.1) for law in laws) >= 90


@pytest.mark.slow
def test_90_or_more_of_100_intervals_hold_each_true_exponent_of_two_sizes():
    laws = [fit_law(*two_sizes(seed)) for seed in range(100)]
    for name, exponent in (("parameters", 0.34), ("clips", 0.37)):
        assert sum(law.exponent(name).holds(exponent) for law in laws) >= 90
        assert np.median([law.exponent(name).high - law.exponent(name).low for law in laws]) < 0.15


def test_the_published_chinchilla_table_gives_the_published_parameters_within_their_errors(chinchilla):
    """Besiroglu et al., arXiv 2404.10102, Table 1: estimates and standard errors."""
    for found, published, error in (
        (chinchilla.irreducible, 1.8172, 0.03),
        (chinchilla.coefficient("parameters"), 482.01, 124.58),
        (chinchilla.coefficient("tokens"), 2085.43, 1293.23),
        (chinchilla.exponent("parameters"), 0.3478, 0.02),
        (chinchilla.exponent("tokens"), 0.3658, 0.02),
    ):
        assert abs(found.value - published) < 0.2 * error
        assert (found.high - found.low) / (2 * 1.96) == pytest.approx(error, rel=0.5)


def test_the_published_table_says_that_parameters_and_tokens_grow_alike(chinchilla):
    """Besiroglu et al.: parameters grow with compute to the power of 0.51."""
    assert chinchilla.compute_exponent("parameters").value == pytest.approx(0.513, abs=0.005)
    assert chinchilla.compute_exponent("parameters").holds(0.5)


def test_no_other_optimiser_finds_a_smaller_error():
    sizes, loss = two_sizes(1)
    log_sizes, log_loss = np.log(np.stack(list(sizes.values()), axis=1)), np.log(loss)
    log_sizes -= log_sizes.mean(axis=0)

    def error(parameters: np.ndarray) -> float:
        residuals = np.abs(robust.log_losses(parameters, log_sizes) - log_loss)
        return float(np.where(residuals < 1e-3, residuals**2 / 2e-3, residuals - 5e-4).sum())

    found = robust.fit(log_sizes, log_loss, delta=1e-3)
    other = minimize(error, found, method="Nelder-Mead", options={"maxiter": 20_000, "xatol": 1e-10, "fatol": 1e-12})
    assert error(found) <= other.fun * (1 + 1e-4)


def test_a_resample_is_fitted_as_if_it_were_the_data():
    sizes, loss = two_sizes(2)
    log_sizes, log_loss = np.log(np.stack(list(sizes.values()), axis=1)), np.log(loss)
    log_sizes -= log_sizes.mean(axis=0)
    counts = np.random.default_rng(0).multinomial(36, np.full(36, 1 / 36), size=5)
    fitted = robust.fit(log_sizes, log_loss, delta=1e-3)
    together = robust.refit(fitted, log_sizes, log_loss, counts.astype(float), delta=1e-3)
    for row, times in zip(together, counts, strict=True):
        alone = robust.fit(np.repeat(log_sizes, times, axis=0), np.repeat(log_loss, times), delta=1e-3)
        assert row == pytest.approx(alone, abs=0.02)


def test_one_run_that_went_wrong_moves_the_exponent_little():
    sizes, loss = two_sizes(3)
    spoilt = loss.copy()
    spoilt[7] *= 2
    whole, robbed = (fit_law(sizes, values).exponent("clips").value for values in (loss, spoilt))
    assert robbed == pytest.approx(whole, abs=0.02)


def test_the_same_runs_give_the_same_intervals():
    assert fit_law(*one_size(0)).exponent("clips") == fit_law(*one_size(0)).exponent("clips")
    assert fit_law(*one_size(0)).exponent("clips") != fit_law(*one_size(0), seed=1).exponent("clips")


def test_held_out_runs_are_predicted_from_the_others_alone():
    sizes, loss = two_sizes(5)
    is_held_out = sizes["clips"] == sizes["clips"].max()
    found = predict_held_out(sizes, loss, is_held_out)
    assert len(found.predicted) == len(found.measured) == 6
    assert abs(found.mean_error) < 0.02
    assert abs(found.mean_error) < abs(found.worst_error) < 0.05
    spoilt = predict_held_out(sizes, np.where(is_held_out, 10 * loss, loss), is_held_out)
    assert spoilt.predicted == found.predicted
    assert spoilt.mean_error == pytest.approx((1 + found.mean_error) / 10 - 1)


def test_the_worst_error_is_the_one_farthest_from_0_with_its_sign():
    sizes, loss = one_size(5, num_sizes=7, noise=0.0)
    is_held_out = sizes["clips"] == sizes["clips"].max()
    found = predict_held_out(sizes, loss, is_held_out)
    spoilt = replace(found, measured=found.measured * [1.05, 1.25])
    assert spoilt.errors == pytest.approx([1 / 1.05 - 1, 1 / 1.25 - 1], abs=1e-3)
    assert spoilt.worst_error == pytest.approx(-0.2, abs=1e-3)


@pytest.mark.parametrize(
    ("sizes", "loss", "said"),
    [
        (
            [1e3, 1e4, 1e5, 1e6],
            [4.0, 3.0, 2.5, 2.2],
            r"has 3 parameters and needs 5 runs or more, found 4; add runs\.$",
        ),
        ([1e3, 1e3, 1e4, 1e4, 1e5], [4, 4, 3, 3, 2.5], r"4 or more different clips .* found 3 over a factor of 100;"),
        ([1e3, 1.1e3, 1.2e3, 1.3e3, 1.4e3], [4, 3.9, 3.8, 3.7, 3.6], r"span a factor of 4, found 5 over .* of 1\.4;"),
        ([1e3, 1e4, 1e5, 1e6, 1e7], [4, 3, np.nan, 2, 1.9], r"Every loss must be a number above 0, found nan;"),
        ([1e3, 1e4, 1e5, 1e6, 1e7, 1e8], [3, 3.1, 2.9, 3.1, 2.9, 3.05], r"should fall with clips, and these 6 runs do"),
    ],
    ids=["too few", "too few sizes", "no spread", "diverged", "no trend"],
)
def test_points_that_carry_no_law_are_refused(sizes, loss, said):
    with pytest.raises(FitError, match=said):
        fit_law({"clips": np.array(sizes)}, np.array(loss, dtype=float))


def test_two_sizes_that_grow_together_are_refused():
    parameters = np.repeat(np.geomspace(1e5, 1e8, 5), 2)
    with pytest.raises(FitError, match=r"parameters and clips change together in these runs \(correlation 1\.000"):
        fit_law({"parameters": parameters, "clips": 20 * parameters}, 1.7 + 40 * parameters**-0.34)
