"""How sure a fitted number is: its value and the values of resamples in, an interval out."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy import stats

from flamscale.eval.intervals import LEVEL

NUM_RESAMPLES = 500


def student_factor(num_spare: int) -> float:
    """Returns how much wider than the normal's an interval is where the spread is itself estimated.

    Args:
        num_spare: runs beyond the fitted parameters (count), 1 or more.
    """
    share = (1 + LEVEL) / 2
    return float(stats.t.ppf(share, num_spare) / stats.norm.ppf(share))


@dataclass(frozen=True)
class Estimate:
    """A fitted number and the percentile bootstrap's confidence interval, at LEVEL.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), 13.3.
    """

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, value: float, resamples: Float[np.ndarray, " R"]) -> "Estimate":
        """Returns the value with the interval of what R resamples gave for it."""
        low, high = np.quantile(resamples, ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
        return cls(float(value), float(low), float(high))

    def holds(self, value: float) -> bool:
        """Whether a value lies in the interval."""
        return self.low <= value <= self.high

    def __str__(self) -> str:
        return f"{self.value:.3g} ({self.low:.3g} to {self.high:.3g})"
