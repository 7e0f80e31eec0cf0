"""Scaling laws: sizes and losses of finished runs in; a fitted law with intervals, or why there is none, out.

With one size, a power law with an irreducible loss, L(x) = E + A x^-alpha; with two, Chinchilla's form,
L(N, D) = E + A N^-alpha + B D^-beta (Eq. 2 of Hoffmann et al., arXiv 2203.15556).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from flamscale.errors import FitError
from flamscale.scaling import robust
from flamscale.scaling.estimate import NUM_RESAMPLES, Estimate

HUBER_DELTA = 1e-3
"""Difference of logarithms from which on an error counts linearly (Hoffmann et al., Appendix D.3)."""
LEAST_RANGE = 4.0
"""Largest over smallest size that a law needs (ratio)."""
_LEAST_VALUES = {1: 4, 2: 3}  # different values of each size, by the number of sizes
_MOST_CORRELATION = 0.98  # of two sizes' logarithms: beyond it, nothing tells one's effect from the other's

Values = Float[np.ndarray, " M"]


@dataclass(frozen=True, eq=False)
class LossLaw:
    """A fitted L = E + sum of A_v x_v^-alpha_v."""

    names: tuple[str, ...]
    """The sizes x_v, such as parameters and clips."""
    fitted: Float[np.ndarray, " P"]
    """See `robust`."""
    resamples: Float[np.ndarray, "R P"]
    """The same, fitted to points drawn again with replacement."""

    @property
    def irreducible(self) -> Estimate:
        """E, the loss that no size takes away."""
        return Estimate.of(np.exp(self.fitted[0]), np.exp(self.resamples[:, 0]))

    def coefficient(self, name: str) -> Estimate:
        """Returns A of one size."""
        column = 1 + self.names.index(name)
        return Estimate.of(np.exp(self.fitted[column]), np.exp(self.resamples[:, column]))

    def exponent(self, name: str) -> Estimate:
        """Returns alpha of one size."""
        column = 1 + len(self.names) + self.names.index(name)
        return Estimate.of(self.fitted[column], self.resamples[:, column])

    def compute_exponent(self, name: str) -> Estimate:
        """Returns c, by which the best of one size grows with compute, x ~ C^c, where C is the product of both sizes.

        Source: Eq. 4 of Hoffmann et al.: the other size's exponent over the sum of both.
        """
        (other,) = set(self.names) - {name}
        column, partner = (1 + len(self.names) + self.names.index(key) for key in (name, other))
        exponents, drawn = self.fitted, self.resamples
        return Estimate.of(
            exponents[partner] / (exponents[column] + exponents[partner]),
            drawn[:, partner] / (drawn[:, column] + drawn[:, partner]),
        )

    def predict(self, sizes: Mapping[str, float]) -> Estimate:
        """Returns the law's loss at one point; the interval is the law's own, without the noise of a single run."""
        log_sizes = np.log([[sizes[name] for name in self.names]])
        value, drawn = (np.exp(robust.log_losses(rows, log_sizes)[..., 0]) for rows in (self.fitted, self.resamples))
        return Estimate.of(float(value), drawn)


def fit_law(sizes: Mapping[str, Values], loss: Values, *, delta: float = HUBER_DELTA, seed: int = 0) -> LossLaw:
    """Fits a law to the losses of M runs.

    Args:
        sizes: one or two sizes of each run, by name.
        loss: loss of each run.
        delta: see HUBER_DELTA.
        seed: of the resamples.

    Raises:
        FitError: the runs are too few, too alike, or their loss does not fall.
    """
    names, columns = tuple(sizes), np.stack(list(sizes.values()), axis=1)
    _check(names, columns, loss)
    log_sizes, log_loss = np.log(columns), np.log(loss)
    centre = log_sizes.mean(axis=0)
    num_sizes = len(names)

    fitted = robust.fit(log_sizes - centre, log_loss, delta)
    counts = np.random.default_rng(seed).multinomial(len(loss), np.full(len(loss), 1 / len(loss)), size=NUM_RESAMPLES)
    resamples = robust.refit(fitted, log_sizes - centre, log_loss, counts.astype(float), delta)
    for rows in (fitted, resamples):
        rows[..., 1 : 1 + num_sizes] += rows[..., 1 + num_sizes :] * centre
    law = LossLaw(names, fitted, resamples)
    for name in names:
        if law.exponent(name).low <= 0:
            raise FitError(
                f"The loss should fall with {name}, and these {len(loss)} runs do not show that it does: its exponent "
                f"is {law.exponent(name)}; add runs of other sizes, or more seeds."
            )
    return law


@dataclass(frozen=True, kw_only=True, eq=False)
class HeldOut:
    """What a law says of runs that it has not seen."""

    law: LossLaw
    """Fitted to the other runs."""
    is_held_out: Bool[np.ndarray, " M"]
    """Which of all M runs these are."""
    predicted: tuple[Estimate, ...]
    """Of each held-out run, in the order of the runs."""
    measured: Float[np.ndarray, " H"]
    """Loss of each of the H held-out runs."""

    @property
    def errors(self) -> Float[np.ndarray, " H"]:
        """Predicted over measured loss of each held-out run, minus 1."""
        return np.array([found.value for found in self.predicted]) / self.measured - 1

    @property
    def mean_error(self) -> float:
        """The same of their mean losses."""
        return float(np.mean([found.value for found in self.predicted]) / self.measured.mean() - 1)

    @property
    def worst_error(self) -> float:
        """The largest of `errors`, whatever its sign."""
        return float(self.errors[np.abs(self.errors).argmax()])


def predict_held_out(
    sizes: Mapping[str, Values],
    loss: Values,
    is_held_out: Bool[np.ndarray, " M"],
    *,
    delta: float = HUBER_DELTA,
    seed: int = 0,
) -> HeldOut:
    """Predicts the loss of each held-out run by the law of all others.

    Raises:
        FitError: the other runs support no law.
    """
    rest = {name: values[~is_held_out] for name, values in sizes.items()}
    law = fit_law(rest, loss[~is_held_out], delta=delta, seed=seed)
    predicted = tuple(
        law.predict({name: float(values[row]) for name, values in sizes.items()}) for row in np.flatnonzero(is_held_out)
    )
    return HeldOut(law=law, is_held_out=is_held_out, predicted=predicted, measured=loss[is_held_out])


def _check(names: tuple[str, ...], columns: Float[np.ndarray, "M V"], loss: Values) -> None:
    """Raises FitError where no law could be told from these points."""
    num_parameters = 1 + 2 * len(names)
    if not (np.isfinite(loss).all() and (loss > 0).all()):
        raise FitError(
            f"Every loss must be a number above 0, found {loss[~(np.isfinite(loss) & (loss > 0))][0]}; leave out the "
            "runs that diverged."
        )
    if len(loss) < num_parameters + 2:
        raise FitError(
            f"A law of {' and '.join(names)} has {num_parameters} parameters and needs {num_parameters + 2} runs or "
            f"more, found {len(loss)}; add runs."
        )
    least = _LEAST_VALUES[len(names)]
    for name, values in zip(names, columns.T, strict=True):
        num_values, span = len(np.unique(values)), values.max() / values.min()
        if num_values < least or span < LEAST_RANGE:
            raise FitError(
                f"A law needs {least} or more different {name} that span a factor of {LEAST_RANGE:g}, found "
                f"{num_values} over a factor of {span:.3g}; add runs of other sizes."
            )
    if len(names) == 2:
        correlation = float(np.corrcoef(np.log(columns), rowvar=False)[0, 1])
        if abs(correlation) > _MOST_CORRELATION:
            raise FitError(
                f"{names[0]} and {names[1]} change together in these runs (correlation {correlation:.3f} of their "
                "logarithms), so that nothing tells their effects apart; add runs that vary one of them alone."
            )
