"""Robust fits of power laws with an irreducible loss: logarithms of sizes and losses in, parameters out.

The model is loss = exp(e) + sum over v of exp(a_v) x_v^-alpha_v, its error Huber's of the logarithms' difference
(approach 3 of Hoffmann et al., arXiv 2203.15556, Section 3.3 and Appendix D.3). Parameters are one row
[e, a_1..a_V, alpha_1..alpha_V].
"""

import itertools

import numpy as np
from jaxtyping import Float
from scipy.optimize import minimize
from scipy.special import huber

Parameters = Float[np.ndarray, "... P"]
LogSizes = Float[np.ndarray, "M V"]
LogLosses = Float[np.ndarray, " M"]

_START_EXPONENTS = (0.1, 0.4, 1.0, 2.0)
_START_SHARES = (0.1, 0.5, 0.9)  # of the smallest loss that no size takes away
_NUM_STARTS = 6  # of all combinations, those with the smallest error are gone on with
_NUM_STEPS = 60  # of a resample's fit, which starts near its end
_LEAST_GAIN = 1e-6  # relative decrease of a resample's error
_MOST_DAMPING = 1e6


def log_losses(parameters: Parameters, log_sizes: LogSizes) -> Float[np.ndarray, "... M"]:
    """Returns the logarithm of the loss that each row of parameters gives each of M sizes."""
    return _log_losses_and_slopes(parameters, log_sizes)[0]


def _log_losses_and_slopes(
    parameters: Parameters, log_sizes: LogSizes
) -> tuple[Float[np.ndarray, "... M"], Float[np.ndarray, "... P M"]]:
    """Returns the logarithms of the losses, and their derivatives by the parameters."""
    num_sizes = log_sizes.shape[1]
    constant, factors, exponents = np.split(parameters[..., None], (1, 1 + num_sizes), axis=-2)  # each [..., _, 1]
    powers = factors - exponents * log_sizes.T  # [..., V, M]
    largest = np.maximum(constant, powers.max(axis=-2, keepdims=True))
    constant, powers = np.exp(constant - largest), np.exp(powers - largest)
    total = constant + powers.sum(axis=-2, keepdims=True)
    powers /= total
    slopes = np.concatenate([constant / total, powers, -log_sizes.T * powers], axis=-2)
    return (largest + np.log(total))[..., 0, :], slopes


def fit(log_sizes: LogSizes, log_loss: LogLosses, delta: float) -> Parameters:
    """Returns the parameters of the smallest error, by L-BFGS from the best of a grid of starts."""

    def error(parameters: Parameters) -> tuple[float, Parameters]:
        values, slopes = _log_losses_and_slopes(parameters, log_sizes)
        residuals = values - log_loss
        return float(huber(delta, residuals).sum() / delta), slopes @ np.clip(residuals / delta, -1, 1)

    starts = sorted(_starts(log_sizes, log_loss), key=lambda start: error(start)[0])
    options = {"maxiter": 2_000, "maxfun": 4_000, "ftol": 1e-12, "gtol": 1e-8}
    fits = [minimize(error, start, jac=True, method="L-BFGS-B", options=options) for start in starts[:_NUM_STARTS]]
    return min(fits, key=lambda found: found.fun).x


def _starts(log_sizes: LogSizes, log_loss: LogLosses) -> list[Parameters]:
    num_variables = log_sizes.shape[1]
    least, mean = np.exp(log_loss.min()), np.exp(log_loss.mean())
    starts = []
    for share, *exponents in itertools.product(_START_SHARES, *[_START_EXPONENTS] * num_variables):
        constant = share * least
        factors = np.log((mean - constant) / num_variables) + exponents * log_sizes.mean(axis=0)
        starts.append(np.array([np.log(constant), *factors, *exponents]))
    return starts


def refit(
    start: Parameters, log_sizes: LogSizes, log_loss: LogLosses, weights: Float[np.ndarray, "R M"], delta: float
) -> Float[np.ndarray, "R P"]:
    """Returns the fit of each of R resamples, which count each point as often as their weights say, from one start.

    All at once, by Levenberg and Marquardt's steps on squares reweighted to Huber's error (Holland and Welsch, 1977).
    """
    fits = np.tile(start, (len(weights), 1))
    going_on = np.arange(len(weights))  # resamples whose error still falls
    found, damping = fits.copy(), np.full(len(weights), 1e-3)
    values, slopes = _log_losses_and_slopes(found, log_sizes)
    errors = (weights * huber(delta, values - log_loss)).sum(axis=1)
    for _ in range(_NUM_STEPS):
        residuals = values - log_loss
        scaled = weights * np.minimum(1.0, delta / np.maximum(np.abs(residuals), 1e-12))
        weighted = slopes * scaled[:, None]  # [R, P, M]
        normal = weighted @ slopes.swapaxes(1, 2)
        diagonal = np.einsum("rpp->rp", normal)  # a view
        diagonal += damping[:, None] * diagonal + 1e-12 * diagonal.max(axis=1, keepdims=True)
        trial = found - np.linalg.solve(normal, weighted @ residuals[..., None])[..., 0]
        trial_values, trial_slopes = _log_losses_and_slopes(trial, log_sizes)
        trial_errors = (weights * huber(delta, trial_values - log_loss)).sum(axis=1)
        better = trial_errors < errors
        goes_on = np.where(better, trial_errors < (1 - _LEAST_GAIN) * errors, damping < _MOST_DAMPING)
        found[better], values[better], slopes[better] = trial[better], trial_values[better], trial_slopes[better]
        errors[better] = trial_errors[better]
        damping = np.where(better, damping / 5, damping * 5)
        fits[going_on] = found
        going_on, weights, found, values, slopes, errors, damping = (
            rows[goes_on] for rows in (going_on, weights, found, values, slopes, errors, damping)
        )
        if not len(going_on):
            break
    return fits
