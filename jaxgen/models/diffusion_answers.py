"""Answers of a trained denoiser to an image of which a part is seen; nothing is retrained."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxgen import operators, samplers
from jaxgen._checks import UserError
from jaxgen.models import diffusion_denoiser as net
from jaxgen.models import diffusion_sampling as sampling
from jaxgen.models.diffusion_config import DiffusionConfig
from jaxgen.samplers import conditional

NUM_STEPS = 64  # of `samplers.ddpm`, unless others are asked for


def answered(
    config: DiffusionConfig,
    params: Any,
    z: Array,
    keys: Array,
    operator: operators.Operator,
    y: Array,
    *,
    method: conditional.Method,
    resamples: int = conditional.RESAMPLES,
    step_size: float = conditional.STEP_SIZE,
) -> Array:
    """Samples of x given y = A x, by a method of `jaxgen.samplers.conditional`.

    Args:
        config: Resolved options, whose `sampling` says which sampler the first two methods
            lead (auto: ddpm), how many steps it takes and along which path.
        params: Of the denoiser.
        z: The latent, `[B, H, W, C]` of N(0, I).
        keys: One per example, `[B]`.
        operator: A.
        y: What is seen, in the space of the data, `[B, h, w, c]`.
        method: How the denoiser is told of y.
        resamples: Of "repaint".
        step_size: Of "dps".

    Returns:
        `[B, H, W, C]` in [0, 1], of which y is seen: what the method leaves of a difference
        is projected away.

    Raises:
        UserError: if a sampler was chosen for a method that has its own.
    """
    chosen, by_denoiser = config.sampling, method in ("moments", "pseudo_inverse")
    if not by_denoiser and chosen.sampler not in ("auto", "ddpm"):
        raise UserError(
            f"--sampler {chosen.sampler} is for --method moments and pseudo_inverse: {method} "
            "has its own steps, those of ddpm"
        )
    if chosen.sampler == "auto":
        steps = {"sampler": "ddpm", "num_steps": chosen.num_steps or NUM_STEPS}
        config = dataclasses.replace(
            config, sampling=dataclasses.replace(chosen, **steps)
        )
    schedule, times = sampling.path(config)
    label = None if chosen.label is None else jnp.full(keys.shape, chosen.label)
    denoise = sampling.guided(config, params, label, schedule)
    x = z * net.latent_scale(params, schedule)
    seen = net.from_data(config, params, operator.pseudo_inverse(y))[0]
    given: Any = {"operator": operator, "y": operator.apply(seen)}
    grid: Any = {"schedule": schedule, "times": times}
    if method == "moments":
        told = samplers.moment_guided(denoise, **given, schedule=schedule)
        chain = sampling.by_sampler(config, told, x, keys, **grid)
    elif method == "pseudo_inverse":
        scale = jax.lax.stop_gradient(params["sigma_data"])
        told = samplers.pseudo_inverse_guided(
            denoise, **given, schedule=schedule, scale=scale
        )
        chain = sampling.by_sampler(config, told, x, keys, **grid)
    elif method == "dps":
        chain = samplers.dps(denoise, x, keys, **given, **grid, step_size=step_size)
    else:
        number = resamples if method == "repaint" else 1
        chain = samplers.repaint(denoise, x, keys, **given, **grid, resamples=number)
    x = net.to_data(config, params, chain.x)
    return operators.consistent_within(operator, x, y)
