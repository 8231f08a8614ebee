"""Pictures of a VAE of images for its report."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxgen import losses
from jaxgen.models.vae_config import VAEConfig
from jaxgen.models.vae_networks import encode, mean


def views(config: VAEConfig) -> tuple[tuple[str, Callable[..., Array]], ...]:
    """Those of a model of this config, as `Model.views`."""
    if config.columns is not None:
        return ()
    shown = [
        (
            "reconstructions (data above, mean of p(x|z) at z = mu below)",
            _rebuilt(config),
        ),
        (
            "interpolations between the encodings of two images",
            _interpolated(config),
        ),
    ]
    if not config.autoencoder:  # its variables have no scale
        caption = "traversals of the most used latent variables, -3 to 3"
        shown.append((caption, _traversed(config)))
    return tuple(shown)


def _rebuilt(config: VAEConfig) -> Any:
    def view(params: Any, x: Array) -> Array:
        mu, _ = encode(config, params["vae"], x[:16])
        return jnp.stack([x[:16], mean(config, params["vae"], mu)])

    return view


def _interpolated(config: VAEConfig, rows: int = 6, columns: int = 12) -> Any:
    def view(params: Any, x: Array) -> Array:
        pairs = max(1, min(rows, x.shape[0] // 2))
        mu, _ = encode(config, params["vae"], x)
        t = jnp.linspace(0.0, 1.0, columns)[None, :, None]
        ends = jnp.arange(2 * pairs) % x.shape[0]  # a lone image goes to itself
        z = (1.0 - t) * mu[ends[0::2], None] + t * mu[ends[1::2], None]
        images = mean(config, params["vae"], z.reshape(pairs * columns, -1))
        return images.reshape(pairs, columns, *images.shape[1:])

    return view


def _traversed(config: VAEConfig, rows: int = 8, columns: int = 13) -> Any:
    def view(params: Any, x: Array) -> Array:
        mu, log_var = encode(config, params["vae"], x)
        used = jnp.mean(losses.vae.kl_standard_normal_per_dim(mu, log_var), axis=0)
        dims = jnp.argsort(-used)[:rows]
        values = jnp.linspace(-3.0, 3.0, columns)
        z = jnp.broadcast_to(mu[:1, None], (len(dims), columns, mu.shape[1]))
        z = jax.vmap(lambda row, dim: row.at[:, dim].set(values))(z, dims)
        images = mean(config, params["vae"], z.reshape(-1, mu.shape[1]))
        return images.reshape(len(dims), columns, *images.shape[1:])

    return view
