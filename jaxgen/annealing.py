"""Annealed importance sampling: log p(x) from below and from above, and so the gap.

Chains go from the prior N(z; 0, I) to the posterior over N(z; 0, I) p(x|z)^beta, beta
rising from 0 to 1, by Hamiltonian Monte Carlo (HMC). The weight of a chain has the mean
p(x) exactly, so its log is a lower bound in expectation. Run backwards from an exact
posterior draw, which one has for x drawn from the model itself, it is an upper bound:

    x = likelihoods.bernoulli_sample(key, decoder(z))               # z [B, 50]
    log_prob = lambda z: likelihoods.bernoulli_log_prob(x, decoder(z))
    lower = annealing.annealed_importance(log_prob, keys, latent_shape=(50,))
    exact = jnp.broadcast_to(z, (16, *z.shape))
    upper = annealing.reverse_annealed_importance(log_prob, keys, exact)
    gap = upper.log_likelihood - lower.log_likelihood               # [B] nats

Do this in one `jax.jit` with x and the parameters as arguments. Each run comes after a
pilot run as long, with noise of its own, that finds the step sizes: adapted to the
chains that they move, they would spoil the mean of the weights.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float, Key

from jaxgen import _checks, estimators

__all__ = ["annealed_importance", "reverse_annealed_importance"]

ACCEPTANCE = 0.65  # The mean over the chains that the pilot run aims at.
FIRST_STEP_SIZE = 0.5
GAIN = 0.5  # Of the log step size on the error of the acceptance, per temperature.


class _Chains(NamedTuple):
    """Positions `[C, B, ...]`, and there log p(x|z) `[C, B]` and its gradient."""

    z: Array
    log_likelihood: Array
    gradient: Array


def annealed_importance(
    log_likelihood_fn: Callable[[Array], Array],
    keys: Key[Array, " B"],
    *,
    latent_shape: tuple[int, ...],
    num_chains: int = 16,
    num_temperatures: int = 1000,
    schedule: str = "sigmoid",
    num_leapfrog: int = 10,
) -> estimators.ImportanceEstimate:
    """Log p(x) by annealed importance sampling, a lower bound in expectation.

    Costs 2 * num_temperatures * num_leapfrog * num_chains gradients per example, pilot
    run included. A proposal whose density is not finite is rejected.

    Args:
        log_likelihood_fn: z `[B, ...]` -> log p(x|z), `[B]` nats with constants, entry
            b depending on z[b] alone.
        keys: One per example, `[B]`.
        latent_shape: Of one example's z, whose prior is N(0, I).
        num_chains: Independent chains C, one weight each.
        num_temperatures: Steps T from beta = 0 to 1; the bias falls about as 1 / T, and
            T = 1 is importance sampling from the prior.
        schedule: "linear", or "sigmoid", dense at both ends: sigmoid(4 (2 t / T - 1))
            moved to [0, 1].
        num_leapfrog: Leapfrog steps of an HMC transition, one gradient each.

    Returns:
        `ImportanceEstimate` from the C weights, `[B]` each.

    Raises:
        ValueError: if a shape or a number is wrong.

    References:
        Neal 2001, "Annealed importance sampling"; Wu et al. 2017, arXiv:1611.04273.
    """
    name, knobs = "annealed_importance", (num_temperatures, schedule, num_leapfrog)
    _checks.check_positive(name, num_chains=num_chains)
    shape = (num_chains, *latent_shape)
    log_weights = _log_weights(name, log_likelihood_fn, keys, shape, knobs)
    return estimators.importance_estimate(log_weights)


def reverse_annealed_importance(
    log_likelihood_fn: Callable[[Array], Array],
    keys: Key[Array, " B"],
    z: Float[ArrayLike, " C B *event"],
    *,
    num_temperatures: int = 1000,
    schedule: str = "sigmoid",
    num_leapfrog: int = 10,
) -> estimators.ImportanceEstimate:
    """Log p(x) from above: -log of the mean weight of C chains run backwards.

    Args:
        log_likelihood_fn: As in `annealed_importance`.
        keys: One per example, `[B]`.
        z: Exact draws of p(z|x), `[C, B, ...]`, or there is no bound. For x drawn from
            the model: the z it came from, repeated C times. The bound then holds on
            average over (z, x); the standard error is blind to the shared start.
        num_temperatures: As there.
        schedule: As there.
        num_leapfrog: As there.

    Returns:
        `ImportanceEstimate`, `[B]` each: log p(x), in expectation at least the truth;
        the other fields are of the backward weights, whose mean is 1 / p(x).

    Raises:
        ValueError: if a shape or a number is wrong.

    References:
        Grosse et al. 2015, bidirectional Monte Carlo, arXiv:1511.02543.
    """
    name = "reverse_annealed_importance"
    _checks.check_axes(name, "[B]", keys=keys)
    (z,) = _checks.to_float(z)
    if z.ndim < 2 or z.shape[1:2] != keys.shape:
        raise ValueError(
            f"{name}: z must be [C, B, ...] with B = {keys.shape[0]}, got shape "
            f"{z.shape}; give one draw per chain, a single one as z[None]."
        )
    shape, knobs = z[:, 0].shape, (num_temperatures, schedule, num_leapfrog)
    log_weights = _log_weights(name, log_likelihood_fn, keys, shape, knobs, exact=z)
    estimate = estimators.importance_estimate(log_weights)
    return estimate._replace(log_likelihood=-estimate.log_likelihood)


def _log_weights(
    name: str,
    log_likelihood_fn: Callable[[Array], Array],
    keys: Array,
    shape: tuple[int, ...],
    knobs: tuple[int, str, int],
    *,
    exact: Array | None = None,
) -> Array:
    """Log weights `[C, B]`, forward or from exact draws back, after the pilot run."""
    num_temperatures, schedule, num_leapfrog = knobs
    _checks.check_axes(name, "[B]", keys=keys)
    _checks.check_positive(name, num_temperatures=num_temperatures)
    _checks.check_positive(name, num_leapfrog=num_leapfrog)
    _checks.check_in(name, "schedule", schedule, ("linear", "sigmoid"))

    def evaluated(z: Array) -> _Chains:
        values, pullback = jax.vjp(jax.vmap(log_likelihood_fn), z)
        if values.shape != z.shape[:2]:
            raise ValueError(
                f"{name}: log_likelihood_fn(z) must be [B] = {keys.shape}, got shape "
                f"{values.shape[1:]}; sum it over the event axes."
            )
        return _Chains(z, *_checks.to_float(values, *pullback(jnp.ones_like(values))))

    hmc = functools.partial(_hmc, evaluated, num_leapfrog)
    betas = _betas(num_temperatures, schedule)
    steps = jnp.full((num_temperatures - 1, *keys.shape), FIRST_STEP_SIZE)
    pilot, forward, reverse = (_folded(keys, i) for i in range(3))
    start = evaluated(_noise(jax.random.normal, pilot, 0, shape))
    _, steps = _anneal(hmc, pilot, betas, steps, start, GAIN)
    if exact is None:
        start = evaluated(_noise(jax.random.normal, forward, 0, shape))
        return _anneal(hmc, forward, betas, steps, start, 0.0)[0]
    return _anneal(hmc, reverse, betas[::-1], steps[::-1], evaluated(exact), 0.0)[0]


def _betas(num_temperatures: int, schedule: str) -> Array:
    """Inverse temperatures 0 = beta_0 < ... < beta_T = 1, `[T + 1]`."""
    t = np.linspace(0, 1, num_temperatures + 1)
    rise = 1 / (1 + np.exp(4 - 8 * t)) if schedule == "sigmoid" else t
    return jnp.asarray((rise - rise[0]) / (rise[-1] - rise[0]), jnp.float32)


def _anneal(
    hmc: Callable, keys: Array, betas: Array, steps: Array, chains: _Chains, gain: float
) -> tuple[Array, Array]:
    """Log weights `[C, B]` along the betas, and the step sizes, adapted by the gain."""

    def move(carry: tuple, inputs: tuple) -> tuple:
        chains, log_weights, log_scale = carry
        index, change, beta, step_size = inputs
        log_weights = log_weights + change * chains.log_likelihood
        step_size = step_size * jnp.exp(log_scale)
        chains, chance = hmc(_folded(keys, index), chains, beta, step_size)
        log_scale = log_scale + gain * (jnp.mean(chance, axis=0) - ACCEPTANCE)
        return (chains, log_weights, log_scale), step_size

    changes, index = jnp.diff(betas), jnp.arange(1, len(betas) - 1)
    start = (chains, jnp.zeros_like(chains.log_likelihood), jnp.zeros(keys.shape))
    inputs = (index, changes[:-1], betas[1:-1], steps)
    (chains, log_weights, _), steps = jax.lax.scan(move, start, inputs)
    return log_weights + changes[-1] * chains.log_likelihood, steps


def _hmc(
    evaluated: Callable[[Array], _Chains],
    num_leapfrog: int,
    keys: Array,
    chains: _Chains,
    beta: Array | float,
    step_size: Array,
) -> tuple[_Chains, Array]:
    """One transition of N(z; 0, I) p(x|z)^beta, and its chance of acceptance `[C, B]`.

    Reversible, as the reverse run needs: the momentum is drawn anew each time.
    """
    num_chains, num_examples, *event = chains.z.shape
    momentum = _noise(jax.random.normal, keys, 0, (num_chains, *event))
    uniform = _noise(jax.random.uniform, keys, 1, (num_chains, 2))
    # Steps of varied size, lest a trajectory be one whole turn of an oscillator.
    step_size = step_size[None] * (0.8 + 0.4 * uniform[..., 0])
    step_size = step_size.reshape(num_chains, num_examples, *(1 for _ in event))

    def log_density(at: _Chains, momentum: Array) -> Array:
        squares = jnp.square(at.z) + jnp.square(momentum)
        return beta * at.log_likelihood - 0.5 * squares.sum(range(2, squares.ndim))

    def half_kick(at: _Chains, momentum: Array) -> Array:
        return momentum + 0.5 * step_size * (beta * at.gradient - at.z)

    def leapfrog(carry: tuple, _: None) -> tuple:
        at, momentum = carry
        momentum = half_kick(at, momentum)
        at = evaluated(at.z + step_size * momentum)
        return (at, half_kick(at, momentum)), None

    (end, turned), _ = jax.lax.scan(leapfrog, (chains, momentum), length=num_leapfrog)
    log_ratio = log_density(end, turned) - log_density(chains, momentum)
    chance = jnp.where(jnp.isnan(log_ratio), 0, jnp.exp(jnp.minimum(log_ratio, 0)))
    accept = uniform[..., 1] < chance
    choose = jax.vmap(jax.vmap(jnp.where))
    return jax.tree.map(lambda *pair: choose(accept, *pair), end, chains), chance


def _folded(keys: Array, number: ArrayLike) -> Array:
    """One key per example, another for every number."""
    return jax.vmap(jax.random.fold_in, (0, None))(keys, number)


def _noise(draw: Callable, keys: Array, number: int, shape: tuple) -> Array:
    """For shape `(C, ...)`, `[C, B, ...]`; that of example b by keys[b] alone."""
    return jax.vmap(lambda key: draw(key, shape), out_axes=1)(_folded(keys, number))
