"""Do samples repeat training examples? Three figures, each between two known answers.

None of them is reliable alone, and none has a scale of its own. So each is told beside
what it is of held-out data taken for samples (no copying), and of training examples taken
for samples (nothing else): where a model's lies between the two is what counts.
"""

from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from jaxgen.evaluate import distances, intervals
from jaxgen.evaluate.intervals import Interval

PER_CELL = 40  # held-out examples in a cell, on average
MAX_CELLS = 10
LEAST_IN_CELL = 10
NEAR = 0.05  # the share of held-out examples that is called near
NUM_ROUNDS = 20  # of k-means
NUM_PAIRS = 16


class Nearest(NamedTuple):
    """Of each example the nearest one of another set: its squared distance, its place."""

    squared: np.ndarray
    index: np.ndarray


def nearest(x: np.ndarray, among: np.ndarray) -> Nearest:
    """The nearest of `among` `[T, D]` to each of `x` `[N, D]`."""
    centre = among.mean(axis=0)
    x, among = x - centre, among - centre
    squared, index = np.empty(len(x)), np.empty(len(x), np.int64)
    for part in distances.chunks(len(x), len(among)):
        table = distances.squared_distances(x[part], among)
        index[part] = table.argmin(axis=1)
        squared[part] = table[np.arange(len(table)), index[part]]
    return Nearest(squared, index)


def authentic(fake: Any, train: Any) -> np.ndarray:
    """Which samples are further from their nearest training example than its own neighbour.

    Args:
        fake: `[M, D]`.
        train: `[T, D]`, all of it.

    Returns:
        `[M]`; the mean is AuthPct, about 0.5 without copying and 0 of copies.

    References:
        Alaa et al. 2022, arXiv:2102.08921.
    """
    fake, train = distances.checked("authentic", fake=fake, train=train)
    found = nearest(fake, train)
    hit, place = np.unique(found.index, return_inverse=True)
    own = _reach_of(train, hit)
    return found.squared > own[place]


def _reach_of(train: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Squared distance of chosen training examples to the nearest other one."""
    train = train - train.mean(axis=0)
    found = np.empty(len(chosen))
    for part in distances.chunks(len(chosen), len(train)):
        table = distances.squared_distances(train[chosen[part]], train)
        table[np.arange(len(table)), chosen[part]] = np.inf
        found[part] = table.min(axis=1)
    return found


def copying_z(held_out: Any, fake: Any, train: Any, *, seed: int = 0) -> Interval:
    """C_T: are samples nearer to training examples than held-out data are?

    The z-value of the Mann-Whitney test of the two sets' distances to their nearest
    training example, averaged over cells of the space (k-means of the training examples)
    by the share of held-out examples in each.

    Args:
        held_out: Data not trained on, `[N, D]`.
        fake: `[M, D]`.
        train: `[T, D]`.
        seed: Of the cells.

    Returns:
        About 0 without copying; far below 0: copies; far above 0: samples lie off the
        data. The limits are those of chance alone.

    Raises:
        ValueError: if shapes do not fit, or a feature is NaN or infinite.

    References:
        Meehan, Chaudhuri & Dasgupta 2020, arXiv:2004.05675.
    """
    held_out, fake, train = distances.checked(
        "copying_z", held_out=held_out, fake=fake, train=train
    )
    num_cells = max(1, min(MAX_CELLS, len(held_out) // PER_CELL))
    centres = _cells(train, num_cells, seed)
    cell_held, cell_fake = (nearest(x, centres).index for x in (held_out, fake))
    far_held, far_fake = (nearest(x, train).squared for x in (held_out, fake))
    weights, values = [], []
    for cell in range(num_cells):
        a, b = far_held[cell_held == cell], far_fake[cell_fake == cell]
        if min(len(a), len(b)) >= LEAST_IN_CELL:
            weights.append(len(a))
            values.append(mann_whitney_z(b, a))
    if not values:
        weights, values = [1], [mann_whitney_z(far_fake, far_held)]
    shares = np.array(weights) / np.sum(weights)
    error = float(np.sqrt(np.sum(shares**2)))
    return intervals.of_error(float(np.sum(shares * values)), error)


def mann_whitney_z(a: np.ndarray, b: np.ndarray) -> float:
    """How much larger `a` is than `b`, as a standard normal if they are alike."""
    n, m = len(a), len(b)
    both = np.concatenate([a, b])
    u = stats.rankdata(both)[:n].sum() - n * (n + 1) / 2
    _, ties = np.unique(both, return_counts=True)
    tied = np.sum(ties.astype(np.float64) ** 3 - ties) / ((n + m) * (n + m - 1))
    variance = n * m / 12 * (n + m + 1 - tied)
    return float((u - n * m / 2) / np.sqrt(variance)) if variance > 0 else 0.0


def _cells(train: np.ndarray, num: int, seed: int) -> np.ndarray:
    """Centres of k-means, Lloyd's rounds from some training examples."""
    rng = np.random.default_rng(seed)
    some = train[rng.permutation(len(train))[:10_000]]
    centres = some[:num]
    for _ in range(NUM_ROUNDS):
        cell = nearest(some, centres).index
        centres = np.stack(
            [
                some[cell == i].mean(axis=0) if np.any(cell == i) else centres[i]
                for i in range(num)
            ]
        )
    return centres


def judge_copying(held_out: Any, fake: Any, train: Any) -> dict[str, Any]:
    """Three figures of copying, each with its controls, and a sentence.

    One half of the held-out examples is what samples are compared with, the other half
    the control. The other control are training examples.

    Args:
        held_out: Data not trained on, `[N, D]`, N at least 4.
        fake: `[M, D]`.
        train: `[T, D]`.

    Returns:
        `copying_z`, `authentic_share` and `near_share` (of samples that are nearer to a
        training example than all but 5 % of held-out ones are), each with `value`,
        `low`, `high`, `held_out` and `copy_cat`; `verdict`; `nearest_pairs`, of the 16
        samples nearest to training examples `sample`, `train` (places) and `distance`.
    """
    held_out, fake, train = distances.checked(
        "judge_copying", held_out=held_out, fake=fake, train=train
    )
    reference, control = held_out[::2], held_out[1::2]
    copies = train[np.linspace(0, len(train) - 1, len(control)).astype(np.int64)]
    limit = np.quantile(nearest(reference, train).squared, NEAR)
    figures = {
        "copying_z": lambda x: copying_z(reference, x, train),
        "authentic_share": lambda x: intervals.of_share(authentic(x, train)),
        "near_share": lambda x: intervals.of_share(nearest(x, train).squared <= limit),
    }
    told: dict[str, Any] = {}
    for name, figure in figures.items():
        controls = {"held_out": figure(control).value, "copy_cat": figure(copies).value}
        told[name] = figure(fake)._asdict() | controls
    found = nearest(fake, train)
    first = np.argsort(found.squared, kind="stable")[:NUM_PAIRS]
    return told | {
        "verdict": _verdict(told),
        "nearest_pairs": [
            {
                "sample": int(i),
                "train": int(found.index[i]),
                "distance": float(np.sqrt(found.squared[i])),
            }
            for i in first
        ],
    }


def _verdict(told: dict[str, Any]) -> str:
    z, near = told["copying_z"], told["near_share"]
    error = (z["high"] - z["value"]) / intervals.NORMAL
    is_nearer = z["value"] < min(z["held_out"], 0.0) - 3 * 2**0.5 * error
    has_near = near["low"] > max(2 * NEAR, near["held_out"] + NEAR)
    if has_near:
        return (
            f"copying shown: {100 * near['value']:.0f} % of the samples are as near to "
            f"training examples as only {100 * NEAR:.0f} % of held-out data are"
        )
    if is_nearer:
        return (
            "copying shown: samples are nearer to training examples than held-out data"
        )
    return "no copying shown: samples are no nearer to training examples than held-out data"
