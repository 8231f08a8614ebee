"""Can samples be told from data, and how many different ones are there?"""

from typing import Any, Literal, NamedTuple

import numpy as np

from jaxgen import _checks
from jaxgen.evaluate import distances

NUM_PERMUTATIONS = 1000
NUM_NEWTON = 20  # steps of the logistic regression, at most
METHODS = ("neighbours", "logistic")


class Told(NamedTuple):
    """Whether two sets can be told apart.

    Attributes:
        accuracy: Of a classifier on examples that it was not fitted to; 0.5 is chance.
        p_value: How often labels in a random order have such an accuracy or a higher
            one.
    """

    accuracy: float
    p_value: float


def c2st(
    a: Any,
    b: Any,
    *,
    seed: int = 0,
    method: Literal["neighbours", "logistic"] = "neighbours",
    k: int = 15,
) -> Told:
    """Classifier two-sample test: fitted to one half of both sets, tried on the other.

    Of the larger set as many are used as the smaller one has, so that chance is 0.5. The
    p-value permutes the labels of the half it is tried on, the classifier being fixed:
    it holds whatever the classifier and however few the examples.

    Args:
        a: `[N, D]`.
        b: `[M, D]`.
        seed: Of the halves and the permutations.
        method: "neighbours", the majority of the k nearest examples, sees any difference
            where there are few dimensions; "logistic", a logistic regression on the
            features and their squares, sees shifts and scales in many.
        k: Of the neighbours, at most; made odd.

    Returns:
        Accuracy and p-value, of which the least is 1 / 1001.

    Raises:
        ValueError: if shapes do not fit, or a feature is NaN or infinite.

    References:
        Lopez-Paz & Oquab 2017, arXiv:1610.06545.
    """
    _checks.check_in("c2st", "method", method, METHODS)
    a, b = distances.checked("c2st", a=a, b=b)
    rng = np.random.default_rng(seed)
    num = min(len(a), len(b))
    a, b = (x[rng.permutation(len(x))[:num]] for x in (a, b))
    half = num // 2
    fitted, tried = (
        np.concatenate(x) for x in ((a[:half], b[:half]), (a[half:], b[half:]))
    )
    label_fitted, label = (np.arange(len(x)) >= len(x) // 2 for x in (fitted, tried))
    centre, scale = fitted.mean(axis=0), fitted.std(axis=0)
    scale = np.where(scale > 0, scale, 1.0)
    fitted, tried = ((x - centre) / scale for x in (fitted, tried))
    predict = _neighbours if method == "neighbours" else _logistic
    guess = predict(fitted, label_fitted, tried, k)
    right = np.mean(guess == label)
    # Of n labels, one half each: the overlap with the guesses is hypergeometric.
    by_chance = rng.hypergeometric(
        int(guess.sum()), int((~guess).sum()), len(label) // 2, NUM_PERMUTATIONS
    )
    accuracies = (2 * by_chance + int((~guess).sum()) - len(label) // 2) / len(label)
    at_least = int(np.sum(accuracies >= right - 1e-12))
    return Told(float(right), (1 + at_least) / (1 + NUM_PERMUTATIONS))


def _neighbours(
    fitted: np.ndarray, label: np.ndarray, tried: np.ndarray, k: int
) -> np.ndarray:
    k = min(k, len(fitted) - 1)
    k -= 1 - k % 2
    guesses = []
    for part in distances.chunks(len(tried), len(fitted)):
        table = distances.squared_distances(tried[part], fitted)
        nearest = np.argpartition(table, k - 1, axis=1)[:, :k]
        guesses.append(label[nearest].sum(axis=1) > k // 2)
    return np.concatenate(guesses)


def _logistic(
    fitted: np.ndarray, label: np.ndarray, tried: np.ndarray, k: int
) -> np.ndarray:
    """Newton's method on the mean loss plus |w|^2 / 2N, the ridge of scikit-learn's C = 1."""
    del k
    x, other = (
        np.concatenate([np.ones((len(x), 1)), x, x**2 - 1], axis=1)
        for x in (fitted, tried)
    )
    ridge = np.r_[0.0, np.ones(x.shape[1] - 1)]
    w = np.zeros(x.shape[1])
    for _ in range(NUM_NEWTON):
        p = 0.5 * (1 + np.tanh(x @ w / 2))
        slope = x.T @ (p - label) + ridge * w
        curvature = (x * (p * (1 - p))[:, None]).T @ x + np.diag(ridge)
        step = np.linalg.solve(curvature, slope)
        w -= step
        if np.max(np.abs(step)) < 1e-8:
            break
    return other @ w > 0


def vendi_score(features: Any) -> float:
    """The effective number of different examples, by cosines between features.

    exp of the entropy of the eigenvalues of K / N, K the table of cosines: 1 where all
    point the same way, N where all are orthogonal.

    Args:
        features: `[N, D]`.

    Returns:
        Between 1 and min(N, D + 1).

    Raises:
        ValueError: if the shape does not fit, or a feature is NaN or infinite.

    References:
        Friedman & Dieng 2022, arXiv:2210.02410.
    """
    (x,) = distances.checked("vendi_score", features=features)
    norms = np.linalg.norm(x, axis=1, keepdims=True)
    # Features that are all zero are like each other and like nothing else.
    x = np.concatenate([x / np.where(norms > 0, norms, 1.0), norms == 0], axis=1)
    shares = np.linalg.svd(x, compute_uv=False) ** 2 / len(x)
    shares = shares[shares > 0]
    return float(np.exp(-np.sum(shares * np.log(shares))))
