"""Balance of likelihood and KL in a Gaussian VAE, by state that is carried along.

A Gaussian decoder of variance sigma^2 weighs the squared error by 1 / (2 sigma^2) against
the KL. Two policies follow the error that is reached, without a gradient:

- computed sigma: sigma^2 is the running mean squared error;
- GECO: the KL is minimised subject to a mean squared error of at most tolerance^2, and
  the weight of the error is the multiplier of that constraint.

Both need a mean over the whole batch, which may lie in parts on several devices, some of
its examples being padding. So an `Error` keeps two sums, of which a mean over parts keeps
the ratio; and it is moved by the batch before, which all devices know alike:

    error = balance.moved(error)                       # the same on every device
    log_prob = likelihoods.gaussian_log_prob(x, mu, 0.5 * jnp.log(error.mse))
    error = balance.observed(error, x, mu, mask)       # average over parts and devices
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float, Real, Shaped

from jaxgen import _checks

__all__ = [
    "Error",
    "first_error",
    "geco",
    "geco_multiplier",
    "moved",
    "observed",
    "squared_error",
]

Examples = Float[ArrayLike, " B *event"]
PerExample = Float[ArrayLike, " B"]
Nats = Float[Array, " B"]
Scalar = Float[Array, ""]

LEAST = 1e-12  # of a mean squared error, so that its logarithm stays finite
MULTIPLIERS = (1e-4, 1e10)  # nats per squared error


class Error(NamedTuple):
    """A mean squared error, as it is carried from batch to batch.

    Attributes:
        mse: The running mean, per number of an example.
        total: Of the last batch, or a part of it: the squared errors per number, summed
            over its examples.
        count: Its examples.
    """

    mse: Scalar
    total: Scalar
    count: Scalar

    @property
    def last(self) -> Scalar:
        """The mean of the last batch; the running one before there was any."""
        mean = self.total / jnp.maximum(self.count, LEAST)
        return jnp.where(self.count > 0, mean, self.mse)


def first_error(sigma: float) -> Error:
    """Where nothing has been seen: the error is `sigma` squared.

    Raises:
        ValueError: if sigma is not positive.
    """
    _checks.check_positive("first_error", sigma=sigma)
    return Error(jnp.float32(sigma**2), jnp.float32(0.0), jnp.float32(0.0))


def squared_error(x: Examples, mu: Examples) -> Nats:
    """|x - mu|^2, `[B]`, summed over every axis but the first.

    Raises:
        ValueError: if the shapes differ or there is no batch axis.
    """
    x, mu = _checks.example_floats("squared_error", x=x, mu=mu)
    return _checks.sum_per_example(jnp.square(x - mu))


def observed(
    error: Error,
    x: Examples,
    mu: Examples,
    mask: Shaped[ArrayLike, " B"] | None = None,
) -> Error:
    """The sums of this batch, or part of it, in place of the last one's.

    Nothing is differentiated. Average the fields over the parts of a batch, each part
    alike however many of its examples are padding: their ratio is then the batch's.

    Args:
        error: As it is carried.
        x: Data, `[B, ...]`.
        mu: Reconstruction, same shape.
        mask: 1 for an example and 0 for padding, `[B]`; all count if None.

    Raises:
        ValueError: if the shapes differ or there is no batch axis.
    """
    squares = jax.lax.stop_gradient(squared_error(x, mu)) / math.prod(jnp.shape(x)[1:])
    real = jnp.ones(squares.shape, bool) if mask is None else jnp.asarray(mask) > 0
    total = jnp.sum(jnp.where(real, squares, 0.0))
    return error._replace(
        total=total.astype(jnp.float32), count=jnp.sum(real).astype(jnp.float32)
    )


def moved(error: Error, *, memory: float = 0.99) -> Error:
    """The running mean after the batch that was last seen.

    Asperti's computed gamma is sqrt(mse), and lets the mean only fall; but a mean that
    follows every low batch and no high one goes to the least batch's error, and not to
    their mean. So here it may rise too.

    Args:
        error: As it is carried, its sums averaged over parts and devices.
        memory: The share of the mean that stays, in [0, 1).

    Raises:
        ValueError: if `memory` is outside [0, 1).

    References:
        Asperti & Trentin 2020, "Balancing reconstruction error and Kullback-Leibler
        divergence in Variational Autoencoders", arXiv:2002.07514.
    """
    if not 0 <= memory < 1:
        raise ValueError(f"moved: memory must be in [0, 1), got {memory}.")
    mse = error.mse + (1 - memory) * (error.last - error.mse)
    return error._replace(mse=jnp.maximum(mse, LEAST))


def geco(
    squared_error: PerExample,
    kl: PerExample,
    *,
    multiplier: Real[ArrayLike, ""],
    tolerance: float,
    num_values: int,
) -> Nats:
    """The Lagrangian KL + multiplier (|x - mu|^2 - num_values tolerance^2).

    Args:
        squared_error: |x - mu|^2 summed over the numbers of an example, `[B]`.
        kl: KL(q(z|x) || p(z)), `[B]` nats.
        multiplier: Of the constraint, nats per squared error; 1 / (2 sigma^2) makes it
            the negative ELBO of a Gaussian but for a constant.
        tolerance: The root mean squared error per number that is allowed.
        num_values: Numbers of an example.

    Returns:
        `[B]` nats, to be minimised by both networks.

    Raises:
        ValueError: if the arrays are not `[B]`, or tolerance or number not positive.

    References:
        Rezende & Viola 2018, "Taming VAEs", arXiv:1810.00597.
    """
    _checks.check_axes("geco", "[B]", squared_error=squared_error, kl=kl)
    _checks.check_same_shape("geco", squared_error=squared_error, kl=kl)
    _checks.check_positive("geco", tolerance=tolerance, num_values=num_values)
    squared_error, kl = _checks.to_float(squared_error, kl)
    excess = squared_error - num_values * tolerance**2
    return kl + jax.lax.stop_gradient(multiplier) * excess


def geco_multiplier(
    multiplier: Real[ArrayLike, ""],
    mse: Real[ArrayLike, ""],
    *,
    tolerance: float,
    rate: float = 0.01,
) -> Scalar:
    """The multiplier after a batch of this mean squared error.

    It is multiplied by exp(rate c), c = mse / tolerance^2 - 1 cut off at 1: it rises while
    the constraint is broken and falls while there is room. The product over batches is
    the average of the constraint that Rezende & Viola take.

    Args:
        multiplier: Before.
        mse: Mean squared error per number, over the whole batch.
        tolerance: The root mean squared error that is allowed.
        rate: Of its growth, per batch.

    Returns:
        Scalar, kept within `MULTIPLIERS`.

    Raises:
        ValueError: if tolerance or rate is not positive.

    References:
        Rezende & Viola 2018, algorithm 1, arXiv:1810.00597.
    """
    _checks.check_positive("geco_multiplier", tolerance=tolerance, rate=rate)
    multiplier, mse = _checks.to_float(multiplier, mse)
    constraint = jnp.minimum(mse / tolerance**2 - 1, 1.0)
    return jnp.clip(multiplier * jnp.exp(rate * constraint), *MULTIPLIERS)
