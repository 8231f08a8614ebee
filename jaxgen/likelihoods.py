"""Likelihoods p(x|z) of images in [0, 1]: log probability, mean and samples.

Bernoulli for binary images (x is 0 or 1), Gaussian for real ones, a discretised mixture
of logistics for 8-bit ones (x is k/255). Log probabilities have all their constants and
are in nats, summed over every axis but the first: `[B]`. `Likelihood` is one record for
all three, for models which pick by name; the functions can be used alone.
"""

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float, PRNGKeyArray, Shaped

from jaxgen import _checks

__all__ = [
    "LIKELIHOODS",
    "Likelihood",
    "LogisticMixture",
    "bernoulli",
    "bernoulli_log_prob",
    "bernoulli_mean",
    "bernoulli_sample",
    "gaussian",
    "gaussian_log_prob",
    "gaussian_outputs",
    "gaussian_sample",
    "logistic_mixture",
    "logistic_mixture_log_prob",
    "logistic_mixture_mean",
    "logistic_mixture_sample",
    "optimal_log_sigma",
    "soft_lower_bound",
    "split_logistic_mixture",
]

# The arguments of one call have one shape: that is checked, never broadcast.
Examples = Float[ArrayLike, " B *event"]
Nats = Float[Array, " B"]

MAX_LEVEL = 255
LOG_SIGMA_BOUNDS = (-6.0, 4.0)
LOG_SCALE_BOUNDS = (-8.0, 4.0)


class Likelihood(NamedTuple):
    """One likelihood as functions of a decoder's outputs `[B, ..., C * num_outputs]`.

    The outputs of one channel lie together: `outputs.reshape(*x.shape, num_outputs)`.

    Attributes:
        num_outputs: Decoder outputs per data channel.
        log_prob: `(x [B, ..., C], outputs) -> [B]` nats.
        mean: `outputs -> [B, ..., C]`, the expected x.
        sample: `(key, outputs) -> [B, ..., C]`.
        density: What `log_prob` is a density of: "discrete" or "continuous" data.
    """

    num_outputs: int
    log_prob: Callable[[Array, Array], Array]
    mean: Callable[[Array], Array]
    sample: Callable[[Array, Array], Array]
    density: Literal["discrete", "continuous"]


class LogisticMixture(NamedTuple):
    """M logistic distributions per entry of x, each field `[B, ..., C, M]`.

    Attributes:
        logit_weights: Unnormalised log weights of the components.
        means: Their means, in the units of x: 0 is black, 1 is white.
        log_scales: Log of their scales in the same units; kept softly in
            `LOG_SCALE_BOUNDS` = [-8, 4] where used, and taken exactly inside [-7, 3].
    """

    logit_weights: Array
    means: Array
    log_scales: Array


def soft_lower_bound(
    x: Float[ArrayLike, " *shape"], minimum: float
) -> Float[Array, " *shape"]:
    """Returns x above `minimum + 1`; below, `minimum + exp(x - minimum - 1)`.

    Its gradient is continuous and positive, so that a network can come back; and unlike
    a softplus it does not shift the values that need no bound. Any shape.
    """
    (x,) = _checks.to_float(x)
    knee = minimum + 1
    return jnp.where(x > knee, x, minimum + jnp.exp(jnp.minimum(x - knee, 0)))


def bernoulli_log_prob(x: Examples, logits: Examples) -> Nats:
    """Log probability of a binary image; finite for logits of any size.

    Args:
        x: 0 or 1, `[B, ...]`. For grey x the result is the mean log probability of
            images b ~ Bernoulli(x): fair to train on, but no density of x to report.
        logits: log p - log(1 - p) of a white pixel, same shape.

    Returns:
        `[B]` nats, summed over every axis but the first; 0 or less.

    Raises:
        ValueError: if the shapes differ or there is no batch axis.

    References:
        Kingma & Welling 2013, appendix C.1, arXiv:1312.6114.
    """
    x, logits = _checks.example_floats("bernoulli_log_prob", x=x, logits=logits)
    # A last axis of one channel is not vectorised by XLA:CPU: flat is 8 times faster.
    x, logits = (a.reshape(a.shape[0], -1) for a in (x, logits))
    softplus = jnp.maximum(logits, 0) + jnp.log1p(jnp.exp(-jnp.abs(logits)))
    return _checks.sum_per_example(x * logits - softplus)


def bernoulli_mean(logits: Float[ArrayLike, " *shape"]) -> Float[Array, " *shape"]:
    """Probability of white, sigmoid(logits), in [0, 1]; the shape of `logits`."""
    (logits,) = _checks.to_float(logits)
    return jax.nn.sigmoid(logits)


def bernoulli_sample(
    key: PRNGKeyArray, logits: Float[ArrayLike, " *shape"]
) -> Float[Array, " *shape"]:
    """A binary image: 0.0 or 1.0 per entry of `logits`, drawn with `key`."""
    probability = bernoulli_mean(logits)
    return jax.random.bernoulli(key, probability).astype(probability.dtype)


def gaussian_log_prob(
    x: Examples, mu: Examples, log_sigma: Float[ArrayLike, "..."]
) -> Nats:
    """Log density log N(x; mu, sigma^2), constants included.

    Bound a network's log_sigma with `soft_lower_bound`, for the density has no maximum.

    Args:
        x: Where the density is taken, `[B, ...]`.
        mu: Mean, same shape.
        log_sigma: Log standard deviation: a scalar for all entries, or the shape of x.

    Returns:
        `[B]` nats, summed over every axis but the first; positive where dense.

    Raises:
        ValueError: if the shapes differ or there is no batch axis.
    """
    x, mu = _checks.example_floats("gaussian_log_prob", x=x, mu=mu)
    log_sigma = _like("gaussian_log_prob", log_sigma, x=x)
    standardised = (x - mu) * jnp.exp(-log_sigma)
    log_density = -0.5 * (jnp.square(standardised) + math.log(2 * math.pi)) - log_sigma
    return _checks.sum_per_example(log_density)


def gaussian_sample(
    key: PRNGKeyArray,
    mu: Float[ArrayLike, " *shape"],
    log_sigma: Float[ArrayLike, "..."],
) -> Float[Array, " *shape"]:
    """A draw of N(mu, sigma^2), the shape of `mu`; it is not clipped to [0, 1].

    `log_sigma` is a scalar or has the shape of `mu`; ValueError otherwise.
    """
    (mu,) = _checks.to_float(mu)
    log_sigma = _like("gaussian_sample", log_sigma, mu=mu)
    return mu + jnp.exp(log_sigma) * jax.random.normal(key, mu.shape, mu.dtype)


def optimal_log_sigma(
    x: Examples, mu: Examples, mask: Shaped[ArrayLike, " B"] | None = None
) -> Float[Array, ""]:
    """The log_sigma that maximises the Gaussian likelihood: log of the batch's RMSE.

    A statistic of the whole batch: under `jax.pmap` each device would have its own.

    Args:
        x: Data, `[B, ...]`.
        mu: Reconstruction, same shape.
        mask: 1 for an example and 0 for padding, `[B]`; all count if None.

    Returns:
        Scalar, softly kept above -6 (0.6 of a level k/255); exact above -5.

    Raises:
        ValueError: if the shapes differ or `mask` is not `[B]`.

    References:
        Rybkin, Daniilidis & Levine 2021, the sigma-VAE, arXiv:2006.13202.
    """
    x, mu = _checks.example_floats("optimal_log_sigma", x=x, mu=mu)
    real = jnp.ones(x.shape[0], bool) if mask is None else jnp.asarray(mask) > 0
    if real.shape != x.shape[:1]:
        raise ValueError(
            f"optimal_log_sigma: mask must be [B] = {x.shape[:1]}, got shape "
            f"{real.shape}; give one number per example."
        )
    real = jnp.expand_dims(real, tuple(range(1, x.ndim)))
    count = jnp.maximum(jnp.sum(real), 1) * math.prod(x.shape[1:])
    # The floor is far below the bound; it keeps the gradient finite at x == mu.
    mse = jnp.maximum(jnp.sum(jnp.square(jnp.where(real, x - mu, 0))) / count, 1e-12)
    return soft_lower_bound(0.5 * jnp.log(mse), LOG_SIGMA_BOUNDS[0])


def split_logistic_mixture(
    outputs: Examples, *, num_components: int
) -> LogisticMixture:
    """A network's output as the parameters of a logistic mixture.

    The means are 0.5 + output / 2, the log scales output - log 2: 0 is broad mid-grey.

    Args:
        outputs: `[B, ..., C * 3 * M]`: for each channel M weights, M means, M scales.
        num_components: M.

    Returns:
        `LogisticMixture` with fields `[B, ..., C, M]`.

    Raises:
        ValueError: if the last axis is not a multiple of 3 M.
    """
    _checks.check_positive("split_logistic_mixture", num_components=num_components)
    grouped = _by_channel("split_logistic_mixture", outputs, 3 * num_components)
    logit_weights, means, log_scales = jnp.split(grouped, 3, axis=-1)
    return LogisticMixture(logit_weights, 0.5 + 0.5 * means, log_scales - math.log(2.0))


def logistic_mixture_log_prob(x: Examples, mixture: LogisticMixture) -> Nats:
    """Log probability of an 8-bit image under a discretised logistic mixture.

    Level k is the bin [k - 1/2, k + 1/2] / 255; those of black and white reach to -inf
    and +inf, so the 256 probabilities sum to one. Given z, channels are independent (no
    autoregression as in PixelCNN++). Finite for parameters up to 1e6.

    Args:
        x: k/255 for k = 0..255, `[B, ..., C]`; rounded to the nearest level.
        mixture: Parameters, `[B, ..., C, M]` each.

    Returns:
        `[B]` nats, summed over every axis but the first; 0 or less.

    Raises:
        ValueError: if the shapes do not fit or there is no batch axis.

    References:
        Salimans et al. 2017, section 2.1, arXiv:1701.05517.
    """
    (x,) = _checks.example_floats("logistic_mixture_log_prob", x=x)
    mixture = _bounded("logistic_mixture_log_prob", mixture)
    if mixture.means.shape[:-1] != x.shape:
        raise ValueError(
            "logistic_mixture_log_prob: the mixture must be [*x.shape, M], got x "
            f"{x.shape} and mixture {mixture.means.shape}; is C or M mistaken?"
        )
    level = jnp.clip(jnp.round(x * MAX_LEVEL), 0, MAX_LEVEL)[..., None]
    sharpness = jnp.exp(-mixture.log_scales)
    lower = ((level - 0.5) / MAX_LEVEL - mixture.means) * sharpness
    upper = ((level + 0.5) / MAX_LEVEL - mixture.means) * sharpness
    # F(upper) - F(lower) = F(upper) (1 - F(lower)) (1 - exp(lower - upper)), and at an
    # edge the missing bound leaves one factor: no difference of near-equal numbers.
    below = jnp.where(level < MAX_LEVEL, jax.nn.log_sigmoid(upper), 0)
    above = jnp.where(level > 0, jax.nn.log_sigmoid(-lower), 0)
    inside = (level > 0) & (level < MAX_LEVEL)
    width = jnp.log(-jnp.expm1(-sharpness / MAX_LEVEL))
    log_component = below + above + jnp.where(inside, width, 0)
    log_weights = jax.nn.log_softmax(mixture.logit_weights, axis=-1)
    return _checks.sum_per_example(
        jax.nn.logsumexp(log_weights + log_component, axis=-1)
    )


def logistic_mixture_mean(mixture: LogisticMixture) -> Float[Array, "..."]:
    """Mean of the mixture with its tails moved to 0 and 1, `[B, ..., C]`.

    In closed form, E clip(X, 0, 1). The mean over the 256 levels differs from it by at
    most half a level, and by less than 0.05 where the scale exceeds one level.
    """
    mixture = _bounded("logistic_mixture_mean", mixture)
    scales = jnp.exp(mixture.log_scales)
    # The integral over [0, 1] of P(X > u) = sigmoid((mean - u) / scale).
    upper = jax.nn.softplus(mixture.means / scales)
    means = scales * (upper - jax.nn.softplus((mixture.means - 1) / scales))
    weights = jax.nn.softmax(mixture.logit_weights, axis=-1)
    return jnp.clip(jnp.sum(weights * means, axis=-1), 0, 1)


def logistic_mixture_sample(
    key: PRNGKeyArray, mixture: LogisticMixture
) -> Float[Array, "..."]:
    """A draw on the levels k/255, `[B, ..., C]`, by the probabilities of `log_prob`."""
    mixture = _bounded("logistic_mixture_sample", mixture)
    key_component, key_logistic = jax.random.split(key)
    component = jax.random.categorical(key_component, mixture.logit_weights)[..., None]
    mean = jnp.take_along_axis(mixture.means, component, axis=-1)[..., 0]
    log_scale = jnp.take_along_axis(mixture.log_scales, component, axis=-1)[..., 0]
    noise = jax.random.logistic(key_logistic, mean.shape, mean.dtype)
    x = mean + jnp.exp(log_scale) * noise
    return jnp.clip(jnp.round(x * MAX_LEVEL), 0, MAX_LEVEL) / MAX_LEVEL


def bernoulli() -> Likelihood:
    """For binary images: one output per channel, the logit."""
    return Likelihood(
        1, bernoulli_log_prob, bernoulli_mean, bernoulli_sample, "discrete"
    )


def gaussian() -> Likelihood:
    """For real data: two outputs per channel, mu and log_sigma.

    A fixed, shared or optimal sigma is packed by `gaussian_outputs`. log_sigma is kept
    softly in `LOG_SIGMA_BOUNDS` = [-6, 4], and taken exactly inside [-5, 3].
    """

    def split(outputs: ArrayLike) -> tuple[Array, Array]:
        grouped = _by_channel("gaussian", outputs, 2)
        return grouped[..., 0], _soft_bounds(grouped[..., 1], LOG_SIGMA_BOUNDS)

    return Likelihood(
        num_outputs=2,
        log_prob=lambda x, outputs: gaussian_log_prob(x, *split(outputs)),
        mean=lambda outputs: split(outputs)[0],
        sample=lambda key, outputs: gaussian_sample(key, *split(outputs)),
        density="continuous",
    )


def gaussian_outputs(
    mu: Float[ArrayLike, " *shape"], log_sigma: Float[ArrayLike, "..."]
) -> Float[Array, "..."]:
    """Packs mu `[B, ..., C]` and log_sigma as `gaussian()` reads them, `[B, ..., 2C]`.

    `log_sigma` is a scalar or has the shape of `mu`; ValueError otherwise.
    """
    (mu,) = _checks.to_float(mu)
    pair = jnp.stack([mu, _like("gaussian_outputs", log_sigma, mu=mu)], axis=-1)
    return pair.reshape(*pair.shape[:-2], -1)


def logistic_mixture(*, num_components: int = 5) -> Likelihood:
    """For 8-bit images: 3 * num_components outputs per channel."""
    _checks.check_positive("logistic_mixture", num_components=num_components)

    def split(outputs: ArrayLike) -> LogisticMixture:
        return split_logistic_mixture(outputs, num_components=num_components)

    return Likelihood(
        num_outputs=3 * num_components,
        log_prob=lambda x, outputs: logistic_mixture_log_prob(x, split(outputs)),
        mean=lambda outputs: logistic_mixture_mean(split(outputs)),
        sample=lambda key, outputs: logistic_mixture_sample(key, split(outputs)),
        density="discrete",
    )


LIKELIHOODS: Mapping[str, Callable[..., Likelihood]] = MappingProxyType(
    {"bernoulli": bernoulli, "gaussian": gaussian, "logistic_mixture": logistic_mixture}
)


def _like(function: str, log_sigma: ArrayLike, **array: Array) -> Array:
    """log_sigma in the shape of the named array: a scalar is spread, on purpose."""
    (like,) = array.values()
    (log_sigma,) = _checks.to_float(log_sigma)
    if log_sigma.ndim == 0:
        return jnp.broadcast_to(log_sigma, like.shape)
    _checks.check_same_shape(function, **array, log_sigma=log_sigma)
    return log_sigma


def _by_channel(function: str, outputs: ArrayLike, num_outputs: int) -> Array:
    """`[B, ..., C * num_outputs] -> [B, ..., C, num_outputs]`."""
    _checks.check_min_rank(function, 2, outputs=outputs)
    (outputs,) = _checks.to_float(outputs)
    if outputs.shape[-1] % num_outputs:
        raise ValueError(
            f"{function}: outputs must have C * {num_outputs} channels, got shape "
            f"{outputs.shape}; build the decoder with C * num_outputs."
        )
    return outputs.reshape(*outputs.shape[:-1], -1, num_outputs)


def _bounded(function: str, mixture: LogisticMixture) -> LogisticMixture:
    """The mixture in float32 with its log scales kept in their bounds."""
    _checks.check_same_shape(function, **mixture._asdict())
    logit_weights, means, log_scales = _checks.to_float(*mixture)
    log_scales = _soft_bounds(log_scales, LOG_SCALE_BOUNDS)
    return LogisticMixture(logit_weights, means, log_scales)


def _soft_bounds(x: Array, bounds: tuple[float, float]) -> Array:
    """`soft_lower_bound` from both sides: exact at more than 1 from either bound."""
    return -soft_lower_bound(-soft_lower_bound(x, bounds[0]), -bounds[1])
