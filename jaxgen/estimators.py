"""Estimates with their errors: importance sampling of log p(x), bits/dim, masked means.

An estimate without its error and its effective sample size says nothing: importance
sampling with too few draws gives a bound far below log p(x) and looks the same.
"""

import math
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float, Int, Shaped

from jaxgen import _checks

__all__ = [
    "ImportanceEstimate",
    "ImportanceSums",
    "MeanAndError",
    "add",
    "bits_per_dim",
    "empty_sums",
    "finish",
    "importance_estimate",
    "masked_mean",
    "mean_and_standard_error",
]


class ImportanceEstimate(NamedTuple):
    """An importance sampling estimate of log p(x), each field `[B]`.

    Attributes:
        log_likelihood: log (1/K) sum_k w_k in nats; a lower bound in expectation.
        standard_error: Its Monte Carlo error in nats by the delta method, the standard
            error of the mean weight divided by the mean weight; inf for K = 1.
        ess: Effective sample size, (sum w)^2 / sum w^2, from 1 to K.
        max_weight: Share of the largest weight in the sum, from 1/K to 1. Near 1 the
            estimate rests on one draw, and its standard error is not to be believed.
    """

    log_likelihood: Float[Array, " B"]
    standard_error: Float[Array, " B"]
    ess: Float[Array, " B"]
    max_weight: Float[Array, " B"]


class ImportanceSums(NamedTuple):
    """What is carried from one chunk of importance weights to the next.

    Attributes:
        count: Number of weights so far, K, a scalar.
        max_log_weight: The largest log weight so far, `[B]`.
        sum_weights: Sum of exp(log w - max_log_weight), `[B]`.
        sum_squares: Sum of the squares of the same, `[B]`.
    """

    count: Int[Array, ""]
    max_log_weight: Float[Array, " B"]
    sum_weights: Float[Array, " B"]
    sum_squares: Float[Array, " B"]


class MeanAndError(NamedTuple):
    """A mean and its standard error, both scalars in the units of the values."""

    mean: Float[Array, ""]
    standard_error: Float[Array, ""]


def empty_sums(num_examples: int) -> ImportanceSums:
    """The sums over no weights at all for `num_examples` examples: begin with these.

    Raises:
        ValueError: if `num_examples` is not positive.
    """
    _checks.check_positive("empty_sums", num_examples=num_examples)
    zeros = jnp.zeros(num_examples)
    return ImportanceSums(
        count=jnp.zeros((), jnp.int32),
        max_log_weight=jnp.full(num_examples, -jnp.inf),
        sum_weights=zeros,
        sum_squares=zeros,
    )


def add(sums: ImportanceSums, log_weights: Float[ArrayLike, " K B"]) -> ImportanceSums:
    """The sums with one more chunk of weights; as it suits `jax.lax.scan`.

    Args:
        sums: What came before, of `empty_sums` or `add`.
        log_weights: log p(x, z_k) - log q(z_k|x), `[K, B]` nats; K may differ from one
            chunk to the next.

    Returns:
        `ImportanceSums`, the same for every division of the weights into chunks.

    Raises:
        ValueError: if `log_weights` is not `[K, B]` with the B of `sums`.
    """
    _checks.check_axes("add", "[K, B]", log_weights=log_weights)
    (log_weights,) = _checks.to_float(log_weights)
    if log_weights.shape[1:] != sums.sum_weights.shape:
        raise ValueError(
            f"add: log_weights must be [K, B] with B = {sums.sum_weights.shape[0]}, "
            f"got shape {log_weights.shape}; draws are the first axis, examples the "
            "second."
        )
    largest = jnp.maximum(sums.max_log_weight, jnp.max(log_weights, axis=0))
    # Where all weights are zero so far, -inf - (-inf) must not become NaN.
    shift = jnp.where(largest == -jnp.inf, 0, largest)
    weights = jnp.exp(log_weights - shift[None])
    rescale = jnp.exp(sums.max_log_weight - shift)
    return ImportanceSums(
        count=sums.count + log_weights.shape[0],
        max_log_weight=largest,
        sum_weights=sums.sum_weights * rescale + jnp.sum(weights, axis=0),
        sum_squares=sums.sum_squares * rescale**2 + jnp.sum(weights**2, axis=0),
    )


def finish(sums: ImportanceSums) -> ImportanceEstimate:
    """The estimate of log p(x) from the sums over all chunks.

    Args:
        sums: Of one or more calls of `add`.

    Returns:
        `ImportanceEstimate`, `[B]` each. If all weights of an example are zero, its
        log-likelihood is -inf, its error inf, and its other fields 0.

    References:
        Burda et al. 2015, equation 8, arXiv:1509.00519; Kong 1992 (ESS); the delta
        method for the error of a log.
    """
    count = sums.count.astype(sums.sum_weights.dtype)
    some = sums.sum_weights != 0
    total = jnp.where(some, sums.sum_weights, 1)
    squares = jnp.where(some, sums.sum_squares, 1)
    # With v the sample variance of w: v / K / mean(w)^2 = (K / ess - 1) / (K - 1).
    relative_variance = (count * squares / total**2 - 1) / jnp.maximum(count - 1, 1)
    known = some & (count > 1)
    error = jnp.sqrt(jnp.maximum(relative_variance, 0))
    log_total = jnp.where(some, sums.max_log_weight + jnp.log(total), -jnp.inf)
    return ImportanceEstimate(
        log_likelihood=log_total - jnp.log(count),
        standard_error=jnp.where(known, error, jnp.inf),
        ess=jnp.where(some, total**2 / squares, 0),
        max_weight=jnp.where(some, 1 / total, 0),
    )


def importance_estimate(log_weights: Float[ArrayLike, " K B"]) -> ImportanceEstimate:
    """Log p(x) by importance sampling, with its error and its effective sample size.

    For more draws than fit in memory use `empty_sums`, `add` and `finish`.

    Args:
        log_weights: log p(x, z_k) - log q(z_k|x), `[K, B]` nats, z_k drawn from q.

    Returns:
        `ImportanceEstimate`, `[B]` each: log p(x) and NOT its negative.

    Raises:
        ValueError: if `log_weights` is not `[K, B]`.

    References:
        Burda et al. 2015, equation 8, arXiv:1509.00519.
    """
    _checks.check_axes("importance_estimate", "[K, B]", log_weights=log_weights)
    return finish(add(empty_sums(jnp.shape(log_weights)[1]), log_weights))


def bits_per_dim(
    nll_nats: Float[ArrayLike, " *shape"],
    num_dims: int,
    *,
    kind: str,
    num_levels: int = 256,
) -> Float[Array, " *shape"]:
    """Negative log-likelihood in bits per dimension, comparable between both kinds.

    Args:
        nll_nats: -log p(x) in nats, summed over the dimensions; any shape.
        num_dims: Number of dimensions D = H * W * C.
        kind: What p is. "discrete": the probability of an image of levels, NLL / (D ln
            2). "continuous": a density of dequantised levels (k + u) / num_levels in
            [0, 1], NLL / (D ln 2) + log2(num_levels), as there are num_levels bins in
            the unit interval.
        num_levels: Number of levels of the data, 256 for 8 bits.

    Returns:
        Bits per dimension, the shape of `nll_nats`. A uniform model has
        log2(num_levels) = 8 under both kinds.

    Raises:
        ValueError: if `kind` is neither, or a number is not positive.

    References:
        Theis, van den Oord & Bethge 2016, section 3.1, arXiv:1511.01844.
    """
    _checks.check_in("bits_per_dim", "kind", kind, ("discrete", "continuous"))
    _checks.check_positive("bits_per_dim", num_dims=num_dims, num_levels=num_levels)
    (nll_nats,) = _checks.to_float(nll_nats)
    offset = math.log2(num_levels) if kind == "continuous" else 0.0
    return nll_nats / (num_dims * math.log(2)) + offset


def masked_mean(
    values: Float[ArrayLike, " B"], mask: Shaped[ArrayLike, " B"]
) -> Float[Array, ""]:
    """Mean over the examples that are not padding.

    Args:
        values: One per example, `[B]`. What stands at padding, even NaN, has no effect
            on the mean and its gradient there is zero.
        mask: 1 (or True) for an example, 0 for padding, `[B]`.

    Returns:
        Scalar in the units of `values`; 0 if all is padding.

    Raises:
        ValueError: if either is not `[B]` or the shapes differ.
    """
    values, real = _masked("masked_mean", values, mask)
    return jnp.sum(values) / jnp.maximum(jnp.sum(real), 1)


def mean_and_standard_error(
    values: Float[ArrayLike, " B"], mask: Shaped[ArrayLike, " B"] | None = None
) -> MeanAndError:
    """Mean over independent examples and its standard error, sqrt(variance / N).

    Args:
        values: One per example, `[B]`.
        mask: 1 (or True) for an example, 0 for padding, `[B]`; all count if None.

    Returns:
        `MeanAndError`, two scalars in the units of `values`; the variance is that with
        N - 1, and the error of fewer than two examples is inf.

    Raises:
        ValueError: if either is not `[B]` or the shapes differ.
    """
    if mask is None:
        mask = jnp.ones(jnp.shape(values), bool)
    values, real = _masked("mean_and_standard_error", values, mask)
    count = jnp.sum(real)
    mean = jnp.sum(values) / jnp.maximum(count, 1)
    squares = jnp.sum(jnp.where(real, jnp.square(values - mean), 0))
    variance = squares / jnp.maximum(count * (count - 1), 1)
    return MeanAndError(mean, jnp.where(count > 1, jnp.sqrt(variance), jnp.inf))


def _masked(function: str, values: ArrayLike, mask: ArrayLike) -> tuple[Array, Array]:
    """The values with zeros at padding, and the mask as booleans."""
    _checks.check_axes(function, "[B]", values=values, mask=mask)
    _checks.check_same_shape(function, values=values, mask=mask)
    (values,) = _checks.to_float(values)
    real = jnp.asarray(mask) > 0
    return jnp.where(real, values, 0), real
