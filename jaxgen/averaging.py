"""Averages of the parameters over training, and averages made of stored ones later.

An average follows the parameters, `average += weight * (params - average)`, with a weight
that depends on the number t = 1, 2, ... of the update. The power-function average of EDM2

    theta_hat(t) = (gamma + 1) / t^(gamma + 1)  integral over [0, t] of  s^gamma theta(s) ds

grows with the run: its width, the standard deviation of s / t under those weights, stays
the same. Its averages at several widths and moments span averages of other widths, so
that the width may be chosen after training: `posthoc` says how to mix them.

References:
    Karras et al. 2023, "Analyzing and improving the training dynamics of diffusion
    models" (EDM2), section 3 and appendix C, arXiv:2312.02696.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jaxgen import _checks

__all__ = [
    "MAX_WIDTH",
    "PostHoc",
    "gamma_to_width",
    "half_life_weight",
    "posthoc",
    "power_weight",
    "updated",
    "width_to_gamma",
]

MAX_WIDTH = (
    0.28  # gamma = 0, the plain mean since the first update, has 12^-0.5 = 0.289
)


def width_to_gamma(width: float) -> float:
    """The exponent gamma of the power-function average of a width.

    Args:
        width: sigma_rel, in (0, 0.28): standard deviation of the averaged times as a
            fraction of the time trained. 0.1 remembers about the last fifth.

    Raises:
        ValueError: if the width is not in that range.
    """
    if not 0 < width < MAX_WIDTH:
        raise ValueError(
            f"width_to_gamma: width must be in (0, {MAX_WIDTH}), got {width}; "
            "0.05 and 0.1 are usual."
        )
    # width^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3)), a cubic in gamma.
    inverse = width**-2
    roots = np.roots([1.0, 7.0, 16.0 - inverse, 12.0 - inverse])
    return float(np.max(roots[np.abs(roots.imag) < 1e-6].real))


def gamma_to_width(gamma: float) -> float:
    """The width sigma_rel of the power-function average; inverse of `width_to_gamma`."""
    return math.sqrt((gamma + 1) / (gamma + 3)) / (gamma + 2)


def power_weight(step: ArrayLike, gamma: float) -> Array:
    """Weight 1 - beta_t of the newest parameters, beta_t = (1 - 1/t)^(gamma + 1).

    Written so that float32 does not round it away where t is large.

    Args:
        step: Number t of the update, the first is 1 (and has the weight 1).
        gamma: From `width_to_gamma`.
    """
    return -jnp.expm1((gamma + 1) * jnp.log1p(-1 / jnp.asarray(step)))


def half_life_weight(step: ArrayLike, half_life: float) -> Array:
    """Weight of the newest parameters in an average that forgets half in `half_life`.

    Early on it is 1 / t: the plain mean, not a memory of the initial parameters.

    Args:
        step: Number t of the update, the first is 1.
        half_life: In updates, positive.
    """
    return jnp.maximum(-math.expm1(-math.log(2) / half_life), 1 / jnp.asarray(step))


def updated(average: Any, params: Any, weight: ArrayLike) -> Any:
    """`average + weight * (params - average)` for trees of arrays, in their dtypes."""

    def toward(old: Array, new: Array) -> Array:
        return old + jnp.asarray(weight, old.dtype) * (new - old)

    return jax.tree.map(toward, average, params)


class PostHoc(NamedTuple):
    """How to mix stored averages.

    Attributes:
        weights: `[N]` float64, one per stored average; they sum to 1.
        error: Distance of the mixture's profile from the wanted one as a fraction of its
            norm (L2 over the time trained). 0 where the wanted average is a stored one.
    """

    weights: np.ndarray
    error: float


def posthoc(stored: Sequence[tuple[int, float]], step: int, width: float) -> PostHoc:
    """The least-squares mixture of stored averages for one that was not kept.

    On the host, in float64. The profiles over time are mixed, so that nothing but steps
    and widths is looked at.

    Args:
        stored: `(step, width)` of each stored power-function average.
        step: The update after which the wanted average ends; no stored one may be later.
        width: Its sigma_rel.

    Raises:
        ValueError: if there is none, one is later than `step`, or a width is not in
            (0, 0.28).
    """
    if not stored or max(t for t, _ in stored) > step:
        raise ValueError(
            f"posthoc: stored must hold averages of steps up to {step}, got "
            f"{list(stored)}; leave later ones out."
        )
    _checks.check_positive("posthoc", **{"every step": min(t for t, _ in stored)})
    times = np.array([t for t, _ in stored], np.float64)
    gammas = np.array([width_to_gamma(w) for _, w in stored])
    gamma = width_to_gamma(width)
    # In units of each profile's norm the matrix is of correlations, and well scaled.
    norms = np.sqrt(_inner(times, gammas, times, gammas))
    norm = np.sqrt(_inner(step, gamma, step, gamma))
    matrix = _inner(times[:, None], gammas[:, None], times, gammas)
    matrix /= norms[:, None] * norms
    target = _inner(times, gammas, step, gamma) / (norms * norm)
    mix = np.linalg.lstsq(matrix, target, rcond=1e-12)[0]
    squared = 1 - 2 * mix @ target + mix @ matrix @ mix
    weights = mix * norm / norms
    # As every profile does the mixture has all in all weight 1: constants are kept.
    return PostHoc(weights / weights.sum(), float(np.sqrt(max(squared, 0.0))))


def _inner(step_a: Any, gamma_a: Any, step_b: Any, gamma_b: Any) -> Any:
    """Inner product over time of two profiles, (gamma + 1) s^gamma / t^(gamma + 1)."""
    both = np.minimum(step_a, step_b)
    shape = (both / step_a) ** gamma_a * (both / step_b) ** gamma_b
    scale = (gamma_a + 1) * (gamma_b + 1) / (gamma_a + gamma_b + 1)
    return scale * shape * both / (step_a * step_b)
