"""95 % intervals of a figure of finite samples."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

NUM_GROUPS = 20
NORMAL = 1.959964  # the 97.5 % quantile


class Interval(NamedTuple):
    """A figure, and 95 % limits."""

    value: float
    low: float
    high: float


def of_error(
    value: float,
    error: float,
    *,
    quantile: float = NORMAL,
    least: float = -math.inf,
) -> Interval:
    """From a standard error; no limit is below `least`."""
    low = min(value, max(least, value - quantile * error))
    return Interval(value, low, value + quantile * error)


def of_share(right: Any) -> Interval:
    """Of the share of true ones among `[N]`."""
    return of_count(int(np.sum(right)), len(right))


def of_count(count: float, num: int) -> Interval:
    """Of the share `count / num`, by Wilson's score.

    Of a sum of shares, each in 0 .. 1, the limits are as wide or wider than they need be.

    References:
        Wilson 1927, doi:10.1080/01621459.1927.10502953.
    """
    share = count / num
    squared = NORMAL**2
    centre = (share + squared / (2 * num)) / (1 + squared / num)
    width = NORMAL / (1 + squared / num)
    width *= math.sqrt(share * (1 - share) / num + squared / (4 * num**2))
    return Interval(share, max(0.0, centre - width), min(1.0, centre + width))


def jackknife(
    function: Callable[..., float],
    *samples: np.ndarray,
    least: float = -math.inf,
    seed: int = 0,
) -> Interval:
    """Of a function of samples, each of 20 random groups of all of them left out once.

    The limits are by Student's t of 19 degrees of freedom. What a function's bias changes
    with the number of examples is in its value still.

    Args:
        function: Of as many sets of examples as are given, to a number.
        *samples: `[N, ...]` each, independent of each other.
        least: No limit is below it.
        seed: Of the groups.

    References:
        Efron & Stein 1981, "The jackknife estimate of variance".
    """
    rng = np.random.default_rng(seed)
    num = min(NUM_GROUPS, *(len(x) for x in samples))
    groups = [rng.permutation(np.arange(len(x)) % num) for x in samples]
    values = np.array(
        [
            function(*(x[g != i] for x, g in zip(samples, groups, strict=True)))
            for i in range(num)
        ]
    )
    error = math.sqrt((num - 1) * values.var())
    quantile = float(stats.t.ppf(0.975, num - 1))
    return of_error(function(*samples), error, quantile=quantile, least=least)
