"""One network as a denoiser at every noise level, and the space it works in.

Inside, x_0 is in [-1, 1] minus its mean; rows of a table come to the whole line, as images
of one pixel. The parameters of a model are `{"net", "mean",
"sigma_data"}`, the last two of the data and never trained.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxgen import columns, schedules
from jaxgen.losses import diffusion as losses
from jaxgen.models.base import Batch
from jaxgen.models.diffusion_config import DiffusionConfig
from jaxgen.nets import coders
from jaxgen.nets.rows import RowDenoiser
from jaxgen.nets.transformer import Transformer
from jaxgen.nets.unet import UNet

SPREAD = 2**31 - 1  # what an example's key is folded with for its rounded values
EARLIEST = 1e-3  # time of the least noise that training along t meets
# What the network is told of alpha = 0, EDM's most noise, and of sigma = 0.
LOG_SNRS = (-8.8, 20.0)

Denoise = Callable[[Array, Array], Array]


def denoiser(
    config: DiffusionConfig,
    params: Any,
    told: Array | None = None,
    *,
    schedule: schedules.Schedule,
    interval: Array | None = None,
) -> Denoise:
    """The network as an estimate of x_0, `(x_t [B, H, W, C], t [] or [B]) -> [B, H, W, C]`.

    Args:
        config: Resolved options.
        params: `{"net", "mean", "sigma_data"}`.
        told: As `jaxgen.models.given` has it; None is nothing for all.
        schedule: Whose times t are.
        interval: Of a MeanFlow network, `[B]`; None is the empty one.
    """
    sigma_data = jax.lax.stop_gradient(params["sigma_data"])

    def denoise(x: Array, t: Array) -> Array:
        t = jnp.broadcast_to(t, x.shape[:1])
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        scale = losses.edm_input_scale(alpha, sigma, sigma_data=sigma_data)
        log_snr = jnp.clip(schedule.log_snr(t), *LOG_SNRS)
        outputs = coders.applied(
            _network(config),
            params["net"],
            scale[:, None, None, None] * x,
            -log_snr / 8,
            None if config.num_planes else told,
            interval,
            *([told] if config.num_planes else []),  # of tables there are none
            compute=config.compute,
        )
        return losses.to_x0(
            outputs, x, alpha, sigma, target=str(config.predicts), sigma_data=sigma_data
        )

    return denoise


def average_velocity(
    config: DiffusionConfig, params: Any, told: Array | None = None
) -> Callable[[Array, Array, Array], Array]:
    """The network as u(x_t, t, r), `[B]` times 1 >= t >= r >= 0, along rectified flow.

    It is (x_t - D) / t with the interval t - r told to D: at t = r the velocity.
    """
    schedule = schedules.RectifiedFlow()

    def velocity(x: Array, t: Array, r: Array) -> Array:
        t, r = (jnp.broadcast_to(time, x.shape[:1]) for time in (t, r))
        denoise = denoiser(config, params, told, schedule=schedule, interval=t - r)
        t = jnp.maximum(t, EARLIEST)
        return (x - denoise(x, t)) / t[:, None, None, None]

    return velocity


def init(config: DiffusionConfig, key: Array, batch: Batch) -> Any:
    """Parameters; mean and standard deviation of the data are kept, never trained."""
    x, _ = from_data(config, {"mean": jnp.zeros(())}, batch["x"])
    mean = jnp.mean(x, axis=(0, 1, 2))
    told = jnp.zeros(1)
    variables = _network(config).init(key, x[:1], told)
    sigma_data = jnp.maximum(jnp.std(x - mean[None, None, None]), 1e-3)
    return {"net": variables["params"], "mean": mean, "sigma_data": sigma_data}


def inner_shape(config: DiffusionConfig) -> tuple[int, ...]:
    """Of x_0: height, width and channels."""
    return (1, 1, *(config.shape or ()))[-3:]


def from_data(
    config: DiffusionConfig, params: Any, x: Array, keys: Array | None = None
) -> tuple[Array, Array]:
    """From data to where x_0 has mean 0, and the log-determinant of the way, `[B]`.

    With a key for each example rounded values of rows are spread over their steps.
    """
    if config.columns is None:
        x0, volume = 2 * x - 1, math.prod(x.shape[1:]) * math.log(2.0)
        log_det = jnp.full(x.shape[0], volume)
    else:
        if keys is not None:
            own = jax.vmap(jax.random.fold_in, (0, None))(keys, SPREAD)
            x = columns.spread(config.columns, x, own)
        x0, log_det = columns.to_line(config.columns).to_latent((), x)
        x0 = x0[:, None, None]
    mean = jax.lax.stop_gradient(params["mean"])
    return x0 - jnp.broadcast_to(mean, x0.shape), log_det


def to_data(config: DiffusionConfig, params: Any, x0: Array) -> Array:
    """The inverse of `from_data`; what lies outside the range of a pixel is cut off."""
    x0 = x0 + jnp.broadcast_to(params["mean"], x0.shape)
    if config.columns is None:
        return jnp.clip((x0 + 1) / 2, 0.0, 1.0)
    rows, _ = columns.to_line(config.columns).to_data((), x0[:, 0, 0])
    return columns.rounded(config.columns, rows)


def latent_scale(params: Any, schedule: schedules.Schedule) -> Array:
    """Standard deviation of x_t at t = 1, where the latent is N(0, I) times it."""
    one = jnp.ones(())
    return jnp.hypot(schedule.alpha(one) * params["sigma_data"], schedule.sigma(one))


def noise(keys: Array, shape: tuple[int, ...]) -> Array:
    """Standard normal noise of `shape` for every key, `[B, *shape]`."""
    return jax.vmap(lambda key: jax.random.normal(key, shape))(keys)


def _network(config: DiffusionConfig) -> Any:
    told = {"num_classes": config.num_classes or 0, "has_interval": config.one_step}
    shared = {**told, "remat": config.remat, "jvp": config.one_step}
    if config.num_planes:
        shared["num_planes"] = config.num_planes + 1  # one says whether they are told
    if config.net == "transformer":
        return Transformer(
            width=config.width,
            depth=config.depth,
            patch=int(config.patch or 1),
            **shared,
        )
    if config.net == "mlp":
        return RowDenoiser(width=config.width, num_blocks=config.blocks, **shared)
    return UNet(
        widths=config.widths or (),
        num_blocks=config.blocks,
        patch=int(config.patch or 1),
        attention_side=config.attention_side,
        **shared,
    )
