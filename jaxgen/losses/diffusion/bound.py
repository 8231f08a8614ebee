"""The variational bound of log p(x) that a denoiser gives."""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float, Key, Real

from jaxgen import _checks, schedules
from jaxgen.losses.diffusion.targets import Examples, noised

Nats = Float[Array, " B"]
Denoiser = Callable[[Array, Array], Array]


class BoundTerms(NamedTuple):
    """An upper bound of -log p(x) in three parts, each field `[B]` nats.

    Attributes:
        prior: KL(q(x_1|x) || p(x_1)), what is left of x at the noisy end.
        diffusion: What the denoiser loses on the way.
        reconstruction: -E log p(x|x_0), the last step from the least noise to the data.
        standard_error: Of the Monte Carlo estimate of the sum, from the spread of the
            samples as if they were independent: too large, as they are stratified. Inf
            for one sample.

    References:
        Kingma et al. 2021, equation 11, arXiv:2107.00630.
    """

    prior: Nats
    diffusion: Nats
    reconstruction: Nats
    standard_error: Nats

    @property
    def total(self) -> Nats:
        """The bound itself, `[B]` nats, in expectation at least -log p(x)."""
        return self.prior + self.diffusion + self.reconstruction


def variational_bound(
    denoise: Denoiser,
    x: Examples,
    keys: Key[Array, " B"],
    *,
    schedule: schedules.Schedule,
    num_samples: int,
    num_steps: int | None = None,
    ends: tuple[float, float] = (0.0, 1.0),
    uniform_in: str = "log_snr",
    sigma_data: Real[ArrayLike, ""] = 1.0,
    levels: Float[ArrayLike, " n"] | None = None,
) -> BoundTerms:
    """The variational bound of the diffusion model with this denoiser.

    The model starts from p(x_1) = N(0, (alpha^2 sigma_data^2 + sigma^2) I). In
    continuous time the bound depends on the schedule by the noise at its two ends only.

    Args:
        denoise: `(x_t [B, ...], t [B]) -> x_0 estimate [B, ...]`; called `num_samples`
            times, one after another.
        x: Data, `[B, ...]`.
        keys: One per example, `[B]`.
        schedule: Any schedule.
        num_samples: Monte Carlo samples per example, in as many strata.
        num_steps: T of the model in discrete time, its steps equal in t; None for
            continuous time, T to infinity.
        ends: The times of the least noise and of the most.
        uniform_in: What continuous time draws uniformly: "log_snr", or "time", where
            the variance depends on the schedule, for training a learned one.
        sigma_data: Standard deviation of x, for p(x_1).
        levels: All values that an entry of x can take, `[n]`, for
            `levels_reconstruction`: the bound is then of the probability of discrete
            data. None for the density, with p(x|x_0) = N(x_0 / alpha, sigma^2/alpha^2).

    Returns:
        `BoundTerms`, `[B]` nats each.

    Raises:
        ValueError: if a shape or a number is wrong, or log_snr is infinite at the end
            of least noise, or where it is drawn uniformly at the other.

    References:
        Kingma et al. 2021, equations 11 to 17, arXiv:2107.00630.
    """
    name = "variational_bound"
    (x,) = _checks.example_floats(name, x=x)
    _checks.check_axes(name, "[B]", keys=keys)
    _checks.check_positive(name, num_samples=num_samples)
    level = _level(name, schedule, num_steps, ends, uniform_in)
    least = schedule.log_snr(jnp.asarray(ends[0], x.dtype))

    def sample(number: Array) -> tuple[Array, Array]:
        at, noise, last = jnp.moveaxis(_three(keys, number), 1, 0)
        within = jax.vmap(lambda key: jax.random.uniform(key, dtype=x.dtype))(at)
        t, weight = level((number + within) / num_samples)
        x_t = noised(x, _normal(noise, x), schedule.alpha(t), schedule.sigma(t))
        _, x0_hat = _checks.example_floats(name, x=x, denoised=denoise(x_t, t))
        error = _checks.sum_per_example(jnp.square(x - x0_hat))
        if levels is None:
            return weight * error, _gaussian_reconstruction(x, least)
        decoded = levels_reconstruction(x, last, log_snr=least, levels=levels)
        return weight * error, decoded

    diffusion, reconstruction = jax.lax.map(sample, jnp.arange(num_samples))
    error = jnp.full_like(diffusion[0], jnp.inf)
    if num_samples > 1:
        spread = jnp.std(diffusion + reconstruction, axis=0, ddof=1)
        error = spread / math.sqrt(num_samples)
    return BoundTerms(
        prior=_prior(x, schedule, ends[1], sigma_data),
        diffusion=jnp.mean(diffusion, axis=0),
        reconstruction=jnp.mean(reconstruction, axis=0),
        standard_error=error,
    )


def levels_reconstruction(
    x: Examples,
    keys: Key[Array, " B"],
    *,
    log_snr: Float[ArrayLike, ""],
    levels: Float[ArrayLike, " n"],
) -> Nats:
    """-log p(x|x_0) of discrete data at one draw of x_0: the levels by their distance.

    Each entry takes level v with a probability proportional to N(x_0; alpha v,
    sigma^2), so that the probabilities of all images sum to one; at little noise almost
    all of it is on the level that x_0 came from. Memory is `[B, ..., n]`.

    Args:
        x: Data, `[B, ...]`, rounded to the nearest level.
        keys: One per example, `[B]`.
        log_snr: log(alpha^2 / sigma^2) of x_0, a scalar.
        levels: All values that an entry can take, `[n]`, in the units of x.

    Returns:
        `[B]` nats, summed over the event axes; 0 or more.

    Raises:
        ValueError: if a shape is wrong.

    References:
        Kingma et al. 2021, equation 9, arXiv:2107.00630.
    """
    name = "levels_reconstruction"
    (x,) = _checks.example_floats(name, x=x)
    _checks.check_axes(name, "[B]", keys=keys)
    _checks.check_axes(name, "[n]", levels=levels)
    log_snr, levels = jnp.asarray(log_snr, x.dtype), jnp.asarray(levels, x.dtype)
    levels = levels.reshape(*(1 for _ in x.shape), -1)
    x_0 = x + jnp.exp(-0.5 * log_snr) * _normal(keys, x)
    logits = -0.5 * jnp.exp(log_snr) * jnp.square(x_0[..., None] - levels)
    nearest = jnp.argmin(jnp.abs(x[..., None] - levels), axis=-1, keepdims=True)
    log_probs = jax.nn.log_softmax(logits, axis=-1)
    log_prob = jnp.take_along_axis(log_probs, nearest, axis=-1)[..., 0]
    return -_checks.sum_per_example(log_prob)


def _level(
    name: str,
    schedule: schedules.Schedule,
    num_steps: int | None,
    ends: tuple[float, float],
    uniform_in: str,
) -> Callable[[Array], tuple[Array, Array]]:
    """What makes of u in [0, 1) a time and the weight of the squared error there."""
    _checks.check_in(name, "uniform_in", uniform_in, ("log_snr", "time"))
    if not 0 <= ends[0] < ends[1] <= 1:
        raise ValueError(
            f"{name}: ends must rise within [0, 1], got {ends}; t = 0 is the data."
        )
    in_log_snr = num_steps is None and uniform_in == "log_snr"
    for t in ends if in_log_snr else ends[:1]:
        known = _checks.concrete(schedule.log_snr(t))
        if known is not None and not np.isfinite(known):
            raise ValueError(
                f"{name}: log_snr must be finite at the ends, got {known} at t = {t} "
                f"of {schedule}; move that end inwards."
            )
    if num_steps is not None:
        _checks.check_positive(name, num_steps=num_steps)
        return functools.partial(_discrete, schedule, num_steps, ends)
    sampler = _uniform_in_log_snr if in_log_snr else _uniform_in_time
    return functools.partial(sampler, schedule, ends)


def _discrete(
    schedule: schedules.Schedule, num_steps: int, ends: tuple[float, float], u: Array
) -> tuple[Array, Array]:
    """The later time of one of T steps, and T / 2 times the fall of the SNR in it."""
    step = jnp.floor(u * num_steps)
    start, end = (
        ends[0] + (step + i) * ((ends[1] - ends[0]) / num_steps) for i in (0, 1)
    )
    end = jnp.minimum(end, ends[1])
    before, after = schedule.log_snr(start), schedule.log_snr(end)
    return end, -0.5 * num_steps * jnp.exp(before) * jnp.expm1(after - before)


def _uniform_in_time(
    schedule: schedules.Schedule, ends: tuple[float, float], u: Array
) -> tuple[Array, Array]:
    """A time, and half the rate at which the SNR falls there times the whole time."""
    t = ends[0] + u * (ends[1] - ends[0])
    log_snr, rate = jax.jvp(schedule.log_snr, (t,), (jnp.ones_like(t),))
    return t, -0.5 * jnp.exp(log_snr) * rate * (ends[1] - ends[0])


def _uniform_in_log_snr(
    schedule: schedules.Schedule, ends: tuple[float, float], u: Array
) -> tuple[Array, Array]:
    """A time, and half the SNR there times the whole range of its log."""
    least, most = (schedule.log_snr(jnp.asarray(t, u.dtype)) for t in ends)
    log_snr = least + u * (most - least)
    return schedule.inverse(log_snr), 0.5 * jnp.exp(log_snr) * (least - most)


def _prior(
    x: Array, schedule: schedules.Schedule, end: float, sigma_data: Real[ArrayLike, ""]
) -> Array:
    """KL(N(alpha x, sigma^2) || N(0, alpha^2 sigma_data^2 + sigma^2)), `[B]`."""
    t = jnp.asarray(end, x.dtype)
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    # What the data's variance is of the whole; near 0, where digits would be lost.
    scale = alpha**2 / ((alpha * sigma_data) ** 2 + sigma**2)
    share = scale * sigma_data**2
    per_dim = 0.5 * (scale * jnp.square(x) - share - jnp.log1p(-share))
    return _checks.sum_per_example(per_dim)


def _gaussian_reconstruction(x: Array, log_snr: Array) -> Array:
    """The entropy of N(., sigma^2 / alpha^2 I): no draw is needed, `[B]`."""
    num_dims = math.prod(x.shape[1:])
    nats = 0.5 * num_dims * (1 + math.log(2 * math.pi) - log_snr)
    return jnp.full(x.shape[:1], nats, x.dtype)


def _three(keys: Array, number: Array) -> Array:
    """Three keys per example for this sample, `[B, 3]`."""
    folded = jax.vmap(jax.random.fold_in, (0, None))(keys, number)
    return jax.vmap(lambda key: jax.random.split(key, 3))(folded)


def _normal(keys: Array, x: Array) -> Array:
    """Standard normal noise like x, that of example b by keys[b] alone."""
    return jax.vmap(lambda key: jax.random.normal(key, x.shape[1:], x.dtype))(keys)
