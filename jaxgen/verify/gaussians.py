"""Data whose exact denoiser is known, under any schedule: Gaussians and mixtures.

Both have `denoise(schedule)`, a function of x `[B, ...]` and t (a scalar or `[B]`) that
gives E[x_0 | x_t = x], and `log_prob(schedule, x, t)` of x_t, `[B]` nats. Events of any
shape are flattened to D dimensions.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy import special

from jaxgen import schedules


@functools.cache
def grid(schedule: schedules.Schedule, num: int) -> np.ndarray:
    """`[num]` times in float64, from noise to data, that every schedule reaches."""
    with jax.enable_x64(), jax.ensure_compile_time_eval():
        times = jax.jit(
            lambda: schedules.karras_times(
                schedule, num, sigma_min=0.02, sigma_max=50.0
            )
        )()
    return np.asarray(times)


def _alpha_sigma(schedule: schedules.Schedule, t: Any, x: Array) -> tuple[Array, Array]:
    """Alpha and sigma as columns `[B, 1]` in the dtype of x."""
    t = jnp.broadcast_to(jnp.asarray(t, x.dtype), (x.shape[0],))
    return schedule.alpha(t)[:, None], schedule.sigma(t)[:, None]


def _log_normal(distance: Array, variance: Array) -> Array:
    """Sum over the last axis of log N(distance; 0, variance)."""
    terms = distance**2 / variance + jnp.log(2 * jnp.pi * variance)
    return -0.5 * jnp.sum(terms, -1)


@dataclasses.dataclass(frozen=True)
class Gaussian:
    """N(m, U diag(s^2) U'): m `[D]`, U `[D, D]` orthogonal, s `[D]`."""

    mean: np.ndarray
    basis: np.ndarray
    scale: np.ndarray

    @staticmethod
    def random(
        num_dims: int,
        seed: int = 0,
        *,
        mean: float = 0.3,
        scale: tuple[float, float] = (0.1, 1.5),
    ) -> "Gaussian":
        """One with entries of m and s by the deviation and the range given."""
        rng = np.random.default_rng(seed)
        return Gaussian(
            mean * rng.normal(size=num_dims),
            np.linalg.qr(rng.normal(size=(num_dims, num_dims)))[0],
            rng.uniform(*scale, num_dims),
        )

    @property
    def covariance(self) -> np.ndarray:
        """U diag(s^2) U', `[D, D]`."""
        return self.basis * self.scale**2 @ self.basis.T

    def coordinates(
        self, schedule: schedules.Schedule, x: Array, t: Any
    ) -> tuple[Array, Array]:
        """x_t - alpha m along U, and there its variance: `[B, D]`, `[B, D]`."""
        x = x.reshape(x.shape[0], -1)
        alpha, sigma = _alpha_sigma(schedule, t, x)
        mean, scale = (jnp.asarray(a, x.dtype)[None] for a in (self.mean, self.scale))
        centred = (x - alpha * mean) @ jnp.asarray(self.basis, x.dtype)
        return centred, alpha**2 * scale**2 + sigma**2

    def denoise(self, schedule: schedules.Schedule) -> Callable[[Array, Any], Array]:
        """E[x_0 | x_t = x] as a function of x and t."""

        def function(x: Array, t: Any) -> Array:
            centred, variance = self.coordinates(schedule, x, t)
            alpha, _ = _alpha_sigma(schedule, t, x.reshape(x.shape[0], -1))
            shrunk = alpha * jnp.asarray(self.scale**2, x.dtype)[None] / variance
            moved = (shrunk * centred) @ jnp.asarray(self.basis.T, x.dtype)
            return (jnp.asarray(self.mean, x.dtype)[None] + moved).reshape(x.shape)

        return function

    def flow(self, schedule: schedules.Schedule, x: Array, t: Any, s: Any) -> Array:
        """The exact solution at s of the probability-flow ODE from x at t."""
        centred, before = self.coordinates(schedule, x, t)
        after = self.coordinates(schedule, x, s)[1]
        alpha, _ = _alpha_sigma(schedule, s, centred)
        moved = (jnp.sqrt(after / before) * centred) @ jnp.asarray(
            self.basis.T, x.dtype
        )
        mean = jnp.asarray(self.mean, x.dtype)[None]
        return (alpha * mean + moved).reshape(x.shape)

    def log_prob(self, schedule: schedules.Schedule, x: Array, t: Any) -> Array:
        """Of x_t, `[B]` nats."""
        return _log_normal(*self.coordinates(schedule, x, t))


@dataclasses.dataclass(frozen=True)
class Mixture:
    """sum_k w_k N(m_k, s_k^2 I): w `[K]`, m `[K, D]`, s `[K]`, where s may be 0."""

    weights: np.ndarray
    means: np.ndarray
    scales: np.ndarray

    @staticmethod
    def points(x: np.ndarray) -> "Mixture":
        """The empirical distribution of the rows of x."""
        num = x.shape[0]
        return Mixture(np.full(num, 1 / num), x.reshape(num, -1), np.zeros(num))

    def _parts(self, schedule: schedules.Schedule, x: Array, t: Any) -> tuple:
        """Log w_k N(x; k) `[B, K]`, the distance `[B, K, D]`, alpha and the variance."""
        x = x.reshape(x.shape[0], -1)
        alpha, sigma = _alpha_sigma(schedule, t, x)
        means, scales, weights = (
            jnp.asarray(a, x.dtype)[None]
            for a in (self.means, self.scales, self.weights)
        )
        distance = x[:, None] - alpha[:, None] * means
        variance = alpha**2 * scales**2 + sigma**2
        each = _log_normal(distance, variance[..., None])
        return jnp.log(weights) + each, distance, alpha, variance

    def denoise(self, schedule: schedules.Schedule) -> Callable[[Array, Any], Array]:
        """E[x_0 | x_t = x] as a function of x and t."""

        def function(x: Array, t: Any) -> Array:
            logs, distance, alpha, variance = self._parts(schedule, x, t)
            scales = jnp.asarray(self.scales, x.dtype)[None]
            shrunk = (alpha * scales**2 / variance)[..., None] * distance
            each = jnp.asarray(self.means, x.dtype)[None] + shrunk
            share = jax.nn.softmax(logs, -1)[..., None]
            return jnp.sum(share * each, 1).reshape(x.shape)

        return function

    def log_prob(self, schedule: schedules.Schedule, x: Array, t: Any) -> Array:
        """Of x_t, `[B]` nats."""
        return jax.nn.logsumexp(self._parts(schedule, x, t)[0], -1)

    def flow(
        self, schedule: schedules.Schedule, x: Array, t: Any, s: Any
    ) -> np.ndarray:
        """The exact solution of the probability-flow ODE for D = 1: quantiles stay."""

        def cdf(x: np.ndarray, time: Any) -> np.ndarray:
            alpha, sigma = float(schedule.alpha(time)), float(schedule.sigma(time))
            std = np.sqrt(alpha**2 * self.scales**2 + sigma**2)
            parts = np.asarray(
                special.ndtr((x[:, None] - alpha * self.means[None, :, 0]) / std[None])
            )
            return parts @ self.weights

        wanted = cdf(np.asarray(x)[:, 0], t)
        low, high = np.full_like(wanted, -1e3), np.full_like(wanted, 1e3)
        for _ in range(80):
            middle = (low + high) / 2
            below = cdf(middle, s) < wanted
            low, high = np.where(below, middle, low), np.where(below, high, middle)
        return low[:, None]


def side_by_side(first: Callable, num_first: int, second: Callable) -> Callable:
    """The denoiser of independent data: the first dimensions, and the others."""

    def denoise(x: Array, t: Any) -> Array:
        return jnp.concatenate(
            [first(x[:, :num_first], t), second(x[:, num_first:], t)], 1
        )

    return denoise
