"""Flows of images in [0, 1]: with classes, and with noise that is taken away again."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.special import logsumexp

from jaxgen.losses import flow as losses
from jaxgen.models import flow_bijectors, given
from jaxgen.models.base import (
    Aux,
    Batch,
    LogLikelihood,
    Model,
    Player,
    example_keys,
    normal_prior,
)
from jaxgen.models.flow_config import FlowConfig

INIT_IMAGES = 256  # from whose moments actnorm starts


def of_images(config: FlowConfig) -> Model:
    """The model of images `[B, H, W, C]`."""
    flow = flow_bijectors.image_flow(config)

    def log_prob(params: Any, x: Array, label: Any) -> Array:
        z, log_det = flow.to_latent(params, x, label)
        return -losses.negative_log_likelihood(z, log_det)

    def init(key: Array, batch: Batch) -> Any:
        x = batch["x"][:INIT_IMAGES]
        return {"flow": flow.init(key, x, None)}

    def objective(
        params: Any, extra: Any, batch: Batch, key: Array, progress: Array
    ) -> tuple[Array, Aux]:
        del extra, progress
        noise, drop = jax.vmap(jax.random.split, out_axes=1)(example_keys(key, batch))
        x = _noised(config, batch["x"], noise)
        return -log_prob(params["flow"], x, given.dropped(config, batch, drop)), Aux({})

    def generate(params: Any, z: Array, keys: Array, condition: Any = None) -> Array:
        x, _, told = drawn(config, params, z, keys, condition)
        if config.noise:
            x = losses.denoised(
                lambda y: log_prob(params["flow"], y, told), x, sigma=config.noise / 2
            )
        return jnp.clip(x, 0.0, 1.0)

    def encode(params: Any, x: Array, keys: Array, condition: Any = None) -> Array:
        del keys
        return flow.to_latent(params["flow"], x, given.told(config, condition))[0]

    def log_likelihood(
        params: Any, x: Array, keys: Array, condition: Any = None, *, num_samples: int
    ) -> LogLikelihood:
        """Over all classes, each as likely as another, where one could be given."""
        del num_samples
        x = _noised(config, x, keys)
        if condition is not None or not config.num_classes:
            nats = log_prob(params["flow"], x, given.told(config, condition))
            return LogLikelihood(nats=nats, kind="exact")
        by_class = jax.lax.map(  # one class after the other, for memory's sake
            lambda label: log_prob(params["flow"], x, jnp.full(len(x), label)),
            jnp.arange(config.num_classes),
        )
        return LogLikelihood(
            nats=logsumexp(by_class, axis=0) - math.log(config.num_classes),
            kind="exact",
            class_log_prob=losses.class_log_posterior(by_class).T,
        )

    return Model(
        init=lambda key, batch: (init(key, batch), ()),
        players=(Player("flow", objective),),
        prior=normal_prior(config.shape or ()),
        generate=generate,
        encode=encode,
        log_likelihood=log_likelihood,
        density="other" if config.noise else "continuous",
        views=(
            ("data, their latents, and back", _there_and_back(flow)),
            ("between two images, along an arc of the latent", _interpolated(flow)),
        ),
    )


def bound(
    config: FlowConfig, params: Any, x: Array, keys: Array, condition: Any
) -> tuple[Array, Any, Any]:
    """Images as the chain takes them, and its two ways at their classes."""
    chain = flow_bijectors.image_flow(config)
    return (
        _noised(config, x, keys),
        lambda x: chain.to_latent(params["flow"], x, condition),
        lambda z: chain.to_data(params["flow"], z, condition),
    )


def drawn(
    config: FlowConfig, params: Any, z: Array, keys: Array, condition: Any
) -> tuple[Array, Array, Array | None]:
    """Images at latents z, their log density `[B]` in nats, and what they were told."""
    told = given.chosen(config, condition, keys)
    flow = flow_bijectors.image_flow(config)
    x, log_det = flow.to_data(params["flow"], z, told)
    return x, -losses.standard_normal_nll(z) - log_det, told


def _noised(config: FlowConfig, x: Array, keys: Array) -> Array:
    if not config.noise:
        return x
    shape = x.shape[1:]
    noise = jax.vmap(lambda key: jax.random.normal(key, shape))(keys)
    return x + config.noise / 2 * noise


def _there_and_back(flow: Any) -> Any:
    def view(params: Any, x: Array) -> Array:
        z, _ = flow.to_latent(params["flow"], x[:16])
        back, _ = flow.to_data(params["flow"], z)
        return jnp.stack([x[:16], 0.5 + z / 6, back])

    return view


def _interpolated(flow: Any, rows: int = 5, columns: int = 12) -> Any:
    """Along an arc, on which a latent is as long as those of data."""

    def view(params: Any, x: Array) -> Array:
        pairs = max(1, min(rows, len(x) // 2))
        ends = jnp.arange(2 * pairs) % len(x)  # a lone image goes to itself
        z, _ = flow.to_latent(params["flow"], x[ends])
        angle = jnp.linspace(0.0, jnp.pi / 2, columns)
        angle = angle.reshape(1, -1, *(1 for _ in x.shape[1:]))
        between = jnp.cos(angle) * z[0::2, None] + jnp.sin(angle) * z[1::2, None]
        images, _ = flow.to_data(params["flow"], between.reshape(-1, *x.shape[1:]))
        return images.reshape(pairs, columns, *x.shape[1:])

    return view
