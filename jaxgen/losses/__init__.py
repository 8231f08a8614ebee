"""Losses of the families: pure functions from arrays to `[B]` nats.

One module per family; each teaches its own. Nothing here knows a network, a parameter
tree or a file, so any JAX code can use them:

    from jaxgen.losses import vae

    loss = vae.negative_elbo(log_likelihood, vae.kl_standard_normal(mu, log_var)).mean()
"""

from jaxgen.losses import (
    balance,
    diffusion,
    flow,
    gan,
    masked,
    meanflow,
    penalties,
    vae,
)

__all__ = [
    "balance",
    "diffusion",
    "flow",
    "gan",
    "masked",
    "meanflow",
    "penalties",
    "vae",
]
