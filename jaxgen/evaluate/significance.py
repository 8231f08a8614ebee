"""Whether two ways of training differ, by the spread between their training seeds.

Another seed moves a figure several times as far as other samples of one trained model
do. So what is tested are means over seeds; where a side has one seed only, its spread is
a stated assumption, and never better known than from a few seeds.

References:
    "The FID Lottery" 2026, arXiv:2606.20536. Welch 1947, "The generalization of
    'Student's' problem". Holm 1979, "A simple sequentially rejective multiple test
    procedure".
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import special

SEED_VARIATION = 0.02  # between seeds, of the value: the upper end of what is published
PRIOR_FREEDOM = 3.0  # that is believed as if it were measured by four seeds
LEVEL = 0.05


class Side(NamedTuple):
    """A mean over training seeds.

    Attributes:
        mean: Of the runs' values.
        variance: Of that mean; None where nothing is known of it.
        freedom: Degrees of freedom by which the variance is known.
    """

    mean: float
    variance: float | None
    freedom: float


class Difference(NamedTuple):
    """Of two means.

    Attributes:
        value: The first minus the second.
        half_width: Of its 95 % confidence interval.
        p_value: Of no difference, two-sided.
    """

    value: float
    half_width: float
    p_value: float


def side(
    values: Sequence[float], errors: Sequence[float | None], variation: float | None
) -> Side:
    """The mean of a group's runs, and how well it is known.

    Args:
        values: One a training seed, at least one.
        errors: The resampling error of each, or None. It counts for a single run only:
            the spread between runs holds it already.
        variation: Standard deviation between seeds as a share of the value, that is
            assumed for a single run; None where the unit has no zero to be a share of.
    """
    mean = math.fsum(values) / len(values)
    num = len(values)
    if num > 1:
        return Side(mean, float(np.var(values, ddof=1)) / num, num - 1.0)
    if variation is None:
        return Side(mean, None, PRIOR_FREEDOM)
    error = 0.0 if errors[0] is None else errors[0]
    return Side(mean, (variation * mean) ** 2 + error**2, PRIOR_FREEDOM)


def difference(first: Side, second: Side) -> Difference | None:
    """Welch's t-test of two sides; None where no variance tells how sure one may be."""
    if first.variance is None or second.variance is None:
        return None
    value, variance = first.mean - second.mean, first.variance + second.variance
    if variance == 0.0:  # one value for all seeds: alike, or nothing to test by
        return Difference(0.0, 0.0, 1.0) if value == 0 else None
    # Of shares of the variance: squares of tiny variances would underflow.
    freedom = 1.0 / sum(
        (each.variance / variance) ** 2 / each.freedom
        for each in (first, second)
        if each.variance is not None
    )
    error = math.sqrt(variance)
    half_width = float(special.stdtrit(freedom, 1 - LEVEL / 2)) * error
    p_value = 2 * float(special.stdtr(freedom, -abs(value) / error))
    return Difference(value, half_width, p_value)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values of several tests, each as large as if it were the only one of all.

    At or below 0.05 in any of them then happens by chance in one comparison out of
    twenty, however many there are and whatever they have in common.
    """
    order = np.argsort(p_values, kind="stable")
    adjusted, largest = np.ones(len(p_values)), 0.0
    for rank, place in enumerate(order):
        largest = max(largest, (len(p_values) - rank) * p_values[place])
        adjusted[place] = min(1.0, largest)
    return adjusted.tolist()
