"""Numbers with their 95 % intervals, and of how many examples they are."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Array = NDArray[Any]
Number = dict[str, Any]

CONFIDENCE = 0.95
RESAMPLES = 1000


def rate(successes: int, n: int) -> Number:
    """A share of `n` examples with its Wilson score interval (Wilson 1927)."""
    interval = stats.binomtest(int(successes), int(n)).proportion_ci(CONFIDENCE, method="wilson")
    return {"value": float(successes / n), "low": float(interval.low), "high": float(interval.high), "n": int(n)}


def bootstrapped(statistic: Callable[..., float], *columns: Array) -> Number:
    """A statistic of examples with its percentile bootstrap interval (Efron 1979).

    `columns` hold a value an example each; one example has no interval: None.
    """
    n = len(columns[0])
    value = float(statistic(*columns))
    if n == 1:
        return number(value, n)
    return number(value, n, resampled(lambda drawn: np.array([statistic(*(c[drawn] for c in columns))]), n)[0])


def resampled(statistic: Callable[[Array], Array], n: int) -> Array:
    """What `statistic`, of positions int [n] an array [m], gives for RESAMPLES draws of n examples: [m, RESAMPLES].

    The draws are always the same.
    """
    # SciPy's bootstrap takes no statistic of many numbers of which some may not exist in a draw.
    generator = np.random.default_rng(0)
    return np.stack([statistic(generator.integers(0, n, n)) for _ in range(RESAMPLES)], axis=-1)


def number(value: Any, n: int, distribution: Array | None = None) -> Number:
    """`value` of `n` examples, with percentiles of its bootstrap `distribution`; draws that give NaN do not count."""
    low = high = None
    if distribution is not None and np.isfinite(distribution).any():
        tail = 100 * (1 - CONFIDENCE) / 2
        low, high = (float(edge) for edge in np.nanpercentile(distribution, [tail, 100 - tail]))
    return {"value": float(value), "low": low, "high": high, "n": int(n)}
