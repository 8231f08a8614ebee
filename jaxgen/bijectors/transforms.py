"""Transforms of each value by itself, with parameters that a network may give.

Coupling and autoregressive bijectors are made of these. The parameters of a value lie
along the last but one axis, `[..., P, C]` for values `[..., C]`; zeros give the identity.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from jaxgen import _checks
from jaxgen.bijectors import splines


class Transform(NamedTuple):
    """A monotone map of a value.

    Attributes:
        num_params: P.
        to_latent: `(raw [..., P, C], x [..., C]) -> (z, log |dz/dx|)`.
        to_data: `(raw, z) -> (x, log |dx/dz|)`.
    """

    num_params: int
    to_latent: Callable[[Array, Array], tuple[Array, Array]]
    to_data: Callable[[Array, Array], tuple[Array, Array]]


def affine(*, max_log_scale: int | float = 3.0) -> Transform:
    """Affine: z = (x - shift) exp(-log_scale), with |log_scale| below `max_log_scale`.

    The bound is c tanh(a / c), which is a near zero: without one a deep chain
    overflows on data it has not seen.

    Raises:
        ValueError: if the bound is not positive.

    References:
        Dinh et al. 2017, equation 7, arXiv:1605.08803; Papamakarios et al. 2017,
        equation 4, arXiv:1705.07057.
    """
    _checks.check_positive("affine", max_log_scale=max_log_scale)

    def split(raw: Array) -> tuple[Array, Array]:
        raw = raw.astype(jnp.promote_types(raw.dtype, jnp.float32))
        log_scale = max_log_scale * jnp.tanh(raw[..., 1, :] / max_log_scale)
        return raw[..., 0, :], log_scale

    def to_latent(raw: Array, x: Array) -> tuple[Array, Array]:
        shift, log_scale = split(raw)
        return (x - shift) * jnp.exp(-log_scale), -log_scale

    def to_data(raw: Array, z: Array) -> tuple[Array, Array]:
        shift, log_scale = split(raw)
        return z * jnp.exp(log_scale) + shift, log_scale

    return Transform(2, to_latent, to_data)


def rational_quadratic(
    *,
    num_bins: int = 8,
    bound: int | float = 5.0,
    periodic: bool = False,
    free_ends: bool = False,
) -> Transform:
    """A rational-quadratic spline within [-bound, bound], and the identity outside.

    Args:
        num_bins: Between the knots.
        bound: Of the box. Data far from standard deviation 1 should be scaled first.
        periodic: For angles in [-bound, bound): the slopes at both ends are equal.
        free_ends: For data that never leave the box: the slope at each end is its own.

    Raises:
        ValueError: if a number is not positive.

    References:
        Durkan et al. 2019, section 3.1, arXiv:1906.04032; periodic: Rezende et al. 2020,
        section 2.1.2, arXiv:2002.02428.
    """
    _checks.check_positive("rational_quadratic", num_bins=num_bins, bound=bound)
    make = functools.partial(
        splines.spline, bound=bound, periodic=periodic, free_ends=free_ends
    )
    return Transform(
        3 * num_bins + (1 if free_ends else 0 if periodic else -1),
        lambda raw, x: splines.evaluate(make(raw), x),
        lambda raw, z: splines.invert(make(raw), z),
    )
