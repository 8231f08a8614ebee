"""Oracles of samplers: observed orders, and the data they must return."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxgen import samplers, schedules
from jaxgen.verify.gaussians import Gaussian, Mixture
from jaxgen.verify.records import Record, Records, at_least, compiled, equal, exactly

GAUSSIAN = Gaussian.random(3)
ORDERS = {"euler": 1, "ddim": 1, "heun": 2, "dpmpp_2m": 2}
NUM_SAMPLES = 4000


def sampler(
    s: Callable[..., samplers.Chain],
    *,
    order: int | None,
    schedule: schedules.Schedule | None = None,
) -> Records:
    """Checks a sampler, called as those of `jaxgen.samplers` are, in float64.

    Args:
        s: `(denoise, x, keys, *, schedule, times, clean) -> Chain`.
        order: Of its error at the end of the probability-flow ODE; None for one that
            draws noise, whose samples are then compared in mean and covariance.
        schedule: That of EDM by default.

    Returns:
        Its error and order on a Gaussian whose exact flow is known, or the moments of
        its samples; and whether a denoiser of five examples leads it to those.
    """
    with exactly():
        schedule = schedules.EDM() if schedule is None else schedule
        check = _moments(s, schedule) if order is None else _order(s, schedule, order)
        return (*check, _returns_data(s, schedule))


def _times(schedule: schedules.Schedule, num: int) -> Array:
    return schedules.karras_times(schedule, num, sigma_min=0.02, sigma_max=50.0)


def _order(s: Callable, schedule: schedules.Schedule, order: int) -> Records:
    grids = [_times(schedule, num) for num in (129, 257)]
    start, end = grids[0][0], grids[0][-1]
    noise = np.random.default_rng(1).normal(size=(6, 3))
    x = 0.3 * schedule.alpha(start) + schedule.sigma(start) * noise
    exact = GAUSSIAN.flow(schedule, x, start, end)
    denoise = GAUSSIAN.denoise(schedule)

    @compiled
    def error(times: Array) -> Array:
        found = s(denoise, x, None, schedule=schedule, times=times, clean=False).x
        return jnp.abs(found - exact).max()

    coarse, fine = (float(error(times)) for times in grids)
    limit = 0.02 if order == 1 else 5e-4
    return (
        Record("error at the end, 256 steps", fine, 0, limit),
        at_least("observed order, from 128 to 256 steps", np.log2(coarse / fine), order, 0.1),
    )  # fmt: skip


def _moments(s: Callable, schedule: schedules.Schedule) -> Records:
    times = _times(schedule, 257)
    noise = np.random.default_rng(1).normal(size=(NUM_SAMPLES, 3))
    alpha, sigma = float(schedule.alpha(times[0])), float(schedule.sigma(times[0]))
    deviation = np.hypot(alpha * GAUSSIAN.scale, sigma)
    x = alpha * GAUSSIAN.mean + (deviation * noise) @ GAUSSIAN.basis.T
    keys = jax.random.split(jax.random.key(0), NUM_SAMPLES)
    run = compiled(
        lambda x, keys, times: s(
            GAUSSIAN.denoise(schedule), x, keys, schedule=schedule, times=times, clean=False
        ).x
    )  # fmt: skip
    found = np.asarray(run(x, keys, times) / schedule.alpha(times[-1]))
    ratio = float(schedule.sigma(times[-1]) / schedule.alpha(times[-1]))
    truth = np.diag(GAUSSIAN.scale**2 + ratio**2)
    centred = (found - GAUSSIAN.mean) @ GAUSSIAN.basis
    covariance, size = centred.T @ centred / NUM_SAMPLES, np.sqrt(np.diag(truth))
    error = 4.5 / np.sqrt(NUM_SAMPLES)
    return (
        equal("mean of the samples", centred.mean(0), 0, error * size),
        equal(
            "covariance of the samples",
            covariance,
            truth,
            (0.01 + error * np.sqrt(2)) * np.outer(size, size),
        ),
    )


def _returns_data(s: Callable, schedule: schedules.Schedule) -> Record:
    """The best denoiser of five examples alone leads to one of them."""
    data = np.random.default_rng(0).uniform(-1, 1, (5, 4))
    times = _times(schedule, 24)
    denoise = Mixture.points(data).denoise(schedule)
    x = schedule.alpha(times[0]) * 50 * np.random.default_rng(2).normal(size=(16, 4))
    keys = jax.random.split(jax.random.key(1), 16)
    found = compiled(
        lambda x, keys: (
            s(denoise, x, keys, schedule=schedule, times=times, clean=True).x
        )
    )(x, keys)
    far = np.abs(np.asarray(found)[:, None] - data[None]).max(2).min(1)
    return equal("distance to the nearest of five examples", far, 0, 1e-9)


def all_samplers() -> Records:
    """Every sampler on EDM's schedule, the order of the solvers on a straight path too."""
    records: list[Record] = []
    straight = schedules.RectifiedFlow()
    for name, method in samplers.SAMPLERS.items():
        order = ORDERS.get(name)
        seen = {"edm": sampler(method, order=order)}
        if order == 2:
            with exactly():
                seen["rectified_flow"] = _order(method, straight, order)
        for where, found in seen.items():
            records += (r._replace(name=f"{name}, {where}: {r.name}") for r in found)
    return (*records, *_same())


def _same() -> Records:
    """DDIM without noise is Euler's method; without churn EDM's sampler is Heun's."""
    edm = schedules.EDM()
    with exactly():
        x = 50 * np.random.default_rng(2).normal(size=(4, 3))
        keys, denoise = jax.random.split(jax.random.key(0), 4), GAUSSIAN.denoise(edm)

        def run(method: Callable, **options: Any) -> Array:
            options = {"schedule": edm, "times": _times(edm, 12), **options}
            return compiled(lambda x: method(denoise, x, keys, **options).x)(x)

        pairs = {
            "ddim of eta 0 is euler": (samplers.ddim, samplers.euler, {}),
            "stochastic of churn 0 is heun": (samplers.stochastic, samplers.heun, {"churn": 0.0}),
            "ddim of eta 1 is ddpm": (samplers.ddim, samplers.ddpm, {"eta": 1.0}),
        }  # fmt: skip
        return tuple(
            equal(name, run(first, **options), run(second), 1e-9)
            for name, (first, second, options) in pairs.items()
        )
