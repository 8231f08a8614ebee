"""Oracles of diffusion: schedules' identities, targets, bounds and likelihoods."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxgen import averaging, probability_flow, schedules
from jaxgen.losses import diffusion, meanflow
from jaxgen.verify import solvers
from jaxgen.verify.gaussians import Gaussian
from jaxgen.verify.records import (
    Record,
    Records,
    at_least,
    compiled,
    equal,
    exactly,
    holds,
)

INSIDE = np.linspace(0.001, 0.999, 999)
GAUSSIAN = Gaussian.random(3)
# Karras et al. 2022, equation 5 with 18 steps.
EDM_GRID = [80, 57.586, 40.786, 28.375, 19.353, 12.910, 8.4009, 5.3152, 3.2568]
EDM_GRID += [1.9233, 1.0882, 0.5853, 0.2964, 0.1395, 0.0599, 0.0229, 0.0075, 0.002]


def schedule(s: schedules.Schedule, *, preserves_variance: bool = False) -> Records:
    """Checks a schedule's four methods against each other, in float64.

    Args:
        s: The schedule.
        preserves_variance: Whether alpha^2 + sigma^2 should be 1.

    Returns:
        That log_snr is that of alpha and sigma and falls, that `inverse` is its inverse,
        that drift and diffusion are the derivatives, and that both ends are finite.
    """
    with exactly():
        t = jnp.asarray(INSIDE)
        alpha, sigma, log_snr, back = (
            np.asarray(a)
            for a in compiled(
                lambda t: (
                    s.alpha(t),
                    s.sigma(t),
                    s.log_snr(t),
                    s.inverse(s.log_snr(t)),
                )
            )(t)
        )
        ratio = 2 * (np.log(alpha) - np.log(sigma))
        falls = -np.diff(np.asarray(s.log_snr(jnp.linspace(0, 1, 2001))))
        ends = np.stack([f(jnp.array([0.0, 1.0])) for f in (s.alpha, s.sigma)])
        records = (
            equal(
                "log_snr is log(alpha^2 / sigma^2)",
                log_snr,
                ratio,
                1e-9 * (1 + np.abs(ratio)),
            ),
            holds("log_snr falls all the way", falls > 0),
            equal("inverse gives the time back", back, INSIDE, 1e-9),
            *_derivatives(s),
            holds("alpha and sigma are finite at both ends", np.isfinite(ends)),
        )
        if preserves_variance:
            total = np.append(alpha**2 + sigma**2, np.sum(ends**2, 0))
            records += (equal("alpha^2 + sigma^2 is 1", total, 1, 1e-9),)
        return records


def _derivatives(s: schedules.Schedule) -> Records:
    t, h = np.linspace(0.1, 0.9, 9), 1e-6
    f, g_squared = compiled(lambda t: schedules.drift_and_diffusion(s, t))(t)
    alpha, log_snr = (
        [np.asarray(way(jnp.asarray(t + step))) for step in (-h, h)]
        for way in (s.alpha, s.log_snr)
    )
    drift = np.log(alpha[1] / alpha[0]) / (2 * h)
    noise = -(np.asarray(s.sigma(jnp.asarray(t))) ** 2) * (log_snr[1] - log_snr[0])
    noise = noise / (2 * h)
    return (
        equal("drift is the slope of log alpha", f, drift, 1e-6 * (1 + np.abs(drift))),
        equal(
            "squared diffusion is -sigma^2 times the slope of log_snr",
            g_squared,
            noise,
            1e-6 * (1 + np.abs(noise)),
        ),
    )


def all_schedules() -> Records:
    """Every schedule, and the published numbers of two."""
    every = {name: make() for name, make in schedules.SCHEDULES.items()}
    every["learned"] = schedules.LearnedGamma.init(jax.random.key(1))
    records: list[Record] = []
    for name, s in every.items():
        preserves = name in ("ddpm", "cosine", "learned")
        for record in schedule(s, preserves_variance=preserves):
            records.append(record._replace(name=f"{name}: {record.name}"))
    ddpm, edm, t = schedules.DDPM(), schedules.EDM(), np.arange(1, 1001) / 1000
    kept = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    grid = np.asarray(edm.sigma(schedules.karras_times(edm, 18)))
    return (
        *records,
        equal(
            "ddpm: alpha^2 is the product of 1 - beta", ddpm.alpha(t) ** 2, kept, 1e-9
        ),
        equal("ddpm: alpha^2 at step 1000", ddpm.alpha(1.0) ** 2, 4.0358e-5, 1e-9),
        equal("edm: the grid of 18 steps", grid, EDM_GRID, 6e-4 * grid + 6e-5),
    )


def _noisy(num: int) -> tuple[np.ndarray, ...]:
    """x0, eps `[N, 3]` and t, alpha, sigma `[N]`: Gaussian data, the cosine schedule."""
    rng = np.random.default_rng(0)
    x0 = GAUSSIAN.mean + (rng.normal(size=(num, 3)) * GAUSSIAN.scale) @ GAUSSIAN.basis.T
    t, cosine = rng.uniform(0.1, 0.9, num), schedules.Cosine()
    alpha, sigma = (np.asarray(a) for a in (cosine.alpha(t), cosine.sigma(t)))
    return x0, rng.normal(size=(num, 3)), t, alpha, sigma


def targets() -> Records:
    """What networks predict is one estimate of x_0; the best has the least loss."""
    x0, eps, t, alpha, sigma = _noisy(4000)
    cosine, a, s = schedules.Cosine(), alpha[:, None], sigma[:, None]
    x_t = np.asarray(diffusion.noised(x0, eps, alpha, sigma))
    definitions = {
        "x0": x0,
        "eps": eps,
        "v": a * eps - s * x0,
        "velocity": eps - x0,
        "edm": (s * x0 / 0.7**2 - a * eps) / np.sqrt(a**2 + s**2 / 0.7**2),
    }
    records: list[Record] = []
    for name, truth in definitions.items():
        options = {"target": name, "sigma_data": 0.7}
        made = diffusion.from_x0(x0, x_t, alpha, sigma, **options)
        back = diffusion.to_x0(truth, x_t, alpha, sigma, **options)
        records.append(equal(f"target {name} is its definition", made, truth, 1e-9))
        records.append(equal(f"target {name} leads back to x_0", back, x0, 1e-8))
    log_snr = np.asarray(cosine.log_snr(t))
    other = x0 + 0.1 * eps
    for name in definitions:
        options = {"target": name, "sigma_data": 0.7}
        weighted = diffusion.denoising_loss(
            x0, other, log_snr, weighting="simple", **options
        )
        parts = (
            diffusion.from_x0(x, x_t, alpha, sigma, **options) for x in (x0, other)
        )
        squares = np.sum(np.square(np.subtract(*map(np.asarray, parts))), 1)
        title = f"simple loss of {name} is its squared error"
        records.append(equal(title, weighted, squares, 1e-8 * (1 + squares)))
    best = GAUSSIAN.denoise(cosine)
    score = jax.vmap(
        jax.grad(lambda x, t: GAUSSIAN.log_prob(cosine, x[None], t[None])[0])
    )(jnp.asarray(x_t), jnp.asarray(t))
    tweedie = diffusion.score_to_x0(score, x_t, alpha, sigma)
    x0_hat = np.asarray(best(jnp.asarray(x_t), jnp.asarray(t)))
    variance = a**2 * GAUSSIAN.scale**2 + s**2
    floor = np.sum(GAUSSIAN.scale**2 * s**2 / variance, 1)
    losses = [
        np.asarray(diffusion.denoising_loss(x0, estimate, log_snr, weighting="simple"))
        for estimate in (x0_hat, 1.05 * x0_hat)
    ]
    off = losses[0] - floor
    return (
        *records,
        equal("Tweedie's formula is the best denoiser", tweedie, x0_hat, 1e-9),
        equal(
            "the best denoiser's loss is its floor",
            off.mean(),
            0,
            4 * off.std() / math.sqrt(len(off)),
        ),
        at_least(
            "another denoiser's loss, less the best's",
            (losses[1] - losses[0]).mean(),
            0,
        ),
    )


def likelihoods() -> Records:
    """The ODE's log-likelihood and codes of a Gaussian, where its flow is known."""
    edm, centred = schedules.EDM(), Gaussian.random(3, mean=0.0)
    x = jnp.asarray(0.7 * np.random.default_rng(0).normal(size=(6, 3)))
    denoise = centred.denoise(edm)

    def run(x: Array, times: Array) -> Any:
        options = {"schedule": edm, "times": times, "sigma_data": 0.8}
        found = probability_flow.log_likelihood(denoise, x, None, exact=True, **options)
        return found, probability_flow.decode(denoise, found.z, **options)

    def closed_form(times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The prior at the code, and the growth of volume on the way."""
        end = centred.flow(edm, x, times[0], times[-1])
        first, last = (centred.coordinates(edm, x, t)[1] for t in (times[0], times[-1]))
        z = end / np.hypot(0.8, np.asarray(edm.sigma(times[-1])))
        rho = np.hypot(0.8, np.asarray(edm.sigma(times[-1])))
        prior = -0.5 * np.sum(np.asarray(z) ** 2 + np.log(2 * np.pi * rho**2), 1)
        return np.asarray(z), prior + 0.5 * np.log(np.asarray(last / first)).sum(1)

    # Ends of the schedule would be clipped there to within a rounding.
    fine, finer = (
        np.asarray(
            schedules.karras_times(edm, num, sigma_min=0.02, sigma_max=50.0)[::-1]
        )
        for num in (129, 257)
    )
    compute = compiled(run)
    (rough, _), (found, back) = compute(x, fine), compute(x, finer)
    z, nats = closed_form(finer)
    errors = [float(np.abs(np.asarray(f.nats) - nats).max()) for f in (rough, found)]
    truth = np.asarray(centred.log_prob(edm, x, finer[0]))
    return (
        equal("ODE log-likelihood, nats, by the exact flow", found.nats, nats, 1e-5),
        equal("ODE log-likelihood, nats, by the density", found.nats, truth, 0.02),
        equal("code of the ODE", found.z, z, 1e-5),
        equal("code and back", back, x, 1e-5),
        at_least("observed order of Runge-Kutta", np.log2(errors[0] / errors[1]), 3.8),
    )


def bounds() -> Records:
    """The variational bound of N(0, 1/4): its density, and above it in few steps."""
    std, copies = 0.5, 256
    x = std * np.array([[-1.0], [1.0]])  # of second moment 1/4, exactly
    keys = jax.random.split(jax.random.key(2), 2 * copies)

    def terms(s: schedules.Schedule, **options: Any) -> tuple[float, float]:
        def denoise(x_t: Array, t: Array) -> Array:
            alpha, sigma = s.alpha(t)[:, None], s.sigma(t)[:, None]
            return alpha * std**2 / (alpha**2 * std**2 + sigma**2) * x_t

        found = compiled(
            lambda x, keys: diffusion.variational_bound(
                denoise, x, keys, schedule=s, **{"num_samples": 100, **options}
            )
        )(np.repeat(x, copies, axis=0), keys)
        error = float(np.asarray(found.standard_error).mean()) / math.sqrt(2 * copies)
        return float(np.asarray(found.total).mean()), 4 * error

    learned = schedules.LearnedGamma.init(
        jax.random.key(0), log_snr_max=14.0, log_snr_min=-5.0
    )
    density = 0.5 * math.log(2 * math.pi * std**2) + 0.5
    whole, error = terms(learned, sigma_data=std)
    other, other_error = terms(learned, sigma_data=std, uniform_in="time")
    standard, standard_error = terms(learned, sigma_data=1.0)
    steps, steps_error = terms(
        schedules.GeometricVE(0.01, 20.0), num_steps=6, sigma_data=std
    )
    return (
        equal("bound of Gaussian data, nats", whole, density, error),
        equal("bound by levels uniform in time, nats", other, density, other_error),
        equal("bound from a standard prior, nats", standard, 0.725799, standard_error),
        at_least("bound in 6 steps is above the truth", steps, density, steps_error),
    )  # fmt: skip


def mean_flows() -> Records:
    """MeanFlow's identity at the closed flow of a Gaussian, and one exact step."""
    mean, std = np.array([[0.4, -1.0, 0.0]]), np.array([[0.5, 0.05, 2.0]])
    rng = np.random.default_rng(0)
    x, t = jnp.asarray(rng.normal(size=(50, 3))), jnp.asarray(rng.uniform(0.05, 1, 50))
    r = t * rng.random(50)

    def variance(t: Array) -> Array:
        return (1 - t[:, None]) ** 2 * std**2 + t[:, None] ** 2

    def exact(x: Array, t: Array, r: Array) -> Array:
        """(x_t - x_r) / (t - r) of the flow, without the division."""
        rise = (1 + std**2) * (t + r)[:, None] - 2 * std**2
        below = variance(t) + jnp.sqrt(variance(t) * variance(r))
        return (x - (1 - t[:, None]) * mean) * rise / below - mean

    centred = x - (1 - t[:, None]) * mean
    x0 = mean + (1 - t[:, None]) * std**2 / variance(t) * centred
    velocity = (x - (1 - t[:, None]) * x0) / t[:, None] - x0
    found = meanflow.instantaneous_velocity(exact, x, t, r)
    u, rate = meanflow.total_derivative(exact, velocity, x, t, r)
    target = velocity - (t - r)[:, None] * rate
    sample = meanflow.mean_flow_sample(exact, x, times=jnp.array([1.0, 0.0]))
    return (
        equal("velocity by way of the mean flow", found, velocity, 1e-9),
        equal("MeanFlow's identity", u, target, 1e-9),
        equal("one step is the flow", sample, mean + std * np.asarray(x), 1e-9),
    )


def averages() -> Records:
    """Widths of power-function averages: Karras et al. 2023, arXiv:2312.02696."""
    found = [averaging.width_to_gamma(width) for width in (0.05, 0.10, 0.15)]
    widths = [averaging.gamma_to_width(gamma) for gamma in found]
    return (
        equal("exponents of widths 0.05, 0.10, 0.15", found, [16.972, 6.937, 3.558], 2e-3),
        equal("and back", widths, [0.05, 0.10, 0.15], 1e-9),
    )  # fmt: skip


ORACLES = (
    all_schedules,
    targets,
    solvers.all_samplers,
    likelihoods,
    bounds,
    mean_flows,
    averages,
)
