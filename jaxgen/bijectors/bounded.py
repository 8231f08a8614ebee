"""Maps from a bounded range to the whole line, without parameters.

Data in a range come first through one of these; the density is then zero outside of
it, and integrates to 1 within.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy import special, stats

from jaxgen import _checks
from jaxgen._checks import sum_per_example
from jaxgen.bijectors.base import Bijector, Mapped, without_params


def logit(
    low: int | float = 0.0, high: int | float = 1.0, *, margin: int | float = 0.0
) -> Bijector:
    """From a range to the line by the logit of margin + (1 - 2 margin) s.

    Here s = (x - low) / (high - low).

    Args:
        low: Lower end of the data.
        high: Upper end.
        margin: Keeps the ends themselves at a finite z, as pixels need it; samples may
            then lie outside by `margin / (1 - 2 margin)` of the range.

    Raises:
        ValueError: if the ends do not rise, or margin is not in [0, 1/2).

    References:
        Dinh et al. 2017, section 4.1, arXiv:1605.08803.
    """
    if not low < high:
        raise ValueError(f"logit: low must be below high, got {low} and {high}.")
    if not 0 <= margin < 0.5:
        raise ValueError(f"logit: margin must be in [0, 0.5), got {margin}.")
    scale = (1 - 2 * margin) / (high - low)

    def to_latent(x: Array) -> Mapped:
        up, down = margin + scale * (x - low), margin + scale * (high - x)
        z = jnp.log(up) - jnp.log(down)
        slope = math.log(scale) - jnp.log(up) - jnp.log(down)
        return z, sum_per_example(slope)

    def to_data(z: Array) -> Mapped:
        slope = jax.nn.log_sigmoid(z) + jax.nn.log_sigmoid(-z) - math.log(scale)
        x = low + (jax.nn.sigmoid(z) - margin) / scale
        return x, sum_per_example(slope)

    return without_params(to_latent, to_data)


def softplus() -> Bijector:
    """For positive data: x = log(1 + exp(z)), so x is z where it is large."""

    def to_latent(x: Array) -> Mapped:
        grown = jnp.log(-jnp.expm1(-x))
        return x + grown, sum_per_example(-grown)

    def to_data(z: Array) -> Mapped:
        return jax.nn.softplus(z), sum_per_example(jax.nn.log_sigmoid(z))

    return without_params(to_latent, to_data)


def exponential() -> Bijector:
    """For positive data of several orders of magnitude: x = exp(z)."""

    def to_latent(x: Array) -> Mapped:
        z = jnp.log(x)
        return z, sum_per_example(-z)

    return without_params(to_latent, lambda z: (jnp.exp(z), sum_per_example(z)))


def circular(half: int | float = math.pi) -> Bijector:
    """For angles in [-half, half): z = Phi^-1((x + half) / (2 half)), Phi the normal's.

    A standard normal z is then a uniform angle, so that bijectors of the circle before
    this one make any density on it. Angles outside are wrapped.

    Raises:
        ValueError: if half is not positive.
    """
    _checks.check_positive("circular", half=half)

    def to_latent(x: Array) -> Mapped:
        tiny = float(np.finfo(np.dtype(x.dtype)).epsneg)
        share = jnp.clip(wrapped(x, half) / (2 * half) + 0.5, tiny, 1 - tiny)
        z = special.ndtri(share)
        return z, sum_per_example(-stats.norm.logpdf(z) - math.log(2 * half))

    def to_data(z: Array) -> Mapped:
        x = half * (2 * special.ndtr(z) - 1)
        return x, sum_per_example(stats.norm.logpdf(z) + math.log(2 * half))

    return without_params(to_latent, to_data)


def wrapped(x: Array, half: int | float) -> Array:
    """X moved by whole turns into [-half, half)."""
    return jnp.mod(x + half, 2 * half) - half
