"""The linear-Gaussian model x = W z + b + sigma eps, with orthogonal columns of W.

So the posterior is a diagonal Gaussian and log p(x) has a closed form.
"""

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

W = np.linalg.qr(np.random.default_rng(5).normal(size=(4, 2)))[0] * [2.0, 0.5]
BIAS = np.array([0.1, -0.3, 0.7, 0.2])
SIGMA = 0.6
PRECISION = 1 + np.sum(W**2, axis=0) / SIGMA**2  # of the posterior, for every x


def exact_log_prob(x: np.ndarray) -> np.ndarray:
    """Log p(x) in nats, `[..., 4] -> [...]`."""
    covariance = W @ W.T + SIGMA**2 * np.eye(4)
    centred = x - BIAS
    squares = np.sum(centred @ np.linalg.inv(covariance) * centred, -1)
    return -0.5 * (squares + np.linalg.slogdet(2 * np.pi * covariance)[1])


def posterior_mean(x: np.ndarray) -> np.ndarray:
    """E[z|x], `[..., 4] -> [..., 2]`."""
    return (x - BIAS) @ W / SIGMA**2 / PRECISION


def log_likelihood(z: Array, x: ArrayLike, bias: ArrayLike = BIAS) -> Array:
    """Log p(x|z), z `[..., 2]` and x `[..., 4]` -> `[...]`."""
    # Of this type: JAX remembers as what type it has seen an array of NumPy.
    x, bias, w = (jnp.asarray(a, z.dtype) for a in (x, bias, W))
    centred = x - jnp.broadcast_to(bias, x.shape)
    residual = jnp.broadcast_to(centred, (*z.shape[:-1], 4)) - z @ w.T
    squares = jnp.sum(jnp.square(residual), -1)
    return -0.5 * squares / SIGMA**2 - 2 * np.log(2 * np.pi) - 4 * np.log(SIGMA)
