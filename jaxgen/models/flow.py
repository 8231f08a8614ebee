"""Normalizing flows: an invertible chain between data and N(0, I), trained exactly.

With z = f(x) the density of x is N(f(x); 0, I) |det df/dx|: the loss is its negative
logarithm, and samples are the chain run backwards. Images come dequantised in [0, 1];
rows of a table in their own units, with the context columns among them.

References:
    Rezende & Mohamed 2015, arXiv:1505.05770. Kingma & Dhariwal 2018 (Glow),
    arXiv:1807.03039. Durkan et al. 2019 (splines), arXiv:1906.04032. Zhai et al. 2024
    (TarFlow), arXiv:2412.06329. Kolesnikov et al. 2024 (Jet), arXiv:2412.15129.
"""

from typing import Any

import jax
from jax import Array

from jaxgen.models import flow_images, flow_tables
from jaxgen.models.base import Model
from jaxgen.models.flow_config import FlowConfig, Sampling, resolve

__all__ = [
    "FlowConfig",
    "Sampling",
    "bound",
    "make_flow",
    "resolve",
    "sample_and_log_prob",
]


def make_flow(config: FlowConfig) -> Model:
    """Binds a resolved config to the contract of `jaxgen.models.base.Model`."""
    if config.shape is None:
        raise ValueError("flow: config.shape is None: call resolve(config, ...)")
    of_data = flow_images.of_images if config.columns is None else flow_tables.of_rows
    model = of_data(config)
    warmth = config.sampling.temperature
    return model._replace(
        prior=lambda keys, params=None: warmth * model.prior(keys, params)
    )


def bound(
    config: FlowConfig, params: Any, x: Array, keys: Array, condition: Any = None
) -> tuple[Array, Any, Any]:
    """The chain as two functions, bound to what some data are told.

    Args:
        config: Resolved options.
        params: Of the model.
        x: Data `[B, *shape]`, as a batch has them.
        keys: `[B]`, of what noise is added to data.
        condition: Labels `[B]`, or values of the context columns `[B, K]`; by default
            none, or those in the rows.

    Returns:
        The values that are modelled, `[B, ...]`, with their noise; and `to_latent` and
        `to_data` of a `Bijector`, of such values and of latents alone.
    """
    of_data = flow_images if config.columns is None else flow_tables
    return of_data.bound(config, params, x, keys, condition)


def sample_and_log_prob(
    config: FlowConfig, params: Any, keys: Array, condition: Any = None
) -> tuple[Array, Array]:
    """Samples and their density in one pass, one for each key.

    Args:
        config: Resolved options.
        params: Of the model.
        keys: `[B]`.
        condition: Labels `[B]`, or values of the context columns `[B, K]`; by default
            each sample draws its own.

    Returns:
        Samples `[B, *shape]` and log p(x given condition) `[B]`, in nats, of images in
        [0, 1] or rows in the units of the table; not rounded, and not denoised.
    """
    z_keys, keys = jax.vmap(jax.random.split, out_axes=1)(keys)
    z = make_flow(config).prior(z_keys)
    drawn = flow_images.drawn if config.columns is None else flow_tables.drawn
    x, log_prob, _ = drawn(config, params, z, keys, condition)
    return x, log_prob
