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


class CausalNetwork(NamedTuple):
    """A network over a sequence of blocks `[B, T, C]`.

    Attributes:
        init: `(key, h, condition) -> params`.
        apply: `(params, h [B, T, C], condition) -> told [B, T, K]`, where what is told
            to block t depends on blocks before t alone.
        memory: `(params, z [B, T, C], condition) -> memory` before the first block, a
            pytree of arrays that also has what steps need of the condition; of z the
            shape and dtype are used.
        step: `(params, memory, last [B, C], t) -> (told [B, K], memory)`: what `apply`
            tells block t, `last` being block t - 1 (zeros at t = 0).
    """

    init: Callable[[Array, Array, Any], Params]
    apply: Callable[[Params, Array, Any], Array]
    memory: Callable[[Params, Array, Any], Any]
    step: Callable[[Params, Any, Array, Array], tuple[Array, Any]]


def causal(network: CausalNetwork, block: Bijector) -> Bijector:
    """Each block of a sequence `[B, T, C]` changes as the blocks before it tell.

    Alternate it with `reverse(axis=1)`, or the first block is never told anything.

    Args:
        network: What tells each block of those before it.
        block: Of one block `[B, C]`, what the network tells it `[B, K]` being its
            condition: `told` with a transform for values that are independent of each
            other within a block, or `autoregressive` for those that are not.

    Raises:
        ValueError: while it runs, if x is not `[B, T, C]`.

    References:
        Zhai et al. 2024 (TarFlow), section 2.2, arXiv:2412.06329, with `told(affine())`.
    """

    def init(key: Array, x: Array, condition: Any = None) -> Params:
        _checks.check_axes("causal", "[B, T, C]", x=x)
        first, second = jax.random.split(key)
        params = network.init(first, x, condition)
        told = network.apply(params, x, condition)
        return {"network": params, "block": block.init(second, _rows(x), _rows(told))}

    def to_latent(params: Params, x: Array, condition: Any = None) -> Mapped:
        _checks.check_axes("causal", "[B, T, C]", x=x)
        told = network.apply(params["network"], x, condition)
        z, log_det = block.to_latent(params["block"], _rows(x), _rows(told))
        return z.reshape(x.shape), jnp.sum(log_det.reshape(x.shape[:2]), axis=1)

    def to_data(params: Params, z: Array, condition: Any = None) -> Mapped:
        _checks.check_axes("causal", "[B, T, C]", z=z)

        def one(carry: Any, inputs: Any) -> Any:
            last, memory = carry
            latent, t = inputs
            told, memory = network.step(params["network"], memory, last, t)
            x, log_det = block.to_data(params["block"], latent, told)
            return (x, memory), (x, log_det)

        memory = network.memory(params["network"], z, condition)
        blocks = z.swapaxes(0, 1), jnp.arange(z.shape[1])
        _, (x, log_det) = jax.lax.scan(one, (jnp.zeros_like(z[:, 0]), memory), blocks)
        return x.swapaxes(0, 1), jnp.sum(log_det, axis=0)

    return Bijector(init, to_latent, to_data)


def _rows(x: Array) -> Array:
    return x.reshape(-1, x.shape[-1])
