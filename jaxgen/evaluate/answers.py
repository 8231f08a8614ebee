"""Several answers to a condition: is one of them right, and are they as various as the truth?

Figures of pixels need the truth of each condition only. Where the possible answers and
their probabilities are known, the modes are counted.

References:
    Batzolis et al. 2021, "Conditional image generation with score-based diffusion
    models", arXiv:2111.13606, for diversity beside the error.
"""

from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from jaxgen.evaluate import intervals, modes


class Errors(NamedTuple):
    """Root mean squares over the pixels that count, as means over N conditions.

    Attributes:
        best: From the truth, of the nearest of K answers.
        of_mean: From the truth, of the mean of the answers.
        diversity: Between two answers to one condition, over all pairs; 0 for K = 1.
    """

    best: intervals.Interval
    of_mean: intervals.Interval
    diversity: intervals.Interval


def errors(
    answers: np.ndarray, truth: np.ndarray, mask: np.ndarray | None = None
) -> Errors:
    """How far answers are from the truth, and from each other.

    Best and diversity go together: more various answers have a better best one and, about
    the same mean, no better mean. The best one is nearer the more answers there are, so
    only figures of one K can be compared.

    Args:
        answers: K to each of N conditions, `[N, K, ...]`, in [0, 1].
        truth: `[N, ...]`.
        mask: `[N, H, W, 1]`, above 0 where pixels were hidden and so count; None for all.

    Returns:
        In units of the data, with 95 % limits by the standard error over N.

    Raises:
        ValueError: if the shapes differ, or a mask hides nothing of a truth.
    """
    answers, truth = np.asarray(answers, np.float64), np.asarray(truth, np.float64)
    if answers.ndim < 3 or answers.shape[:1] + answers.shape[2:] != truth.shape:
        raise ValueError(
            "errors: answers must be [N, K, ...] and truth [N, ...], got "
            f"{answers.shape} and {truth.shape}; stack the answers to a condition on axis 1."
        )
    weight = _weight(truth, mask)
    mean = answers.mean(axis=1, keepdims=True)
    away = _root_mean_square(answers - truth[:, None], weight)
    return Errors(
        best=_over_conditions(away.min(axis=1)),
        of_mean=_over_conditions(
            _root_mean_square(mean - truth[:, None], weight)[:, 0]
        ),
        diversity=_over_conditions(_between(answers, weight)),
    )


def of_modes(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, Any]:
    """Whether answers have all modes of the truth, each as often as it is right.

    The answers are taken for independent of each other, given their conditions.

    Args:
        labels: The mode of K answers to each of N conditions, `[N, K]` in 0 .. M - 1, or -1
            of an answer that is of none. Every mode must be possible for every condition.
        probabilities: Of the modes, `[M]`, above 0.

    Returns:
        `none_share`: of all answers, those of no mode, an interval; the others alone count
        in what follows. `modes` and `reverse_kl` of `modes.of_labels`; `recall`: the share
        of the modes that occur at all. `recall_per_condition`: of the modes, those among
        the K answers to a condition, the mean over N as an interval;
        `expected_recall_per_condition` is that of perfect answers. `shares`: of each mode;
        `standard_errors`: of these, of perfect answers; `largest_deviation`: from the
        probabilities; `p_value`: of a chi-square test that there is none but by chance. It
        is an approximation where the rarest mode is expected fewer than five times.
        Without any answer of a mode the last four are None.

    Raises:
        ValueError: if there is no such mode, or no such distribution.
    """
    labels, probabilities = np.asarray(labels), np.asarray(probabilities, np.float64)
    num = len(probabilities)
    if not np.all(probabilities > 0) or abs(probabilities.sum() - 1) > 1e-9:
        raise ValueError(
            f"of_modes: probabilities must be positive and sum to 1, got {probabilities}."
        )
    if (
        labels.ndim != 2
        or not labels.size
        or not (-1 <= labels.min() <= labels.max() < num)
    ):
        raise ValueError(
            f"of_modes: labels must be [N, K] in -1 .. {num - 1}, got shape {labels.shape}"
            + (f" in {labels.min()} .. {labels.max()}." if labels.size else ".")
        )
    found = labels[labels >= 0]
    told = modes.of_labels(found, num, probabilities)
    among = np.any(labels[..., None] == np.arange(num), axis=1)
    expected = float(np.mean(1 - (1 - probabilities) ** labels.shape[1]))
    return {
        "none_share": intervals.of_share(labels.ravel() < 0),
        **told,
        "recall": told["modes"] / num,
        "recall_per_condition": _over_conditions(among.mean(axis=1)),
        "expected_recall_per_condition": expected,
        **_frequencies(found, probabilities),
    }


def _frequencies(found: np.ndarray, probabilities: np.ndarray) -> dict[str, Any]:
    names = ("shares", "standard_errors", "largest_deviation", "p_value")
    if not len(found):
        return dict.fromkeys(names)
    counts = np.bincount(found, minlength=len(probabilities))
    shares = counts / len(found)
    error = np.sqrt(probabilities * (1 - probabilities) / len(found))
    test = stats.chisquare(counts, probabilities * len(found))
    deviation = float(np.abs(shares - probabilities).max())
    values = shares.tolist(), error.tolist(), deviation, float(test.pvalue)
    return dict(zip(names, values, strict=True))


def _weight(truth: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    """Of each number of an example, summing to one, `[N, ...]`."""
    weight = np.ones_like(truth)
    if mask is not None:
        if truth.ndim != 4 or np.shape(mask) != (*truth.shape[:3], 1):
            raise ValueError(
                f"errors: mask must be {[*truth.shape[:3], 1]}, got {np.shape(mask)}; "
                "give one plane for each truth."
            )
        weight = weight * (np.asarray(mask) > 0)
    total = weight.sum(axis=tuple(range(1, weight.ndim)), keepdims=True)
    if not np.all(total > 0):
        raise ValueError(
            "errors: mask hides nothing of a truth, so no error is defined; leave that "
            "example out."
        )
    return weight / total


def _root_mean_square(apart: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Of `[N, K, ...]` with weights `[N, ...]`, `[N, K]`."""
    squares = weight[:, None] * apart**2
    return np.sqrt(squares.sum(axis=tuple(range(2, squares.ndim))))


def _between(answers: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """The mean distance of two answers, `[N]`."""
    num = answers.shape[1]
    total = np.zeros(len(answers))
    for i in range(num - 1):
        apart = answers[:, i + 1 :] - answers[:, i : i + 1]
        total += _root_mean_square(apart, weight).sum(axis=1)
    return total / max(1, num * (num - 1) // 2)


def _over_conditions(values: np.ndarray) -> intervals.Interval:
    """The mean of `[N]`; of a single one the limits are not known: they are itself."""
    error = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else 0.0
    return intervals.of_error(float(values.mean()), float(error), least=0.0)
