"""Bijectors that change the shape of an image: squeezing, splitting, flattening."""

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import Array

from jaxgen import _checks
from jaxgen.bijectors.base import Bijector, Mapped, Params, no_change, without_params


def squeeze(side: int = 2) -> Bijector:
    """Squares of pixels become channels: `[B, H, W, C] -> [B, H/s, W/s, s s C]`.

    Raises:
        ValueError: while it runs, if the height or width cannot be divided.

    References:
        Dinh et al. 2017, section 3.6, arXiv:1605.08803.
    """
    _checks.check_positive("squeeze", side=side)

    def to_latent(x: Array) -> Mapped:
        _checks.check_axes("squeeze", "[B, H, W, C]", x=x)
        batch, height, width, channels = x.shape
        if height % side or width % side:
            raise ValueError(
                f"squeeze: height and width must be multiples of {side}, got shape "
                f"{x.shape}; pad the images, or squeeze less often."
            )
        shape = batch, height // side, side, width // side, side, channels
        z = x.reshape(shape).transpose(0, 1, 3, 2, 4, 5)
        return z.reshape(*z.shape[:3], -1), no_change(x)

    def to_data(z: Array) -> Mapped:
        batch, height, width, channels = z.shape
        shape = batch, height, width, side, side, channels // side**2
        x = z.reshape(shape).transpose(0, 1, 3, 2, 4, 5)
        return x.reshape(batch, height * side, width * side, -1), no_change(z)

    return without_params(to_latent, to_data)


def reshape(event: Sequence[int], into: Sequence[int]) -> Bijector:
    """`[B, *event] -> [B, *into]`, the values in the same order.

    Raises:
        ValueError: if the sizes differ; while it runs, if an example has another shape.
    """
    event, into = tuple(event), tuple(into)
    if math.prod(event) != math.prod(into):
        raise ValueError(
            f"reshape: event and into must have one size, got {event} and {into}."
        )

    def to(before: tuple[int, ...], after: tuple[int, ...], x: Array) -> Mapped:
        if x.shape[1:] != before:
            raise ValueError(f"reshape: x must be [B, *{before}], got shape {x.shape}.")
        return x.reshape(x.shape[0], *after), no_change(x)

    return without_params(lambda x: to(event, into, x), lambda z: to(into, event, z))


def flatten(*event: int) -> Bijector:
    """`[B, *event] -> [B, D]`; the last of a chain, and of what follows a `split`."""
    return reshape(event, (math.prod(event),))


def split(rest: Bijector) -> Bijector:
    """Half of the channels are done; the other half goes on to `rest`: multi-scale.

    Args:
        rest: From the first half `[B, ..., C/2]` to a latent `[B, D/2]`: it ends with
            `flatten`.

    Returns:
        A bijector to `[B, D]`: what `rest` made, then the half that was done.

    Raises:
        ValueError: while it runs, if there is an odd number of channels, or `rest` does
            not end with `flatten`.

    References:
        Dinh et al. 2017, section 3.6, arXiv:1605.08803.
    """

    def half(x: Array) -> Array:
        if x.shape[-1] % 2:
            raise ValueError(
                f"split: x must have an even number of channels, got shape {x.shape}; "
                "squeeze it first."
            )
        return x[..., : x.shape[-1] // 2]

    def init(key: Array, x: Array, condition: Any = None) -> Params:
        return rest.init(key, half(x), condition)

    def to_latent(params: Params, x: Array, condition: Any = None) -> Mapped:
        first = half(x)
        z, log_det = rest.to_latent(params, first, condition)
        if z.ndim != 2:
            raise ValueError(
                f"split: the latent of rest must be [B, D], got shape {z.shape}; end it "
                "with flatten."
            )
        done = x[..., first.shape[-1] :].reshape(z.shape)
        return jnp.concatenate([z, done], axis=1), log_det

    def to_data(params: Params, z: Array, condition: Any = None) -> Mapped:
        first, done = jnp.split(z, 2, axis=1)
        x, log_det = rest.to_data(params, first, condition)
        return jnp.concatenate([x, done.reshape(x.shape)], axis=-1), log_det

    return Bijector(init, to_latent, to_data)
