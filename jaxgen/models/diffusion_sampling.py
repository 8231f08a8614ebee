"""A trained denoiser at work: samplers, guidance, and the pictures of a report."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxgen import samplers, schedules
from jaxgen.losses import meanflow
from jaxgen.models import diffusion_denoiser as net
from jaxgen.models import given
from jaxgen.models.base import indexed_keys
from jaxgen.models.diffusion_config import NUM_STEPS, DiffusionConfig


def sampled(
    config: DiffusionConfig,
    params: Any,
    z: Array,
    keys: Array,
    condition: Any,
    *,
    keep: bool = False,
) -> samplers.Chain:
    """The chain from the latent z `[B, H, W, C]` of N(0, I) to data."""
    name, num_steps = _sampler(config)
    told_keys, keys = jax.vmap(jax.random.split, out_axes=1)(keys)
    told = given.chosen(config, condition, told_keys)
    if name == "mean_flow":
        velocity = net.average_velocity(config, params, told)
        times = jnp.linspace(1.0, 0.0, num_steps + 1)
        return samplers.Chain(meanflow.mean_flow_sample(velocity, z, times=times), None)
    schedule, times = path(config)
    denoise = guided(config, params, told, schedule)
    x = z * net.latent_scale(params, schedule)
    return by_sampler(
        config, denoise, x, keys, schedule=schedule, times=times, keep=keep
    )


def by_sampler(
    config: DiffusionConfig, denoise: net.Denoise, x: Array, keys: Array, **options: Any
) -> samplers.Chain:
    """The chain of any denoiser by the sampler of the config, with its knobs."""
    sampling, name = config.sampling, _sampler(config)[0]
    knobs = {"ddim": {"eta": sampling.eta}, "stochastic": {"churn": sampling.churn}}
    return samplers.SAMPLERS[name](denoise, x, keys, **options, **knobs.get(name, {}))


def guided(
    config: DiffusionConfig,
    params: Any,
    told: Array | None,
    schedule: schedules.Schedule,
) -> net.Denoise:
    """The denoiser that is told something, guided away from that told nothing."""
    hearing = net.denoiser(config, params, told, schedule=schedule)
    if told is None or config.sampling.guidance == 1:
        return hearing
    deaf = net.denoiser(config, params, schedule=schedule)
    return samplers.guided(hearing, deaf, guidance=config.sampling.guidance)


def _sampler(config: DiffusionConfig) -> tuple[str, int]:
    name = str(config.sampling.sampler)
    if config.noise_levels == "most":  # it knows no other
        return "euler", 1
    if name == "auto":
        name = "mean_flow" if config.one_step else "dpmpp_2m"
    return name, config.sampling.num_steps or NUM_STEPS[name]


def path(config: DiffusionConfig) -> tuple[schedules.Schedule, Array]:
    """The schedule of sampling, and its times from noise to data."""
    name, num = config.sampling.path or config.noise_schedule, _sampler(config)[1]
    # Where nothing is noise at t = 0, the last step is from 1 / N to data.
    end = 0.0 if starts_above_zero(name) else 1.0 / num
    times = schedules.uniform_times(num, end=end) if num > 1 else jnp.ones(1)
    return schedules.SCHEDULES[name](), times


def path_to_noise(config: DiffusionConfig) -> tuple[schedules.Schedule, Array]:
    """The same schedule, and times from almost clean data to noise for an ODE."""
    name, num = config.sampling.path or config.noise_schedule, config.sampling.ode_steps
    end = 0.0 if starts_above_zero(name) else net.EARLIEST
    return schedules.SCHEDULES[name](), schedules.uniform_times(num + 1, end=end)[::-1]


def starts_above_zero(schedule: str) -> bool:
    """Whether a schedule has noise at t = 0, so that a grid of times may end there."""
    return schedule in ("edm", "ve")


def noising(config: DiffusionConfig, rows: int = 4, columns: int = 12) -> Any:
    """A view: data under more and more noise, shrunk to the data's variance."""

    def view(params: Any, x: Array) -> Array:
        params = params["denoiser"]
        x0 = net.from_data(config, params, x[:rows])[0]
        sigma_data, eps = params["sigma_data"], _fixed_noise(x0.shape)
        levels = jnp.concatenate([jnp.zeros(1), jnp.geomspace(0.01, 10.0, columns - 1)])
        strips = [
            (x0 + sigma * eps) * sigma_data / jnp.hypot(sigma_data, sigma)
            for sigma in levels
        ]
        return net.to_data(config, params, jnp.stack(strips, axis=1))

    return view


def film(config: DiffusionConfig, rows: int = 6, columns: int = 12) -> Any:
    """A view: estimates of x_0 along the chains of some samples."""
    if _sampler(config)[0] == "mean_flow":  # it has no chain: another of the same
        sampling = dataclasses.replace(config.sampling, sampler="heun", num_steps=None)
        config = dataclasses.replace(config, sampling=sampling)

    def view(params: Any, x: Array) -> Array:
        keys = indexed_keys(jax.random.key(1), jnp.arange(rows))
        z = _fixed_noise((rows, *x.shape[1:]))
        chain = sampled(config, params["denoiser"], z, keys, None, keep=True)
        estimates = jnp.asarray(chain.x0)
        steps = jnp.linspace(0, len(estimates) - 1, columns).round().astype(jnp.int32)
        chosen = estimates[steps].swapaxes(0, 1)
        return net.to_data(config, params["denoiser"], chosen)

    return view


def error_by_level(config: DiffusionConfig, num: int = 24) -> Any:
    """A curve: how far the estimate of x_0 is off, beside the best linear one."""

    def lines(params: Any, x: Array) -> tuple[Array, dict[str, Array]]:
        params, schedule = params["denoiser"], schedules.EDM()
        x0, _ = net.from_data(config, params, x)
        eps, sigma_data = _fixed_noise(x0.shape), params["sigma_data"]
        denoise = net.denoiser(config, params, schedule=schedule)

        def error(sigma: Array) -> Array:
            t = schedule.inverse(-2 * jnp.log(sigma))
            squared = jnp.square(x0 - denoise(x0 + sigma * eps, t))
            return jnp.sqrt(jnp.mean(squared)) / sigma_data

        sigma = jnp.geomspace(0.005, 50.0, num)
        gaussian = sigma / jnp.hypot(sigma, sigma_data)
        return sigma, {"network": jax.lax.map(error, sigma), "best linear": gaussian}

    return lines


def _fixed_noise(shape: tuple[int, ...]) -> Array:
    """Noise of the report's figures: the same for every run."""
    return net.noise(indexed_keys(jax.random.key(0), jnp.arange(shape[0])), shape[1:])
