"""Bijectors whose transforms depend on other values through a network.

The network is anybody's: a pair of `init` and `apply`. It sees the values that stay,
and tells the parameters of the transforms of the others.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jaxgen import _checks
from jaxgen.bijectors.base import Bijector, Mapped, Params, both_ways
from jaxgen.bijectors.transforms import Transform


class Network(NamedTuple):
    """A network that conditions a transform.

    Attributes:
        init: `(key, h, condition) -> params`.
        apply: `(params, h, condition) -> raw`, h being `[B, ..., K]`, raw
            `[B, ..., P C]` in any order that is always the same: it is read as
            `[B, ..., P, C]`, the C values of one parameter side by side.
    """

    init: Callable[[Array, Array, Any], Params]
    apply: Callable[[Params, Array, Any], Array]


def elementwise(transform: Transform) -> Bijector:
    """The same transform for every example: its params are trained, and see nothing.

    They are `[P, C]`, one column for each place of the last axis, and begin as zeros.
    """

    def init(_key: Array, x: Array, _condition: Any = None) -> Params:
        _checks.check_min_rank("elementwise", 2, x=x)
        dtype = jnp.promote_types(x.dtype, jnp.float32)
        return jnp.zeros((transform.num_params, x.shape[-1]), dtype)

    def through(way: str, params: Params, x: Array, _condition: Any) -> Mapped:
        shape = *x.shape[:-1], *params.shape
        raw = jnp.broadcast_to(params, shape)
        x, log_slope = getattr(transform, way)(raw, x)
        return x, _checks.sum_per_example(log_slope)

    return both_ways(init, through)


def told(transform: Transform) -> Bijector:
    """The condition is the transform's parameters, `[B, ..., P C]`: nothing is trained.

    Raises:
        ValueError: while it runs, if the condition has another shape.
    """

    def through(way: str, _params: Params, x: Array, condition: Any) -> Mapped:
        raw = parameters("told", condition, x, transform.num_params)
        x, log_slope = getattr(transform, way)(raw, x)
        return x, _checks.sum_per_example(log_slope)

    return both_ways(lambda _key, _x, _condition=None: (), through)


def coupling(network: Network, transform: Transform, *, num_kept: int) -> Bijector:
    """The first `num_kept` values of the last axis stay, and tell how the others change.

    Alternate it with a permutation or a linear map, or the kept ones stay for ever.
    Equally fast both ways.

    Args:
        network: From `[B, ..., num_kept]` to `[B, ..., P C]`, C being the number of the
            others.
        transform: Of each of the others.
        num_kept: From 0 (the network then sees nothing but the condition, which is the
            way for one dimension) to one less than there are.

    Raises:
        ValueError: while it runs, if there are not more values than `num_kept`, or the
            network's output has another shape.

    References:
        Dinh et al. 2017, section 3.2, arXiv:1605.08803.
    """

    def init(key: Array, x: Array, condition: Any = None) -> Params:
        _check_channels("coupling", x, num_kept)
        return network.init(key, x[..., :num_kept], condition)

    def through(way: str, params: Params, x: Array, condition: Any) -> Mapped:
        _check_channels("coupling", x, num_kept)
        kept, changed = x[..., :num_kept], x[..., num_kept:]
        raw = network.apply(params, kept, condition)
        raw = parameters("coupling", raw, changed, transform.num_params)
        changed, log_slope = getattr(transform, way)(raw, changed)
        x = jnp.concatenate([kept, changed], axis=-1)
        return x, _checks.sum_per_example(log_slope)

    return both_ways(init, through)


def masked_coupling(network: Network, transform: Transform, mask: Any) -> Bijector:
    """As `coupling`, where a mask says what stays: a checkerboard, say.

    Args:
        network: From `[B, *event]`, zero where values change, to `[B, ..., P C]` for all
            of them; what it says of those that stay is not used.
        transform: Of each value that changes.
        mask: Which values stay, of the event's shape or one that broadcasts to it.

    Raises:
        ValueError: while it runs, if the network's output has another shape.
    """
    mask = np.asarray(mask, bool)

    def init(key: Array, x: Array, condition: Any = None) -> Params:
        return network.init(key, jnp.where(mask[None], x, 0), condition)

    def through(way: str, params: Params, x: Array, condition: Any) -> Mapped:
        kept = jnp.where(mask[None], x, 0)
        raw = network.apply(params, kept, condition)
        raw = parameters("masked_coupling", raw, x, transform.num_params)
        changed, log_slope = getattr(transform, way)(raw, x)
        x = jnp.where(mask[None], x, changed)
        return x, _checks.sum_per_example(jnp.where(mask[None], 0, log_slope))

    return both_ways(init, through)


def checkerboard(height: int, width: int) -> np.ndarray:
    """A mask `[H, W, 1]` of the white squares; `~checkerboard` is that of the black."""
    rows, columns = np.indices((height, width))
    return ((rows + columns) % 2 == 0)[..., None]


def autoregressive(network: Network, transform: Transform) -> Bijector:
    """Each value changes as those before it tell: one call to the latent, D to data.

    Args:
        network: From `[B, D]` to `[B, P D]`, in which what is said of value i must
            depend on values before i alone (a masked network).
        transform: Of each value.

    Raises:
        ValueError: while it runs, if x is not `[B, D]`, or the network's output has
            another shape.

    References:
        Papamakarios et al. 2017, section 3, arXiv:1705.07057.
    """

    def init(key: Array, x: Array, condition: Any = None) -> Params:
        _checks.check_axes("autoregressive", "[B, D]", x=x)
        return network.init(key, x, condition)

    def to_latent(params: Params, x: Array, condition: Any = None) -> Mapped:
        _checks.check_axes("autoregressive", "[B, D]", x=x)
        raw = network.apply(params, x, condition)
        raw = parameters("autoregressive", raw, x, transform.num_params)
        z, log_slope = transform.to_latent(raw, x)
        return z, _checks.sum_per_example(log_slope)

    def to_data(params: Params, z: Array, condition: Any = None) -> Mapped:
        _checks.check_axes("autoregressive", "[B, D]", z=z)

        def fill(i: Array, found: Mapped) -> Mapped:
            raw = network.apply(params, found[0], condition)
            raw = parameters("autoregressive", raw, z, transform.num_params)
            x, log_slope = transform.to_data(raw, z)
            # Those before i are as they were; those after are set in their turn.
            here = (jnp.arange(z.shape[1]) == i)[None]
            return (
                jnp.where(here, x, found[0]),
                found[1] + jnp.sum(jnp.where(here, log_slope, 0), axis=1),
            )

        start = jnp.zeros_like(z), jnp.zeros(z.shape[0], z.dtype)
        return jax.lax.fori_loop(0, z.shape[1], fill, start)

    return Bijector(init, to_latent, to_data)


def parameters(function: str, raw: Array, values: ArrayLike, num_params: int) -> Array:
    """A network's output as `[B, ..., P, C]`, or ValueError."""
    *front, channels = jnp.shape(values)
    expected = (*front, num_params * channels)
    if raw.shape != expected:
        raise ValueError(
            f"{function}: the network's output must be {expected}, {num_params} "
            f"numbers for each of {channels} values, got shape {raw.shape}."
        )
    return raw.reshape(*front, num_params, channels)


def _check_channels(function: str, x: Array, num_kept: int) -> None:
    _checks.check_min_rank(function, 2, x=x)
    if not 0 <= num_kept < x.shape[-1]:
        raise ValueError(
            f"{function}: num_kept must be from 0 to {x.shape[-1] - 1}, as x has shape "
            f"{x.shape}, got {num_kept}."
        )
