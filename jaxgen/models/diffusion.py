"""Denoising diffusion: the latent is strongly noised data, undone in many steps.

One network F, told the noise level, is a denoiser D of x_t = alpha x_0 + sigma eps for
every pair (alpha, sigma): it sees x_t at unit variance and log(sigma / alpha). So every
noise schedule, training target, sampler and likelihood is a view of it, and a model
trained along one schedule can be sampled along another. Inside, x_0 is in [-1, 1] minus
its mean, and rows of a table are on the whole line; `params["sigma_data"]` is the
standard deviation there, of the data.

References:
    Ho et al. 2020, arXiv:2006.11239. Karras et al. 2022 (EDM), arXiv:2206.00364. Kingma
    et al. 2021 (bound), arXiv:2107.00630. Song et al. 2021 (ODE), arXiv:2011.13456.
    Geng et al. 2025 (MeanFlow), arXiv:2505.13447.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxgen import probability_flow, schedules
from jaxgen.losses import diffusion as losses
from jaxgen.losses import meanflow
from jaxgen.models import diffusion_answers as answers
from jaxgen.models import diffusion_denoiser as net
from jaxgen.models import diffusion_sampling as sampling
from jaxgen.models import given
from jaxgen.models.base import (
    Aux,
    Batch,
    Curve,
    LogLikelihood,
    Model,
    Player,
    example_keys,
    normal_prior,
)
from jaxgen.models.diffusion_config import (
    DiffusionConfig,
    Sampling,
    resolve,
)

__all__ = [
    "DiffusionConfig",
    "Sampling",
    "make_diffusion",
    "resolve",
]


LEAST_NOISE, MOST_NOISE = 0.002, 80.0  # sigma / alpha of EDM, for images in [-1, 1]


def make_diffusion(config: DiffusionConfig) -> Model:
    """Binds a resolved config to the contract of `jaxgen.models.base.Model`."""
    if config.shape is None:
        raise ValueError("diffusion: config.shape is None: call resolve(config, ...)")
    of_images = config.columns is None
    draw, warmth = normal_prior(net.inner_shape(config)), config.sampling.temperature
    objective = (
        _mean_flow_objective(config)
        if config.one_step
        else _denoising_objective(config)
    )

    def generate(params: Any, z: Array, keys: Array, condition: Any = None) -> Array:
        chain = sampling.sampled(config, params["denoiser"], z, keys, condition)
        return net.to_data(config, params["denoiser"], chain.x)

    def encode(params: Any, x: Array, keys: Array, condition: Any = None) -> Array:
        """The latent that the probability flow takes to x: no noise is drawn of images."""
        params = params["denoiser"]
        x0, _ = net.from_data(config, params, x, keys)
        schedule, times = sampling.path_to_noise(config)
        told = given.told(config, condition)
        return probability_flow.encode(
            net.denoiser(config, params, told, schedule=schedule),
            x0,
            schedule=schedule,
            times=times,
            sigma_data=params["sigma_data"],
        )

    views = (
        ("data noised, from sigma / alpha = 0.01 to 10", sampling.noising(config)),
        (
            "the estimate of x_0 along the chain, from noise to data",
            sampling.film(config),
        ),
    )

    def answer(params: Any, *arguments: Any, **options: Any) -> Array:
        return answers.answered(config, params["denoiser"], *arguments, **options)

    return Model(
        init=lambda key, batch: ({"denoiser": net.init(config, key, batch)}, ()),
        players=(Player("denoiser", objective, unit="weighted squared error"),),
        prior=lambda keys, params=None: warmth * draw(keys, params),
        generate=generate,
        encode=encode,
        log_likelihood=lambda params, x, keys, condition=None, *, num_samples: (
            _likelihood(config, params["denoiser"], x, keys, condition, num_samples)
        ),
        density="continuous" if of_images else "other",
        views=views[: 1 if config.num_planes else 2] if of_images else (),
        # A mean flow has no chain of estimates that could be led.
        answer=answer if of_images and not config.one_step else None,
        curves=() if config.num_planes else (_error_curve(config),),
    )


def _error_curve(config: DiffusionConfig) -> Curve:
    return Curve(
        "error of the estimate of x_0 by noise level, on test "
        + ("images" if config.columns is None else "rows"),
        "sigma / alpha",
        "RMS / sigma_data",
        sampling.error_by_level(config),
    )


class _Noised(NamedTuple):
    """What both objectives draw for a batch."""

    x0: Array
    eps: Array
    told: Array | None
    level: Array  # evenly spread over the batch, `[B]` in [0, 1)
    keys: Array  # for more


def _noised(config: DiffusionConfig, params: Any, batch: Batch, key: Array) -> _Noised:
    noise, drop, others = jax.vmap(lambda key: jax.random.split(key, 3), out_axes=1)(
        example_keys(key, batch)
    )
    x0, _ = net.from_data(config, params, batch["x"], others)
    index = batch.get("index", jnp.arange(len(x0), dtype=jnp.int32))
    # A key that no example has.
    level = losses.stratified_levels(jax.random.fold_in(key, 2**31 - 1), index)
    eps = net.noise(noise, x0.shape[1:])
    return _Noised(x0, eps, given.dropped(config, batch, drop), level, others)


def _denoising_objective(config: DiffusionConfig) -> Any:
    schedule = schedules.SCHEDULES[config.noise_schedule]()

    def objective(
        params: Any, extra: Any, batch: Batch, key: Array, progress: Array
    ) -> tuple[Array, Aux]:
        del extra, progress
        params = params["denoiser"]
        x0, eps, told, level, _ = _noised(config, params, batch, key)
        t = _training_times(config, schedule, level)
        x_t = losses.noised(x0, eps, schedule.alpha(t), schedule.sigma(t))
        estimate = net.denoiser(config, params, told, schedule=schedule)(x_t, t)
        loss = losses.denoising_loss(
            x0,
            estimate,
            schedule.log_snr(t),
            weighting=str(config.weighting),
            target=str(config.predicts),
            sigma_data=jax.lax.stop_gradient(params["sigma_data"]),
        )
        return loss * batch.get("weight", 1.0), Aux({})

    return objective


def _mean_flow_objective(config: DiffusionConfig) -> Any:
    def objective(
        params: Any, extra: Any, batch: Batch, key: Array, progress: Array
    ) -> tuple[Array, Aux]:
        del extra, progress
        params = params["denoiser"]
        x0, eps, told, level, keys = _noised(config, params, batch, key)
        other = losses.uniform_levels(keys)
        t, r = meanflow.mean_flow_times(level, other, config.equal_share)
        velocity = net.average_velocity(config, params, told)
        # The loss is nearly constant by its adaptive weight: the error is what falls.
        error = meanflow.mean_flow_error(velocity, x0, eps, t, r)
        loss = meanflow.adaptive(error) * batch.get("weight", 1.0)
        return loss, Aux({"velocity_error": error})

    return objective


def _training_times(
    config: DiffusionConfig, schedule: schedules.Schedule, u: Array
) -> Array:
    """The time of each example's noise, `[B]`, from levels in [0, 1)."""
    if config.noise_levels == "most":
        return jnp.ones_like(u)
    if config.noise_levels in ("log_normal", "log_uniform"):
        if config.noise_levels == "log_normal":
            mean, std = config.noise_mean, config.noise_std
            log_sigma = jnp.log(losses.log_normal_sigma(u, mean=mean, std=std))
        else:
            low, high = math.log(LEAST_NOISE), math.log(MOST_NOISE)
            log_sigma = low + (high - low) * u
        first = (
            0.0 if sampling.starts_above_zero(config.noise_schedule) else net.EARLIEST
        )
        return jnp.clip(schedule.inverse(-2 * log_sigma), first, 1)
    if config.noise_levels == "logit_normal":
        u = losses.logit_normal_time(u, mean=config.noise_mean, std=config.noise_std)
    return net.EARLIEST + (1 - net.EARLIEST) * u


def _likelihood(
    config: DiffusionConfig,
    params: Any,
    x: Array,
    keys: Array,
    condition: Any,
    num_samples: int,
) -> LogLikelihood:
    """By the bound or the ODE, along EDM's schedule, in the units of the data."""
    schedule = schedules.EDM(sigma_min=LEAST_NOISE, sigma_max=MOST_NOISE)
    told = given.told(config, condition)
    denoise = net.denoiser(config, params, told, schedule=schedule)
    x0, log_det = net.from_data(config, params, x, keys)
    if config.sampling.likelihood == "vlb":
        bound = losses.variational_bound(
            denoise,
            x0,
            keys,
            schedule=schedule,
            num_samples=num_samples,
            sigma_data=params["sigma_data"],
        )
        return LogLikelihood(
            nats=log_det - bound.total,
            kind="bound",
            standard_error=bound.standard_error,
        )
    flow = probability_flow.log_likelihood(
        denoise,
        x0,
        keys,
        schedule=schedule,
        times=schedules.uniform_times(config.sampling.ode_steps + 1, end=0.0)[::-1],
        num_probes=config.sampling.probes,
        sigma_data=params["sigma_data"],
    )
    return LogLikelihood(
        nats=log_det + flow.nats,
        kind="estimate",
        standard_error=flow.probe_error if config.sampling.probes > 1 else None,
        step_error=flow.step_error,
    )
