"""Mixtures of Gaussians: densities, draws, and their fit by expectation maximisation.

A latent space is no longer N(0, I) once an encoder has been trained; a mixture fitted to
the encodings of data, or made of the encoder's own posteriors, is a prior that is nearer.
Densities are in nats, summed over the coordinates, one value per point.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.linalg import solve_triangular
from jax.typing import ArrayLike
from jaxtyping import Float, Int, Key

from jaxgen import _checks

__all__ = [
    "Fit",
    "Mixture",
    "diagonal_log_prob",
    "fit",
    "gaussian",
    "improved",
    "log_prob",
    "sample",
    "started",
]

Points = Float[ArrayLike, "N D"]


class Mixture(NamedTuple):
    """K Gaussians in D dimensions with full covariances.

    Attributes:
        log_weights: `[K]`, of sum 1 when exponentiated.
        means: `[K, D]`.
        factors: Lower triangles whose products with their transposes are the
            covariances, `[K, D, D]`.
    """

    log_weights: Float[Array, " K"]
    means: Float[Array, "K D"]
    factors: Float[Array, "K D D"]


class Fit(NamedTuple):
    """A fitted mixture.

    Attributes:
        mixture: The mixture.
        log_prob: Its mean log density of the points, in nats.
        num_steps: Steps that it took.
    """

    mixture: Mixture
    log_prob: Float[Array, ""]
    num_steps: Int[Array, ""]


def diagonal_log_prob(
    z: Points, mu: Float[ArrayLike, "K D"], log_var: Float[ArrayLike, "K D"]
) -> Float[Array, " N"]:
    """Log density of the even mixture (1/K) sum_k N(mu_k, diag exp(log_var_k)).

    With mu and log_var the encodings of K pseudo-inputs it is a VampPrior.

    Args:
        z: Points, `[N, D]`.
        mu: Means, `[K, D]`.
        log_var: Log variances, `[K, D]`; exponentiated as they come.

    Returns:
        `[N]` nats.

    Raises:
        ValueError: if an array has not two axes or the shapes do not fit.

    References:
        Tomczak & Welling 2018, "VAE with a VampPrior", arXiv:1705.07120.
    """
    _checks.check_axes("diagonal_log_prob", "[N, D]", z=z, mu=mu, log_var=log_var)
    _checks.check_same_shape("diagonal_log_prob", mu=mu, log_var=log_var)
    _check_dimension("diagonal_log_prob", z, mu)
    z, mu, log_var = _checks.to_float(z, mu, log_var)
    squared = jnp.square(z[:, None] - mu[None]) * jnp.exp(-log_var)[None]
    log_normal = -0.5 * jnp.sum(squared + log_var[None] + math.log(2 * math.pi), axis=2)
    return jax.nn.logsumexp(log_normal, axis=1) - math.log(mu.shape[0])


def log_prob(mixture: Mixture, z: Points) -> Float[Array, " N"]:
    """Log density of points `[N, D]`, `[N]` nats.

    Raises:
        ValueError: if z is not `[N, D]`.
    """
    return jax.nn.logsumexp(_joint_log_prob(mixture, z), axis=1)


def sample(mixture: Mixture, keys: Key[Array, " N"]) -> Float[Array, "N D"]:
    """A draw for each key, `[N, D]`; each depends on its own key alone."""

    def one(key: Array) -> Array:
        which, noise = jax.random.split(key)
        k = jax.random.categorical(which, mixture.log_weights)
        eps = jax.random.normal(noise, mixture.means.shape[1:], mixture.means.dtype)
        return mixture.means[k] + mixture.factors[k] @ eps

    return jax.vmap(one)(keys)


def gaussian(z: Points, *, floor: float = 1e-6) -> Mixture:
    """The one Gaussian of largest likelihood: mean and covariance of the points.

    Args:
        z: `[N, D]`.
        floor: Added to the variances, for points that lie in a plane.

    Raises:
        ValueError: if z is not `[N, D]`.
    """
    _checks.check_axes("gaussian", "[N, D]", z=z)
    (z,) = _checks.to_float(z)
    return _maximised(z, jnp.ones((z.shape[0], 1), z.dtype), floor)


def started(
    z: Points, key: Key[Array, ""], *, num_components: int, floor: float = 1e-6
) -> Mixture:
    """A first mixture: centres drawn far from each other, each with its nearest points.

    Args:
        z: `[N, D]`.
        key: Of the draws.
        num_components: K, at most N.
        floor: Added to the variances.

    Raises:
        ValueError: if z is not `[N, D]`, or K is not in 1 .. N.

    References:
        Arthur & Vassilvitskii 2007, "k-means++: the advantages of careful seeding".
    """
    _checks.check_axes("started", "[N, D]", z=z)
    (z,) = _checks.to_float(z)
    if not 1 <= num_components <= z.shape[0]:
        raise ValueError(
            f"started: num_components must be in 1 .. {z.shape[0]}, the number of "
            f"points, got {num_components}."
        )

    def add(carry: tuple[Array, Array], given: Any) -> tuple[tuple[Array, Array], None]:
        (nearest, distance), (index, key) = carry, given
        first = jnp.where(index == 0, 0.0, jnp.log(distance))
        centre = z[jax.random.categorical(key, first)]
        new = jnp.sum(jnp.square(z - centre[None]), axis=1)
        closer = (index == 0) | (new < distance)
        nearest = jnp.where(closer, index, nearest)
        return (nearest, jnp.where(closer, new, distance)), None

    first = jnp.zeros(z.shape[0], jnp.int32), jnp.full(z.shape[0], jnp.inf, z.dtype)
    keys = jax.random.split(key, num_components)
    (nearest, _), _ = jax.lax.scan(
        add, first, (jnp.arange(num_components, dtype=jnp.int32), keys)
    )
    return _maximised(z, jax.nn.one_hot(nearest, num_components, dtype=z.dtype), floor)


def improved(
    mixture: Mixture, z: Points, *, floor: float = 1e-6
) -> tuple[Mixture, Float[Array, ""]]:
    """One step of expectation maximisation.

    Args:
        mixture: Before.
        z: `[N, D]`.
        floor: Added to the variances, so that no component shrinks to a point.

    Returns:
        The mixture after the step, and the mean log density of the points before it.

    Raises:
        ValueError: if z is not `[N, D]`.

    References:
        Dempster, Laird & Rubin 1977, "Maximum likelihood from incomplete data via the EM
        algorithm".
    """
    (z,) = _checks.to_float(z)
    joint = _joint_log_prob(mixture, z)
    total = jax.nn.logsumexp(joint, axis=1)
    return _maximised(z, jnp.exp(joint - total[:, None]), floor), jnp.mean(total)


def fit(
    z: Points,
    key: Key[Array, ""],
    *,
    num_components: int,
    floor: float = 1e-6,
    tolerance: float = 1e-4,
    max_steps: int = 200,
) -> Fit:
    """Expectation maximisation from `started`, until a step gains less than `tolerance`.

    Args:
        z: `[N, D]`, best of about unit variance.
        key: Of the start.
        num_components: K, at most N.
        floor: Added to the variances.
        tolerance: In nats, of the mean log density.
        max_steps: At most.

    Raises:
        ValueError: if z is not `[N, D]`, or K is not in 1 .. N.
    """
    (z,) = _checks.to_float(z)
    mixture = started(z, key, num_components=num_components, floor=floor)

    def goes_on(carry: tuple[Mixture, Array, Array, Array]) -> Array:
        _, last, now, num = carry
        return (num < max_steps) & ((num < 2) | (now - last > tolerance))

    def step(carry: tuple[Mixture, Array, Array, Array]) -> Any:
        mixture, _, last, num = carry
        mixture, now = improved(mixture, z, floor=floor)
        return mixture, last, now, num + 1

    low = jnp.full((), -jnp.inf, z.dtype)
    first = mixture, low, low, jnp.int32(0)
    mixture, _, _, num = jax.lax.while_loop(goes_on, step, first)
    return Fit(mixture, jnp.mean(log_prob(mixture, z)), num)


def _joint_log_prob(mixture: Mixture, z: Points) -> Array:
    """Log of weight times density of each point under each component, `[N, K]`."""
    _checks.check_axes("mixtures", "[N, D]", z=z)
    _check_dimension("mixtures", z, mixture.means)
    (z,) = _checks.to_float(z)

    def one(log_weight: Array, mean: Array, factor: Array) -> Array:
        whitened = solve_triangular(factor, (z - mean[None]).T, lower=True)
        log_det = jnp.sum(jnp.log(jnp.diagonal(factor)))
        constant = log_weight - log_det - 0.5 * len(mean) * math.log(2 * math.pi)
        return constant - 0.5 * jnp.sum(jnp.square(whitened), axis=0)

    # One component after the other: their differences would fill the memory.
    return jax.lax.map(lambda part: one(*part), mixture).T


def _maximised(z: Array, shares: Array, floor: float) -> Mixture:
    """The mixture of largest likelihood where point n belongs to k by `shares [N, K]`."""
    counts = jnp.sum(shares, axis=0) + 10 * jnp.finfo(z.dtype).eps
    means = shares.T @ z / counts[:, None]

    def factor(part: tuple[Array, Array, Array]) -> Array:
        share, mean, count = part
        centred = z - mean[None]
        covariance = (share[:, None] * centred).T @ centred / count
        return jnp.linalg.cholesky(covariance + floor * jnp.eye(len(mean)))

    factors = jax.lax.map(factor, (shares.T, means, counts))
    return Mixture(jnp.log(counts / jnp.sum(counts)), means, factors)


def _check_dimension(function: str, z: Any, means: Any) -> None:
    if jnp.shape(z)[1:] != jnp.shape(means)[1:]:
        raise ValueError(
            f"{function}: z must be [N, D] with D = {jnp.shape(means)[1]}, that of the "
            f"components, got shape {jnp.shape(z)}."
        )
