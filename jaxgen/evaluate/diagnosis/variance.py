"""Variance that a model's images lose, and at which frequencies, on the host in float64.

The best guess of x from what is left of it, E[x given z], varies less than x: by the law
of total variance exactly by its mean squared error. So blurred images are too alike, and
a ratio of variances is to be read beside 1 - MSE / Var x.

References:
    Asperti 2020, "Variance loss in variational autoencoders", arXiv:2002.09860.
"""

from typing import Any, NamedTuple

import numpy as np

from jaxgen import _checks


class Loss(NamedTuple):
    """How much a copy of data varies, as shares of the data's own variance.

    Attributes:
        ratio: Of the copies' variance, averaged over the numbers of an example.
        expected: 1 - MSE / Var: the ratio, if the copies are conditional means.
        by_number: The ratio of each number of an example, `[...]`; NaN where data never
            vary.
    """

    ratio: float
    expected: float
    by_number: np.ndarray


class Spectrum(NamedTuple):
    """Variance by frequency.

    Attributes:
        frequency: Cycles a pixel, `[K]`, the mean of each ring.
        power: Variance for each frequency, `[K]`: of white noise its variance.
        counts: Frequencies in each ring, `[K]`; sum(power counts) / sum(counts) is the
            variance of a pixel.
    """

    frequency: np.ndarray
    power: np.ndarray
    counts: np.ndarray


def variance_loss(x: Any, rebuilt: Any) -> Loss:
    """The variance of reconstructions beside that of the data they are of.

    Args:
        x: Data, `[N, ...]`.
        rebuilt: Of each its reconstruction, same shape.

    Raises:
        ValueError: if the shapes differ, or the data do not vary.
    """
    _checks.check_same_shape("variance_loss", x=x, rebuilt=rebuilt)
    x, rebuilt = (np.asarray(a, np.float64) for a in (x, rebuilt))
    variance = _variance("variance_loss", x)
    error = float(np.mean((x - rebuilt) ** 2))
    return Loss(
        ratio=float(rebuilt.var(axis=0).mean() / variance),
        expected=1 - error / variance,
        by_number=by_number(x, rebuilt),
    )


def ratio(x: Any, made: Any) -> float:
    """The variance of samples `[M, ...]` over that of data `[N, ...]`, pixel by pixel.

    Raises:
        ValueError: if the data do not vary.
    """
    x, made = (np.asarray(a, np.float64) for a in (x, made))
    return float(made.var(axis=0).mean() / _variance("ratio", x))


def by_number(x: Any, made: Any) -> np.ndarray:
    """The same of each number of an example by itself; NaN where data never vary."""
    x, made = (np.asarray(a, np.float64) for a in (x, made))
    variance = x.var(axis=0)
    return np.where(
        variance > 0, made.var(axis=0) / np.where(variance > 0, variance, 1), np.nan
    )


def spectrum(images: Any) -> Spectrum:
    """The power of images about their mean image, averaged over rings of frequency.

    Rings are as wide as the lowest frequency; that of no cycle at all is the first.

    Args:
        images: `[N, H, W, C]`; channels are averaged.

    Raises:
        ValueError: if that is not their shape.
    """
    images = np.asarray(images, np.float64)
    _checks.check_axes("spectrum", "[N, H, W, C]", images=images)
    height, width = images.shape[1:3]
    waves = np.fft.fft2(images - images.mean(axis=0), axes=(1, 2))
    power = np.mean(np.abs(waves) ** 2, axis=(0, 3)) / (height * width)
    up, across = np.fft.fftfreq(height), np.fft.fftfreq(width)
    frequency = np.hypot(up[:, None], across[None])
    ring = np.rint(frequency * max(height, width)).astype(np.int64).ravel()
    counts = np.bincount(ring)
    kept = counts > 0  # of long narrow images some rings have none

    def mean(values: np.ndarray) -> np.ndarray:
        sums = np.bincount(ring, weights=values.ravel())
        return sums[kept] / counts[kept]

    return Spectrum(mean(frequency), mean(power), counts[kept])


def fine_ratio(x: Spectrum, made: Spectrum, *, above: float = 0.25) -> float | None:
    """The power above a frequency, in cycles a pixel, over that of data.

    None where data have none there.
    """
    of_made, of_data = (
        float(np.sum((s.power * s.counts)[s.frequency >= above])) for s in (made, x)
    )
    return of_made / of_data if of_data > 0 else None


def _variance(function: str, x: np.ndarray) -> float:
    variance = float(x.var(axis=0).mean())
    if not variance > 0:
        raise ValueError(f"{function}: x must vary, got {len(x)} examples all alike.")
    return variance
