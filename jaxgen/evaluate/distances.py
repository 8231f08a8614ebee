"""Distances between two sets of features, on the host in float64.

Each takes features of real and of generated examples, `[N, D]` and `[M, D]`, and knows
nothing of images, networks or runs. None depends on the order of the examples; none
keeps more than `PAIRS` of an N x M table.

What each sees: the Frechet distance two moments, the kernel distance three, the RBF one
any difference (where there are few dimensions), the sliced one every marginal along a
line; precision and density whether samples are like data, recall and coverage whether
data are like samples.
"""

import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

PAIRS = 10**7  # in memory at once; no result depends on it
DIRECTIONS_AT_ONCE = 50
TIE = 1e-9  # by which a neighbourhood is smaller than its last neighbour's distance
SAME = 1e-12  # of the squared norms: a squared distance below it is rounding

Kernel = Callable[[np.ndarray, np.ndarray], np.ndarray]


class Estimate(NamedTuple):
    """A number and the standard error that the finite samples leave."""

    value: float
    standard_error: float


class Manifolds(NamedTuple):
    """Shares of `precision_recall_density_coverage`, or their terms for each example.

    Attributes:
        precision: Of fakes that lie within reach of a real one, `[M]` as terms.
        recall: Of reals within reach of a fake, `[N]`.
        density: Real neighbourhoods a fake lies in, over k; may exceed 1, `[M]`.
        coverage: Of reals with a fake in their neighbourhood, `[N]`.
    """

    precision: Any
    recall: Any
    density: Any
    coverage: Any


def checked(function: str, **features: Any) -> list[np.ndarray]:
    """The named features as float64 `[N, D]`; or ValueError, NaN among them too."""
    arrays = [np.asarray(array, np.float64) for array in features.values()]
    for name, array in zip(features, arrays, strict=True):
        if array.ndim != 2 or array.shape[1] != arrays[0].shape[-1]:
            shapes = ", ".join(str(a.shape) for a in arrays)
            raise ValueError(
                f"{function}: {' and '.join(features)} must be [N, D] of one D, got "
                f"{shapes}; flatten each example."
            )
        if len(array) < 2:
            raise ValueError(
                f"{function}: {name} must have at least 2 examples, got {len(array)}."
            )
        bad = int(np.sum(~np.isfinite(array).all(axis=1)))
        if bad:
            raise ValueError(
                f"{function}: {name} must be finite, got NaN or infinity in {bad} of "
                f"{len(array)} examples; mend the features or what they are of."
            )
    return arrays


def frechet_distance(real: Any, fake: Any) -> float:
    """Squared 2-Wasserstein distance of two Gaussians with the features' moments.

    |mu - nu|^2 + tr S + tr T - 2 tr (S^1/2 T S^1/2)^1/2, whose last term is the nuclear
    norm of A B^T, for A and B the centred features over sqrt(N - 1). So no matrix root
    is taken, and nothing fails where a covariance is singular. Too large by a bias of
    the order of D / N: compare at equal counts, beside the floor of real against real.

    Args:
        real: `[N, D]`.
        fake: `[M, D]`.

    Returns:
        At least 0, in squared units of the features.

    Raises:
        ValueError: if shapes do not fit, or a feature is NaN or infinite.

    Warns:
        UserWarning: where N or M is not above D: bias then dominates.

    References:
        Dowson & Landau 1982, doi:10.1016/0047-259X(82)90077-X. Heusel et al. 2017,
        arXiv:1706.08500.
    """
    real, fake = checked("frechet_distance", real=real, fake=fake)
    num, dims = min(len(real), len(fake)), real.shape[1]
    if num <= dims:
        warnings.warn(few_samples(num, dims), stacklevel=2)
    return frechet(real, fake)


def few_samples(num: int, dims: int) -> str:
    """What is to be said of as few samples as dimensions, or fewer."""
    return (
        f"{num:,} samples in {dims:,} dimensions: covariances are singular and the "
        "Frechet distance is mostly bias, of use only beside its floor; kernel and "
        "sliced distances, precision, recall, density, coverage and two-sample tests hold"
    )


def frechet(real: np.ndarray, fake: np.ndarray) -> float:
    """`frechet_distance` of features that are known to be in order."""
    shift = real.mean(axis=0) - fake.mean(axis=0)
    a, b = _root(real), _root(fake)
    spread = np.sum(a**2) + np.sum(b**2)
    overlap = np.linalg.svd(a @ b.T, compute_uv=False).sum()
    return float(np.sum(shift**2) + max(spread - 2 * overlap, 0.0))


def _root(features: np.ndarray) -> np.ndarray:
    """R `[min(N, D), D]` with R^T R the covariance."""
    centred = (features - features.mean(axis=0)) / np.sqrt(len(features) - 1)
    return np.asarray(np.linalg.qr(centred, mode="r"))


def kernel_distance(real: Any, fake: Any) -> Estimate:
    """Squared MMD by the kernel (x . y / D + 1)^3, unbiased: the "KID" of these features.

    All pairs are used, not subsets: nothing is left to chance, and no count of samples
    changes what is estimated. Around 0, on both sides, for equal distributions.

    Args:
        real: `[N, D]`, N at least 3.
        fake: `[M, D]`, M at least 3.

    Returns:
        The estimate, with the jackknife's standard error (each example left out once).

    Raises:
        ValueError: if shapes do not fit, or a feature is NaN or infinite.

    References:
        Binkowski et al. 2018, arXiv:1801.01401. Gretton et al. 2012, "A kernel
        two-sample test", JMLR 13.
    """
    real, fake = checked("kernel_distance", real=real, fake=fake)
    dims = real.shape[1]

    def cubic(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        base = a @ b.T / dims + 1.0
        return base * base * base

    return _mmd("kernel_distance", real, fake, cubic)


def rbf_mmd(a: Any, b: Any) -> Estimate:
    """Squared MMD by the kernel exp(-|x - y|^2 / 2 s^2), unbiased.

    s^2 is half the mean squared distance of two examples of both sets together, which is
    the trace of their covariance. Between -1 and 2; around 0, on both sides, for equal
    distributions. Symmetric.

    Args:
        a: `[N, D]`, N at least 3.
        b: `[M, D]`, M at least 3.

    Returns:
        The estimate, with the jackknife's standard error.

    Raises:
        ValueError: if shapes do not fit, or a feature is NaN or infinite.

    References:
        Gretton et al. 2012, "A kernel two-sample test", JMLR 13.
    """
    a, b = checked("rbf_mmd", a=a, b=b)
    both = np.concatenate([a, b])
    variance = max(float(both.var(axis=0).sum()), np.finfo(np.float64).tiny)

    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.exp(-squared_distances(a, b) / (2 * variance))

    return _mmd("rbf_mmd", a - both.mean(axis=0), b - both.mean(axis=0), kernel)


def _mmd(function: str, x: np.ndarray, y: np.ndarray, kernel: Kernel) -> Estimate:
    """The U-statistic of MMD^2, and its jackknife from sums over rows alone."""
    n, m = len(x), len(y)
    if min(n, m) < 3:
        raise ValueError(
            f"{function}: both must have at least 3 examples, got {n} and {m}."
        )
    within_x, within_y = (_row_sums(z, z, kernel)[0] - _own(z, kernel) for z in (x, y))
    across_x, across_y = _row_sums(x, y, kernel)

    def value(xx: Any, yy: Any, xy: Any, n: int, m: int) -> Any:
        return xx / (n * (n - 1)) + yy / (m * (m - 1)) - 2 * xy / (n * m)

    xx, yy, xy = within_x.sum(), within_y.sum(), across_x.sum()
    without_x = value(xx - 2 * within_x, yy, xy - across_x, n - 1, m)
    without_y = value(xx, yy - 2 * within_y, xy - across_y, n, m - 1)
    variance = (n - 1) * without_x.var() + (m - 1) * without_y.var()
    return Estimate(float(value(xx, yy, xy, n, m)), float(np.sqrt(variance)))


def _row_sums(
    x: np.ndarray, y: np.ndarray, kernel: Kernel
) -> tuple[np.ndarray, np.ndarray]:
    """Sums of a kernel's table over its columns `[N]` and over its rows `[M]`."""
    over_columns, over_rows = np.empty(len(x)), np.zeros(len(y))
    for part in chunks(len(x), len(y)):
        table = kernel(x[part], y)
        over_columns[part] = table.sum(axis=1)
        over_rows += table.sum(axis=0)
    return over_columns, over_rows


def _own(x: np.ndarray, kernel: Kernel) -> np.ndarray:
    """The kernel of each example with itself, `[N]`."""
    return np.array([kernel(x[i : i + 1], x[i : i + 1])[0, 0] for i in range(len(x))])


def sliced_wasserstein(
    real: Any, fake: Any, *, num_directions: int = 1000, seed: int = 0
) -> float:
    """3 D times the mean squared 2-Wasserstein distance along random directions ("MIND").

    A shift of every feature by s has 3 D s^2, whatever the directions' number but for
    their chance. Counts may differ: the quantile functions are integrated exactly.

    Args:
        real: `[N, D]`.
        fake: `[M, D]`.
        num_directions: Of the lines, uniform on the sphere.
        seed: Of the directions.

    Returns:
        At least 0, in squared units of the features.

    Raises:
        ValueError: if shapes do not fit, or a feature is NaN or infinite.

    References:
        Bonneel et al. 2015, "Sliced and Radon Wasserstein barycenters of measures". The
        factor 3 D: arXiv:2605.06797.
    """
    real, fake = checked("sliced_wasserstein", real=real, fake=fake)
    dims, n, m = real.shape[1], len(real), len(fake)
    rng = np.random.default_rng(seed)
    lines = rng.standard_normal((num_directions, dims))
    lines /= np.linalg.norm(lines, axis=1, keepdims=True)
    # Where one of the two quantile functions steps, in units of 1 / (n m).
    steps = np.union1d(np.arange(1, n + 1) * m, np.arange(1, m + 1) * n)
    weights = np.diff(steps, prepend=0) / (n * m)
    of_real, of_fake = (steps - 1) // m, (steps - 1) // n
    total = 0.0
    for start in range(0, num_directions, DIRECTIONS_AT_ONCE):
        some = lines[start : start + DIRECTIONS_AT_ONCE]
        a, b = (np.sort(some @ features.T, axis=1) for features in (real, fake))
        gap = a - b if n == m else a[:, of_real] - b[:, of_fake]
        total += float(np.sum(gap**2 @ weights))
    return 3 * dims * total / num_directions


def precision_recall_density_coverage(real: Any, fake: Any, *, k: int = 5) -> Manifolds:
    """How far samples are like data, and data like samples, by k nearest neighbours.

    The neighbourhood of an example is the ball up to its k-th nearest of its own set.
    Precision and density look at samples within the data's neighbourhoods, recall at
    data within the samples'; coverage, unlike recall, does not grow with samples that
    lie far out. Ideal: density and coverage about 1 at equal counts.

    Args:
        real: `[N, D]`, N above k.
        fake: `[M, D]`, M above k.
        k: Of the neighbourhoods.

    Returns:
        The four figures.

    Raises:
        ValueError: if shapes do not fit, or a feature is NaN or infinite.

    References:
        Kynkaanniemi et al. 2019, arXiv:1904.06991. Naeem et al. 2020, arXiv:2002.09797.
    """
    terms = manifold_terms(real, fake, k=k)
    return Manifolds(*(float(np.mean(term)) for term in terms))


def manifold_terms(real: Any, fake: Any, *, k: int = 5) -> Manifolds:
    """What `precision_recall_density_coverage` averages, one value an example."""
    name = "precision_recall_density_coverage"
    real, fake = checked(name, real=real, fake=fake)
    if not 1 <= k < min(len(real), len(fake)):
        raise ValueError(
            f"{name}: k must be at least 1 and below both counts, got k = {k} with "
            f"{len(real)} and {len(fake)} examples; give more examples or a smaller k."
        )
    centre = real.mean(axis=0)
    real, fake = real - centre, fake - centre
    reach_real, reach_fake = (reach(x, k) * (1 - TIE) for x in (real, fake))
    is_like_data, count = np.zeros(len(fake), bool), np.zeros(len(fake))
    is_like_fake, is_covered = (np.zeros(len(real), bool) for _ in range(2))
    for part in chunks(len(real), len(fake)):
        table = squared_distances(real[part], fake)
        inside = table < reach_real[part, None]
        count += inside.sum(axis=0)
        is_like_data |= inside.any(axis=0)
        is_covered[part] = inside.any(axis=1)
        is_like_fake[part] = (table < reach_fake).any(axis=1)
    return Manifolds(is_like_data, is_like_fake, count / k, is_covered)


def reach(x: np.ndarray, k: int) -> np.ndarray:
    """Squared distance of each example to the k-th nearest other one, `[N]`."""
    found = np.empty(len(x))
    for part in chunks(len(x), len(x)):
        table = squared_distances(x[part], x)
        found[part] = np.partition(table, k, axis=1)[:, k]
    return found


def squared_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """`[N, M]`; exactly 0 where nothing but rounding is left."""
    norms = np.sum(a**2, axis=1)[:, None] + np.sum(b**2, axis=1)
    table = a @ b.T
    table *= -2
    table += norms
    table[table < SAME * norms] = 0.0
    return table


def chunks(num: int, num_others: int) -> Iterator[slice]:
    """`range(num)` in parts, whose pairs with so many others fit into memory."""
    size = max(1, PAIRS // num_others)
    return (slice(start, start + size) for start in range(0, num, size))
