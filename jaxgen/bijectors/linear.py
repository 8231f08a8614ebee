"""Linear bijectors along the last axis, and what only moves values.

On images they act on the channels of each pixel, as a 1x1 convolution does, and the
log-determinant counts every pixel.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxgen import _checks
from jaxgen.bijectors.base import Bijector, Mapped, Params, no_change, without_params

_SMALLEST_DEVIATION = 1e-6


def invertible_linear() -> Bijector:
    """Along the last axis z = x W, W = P L U with the diagonal of U never zero.

    It begins as a random rotation, of which P is kept. Of a 1x1 convolution it is the
    cheap form: the log-determinant is the sum of the logarithms of a diagonal.

    References:
        Kingma & Dhariwal 2018, section 3.2, arXiv:1807.03039.
    """

    def init(key: Array, x: Array, _condition: Any = None) -> Params:
        _checks.check_min_rank("invertible_linear", 2, x=x)
        dim = x.shape[-1]
        rotation = jax.random.orthogonal(key, dim, dtype=_float(x))
        order, lower, upper = jax.scipy.linalg.lu(rotation)
        diagonal = jnp.diagonal(upper)
        return {
            # As numbers that sort into the permutation: never trained, and what an
            # optimizer's decay does to them leaves their order.
            "order": jnp.argmax(order, axis=0).astype(_float(x)),
            "lower": lower,
            "upper": upper / diagonal[None],
            "sign": jnp.sign(diagonal),
            "log_diagonal": jnp.log(jnp.abs(diagonal)),
        }

    def factors(params: Params) -> tuple[Array, Array, Array]:
        fixed = jax.lax.stop_gradient({k: params[k] for k in ("order", "sign")})
        diagonal = jnp.sign(fixed["sign"]) * jnp.exp(params["log_diagonal"])
        ones = jnp.eye(diagonal.size, dtype=diagonal.dtype)
        lower = jnp.tril(params["lower"], -1) + ones
        upper = (jnp.triu(params["upper"], 1) + ones) * diagonal[None]
        # Row i of W is row order[i] of L U.
        return jnp.argsort(fixed["order"]), lower, upper

    def to_latent(params: Params, x: Array, _condition: Any = None) -> Mapped:
        order, lower, upper = factors(params)
        return x @ (lower @ upper)[order], _log_det(x, params["log_diagonal"])

    def to_data(params: Params, z: Array, _condition: Any = None) -> Mapped:
        order, lower, upper = factors(params)
        solve = jax.scipy.linalg.solve_triangular
        inverse = solve(
            upper,
            solve(lower, jnp.eye(order.size, dtype=z.dtype), lower=True),
        )
        # (P A)^-1 = A^-1 P^T: its columns are those of A^-1, put back.
        return z @ inverse[:, order], -_log_det(z, params["log_diagonal"])

    return Bijector(init, to_latent, to_data)


def actnorm() -> Bijector:
    """Each place of the last axis: z = (x - shift) exp(-log_scale).

    On the x that `init` gets, z has mean 0 and variance 1; a constant channel keeps its
    scale. There is no flag: who restores the params has all there is.

    References:
        Kingma & Dhariwal 2018, section 3.1, arXiv:1807.03039.
    """

    def init(_key: Array, x: Array, _condition: Any = None) -> Params:
        _checks.check_min_rank("actnorm", 2, x=x)
        axes = tuple(range(x.ndim - 1))
        x = x.astype(_float(x))
        deviation = jnp.std(x, axis=axes)
        scale = jnp.where(deviation > _SMALLEST_DEVIATION, deviation, 1.0)
        return {"shift": jnp.mean(x, axis=axes), "log_scale": jnp.log(scale)}

    def to_latent(params: Params, x: Array, _condition: Any = None) -> Mapped:
        shift, log_scale = (
            jnp.expand_dims(params[k], tuple(range(x.ndim - 1)))
            for k in ("shift", "log_scale")
        )
        log_det = -_log_det(x, params["log_scale"])
        return (x - shift) * jnp.exp(-log_scale), log_det

    def to_data(params: Params, z: Array, _condition: Any = None) -> Mapped:
        shift, log_scale = (
            jnp.expand_dims(params[k], tuple(range(z.ndim - 1)))
            for k in ("shift", "log_scale")
        )
        return z * jnp.exp(log_scale) + shift, _log_det(z, params["log_scale"])

    return Bijector(init, to_latent, to_data)


def rescale(scale: int | float, shift: int | float = 0.0) -> Bijector:
    """Fixed numbers: z = scale x + shift.

    Raises:
        ValueError: if the scale is zero.
    """
    if not scale:
        raise ValueError("rescale: scale must not be zero.")

    def log_det(x: Array) -> Array:
        return jnp.full(x.shape[0], x[0].size * math.log(abs(scale)), _float(x))

    return without_params(
        lambda x: (scale * x + shift, log_det(x)),
        lambda z: ((z - shift) / scale, -log_det(z)),
    )


def permutation(order: Any) -> Bijector:
    """z[..., i] = x[..., order[i]].

    Raises:
        ValueError: if `order` does not hold 0 .. C - 1, each once; while it runs, if x has
            another number of channels.
    """
    order = np.asarray(order)
    if sorted(order.tolist()) != list(range(order.size)):
        raise ValueError(
            f"permutation: order must hold each of 0 .. {order.size - 1} once, got "
            f"{order.tolist()}."
        )
    back = np.argsort(order)

    def moved(order: np.ndarray, x: Array) -> Mapped:
        if x.shape[-1] != order.size:
            raise ValueError(
                f"permutation: x must have {order.size} values along the last axis, got "
                f"shape {x.shape}."
            )
        return x[..., order], no_change(x)

    return without_params(lambda x: moved(order, x), lambda z: moved(back, z))


def reverse(axis: int = -1) -> Bijector:
    """The values along an axis in reverse order."""

    def flipped(x: Array) -> Mapped:
        return jnp.flip(x, axis), no_change(x)

    return without_params(flipped, flipped)


def _float(x: Array) -> Any:
    return jnp.promote_types(x.dtype, jnp.float32)


def _log_det(x: Array, log_diagonal: Array) -> Array:
    """Every pixel has the same."""
    pixels = x[0, ..., 0].size
    return jnp.broadcast_to(pixels * jnp.sum(log_diagonal), x.shape[:1])
