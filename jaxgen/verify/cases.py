"""Small networks and a dict of all bijectors, with random parameters and data."""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxgen import bijectors
from jaxgen.verify.records import compiled


class Case(NamedTuple):
    """A bijector, the shape of its examples and their range."""

    bijector: bijectors.Bijector
    shape: tuple[int, ...] = (4,)
    condition: bool = False
    low: float = -np.inf
    high: float = np.inf
    is_identity: bool = False  # up to an order of the values


def randomised(params: Any, key: Array, deviation: float = 0.3) -> Any:
    """Zeros would make every flow the identity, and every test pass."""
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(key, max(1, len(leaves)))
    return jax.tree.unflatten(
        tree,
        [
            a + deviation * jax.random.normal(k, a.shape, a.dtype)
            for a, k in zip(leaves, keys, strict=False)
        ],
    )


def dense(key: Array, inputs: int, outputs: int, dtype: Any) -> Array:
    """A kernel of unit gain."""
    return jax.random.normal(key, (inputs, outputs), dtype) / math.sqrt(max(1, inputs))


def mlp(num_outputs: int, *, hidden: int = 16) -> bijectors.Network:
    """Of the last axis and the condition `[B, K]`."""

    def init(key: Array, h: Array, condition: Any) -> Any:
        k1, k2, k3 = jax.random.split(key, 3)
        dtype = h.dtype
        params = {
            "in": dense(k1, h.shape[-1], hidden, dtype),
            "bias": jnp.zeros(hidden, dtype),
            "out": dense(k2, hidden, num_outputs, dtype),
        }
        if condition is not None:
            params["condition"] = dense(k3, condition.shape[-1], hidden, dtype)
        return params

    def apply(params: Any, h: Array, condition: Any) -> Array:
        hidden = h @ params["in"] + jnp.expand_dims(
            params["bias"], tuple(range(h.ndim - 1))
        )
        if condition is not None:
            told = condition @ params["condition"]
            axes = tuple(range(1, h.ndim - 1))
            hidden = hidden + jnp.expand_dims(told, axes)
        return jnp.tanh(hidden) @ params["out"]

    return bijectors.Network(init, apply)


def made(dim: int, num_params: int, *, hidden: int = 24) -> bijectors.Network:
    """Hidden unit j sees values before 1 + j mod (D - 1)."""
    degrees = 1 + np.arange(hidden) % max(1, dim - 1)
    first = (np.arange(1, dim + 1)[:, None] <= degrees[None]).astype(np.float32)
    last = (degrees[:, None] < np.arange(1, dim + 1)[None]).astype(np.float32)
    plain = mlp(num_params * dim, hidden=hidden)

    def apply(params: Any, h: Array, condition: Any) -> Array:
        masked = dict(params)
        masked["in"] = params["in"] * first
        masked["out"] = params["out"] * np.tile(last, (1, num_params))
        bias = params["free"][None]  # so that the first value has parameters too
        return plain.apply(masked, h, condition) + bias

    def init(key: Array, h: Array, condition: Any) -> Any:
        params = plain.init(key, h, condition)
        return {**params, "free": jnp.zeros(num_params * dim, h.dtype)}

    return bijectors.Network(init, apply)


def running_sums(num_params: int, channels: int) -> bijectors.CausalNetwork:
    """Block t is told tanh of a sum of what a layer makes of the blocks before."""
    tell = mlp(num_params * channels)

    def init(key: Array, h: Array, condition: Any) -> Any:
        k1, k2 = jax.random.split(key)
        params = tell.init(k1, jnp.zeros((*h.shape[:-1], 8), h.dtype), condition)
        return {"tell": params, "see": dense(k2, h.shape[-1], 8, h.dtype)}

    def apply(params: Any, h: Array, condition: Any) -> Array:
        seen = jnp.cumsum(jnp.tanh(h @ params["see"]), axis=1)
        before = jnp.pad(seen[:, :-1], ((0, 0), (1, 0), (0, 0)))
        return tell.apply(params["tell"], before, condition)

    def memory(params: Any, z: Array, condition: Any) -> tuple[Array, Any]:
        return jnp.zeros((z.shape[0], 8), z.dtype), condition

    def step(params: Any, memory: Any, last: Array, t: Array) -> tuple[Array, Any]:
        total, condition = memory
        seen = jnp.tanh(last @ params["see"])
        total = jnp.where(t == 0, total, total + seen)
        raw = tell.apply(params["tell"], total[:, None], condition)
        return raw[:, 0], (total, condition)

    return bijectors.CausalNetwork(init, apply, memory, step)


def cases() -> dict[str, Case]:
    """Every bijector once, and some of their chains."""
    affine, rqs = (
        bijectors.affine(),
        bijectors.rational_quadratic(num_bins=5, bound=3.0),
    )
    circle = bijectors.rational_quadratic(num_bins=5, bound=math.pi, periodic=True)
    free = bijectors.rational_quadratic(num_bins=4, bound=1.5, free_ends=True)
    layer = bijectors.chain(
        bijectors.coupling(mlp(rqs.num_params * 2), rqs, num_kept=2),
        bijectors.invertible_linear(),
        bijectors.actnorm(),
    )
    image = bijectors.chain(
        bijectors.squeeze(),
        bijectors.actnorm(),
        bijectors.invertible_linear(),
        bijectors.coupling(mlp(2 * 2), affine, num_kept=2),
        bijectors.split(
            bijectors.chain(bijectors.actnorm(), bijectors.flatten(2, 2, 2))
        ),
    )
    checkers = bijectors.checkerboard(2, 2)
    return {
        "elementwise_affine": Case(bijectors.elementwise(affine)),
        "elementwise_rqs": Case(bijectors.elementwise(rqs)),
        "elementwise_free_ends": Case(bijectors.elementwise(free), low=-1.5, high=1.5),
        "elementwise_circular": Case(
            bijectors.elementwise(circle), low=-math.pi, high=math.pi
        ),
        "one_dimension": Case(
            bijectors.scan_chain(
                bijectors.chain(
                    bijectors.elementwise(rqs), bijectors.elementwise(affine)
                ),
                3,
            ),
            shape=(1,),
        ),
        "one_dimension_of_condition": Case(
            bijectors.coupling(mlp(rqs.num_params), rqs, num_kept=0),
            shape=(1,),
            condition=True,
        ),
        "coupling_affine": Case(
            bijectors.coupling(mlp(2 * 3), affine, num_kept=2), shape=(5,)
        ),
        "coupling_rqs": Case(
            bijectors.coupling(mlp(rqs.num_params * 2), rqs, num_kept=2), condition=True
        ),
        "masked_coupling": Case(
            bijectors.chain(
                bijectors.masked_coupling(mlp(2), affine, checkers),
                bijectors.masked_coupling(mlp(2), affine, ~checkers),
            ),
            shape=(2, 2, 1),
        ),
        "autoregressive_affine": Case(bijectors.autoregressive(made(4, 2), affine)),
        "autoregressive_rqs": Case(
            bijectors.autoregressive(made(4, rqs.num_params), rqs), condition=True
        ),
        "causal_affine": Case(
            bijectors.causal(running_sums(2, 2), bijectors.told(affine)),
            shape=(3, 2),
            condition=True,
        ),
        "causal_rqs": Case(
            bijectors.causal(running_sums(rqs.num_params, 2), bijectors.told(rqs)),
            shape=(3, 2),
        ),
        "causal_of_coupled": Case(
            bijectors.causal(
                running_sums(3, 2), bijectors.autoregressive(made(2, 2), affine)
            ),
            shape=(3, 2),
            condition=True,
        ),
        "invertible_linear": Case(bijectors.invertible_linear(), shape=(5,)),
        "convolution_1x1": Case(bijectors.invertible_linear(), shape=(2, 3, 4)),
        "actnorm": Case(bijectors.actnorm(), shape=(2, 2, 3)),
        "permutation": Case(bijectors.permutation([2, 0, 3, 1]), is_identity=True),
        "reverse": Case(bijectors.reverse(axis=1), shape=(3, 2), is_identity=True),
        "squeeze": Case(bijectors.squeeze(), shape=(4, 6, 1), is_identity=True),
        "reshape": Case(
            bijectors.reshape((4, 6), (3, 8)), shape=(4, 6), is_identity=True
        ),
        "flatten": Case(bijectors.flatten(2, 3), shape=(2, 3), is_identity=True),
        "logit": Case(bijectors.logit(-1.0, 3.0), low=-1.0, high=3.0),
        "logit_margin": Case(bijectors.logit(margin=0.05), low=0.0, high=1.0),
        "softplus": Case(bijectors.softplus(), low=0.0),
        "exponential": Case(bijectors.exponential(), low=0.0),
        "rescale": Case(bijectors.rescale(-2.5, 0.5)),
        "circular": Case(bijectors.circular(2.0), low=-2.0, high=2.0),
        "inverted": Case(
            bijectors.inverted(bijectors.coupling(mlp(2 * 2), affine, num_kept=2))
        ),
        "chain": Case(bijectors.chain(layer, bijectors.reverse()), condition=True),
        "scan_chain": Case(bijectors.scan_chain(layer, 3), condition=True),
        "multi_scale": Case(image, shape=(4, 4, 1)),
    }


CASES = cases()


def within(case: Case, x: Array) -> Array:
    """Numbers of the line, `[B, ...]`, within the case's bounds."""
    if np.isfinite(case.low) and np.isfinite(case.high):
        share = 0.02 + 0.96 * jax.nn.sigmoid(2 * x)
        return case.low + (case.high - case.low) * share
    return case.low + jnp.exp(x) if np.isfinite(case.low) else x


def data(
    case: Case, key: Array, batch: int = 3, dtype: Any = jnp.float64
) -> tuple[Array, Array | None]:
    """Examples of a case, within its bounds, and its condition."""
    k1, k2 = jax.random.split(key)
    x = jax.random.normal(k1, (batch, *case.shape), dtype)
    x = within(case, x)
    condition = jax.random.normal(k2, (batch, 2), dtype) if case.condition else None
    return x, condition


@functools.cache
def random_params(case: Case, dtype: Any = jnp.float64) -> Any:
    """Params of the case, none of them what they begin as."""
    key = jax.random.key(0)
    x, condition = data(case, key, batch=16, dtype=dtype)

    @compiled
    def made(key: Array) -> Any:
        params = case.bijector.init(key, x, condition)
        return randomised(params, jax.random.fold_in(key, 1))

    return made(key)
