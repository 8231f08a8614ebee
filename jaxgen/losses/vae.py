"""Losses of variational autoencoders.

A VAE draws z from a prior p(z) and x from a decoder p(x|z), and is trained with an
encoder q(z|x) on a lower bound of the likelihood:

    log p(x) >= E_q[log p(x|z)] - KL(q(z|x) || p(z)) = -distortion - rate = ELBO.

With K draws of weight w_k = p(x, z_k) / q(z_k|x) the bound log (1/K) sum_k w_k is
tighter. All terms are in nats, summed over pixels and latents (a mean over pixels would
be a hidden beta), one value per example, `[B]`; averaging over them is the caller's.
`log_var` is exponentiated as it comes: keep it within +-80 in float32, if need be by
`jaxgen.likelihoods.soft_lower_bound`. For anybody's `encoder` and `decoder`:

    mu, log_var = encoder(x)
    z = vae.reparameterised(mu, log_var, jax.random.normal(key, mu.shape))
    log_likelihood = likelihoods.bernoulli_log_prob(x, decoder(z))
    loss = vae.negative_elbo(log_likelihood, vae.kl_standard_normal(mu, log_var))
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float, Real

from jaxgen import _checks, likelihoods

__all__ = [
    "ElboTerms",
    "beta_warmup",
    "dreg_iwae",
    "elbo_terms",
    "free_bits",
    "iwae",
    "kl_normal",
    "kl_standard_normal",
    "kl_standard_normal_per_dim",
    "negative_elbo",
    "normal_log_prob",
    "reparameterised",
]


# The arguments of one call have one shape: that is checked, never broadcast.
Examples = Float[ArrayLike, " B *event"]
PerExample = Float[ArrayLike, " B"]
Nats = Float[Array, " B"]


class ElboTerms(NamedTuple):
    """The two halves of the evidence lower bound, `[B]` nats each.

    Attributes:
        distortion: -E_q[log p(x|z)], what the decoder loses.
        rate: KL(q(z|x) || p(z)), what the latent carries.

    References:
        Alemi et al. 2018, "Fixing a Broken ELBO", arXiv:1711.00464.
    """

    distortion: Nats
    rate: Nats

    @property
    def elbo(self) -> Nats:
        """The bound itself, `[B]` nats, at most log p(x); beta plays no part in it."""
        return -(self.distortion + self.rate)


def kl_standard_normal_per_dim(
    mu: Examples, log_var: Examples
) -> Float[Array, " B *event"]:
    """The terms of `kl_standard_normal`: which latents are used, and which are not.

    Args:
        mu: Posterior mean, `[B, ...]`.
        log_var: Log variance, same shape.

    Returns:
        Nats per coordinate, the shape of `mu`; 0 or more.

    Raises:
        ValueError: if the shapes differ or there is no batch axis.
    """
    mu, log_var = _checks.example_floats(
        "kl_standard_normal_per_dim", mu=mu, log_var=log_var
    )
    # (mu^2 + sigma^2 - 1 - log sigma^2) / 2; expm1 keeps the digits near sigma = 1.
    return 0.5 * (jnp.square(mu) + jnp.expm1(log_var) - log_var)


def kl_standard_normal(mu: Examples, log_var: Examples) -> Nats:
    """KL(N(mu, diag exp(log_var)) || N(0, I)), the rate of a Gaussian VAE.

    Args:
        mu: Posterior mean, `[B, ...]`.
        log_var: Log variance, same shape.

    Returns:
        `[B]` nats, summed over every axis but the first.

    Raises:
        ValueError: if the shapes differ or there is no batch axis.

    References:
        Kingma & Welling 2013, appendix B, arXiv:1312.6114.
    """
    mu, log_var = _checks.example_floats("kl_standard_normal", mu=mu, log_var=log_var)
    return _checks.sum_per_example(kl_standard_normal_per_dim(mu, log_var))


def kl_normal(
    mu_q: Examples, log_var_q: Examples, mu_p: Examples, log_var_p: Examples
) -> Nats:
    """KL(N(mu_q, exp(log_var_q)) || N(mu_p, exp(log_var_p))), as in conditional VAEs.

    Args:
        mu_q: Mean of the posterior, `[B, ...]`.
        log_var_q: Its log variance, same shape.
        mu_p: Mean of the prior, same shape.
        log_var_p: Its log variance, same shape.

    Returns:
        `[B]` nats, summed over every axis but the first.

    Raises:
        ValueError: if the shapes differ or there is no batch axis.
    """
    mu_q, log_var_q, mu_p, log_var_p = _checks.example_floats(
        "kl_normal", mu_q=mu_q, log_var_q=log_var_q, mu_p=mu_p, log_var_p=log_var_p
    )
    log_ratio = log_var_q - log_var_p
    squared = jnp.square(mu_q - mu_p) * jnp.exp(-log_var_p)
    return _checks.sum_per_example(0.5 * (squared + jnp.expm1(log_ratio) - log_ratio))


def normal_log_prob(x: Examples, mu: Examples, log_var: Examples) -> Nats:
    """Log density log N(x; mu, diag exp(log_var)), constants included.

    Args:
        x: Where the density is taken, `[B, ...]`; z for log q(z|x).
        mu: Mean, same shape.
        log_var: Log variance, same shape.

    Returns:
        `[B]` nats, summed over every axis but the first.

    Raises:
        ValueError: if the shapes differ or there is no batch axis.
    """
    x, mu, log_var = _checks.example_floats(
        "normal_log_prob", x=x, mu=mu, log_var=log_var
    )
    return likelihoods.gaussian_log_prob(x, mu, 0.5 * log_var)


def reparameterised(
    mu: Float[ArrayLike, " *shape"],
    log_var: Float[ArrayLike, " *shape"],
    eps: Float[ArrayLike, " *shape"],
) -> Float[Array, " *shape"]:
    """A draw z = mu + exp(log_var / 2) eps through which gradients flow.

    Args:
        mu: Mean, any shape.
        log_var: Log variance, same shape.
        eps: Standard normal noise, same shape; for K draws `jax.vmap` over it.

    Returns:
        z, the shape of `mu`.

    Raises:
        ValueError: if the shapes differ.

    References:
        Kingma & Welling 2013, section 2.4, arXiv:1312.6114.
    """
    _checks.check_same_shape("reparameterised", mu=mu, log_var=log_var, eps=eps)
    mu, log_var, eps = _checks.to_float(mu, log_var, eps)
    return mu + jnp.exp(0.5 * log_var) * eps


def elbo_terms(log_likelihood: PerExample, kl: PerExample) -> ElboTerms:
    """Distortion and rate, the two coordinates in which a VAE should be reported.

    Args:
        log_likelihood: log p(x|z) at z drawn from q(z|x), `[B]` nats with constants.
        kl: KL(q(z|x) || p(z)), or log q(z|x) - log p(z) at the same z, `[B]` nats.

    Returns:
        `ElboTerms`; its `elbo` is an unbiased draw of the bound.

    Raises:
        ValueError: if either is not `[B]` or the shapes differ.
    """
    _checks.check_axes("elbo_terms", "[B]", log_likelihood=log_likelihood, kl=kl)
    _checks.check_same_shape("elbo_terms", log_likelihood=log_likelihood, kl=kl)
    log_likelihood, kl = _checks.to_float(log_likelihood, kl)
    return ElboTerms(distortion=-log_likelihood, rate=kl)


def negative_elbo(
    log_likelihood: PerExample, kl: PerExample, *, beta: Real[ArrayLike, ""] = 1.0
) -> Nats:
    """The training loss of a VAE: distortion + beta * rate.

    With `beta=1` it is the negative ELBO. Give `free_bits(...)` as `kl` and
    `beta_warmup(...)` as `beta` if you like; report `elbo_terms` all the same.

    Args:
        log_likelihood: log p(x|z) at z drawn from q(z|x), `[B]` nats with constants.
        kl: KL(q(z|x) || p(z)), `[B]` nats.
        beta: Weight of the rate, a scalar (it may be traced).

    Returns:
        `[B]` nats, to be minimised.

    Raises:
        ValueError: if an array is not `[B]`, or `beta` is not a scalar.

    References:
        Kingma & Welling 2013, equation 3, arXiv:1312.6114; Higgins et al. 2017 (beta).
    """
    if jnp.ndim(beta) != 0:
        raise ValueError(
            f"negative_elbo: beta must be a scalar, got shape {jnp.shape(beta)}; "
            "multiply kl yourself for one weight per example."
        )
    terms = elbo_terms(log_likelihood, kl)
    return terms.distortion + beta * terms.rate


def iwae(log_weights: Float[ArrayLike, " K B"]) -> Nats:
    """The value of the importance weighted bound, log (1/K) sum_k w_k.

    Not the sum of normalised weights times log weights: that has the same gradient but
    is no bound, it can exceed log p(x).

    Args:
        log_weights: log p(x, z_k) - log q(z_k|x), `[K, B]` nats, z_k drawn from q.

    Returns:
        `[B]` nats, in expectation at most log p(x) and not decreasing in K. The loss is
        its negative.

    Raises:
        ValueError: if `log_weights` is not `[K, B]`.

    References:
        Burda et al. 2015, equation 8, arXiv:1509.00519.
    """
    _checks.check_axes("iwae", "[K, B]", log_weights=log_weights)
    (log_weights,) = _checks.to_float(log_weights)
    num_draws = log_weights.shape[0]
    return jax.nn.logsumexp(log_weights, axis=0) - math.log(num_draws)


def dreg_iwae(
    log_weight_fn: Callable[[Array], Array], z: Float[ArrayLike, " K B *event"]
) -> Nats:
    """The importance weighted bound with the doubly reparameterised gradient.

    The value is `iwae`. Differentiated, the path through z (the encoder) is weighted by
    the square of the normalised weights, all else (the decoder) by the weights, as
    usual. The encoder's gradient keeps its expectation, and its signal-to-noise ratio
    does not fall with K. Log q must be given the encoder's outputs as constants:

        mu, log_var = encoder(x)                                      # [B, L] each
        draw = jax.vmap(vae.reparameterised, (None, None, 0))
        z = draw(mu, log_var, eps)                                    # [K, B, L]
        mu_, log_var_ = jax.lax.stop_gradient((mu, log_var))          # held constant

        def log_weight(z):                                            # [B, L] -> [B]
            log_joint = log_prior(z) + log_prob(x, decoder(z))
            return log_joint - vae.normal_log_prob(z, mu_, log_var_)

        loss = -vae.dreg_iwae(jax.vmap(log_weight), z)                # [B]

    K = 1 is "sticking the landing". At q(z|x) = p(z|x) the encoder's gradient is zero
    for every draw, not only on average. Reverse mode only.

    Args:
        log_weight_fn: z `[K, B, ...]` -> log p(x, z) - log q(z|x), `[K, B]`, entry
            (k, b) depending on z[k, b] alone.
        z: Reparameterised draws of q(z|x), `[K, B, ...]`.

    Returns:
        `[B]` nats, the bound; the loss is its negative.

    Raises:
        ValueError: if z has fewer than two axes or the log weights are not `[K, B]`.

    References:
        Tucker et al. 2018, section 3, arXiv:1810.04152; Roeder et al. 2017,
        arXiv:1703.09194.
    """
    (draws,) = _checks.to_float(z)
    if draws.ndim < 2:
        raise ValueError(
            f"dreg_iwae: z must be [K, B, ...], got shape {draws.shape}; "
            "give one draw as z[None]."
        )
    draws, zeros = _weighted_path(draws, jnp.zeros(draws.shape[:2], draws.dtype))
    log_weights = log_weight_fn(draws)
    if jnp.shape(log_weights) != zeros.shape:
        raise ValueError(
            f"dreg_iwae: log_weight_fn(z) must be [K, B] = {zeros.shape}, got shape "
            f"{jnp.shape(log_weights)}; sum it over the event axes."
        )
    return iwae(log_weights + zeros)


@jax.custom_vjp
def _weighted_path(z: Array, zeros: Array) -> tuple[Array, Array]:
    """The identity; backwards, what reaches z is multiplied by the weights.

    Added to the log weights, `zeros` receives their cotangent: the normalised weights
    times the cotangent of the bound. So the weights are known without a second pass.
    """
    return z, zeros


def _weighted_path_backward(_: None, cotangents: tuple[Array, Array]) -> Any:
    to_z, to_log_weights = cotangents
    total = jnp.sum(to_log_weights, axis=0, keepdims=True)
    used = total != 0  # An example that the loss leaves out has no cotangent at all.
    weights = jnp.where(used, to_log_weights / jnp.where(used, total, 1), 0)
    weights = jnp.expand_dims(weights, tuple(range(2, to_z.ndim)))
    return to_z * weights, jnp.zeros_like(to_log_weights)


_weighted_path.defvjp(lambda z, zeros: ((z, zeros), None), _weighted_path_backward)


def free_bits(kl_per_dim: Examples, *, minimum: float) -> Nats:
    """A rate that does not reward a latent for carrying less than `minimum` nats.

    The per-example form, sum_j max(minimum, KL_j(x)): without an average over the batch
    it is the same on any number of devices and with padding. (Kingma et al. average
    KL_j over the minibatch first.) For training only: report the plain KL.

    Args:
        kl_per_dim: `kl_standard_normal_per_dim(mu, log_var)`, `[B, ...]`.
        minimum: Free nats per coordinate, 0.03 to 2 in practice; 0 changes nothing.

    Returns:
        `[B]` nats, at least `minimum` times the number of coordinates.

    Raises:
        ValueError: if there is no batch axis or `minimum` is negative.

    References:
        Kingma et al. 2016, appendix C, arXiv:1606.04934.
    """
    _checks.check_min_rank("free_bits", 1, kl_per_dim=kl_per_dim)
    if not minimum >= 0:
        raise ValueError(f"free_bits: minimum must be 0 or more nats, got {minimum}.")
    (kl_per_dim,) = _checks.to_float(kl_per_dim)
    return _checks.sum_per_example(jnp.maximum(kl_per_dim, minimum))


def beta_warmup(
    step_fraction: Real[ArrayLike, " *shape"], *, warmup: float, cycles: int = 1
) -> Float[Array, " *shape"]:
    """Weight of the rate along a run: from 0 up to 1, once or in cycles.

    The run is cut into `cycles` equal parts; in each, beta rises linearly from 0 to 1
    over the first `warmup` of it and stays at 1. One cycle is linear warm-up.

    Args:
        step_fraction: Fraction of the run that is done, in [0, 1]; any shape.
        warmup: Share of each cycle spent rising, in [0, 1]; 0 gives 1 everywhere.
        cycles: Number of cycles; Fu et al. use 4 with `warmup=0.5`.

    Returns:
        beta in [0, 1], the shape of `step_fraction`.

    Raises:
        ValueError: if `warmup` is outside [0, 1] or `cycles` is below 1.

    References:
        Bowman et al. 2016, arXiv:1511.06349; Fu et al. 2019, arXiv:1903.10145.
    """
    if not 0 <= warmup <= 1:
        raise ValueError(
            f"beta_warmup: warmup must be in [0, 1], got {warmup}; "
            "give the fraction of the run, not a number of steps."
        )
    _checks.check_positive("beta_warmup", cycles=cycles)
    (step_fraction,) = _checks.to_float(step_fraction)
    if warmup == 0:
        return jnp.ones_like(step_fraction)
    position = step_fraction * cycles
    # The last cycle is closed: at the end of the run beta is 1, not 0 again.
    phase = position - jnp.clip(jnp.floor(position), 0, cycles - 1)
    return jnp.clip(phase / warmup, 0, 1)
