"""Monotone rational-quadratic splines of one variable.

Between two knots the spline is a quotient of two quadratic polynomials that has given
values and slopes at both; it rises, its slope is continuous, and its inverse is the root
of a quadratic equation. Durkan et al. 2019, section 3.1, arXiv:1906.04032; Gregory &
Delbourgo 1982.

All parameters of one value lie along the last but one axis: `[..., P, C]` for values
`[..., C]`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

MIN_SHARE = 1e-3  # of a bin in the box, in units of an even share
MAX_LOG_SLOPE = 6.0  # of a slope at a knot, in units of those of the bins beside it

Values = Float[Array, " *batch C"]
Raw = Float[Array, " *batch P C"]
Knots = Float[Array, " *batch K C"]


class Spline(NamedTuple):
    """The knots of a spline, first to last, each field `[..., K + 1, C]`.

    Attributes:
        x: Where they are.
        y: The values there.
        slope: The slopes there.
    """

    x: Knots
    y: Knots
    slope: Knots


class _Bin(NamedTuple):
    """What the formulas need of the bin that a value lies in."""

    x: Array
    y: Array
    width: Array
    height: Array
    slope: Array  # at the left
    next_slope: Array


def spline(
    raw: Raw,
    *,
    bound: int | float,
    periodic: bool = False,
    free_ends: bool = False,
) -> Spline:
    """The spline of unconstrained numbers; zeros give the identity.

    Args:
        raw: K widths, K heights and the slopes between them: K - 1, those at the two
            ends being 1; K where it is periodic, K + 1 where the ends are free. So P is
            3 K - 1, 3 K or 3 K + 1.
        bound: The spline maps [-bound, bound] onto itself.
        periodic: Whether both ends have one slope, as on a circle.
        free_ends: Whether each end has a slope of its own, where nothing lies outside.

    Returns:
        `Spline` of K + 1 knots. A bin is at least `MIN_SHARE` of an even share wide and
        high; a slope is up to exp(`MAX_LOG_SLOPE`) times the geometric mean of those of
        the bins on both sides, or that part of it, so that steep parts need no large
        numbers.

    Raises:
        ValueError: if P is not such a number.
    """
    more = 1 if free_ends else 0 if periodic else -1
    num, rest = divmod(raw.shape[-2] - more, 3)
    if rest or num < 1:
        raise ValueError(
            f"spline: raw must be [..., P, C] with P = 3 K {more:+d}, got shape {raw.shape}."
        )
    raw = raw.astype(jnp.promote_types(raw.dtype, jnp.float32))
    widths, heights, slopes = jnp.split(raw, (num, 2 * num), axis=-2)
    x, y = _edges(widths, bound), _edges(heights, bound)
    slopes = jnp.exp(MAX_LOG_SLOPE * jnp.tanh(slopes / MAX_LOG_SLOPE))
    mean = (y[..., 1:, :] - y[..., :-1, :]) / (x[..., 1:, :] - x[..., :-1, :])
    first, last = mean[..., :1, :], mean[..., -1:, :]
    inner = jnp.sqrt(mean[..., :-1, :] * mean[..., 1:, :])
    if periodic:
        ends = jnp.sqrt(first * last)
        slopes = jnp.concatenate([slopes, slopes[..., :1, :]], axis=-2)
        slopes = slopes * jnp.concatenate([ends, inner, ends], axis=-2)
    elif free_ends:
        slopes = slopes * jnp.concatenate([first, inner, last], axis=-2)
    else:
        ends = jnp.ones_like(first)
        slopes = jnp.concatenate([ends, slopes * inner, ends], axis=-2)
    return Spline(x, y, slopes)


def _edges(raw: Array, bound: int | float) -> Array:
    """Edges of bins that fill [-bound, bound]; the two outer ones are exact."""
    num = raw.shape[-2]
    shares = MIN_SHARE / num + (1 - MIN_SHARE) * jax.nn.softmax(raw, axis=-2)
    # A product with a triangle of ones: a cumulative sum is a slow loop on CPU.
    inner = np.triu(np.ones((num, num - 1), np.float32))
    inner = jnp.einsum("...kc,kl->...lc", shares, inner.astype(raw.dtype))
    end = jnp.full_like(raw[..., :1, :], bound)
    return jnp.concatenate([-end, bound * (2 * inner - 1), end], axis=-2)


def evaluate(spline: Spline, x: Values) -> tuple[Values, Values]:
    """Values and log slopes, each `[..., C]`; the identity outside the outer knots."""
    clipped, inside = _clipped(x, spline.x)
    b = _bin(spline, spline.x, clipped)
    u = (clipped - b.x) / b.width
    v = u * (1 - u)
    mean = b.height / b.width
    bend = b.slope + b.next_slope - 2 * mean
    below = mean + bend * v
    y = b.y + b.height * (mean * u**2 + b.slope * v) / below
    above = b.next_slope * u**2 + 2 * mean * v + b.slope * (1 - u) ** 2
    log_slope = 2 * jnp.log(mean) + jnp.log(above) - 2 * jnp.log(below)
    return jnp.where(inside, y, x), jnp.where(inside, log_slope, 0)


def invert(spline: Spline, y: Values) -> tuple[Values, Values]:
    """Where the spline has these values, and its inverse's log slopes there."""
    clipped, inside = _clipped(y, spline.y)
    b = _bin(spline, spline.y, clipped)
    mean = b.height / b.width
    bend = b.slope + b.next_slope - 2 * mean
    up = clipped - b.y
    a = b.height * (mean - b.slope) + up * bend
    half = b.height * b.slope - up * bend
    c = -mean * up
    # Rounding can make it negative where it should be zero.
    root = jnp.sqrt(jnp.maximum(half**2 - 4 * a * c, _TINY))
    u = jnp.clip(2 * c / (-half - root), 0, 1)
    v = u * (1 - u)
    above = b.next_slope * u**2 + 2 * mean * v + b.slope * (1 - u) ** 2
    log_slope = 2 * jnp.log(mean) + jnp.log(above) - 2 * jnp.log(mean + bend * v)
    return jnp.where(inside, b.x + u * b.width, y), jnp.where(inside, -log_slope, 0)


_TINY = float(np.finfo(np.float32).tiny)


def _clipped(x: Array, knots: Array) -> tuple[Array, Array]:
    """X within the box, as gradients of what is not chosen must be finite too.

    The ends are of the box: their slopes need not be 1.
    """
    low, high = knots[..., 0, :], knots[..., -1, :]
    inside = (low <= x) & (x <= high)
    return jnp.where(inside, x, low), inside


def _bin(spline: Spline, knots: Array, x: Array) -> _Bin:
    """Chosen by masks: a gather is slow on every platform."""
    x = x[..., None, :]
    after = x >= knots[..., 1:-1, :]
    first = jnp.ones_like(after, shape=(*after.shape[:-2], 1, after.shape[-1]))
    begun = jnp.concatenate([first, after], axis=-2)
    inside = begun & ~jnp.concatenate([after, ~first], axis=-2)

    def pick(values: Array) -> Array:
        return jnp.sum(jnp.where(inside, values, 0), axis=-2)

    left, right = (lambda a: a[..., :-1, :]), (lambda a: a[..., 1:, :])
    return _Bin(
        pick(left(spline.x)),
        pick(left(spline.y)),
        pick(right(spline.x) - left(spline.x)),
        pick(right(spline.y) - left(spline.y)),
        pick(left(spline.slope)),
        pick(right(spline.slope)),
    )
