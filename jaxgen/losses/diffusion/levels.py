"""Levels u in [0, 1) for a batch, and noise from them.

A loss that is averaged over evenly spread times varies less than one over independent
ones: the functions here differ in what is spread, and depend on the example alone.
"""

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float, Int, Key, PRNGKeyArray

from jaxgen import _checks

PerExample = Float[ArrayLike, " B"]
Levels = Float[Array, " B"]

# 2^32 over the golden ratio: steps of it on the circle are never near a multiple.
GOLDEN = 2654435769


def uniform_levels(keys: Key[Array, " B"]) -> Levels:
    """Independent levels, `[B]` in [0, 1), one for every key `[B]`."""
    return jax.vmap(lambda key: jax.random.uniform(key, dtype=float))(keys)


def stratified_levels(
    key: PRNGKeyArray, index: Int[ArrayLike, " B"], num: int | None = None
) -> Levels:
    """One draw spread over a batch: each level uniform, all of them evenly apart.

    Args:
        key: One for the whole batch, on every device.
        index: The place of each example in the whole batch, `[B]`.
        num: Number of examples in the whole batch; each of the strata [k / num, (k + 1)
            / num) then gets one. Without it the levels are steps of the golden ratio:
            any run of consecutive places is spread evenly, and the level of an example
            does not depend on how many others there are.

    Returns:
        `[B]` in [0, 1).

    Raises:
        ValueError: if `index` is not `[B]` or `num` not positive.

    References:
        Kingma et al. 2021, appendix I.1, arXiv:2107.00630; Weyl 1916 (golden ratio).
    """
    _checks.check_axes("stratified_levels", "[B]", index=index)
    index = jnp.asarray(index)
    largest = 1 - jnp.finfo(float).epsneg
    if num is None:
        # In whole numbers modulo 2^32: a float would lose the digits of a large index.
        shift = jax.random.bits(key, dtype=jnp.uint32)
        whole = index.astype(jnp.uint32) * jnp.uint32(GOLDEN) + shift
        return jnp.minimum(whole.astype(float) * 2.0**-32, largest)
    _checks.check_positive("stratified_levels", num=num)
    place, within = jax.random.split(key)
    stratum = (index + jax.random.randint(place, (), 0, num)) % num
    levels = (stratum + jax.random.uniform(within, dtype=float)) / num
    return jnp.minimum(levels, largest)


def antithetic_levels(key: PRNGKeyArray, index: Int[ArrayLike, " B"]) -> Levels:
    """Independent levels in pairs u and 1 - u, for places 2 i and 2 i + 1.

    Args:
        key: One for the whole batch, on every device.
        index: The place of each example in the whole batch, `[B]`.

    Returns:
        `[B]` in [0, 1); the sum of a pair is 1 less one rounding.

    Raises:
        ValueError: if `index` is not `[B]`.
    """
    _checks.check_axes("antithetic_levels", "[B]", index=index)
    index = jnp.asarray(index)
    u = uniform_levels(jax.vmap(lambda i: jax.random.fold_in(key, i))(index // 2))
    # Draws are multiples of eps, so that this turns them onto each other.
    return jnp.where(index % 2 == 0, u, (1 - jnp.finfo(u.dtype).eps) - u)


def log_normal_sigma(u: PerExample, *, mean: float = -1.2, std: float = 1.2) -> Levels:
    """A noise sigma / alpha from a level, log-normal: as EDM draws it.

    Args:
        u: Levels, `[B]` in [0, 1).
        mean: Of log sigma.
        std: Of log sigma.

    Returns:
        `[B]`, increasing in u; the time is `schedule.inverse(-2 * jnp.log(...))`.

    Raises:
        ValueError: if `std` is not positive.

    References:
        Karras et al. 2022, table 1, arXiv:2206.00364.
    """
    _checks.check_positive("log_normal_sigma", std=std)
    return jnp.exp(mean + std * _normal_quantile(u))


def logit_normal_time(u: PerExample, *, mean: float = 0.0, std: float = 1.0) -> Levels:
    """A time from a level, its logit normal: more of the middle of a rectified flow.

    Args:
        u: Levels, `[B]` in [0, 1).
        mean: Of log(t / (1 - t)).
        std: Of the same.

    Returns:
        `[B]` in (0, 1), increasing in u.

    Raises:
        ValueError: if `std` is not positive.

    References:
        Esser et al. 2024, section 3.1, arXiv:2403.03206.
    """
    _checks.check_positive("logit_normal_time", std=std)
    return jax.nn.sigmoid(mean + std * _normal_quantile(u))


def _normal_quantile(u: ArrayLike) -> Array:
    """The inverse of the normal distribution function, finite for every level."""
    (u,) = _checks.to_float(u)
    half = 0.5 * jnp.finfo(u.dtype).eps
    return jax.scipy.special.ndtri(jnp.clip(u, half, 1 - half))
