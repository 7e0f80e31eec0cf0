"""How sure a mean over clips, or over runs and clips, is: values in, a confidence interval out."""

import numpy as np
from jaxtyping import Float
from scipy.stats import bootstrap
from torch import Tensor

LEVEL = 0.95
"""Share of such intervals that hold the true value."""
NUM_RESAMPLES = 2_000

_VALUES_AT_ONCE = 2**22  # bounds the memory of many clips


def bootstrap_interval(values: Float[Tensor, " M"], *, level: float = LEVEL, seed: int = 0) -> tuple[float, float]:
    """Returns the percentile bootstrap's confidence interval of the mean of M >= 2 clips, NaN where a value is.

    Whole clips are drawn again, since the frames of one clip depend on each other. Clips of one episode do so too, if
    less: the interval is then too narrow. Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), 13.3.
    """
    sample = values.double().cpu().numpy()
    if not np.isfinite(sample).all():
        return float("nan"), float("nan")
    found = bootstrap(
        (sample,),
        np.mean,
        n_resamples=NUM_RESAMPLES,
        batch=max(1, _VALUES_AT_ONCE // len(sample)),
        confidence_level=level,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(found.low), float(found.high)


def crossed_interval(values: Float[np.ndarray, "S M"], *, level: float = LEVEL, seed: int = 0) -> tuple[float, float]:
    """Returns the confidence interval of the mean over S runs and M clips, the same clips in every run.

    Runs and clips are both drawn again, each on its own, so that it covers what either changes. NaN where a value is,
    and where there is but one. No resample leaves the range of the runs: from three of them the interval is too
    narrow. Source: Owen, The pigeonhole bootstrap (Annals of Applied Statistics 2007).
    """
    if values.size == 1 or not np.isfinite(values).all():
        return float("nan"), float("nan")
    rng = np.random.default_rng(seed)
    runs, clips = (rng.multinomial(count, [1 / count] * count, size=NUM_RESAMPLES) / count for count in values.shape)
    means = np.einsum("rs,sm,rm->r", runs, values, clips, optimize=True)
    low, high = np.quantile(means, ((1 - level) / 2, (1 + level) / 2))
    return float(low), float(high)
