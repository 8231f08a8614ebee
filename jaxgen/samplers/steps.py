"""What the samplers have in common: the levels of noise, the scan, the single steps."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float, Key

from jaxgen import _checks, schedules

Denoise = Callable[[Array, Array], Array]
Examples = Float[ArrayLike, " B *event"]
Times = Float[ArrayLike, " N"]
Keys = Key[Array, " B"] | None


class Chain(NamedTuple):
    """What a sampler gives.

    Attributes:
        x: The samples, `[B, ...]`.
        x0: The estimates of all steps, first to last, `[steps, B, ...]`; None unless
            asked for.
    """

    x: Float[Array, " B *event"]
    x0: Float[Array, " steps B *event"] | None


class Level(NamedTuple):
    """A level of noise on the way, the `index`-th; or `[N]` of them."""

    index: Array
    t: Array
    alpha: Array
    sigma: Array
    log_snr: Array


class Memory(NamedTuple):
    """The last estimate `[B, ...]`, and half the log SNR that was gained after it."""

    x0: Array
    gained: Array


Step = Callable[[Denoise, Array, Memory, Level, Level], tuple[Array, Memory]]
Before = Callable[[Array, Level], tuple[Array, Level]]


def level_at(schedule: schedules.Schedule, index: Array, t: Array) -> Level:
    """The schedule at t, in the dtype of t."""
    values = schedule.alpha(t), schedule.sigma(t), schedule.log_snr(t)
    return Level(index, t, *(value.astype(t.dtype) for value in values))


def run(
    name: str,
    step: Step,
    denoise: Denoise,
    x: ArrayLike,
    schedule: schedules.Schedule,
    times: ArrayLike,
    *,
    clean: bool,
    keep: bool,
    before: Before | None = None,
    increasing: bool = False,
) -> Chain:
    """All steps in one scan, each after `before`, then the one to data."""
    _checks.check_times(name, times, increasing=increasing)
    _checks.check_min_rank(name, 1, x=x)
    (x,) = _checks.to_float(x)
    times = jnp.asarray(times, x.dtype)
    levels = level_at(schedule, jnp.arange(times.size), times)

    def estimate(x: Array, t: Array) -> Array:
        x0 = denoise(x, t)
        _checks.check_same_shape(name, x=x, estimate=x0)
        return x0.astype(x.dtype)

    def body(carry: tuple[Array, Memory], pair: tuple[Level, Level]) -> tuple:
        (x, memory), (here, there) = carry, pair
        if before is not None:
            x, here = before(x, here)
        x, memory = step(estimate, x, memory, here, there)
        return (x, memory), memory.x0 if keep else None

    memory = Memory(jnp.zeros_like(x), jnp.full((), jnp.inf, x.dtype))
    pairs = tuple(jax.tree.map(lambda a, s=s: a[s], levels) for s in (_HERE, _THERE))
    (x, _), kept = jax.lax.scan(body, (x, memory), pairs)
    if clean:
        last = jax.tree.map(lambda a: a[-1], levels)
        if before is not None:
            x, last = before(x, last)
        x = estimate(x, last.t)
        kept = jnp.concatenate([kept, x[None]]) if keep else None
    return Chain(x, kept)


_HERE, _THERE = slice(None, -1), slice(1, None)


def euler(
    denoise: Denoise, x: Array, memory: Memory, here: Level, there: Level
) -> tuple[Array, Memory]:
    """x0 and eps together anew: exact if x0 stayed what it is."""
    x0 = denoise(x, here.t)
    x = there.alpha * x0 + there.sigma * _eps(x, x0, here)
    return x, memory._replace(x0=x0)


def heun(
    denoise: Denoise, x: Array, memory: Memory, here: Level, there: Level
) -> tuple[Array, Memory]:
    """x0 and eps averaged over both ends, but where sigma is 0 and eps undefined."""
    x0 = denoise(x, here.t)
    eps = _eps(x, x0, here)
    end = there.alpha * x0 + there.sigma * eps
    noisy = there.sigma > 0
    x0_end = denoise(end, there.t)
    eps_end = _eps(end, x0_end, there._replace(sigma=jnp.where(noisy, there.sigma, 1)))
    x0_change = (there.alpha - here.alpha) * (x0_end - x0)
    eps_change = (there.sigma - here.sigma) * (eps_end - eps)
    x = jnp.where(noisy, end + 0.5 * (x0_change + eps_change), end)
    return x, memory._replace(x0=x0)


def multistep(
    denoise: Denoise, x: Array, memory: Memory, here: Level, there: Level
) -> tuple[Array, Memory]:
    """x0 extrapolated to the middle of the step, where it is exponentially weighted."""
    x0 = denoise(x, here.t)
    gained = 0.5 * (there.log_snr - here.log_snr)
    # 0 where nothing is remembered, and where a step has an end infinitely far off.
    ahead = jnp.where(jnp.isinf(gained), 0, 0.5 * gained / memory.gained)
    x0_ahead = x0 + ahead * (x0 - memory.x0)
    kept = there.sigma / here.sigma
    x = kept * x - there.alpha * jnp.expm1(-gained) * x0_ahead
    return x, Memory(x0, gained)


def ancestral(
    keys: Array, noise_std: Callable[[Level, Level], tuple[Array, Array]]
) -> Step:
    """As `euler`, with part of eps replaced: by (what is kept, new noise) at `there`."""

    def step(
        denoise: Denoise, x: Array, memory: Memory, here: Level, there: Level
    ) -> tuple[Array, Memory]:
        x0 = denoise(x, here.t)
        kept, new = noise_std(here, there)
        x = there.alpha * x0 + kept * _eps(x, x0, here) + new * noise(keys, here, x)
        return x, memory._replace(x0=x0)

    return step


def new_share(here: Level, there: Level) -> Array:
    """The share of the noise variance `here` that is not of `there`, closer to data."""
    return -jnp.expm1(here.log_snr - there.log_snr)


def noise_std(here: Level, there: Level, *, eta: float = 1.0) -> tuple[Array, Array]:
    """What DDIM keeps of eps, and its new noise; of eta = 1 those of q(x_s | x_t, x_0)."""
    share = eta**2 * new_share(here, there)
    return there.sigma * jnp.sqrt(1 - share), there.sigma * jnp.sqrt(share)


def given(name: str, keys: Keys) -> Array:
    """The keys, or ValueError if there are none."""
    if keys is None:
        raise ValueError(f"{name}: keys must be [B], one per example, got None.")
    return keys


def noise(keys: Array, level: Level, x: Array) -> Array:
    """Standard normal noise `[B, ...]`, another for each example and each level."""

    def draw(key: Array) -> Array:
        key = jax.random.fold_in(key, level.index)
        return jax.random.normal(key, x.shape[1:], x.dtype)

    return jax.vmap(draw)(keys)


def _eps(x: Array, x0: Array, level: Level) -> Array:
    return (x - level.alpha * x0) / level.sigma
