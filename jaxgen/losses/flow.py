"""Losses of normalizing flows: exact likelihoods, and bounds where data are discrete.

With an invertible z = f(x) and z ~ N(0, I) the density of x is known,

    -log p(x) = |z|^2 / 2 + D/2 log 2 pi - log |det df/dx|,

and there is nothing to approximate. Pixels however are whole numbers, on which a density
has no meaning: noise u in [0, 1) is added to them, and

    log P(x) >= E log p(x + u) - log q(u|x),

P(x) being the integral of p over the level's own interval. Rezende & Mohamed 2015,
arXiv:1505.05770; Theis et al. 2016, arXiv:1511.01844; Ho et al. 2019, arXiv:1902.00275.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float, Key, Num

from jaxgen import _checks

Examples = Float[ArrayLike, " B *event"]
Nats = Float[Array, " B"]
PerExample = Float[ArrayLike, " B"]


def standard_normal_nll(z: Examples) -> Nats:
    """-log N(z; 0, I) in nats, `[B]`, summed over every axis but the first."""
    _checks.check_min_rank("standard_normal_nll", 1, z=z)
    (z,) = _checks.to_float(z)
    return _checks.sum_per_example(0.5 * z**2 + 0.5 * math.log(2 * math.pi))


def negative_log_likelihood(z: Examples, log_det: PerExample) -> Nats:
    """-log p(x) of a flow with a standard normal latent.

    Args:
        z: The latent of x, `[B, ...]`.
        log_det: log |det dz/dx|, `[B]` nats, as `to_latent` gives it.

    Returns:
        `[B]` nats, summed over the dimensions; never averaged over the batch.

    Raises:
        ValueError: if there is not one log-determinant for each z.

    References:
        Rezende & Mohamed 2015, equation 5, arXiv:1505.05770.
    """
    return standard_normal_nll(z) - _per_example("negative_log_likelihood", z, log_det)


def reverse_kl(z: Examples, log_det: PerExample, log_target: PerExample) -> Nats:
    """KL(q || p) up to the target's constant: for densities known, and not sampled.

    Args:
        z: Draws of N(0, I), `[B, ...]`.
        log_det: log |det dx/dz| of their x, `[B]` nats, as `to_data` gives it.
        log_target: log p(x) up to a constant, `[B]` nats.

    Returns:
        log q(x) - log p(x) for each draw, `[B]` nats; its mean estimates the KL.

    Raises:
        ValueError: if there is not one of each for each z.

    References:
        Rezende & Mohamed 2015, equation 15, arXiv:1505.05770; Noe et al. 2019,
        arXiv:1812.01729.
    """
    log_det = _per_example("reverse_kl", z, log_det)
    log_target = _per_example("reverse_kl", z, log_target)
    return -standard_normal_nll(z) - log_det - log_target


def dequantised(
    levels: Num[ArrayLike, " B *event"],
    keys: Key[Array, " B"],
    *,
    num_levels: int = 256,
) -> Float[Array, " B *event"]:
    """(levels + u) / num_levels in [0, 1), with u uniform in [0, 1), one draw per key.

    The noise is as wide as the levels are apart: with levels / 255 and noise of 1/256
    there would be gaps, and the density no bound.

    Raises:
        ValueError: if num_levels is not positive.

    References:
        Theis et al. 2016, section 3.1, arXiv:1511.01844.
    """
    _checks.check_positive("dequantised", num_levels=num_levels)
    levels = jnp.asarray(
        levels, jnp.promote_types(jnp.result_type(levels), jnp.float32)
    )
    shape = levels.shape[1:]
    noise = jax.vmap(lambda k: jax.random.uniform(k, shape, levels.dtype))(keys)
    # 255 + u may round to 256, which belongs to no level.
    below = num_levels * (1 - jnp.finfo(levels.dtype).epsneg)
    return jnp.minimum(levels + noise, below) / num_levels


def dequantisation_bound(
    log_density: Float[ArrayLike, "*K B"],
    log_noise: Float[ArrayLike, "*K B"] | float = 0.0,
    *,
    num_dims: int,
    num_levels: int = 256,
) -> Float[Array, "*K B"]:
    """A lower bound of log P(x) in expectation: log p - log q - D log(num_levels).

    Args:
        log_density: log p of the dequantised (levels + u) / num_levels in [0, 1), nats.
        log_noise: log q(u|x) of the noise u in [0, 1)^D; 0 where it is uniform.
        num_dims: D, which brings the constant.
        num_levels: Number of levels.

    Returns:
        Nats, in the shape of `log_density`. They are log weights too: the
        `importance_estimate` of K of them is a bound that rises with K.

    Raises:
        ValueError: if a number is not positive.

    References:
        Ho et al. 2019, equation 11, arXiv:1902.00275; K draws: Hoogeboom et al. 2020,
        equation 9, arXiv:2001.11235.
    """
    _checks.check_positive(
        "dequantisation_bound", num_dims=num_dims, num_levels=num_levels
    )
    log_density, log_noise = _checks.to_float(log_density, log_noise)
    return log_density - log_noise - num_dims * math.log(num_levels)


def denoised(
    log_density: Callable[[Array], Array],
    y: Examples,
    *,
    sigma: float,
) -> Float[Array, " B *event"]:
    """E[x|y] of y = x + sigma eps, from the density of y: y + sigma^2 grad log p(y).

    A flow trained on noisy data gives noisy samples; this is the step back.

    Args:
        log_density: `y [B, ...] -> [B]` nats, each of its own example alone.
        y: Noisy examples.
        sigma: Of the noise that the density was trained with.

    References:
        Tweedie's formula, Efron 2011, equation 1.4; Zhai et al. 2024, equation 8,
        arXiv:2412.06329.
    """
    (y,) = _checks.to_float(y)
    return y + sigma**2 * jax.grad(lambda y: jnp.sum(log_density(y)))(y)


def class_log_posterior(
    log_likelihoods: Float[ArrayLike, "K B"],
    log_prior: Float[ArrayLike, " K"] | None = None,
) -> Float[Array, "K B"]:
    """The classes' log probabilities given x, by Bayes' rule, `[K, B]`.

    Args:
        log_likelihoods: log p(x|class), `[K, B]` nats.
        log_prior: log p(class), `[K]`; uniform unless given.

    Raises:
        ValueError: if `log_likelihoods` is not `[K, B]`.
    """
    _checks.check_axes("class_log_posterior", "[K, B]", log_likelihoods=log_likelihoods)
    (joint,) = _checks.to_float(log_likelihoods)
    if log_prior is not None:
        joint = joint + jnp.asarray(log_prior, joint.dtype)[:, None]
    return jax.nn.log_softmax(joint, axis=0)


def _per_example(function: str, z: ArrayLike, values: ArrayLike) -> Array:
    if jnp.shape(values) != jnp.shape(z)[:1]:
        raise ValueError(
            f"{function}: there must be one value for each z, [{jnp.shape(z)[0]}], got "
            f"shape {jnp.shape(values)}; sum over the dimensions, not over the batch."
        )
    return _checks.to_float(values)[0]
