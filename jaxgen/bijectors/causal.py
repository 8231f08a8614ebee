"""Autoregression over blocks of values, by a network with a memory of the blocks before.

All blocks at once on the way to the latent. On the way to data one after the other;
the network then sees one block at a time, and its memory (the keys and values of a
transformer's attention) holds what came before.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxgen import _checks
from jaxgen.bijectors.base import Bijector, Mapped, Params
from jaxgen.bijectors.conditional import parameters
from jaxgen.bijectors.transforms import Transform


class CausalNetwork(NamedTuple):
    """A network over a sequence of blocks `[B, T, C]`.

    Attributes:
        init: `(key, h, condition) -> params`.
        apply: `(params, h [B, T, C], condition) -> raw [B, T, P C]`, where what is said
            of block t depends on blocks before t alone.
        memory: `(params, z [B, T, C], condition) -> memory` before the first block, a
            pytree of arrays; of z the shape and dtype are used.
        step: `(params, memory, last [B, C], t, condition) -> (raw [B, P C], memory)`:
            what `apply` says of block t, `last` being block t - 1 (zeros at t = 0).
    """

    init: Callable[[Array, Array, Any], Params]
    apply: Callable[[Params, Array, Any], Array]
    memory: Callable[[Params, Array, Any], Any]
    step: Callable[[Params, Any, Array, Array, Any], tuple[Array, Any]]


def causal(network: CausalNetwork, transform: Transform) -> Bijector:
    """Each block of a sequence `[B, T, C]` changes as the blocks before it tell.

    Alternate it with `reverse(axis=1)`, or the first block is never told anything.

    Raises:
        ValueError: while it runs, if x is not `[B, T, C]`, or the network's output has
            another shape.

    References:
        Zhai et al. 2024 (TarFlow), section 2.2, arXiv:2412.06329.
    """

    def init(key: Array, x: Array, condition: Any = None) -> Params:
        _checks.check_axes("causal", "[B, T, C]", x=x)
        return network.init(key, x, condition)

    def to_latent(params: Params, x: Array, condition: Any = None) -> Mapped:
        _checks.check_axes("causal", "[B, T, C]", x=x)
        raw = parameters(
            "causal", network.apply(params, x, condition), x, transform.num_params
        )
        z, log_slope = transform.to_latent(raw, x)
        return z, _checks.sum_per_example(log_slope)

    def to_data(params: Params, z: Array, condition: Any = None) -> Mapped:
        _checks.check_axes("causal", "[B, T, C]", z=z)

        def block(carry: Any, inputs: Any) -> Any:
            last, memory = carry
            block, t = inputs
            raw, memory = network.step(params, memory, last, t, condition)
            raw = parameters("causal", raw, block, transform.num_params)
            x, log_slope = transform.to_data(raw, block)
            return (x, memory), (x, _checks.sum_per_example(log_slope))

        start = jnp.zeros_like(z[:, 0]), network.memory(params, z, condition)
        blocks = z.swapaxes(0, 1), jnp.arange(z.shape[1])
        _, (x, log_det) = jax.lax.scan(block, start, blocks)
        return x.swapaxes(0, 1), jnp.sum(log_det, axis=0)

    return Bijector(init, to_latent, to_data)
