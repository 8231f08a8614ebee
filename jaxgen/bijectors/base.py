"""What a bijector is, and how one is made of others."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from jaxgen import _checks

UNROLLED = 8  # copies of a bijector that are written out rather than looped over

Params = Any  # a pytree of arrays
Examples = Float[Array, " B *event"]
LogDet = Float[Array, " B"]
Mapped = tuple[Examples, LogDet]


class Bijector(NamedTuple):
    """An invertible map between data x and a latent z of the same number of values.

    Attributes:
        init: `(key, x, condition=None) -> params`. Of x `[B, ...]` the shape is used,
            and by `actnorm` the values.
        to_latent: `(params, x, condition=None) -> (z, log_det)`, with log_det `[B]` =
            log |det dz/dx| in nats.
        to_data: `(params, z, condition=None) -> (x, log_det)`, with log_det `[B]` =
            log |det dx/dz| in nats.

    The condition is any pytree of arrays `[B, ...]` that a network asks for, or None.
    """

    init: Callable[..., Params]
    to_latent: Callable[..., Mapped]
    to_data: Callable[..., Mapped]


def chain(*bijectors: Bijector) -> Bijector:
    """One bijector after another, the first nearest to the data; params are a tuple.

    Raises:
        ValueError: if there is none.
    """
    if not bijectors:
        raise ValueError("chain: bijectors must be at least one, got none.")

    def init(key: Array, x: Array, condition: Any = None) -> Params:
        params = []
        for bijector, k in zip(
            bijectors, jax.random.split(key, len(bijectors)), strict=True
        ):
            params.append(bijector.init(k, x, condition))
            x, _ = bijector.to_latent(params[-1], x, condition)
        return tuple(params)

    def through(way: str, params: Params, x: Array, condition: Any) -> Mapped:
        pairs = list(zip(bijectors, params, strict=True))
        total = no_change(x)
        for bijector, own in pairs if way == "to_latent" else reversed(pairs):
            x, log_det = getattr(bijector, way)(own, x, condition)
            total = total + log_det
        return x, total

    return both_ways(init, through)


def scan_chain(bijector: Bijector, depth: int) -> Bijector:
    """`depth` copies of a bijector, each with its own params, as one loop.

    Compiling a loop takes as long for 16 copies as for 32. Up to `UNROLLED` copies are
    written out instead: that compiles up to twice as long as a loop, and runs faster.
    The leaves of params have a leading axis
    `[depth]`, the first nearest to the data; shapes must not change on the way.

    Raises:
        ValueError: if depth is not positive.
    """
    _checks.check_positive("scan_chain", depth=depth)

    def init(key: Array, x: Array, condition: Any = None) -> Params:
        def layer(x: Array, key: Array) -> tuple[Array, Params]:
            params = bijector.init(key, x, condition)
            return bijector.to_latent(params, x, condition)[0], params

        return jax.lax.scan(layer, x, jax.random.split(key, depth))[1]

    def through(way: str, params: Params, x: Array, condition: Any) -> Mapped:
        def layer(carry: Mapped, params: Params) -> tuple[Mapped, None]:
            x, log_det = getattr(bijector, way)(params, carry[0], condition)
            return (x, carry[1] + log_det), None

        start = x, no_change(x)
        return jax.lax.scan(
            layer, start, params, reverse=way == "to_data", unroll=depth <= UNROLLED
        )[0]

    return both_ways(init, through)


def inverted(bijector: Bijector) -> Bijector:
    """The same map with the ways exchanged, for where the other one is the fast one.

    Its init gets what comes from the data's side as it is. A chain whose parts look at
    it is inverted part by part, from the last to the first.
    """
    return Bijector(bijector.init, bijector.to_data, bijector.to_latent)


def without_params(to_latent: Callable, to_data: Callable) -> Bijector:
    """A bijector of two functions of x alone; its params are `()`."""
    return Bijector(
        lambda _key, _x, _condition=None: (),
        lambda _params, x, _condition=None: to_latent(x),
        lambda _params, z, _condition=None: to_data(z),
    )


def no_change(x: Array) -> LogDet:
    """The log-determinant of what only moves values: zeros, `[B]`."""
    return jnp.zeros(x.shape[0], jnp.promote_types(x.dtype, jnp.float32))


def both_ways(init: Callable, through: Callable) -> Bijector:
    """A bijector of one function of `(way, params, x, condition)` for both ways.

    The way is "to_latent" or "to_data": the field of a `Bijector` or a `Transform`.
    """
    return Bijector(
        init,
        lambda params, x, condition=None: through("to_latent", params, x, condition),
        lambda params, z, condition=None: through("to_data", params, z, condition),
    )
