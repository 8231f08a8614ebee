"""Variational autoencoder: a generator coupled with an encoder Q(z given x).

`encode`, `decode`, `log_prior` and `elbo` are pure functions of (config, params, arrays);
`make_vae` binds them to the contract of `jaxgen.models.base`. Of an image decoder samples
are means of p(x given z); of rows they are draws.

References:
    Kingma & Welling 2013, arXiv:1312.6114. Burda et al. 2015 (importance weighting),
    arXiv:1509.00519. Rybkin et al. 2021 (optimal sigma), arXiv:2006.13202. Tomczak &
    Welling 2018 (VampPrior), arXiv:1705.07120. `jaxgen.losses.balance` has the others.
"""

import math
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxgen import estimators, likelihoods, losses
from jaxgen.losses import balance
from jaxgen.models import vae_networks as net
from jaxgen.models.base import (
    Aux,
    Batch,
    LogLikelihood,
    Model,
    Observation,
    Player,
    example_keys,
)
from jaxgen.models.vae_config import Sampling, VAEConfig, resolve
from jaxgen.models.vae_networks import decode, encode, likelihood, log_prior
from jaxgen.models.vae_views import views

__all__ = [
    "Sampling",
    "VAEConfig",
    "decode",
    "elbo",
    "encode",
    "likelihood",
    "log_prior",
    "log_weights",
    "make_vae",
    "resolve",
]

NUMBERS = 2**20  # at once in importance sampling: outputs of the decoder, terms of P(z)
UNITS = MappingProxyType(
    {"sigma": "units of x", "multiplier": "nats per squared error"}
)


def elbo(config: VAEConfig, params: Any, x: Array, eps: Array) -> losses.vae.ElboTerms:
    """The evidence lower bound by its two terms, single sample.

    Args:
        config: Resolved options.
        params: `{"encoder", "decoder", ...}`.
        x: `[B, H, W, C]` in [0, 1].
        eps: Standard normal noise, `[B, L]`.

    Returns:
        Distortion -log p(x given z) and rate KL(Q(z given x) || P(z)), each `[B]` nats
        summed over pixels and latents; their property `elbo` is the bound. Of a VampPrior
        the rate is log Q(z given x) - log P(z) at this z.
    """
    mu, log_var = encode(config, params, x)
    z = losses.vae.reparameterised(mu, log_var, eps)
    log_prob = net.log_prob(config, params, x, decode(config, params, z))
    if config.prior == "normal":
        rate = losses.vae.kl_standard_normal(mu, log_var)
    else:
        rate = _drawn_rate(config, params, z, mu, log_var)
    return losses.vae.elbo_terms(log_prob, rate)


def log_weights(config: VAEConfig, params: Any, x: Array, eps: Array) -> Array:
    """Log p(x, z) - log Q(z given x) of K samples, `[K, B]` nats; `eps [K, B, L]`."""
    mu, log_var = encode(config, params, x)
    z = _draws(mu, log_var, eps)
    log_prob, log_ratio = _log_weight_terms(config, params, x, z, mu, log_var)
    return log_prob - log_ratio


def make_vae(config: VAEConfig) -> Model:
    """Binds a resolved config to the contract of `jaxgen.models.base.Model`."""
    if config.shape is None:
        raise ValueError("vae: config.shape is None: call resolve(config, shape, ...)")
    of_rows = config.columns is not None
    is_gaussian = config.likelihood == "gaussian"
    one_draw = config.gradient == "analytic"
    is_alone = not (of_rows or config.autoencoder or config.num_planes)

    def prior(keys: Array, params: Any = None) -> Array:
        if config.prior != "normal" and params is None:
            raise ValueError("vae: a VampPrior is learned: prior(keys, params)")
        return net.prior(config, params and params["vae"], keys)

    def generate(params: Any, z: Array, keys: Array, condition: Any = None) -> Array:
        x = net.mean(config, net.given(config, params["vae"], condition), z)
        if of_rows:  # a row without its noise would be none of the data's
            x = x + jnp.exp(params["vae"]["log_sigma"]) * net.noise(keys, x.shape[1:])
        return net.to_data(config, x)

    def encode_sample(
        params: Any, x: Array, keys: Array, condition: Any = None
    ) -> Array:
        x, _ = net.to_inside(config, x, keys)
        mu, log_var = encode(config, net.given(config, params["vae"], condition), x)
        if config.autoencoder:
            return mu
        eps = net.noise(keys, (config.latent_dim,))
        return losses.vae.reparameterised(mu, log_var, eps)

    def log_likelihood(
        params: Any, x: Array, keys: Array, condition: Any = None, *, num_samples: int
    ) -> LogLikelihood:
        params = net.given(config, params["vae"], condition)
        return _importance_likelihood(config, params, x, keys, num_samples)

    return Model(
        init=lambda key, batch: (
            {"vae": net.init(config, key, batch)},
            _first_extra(config),
        ),
        players=(
            Player(
                "vae",
                _one_draw_objective(config) if one_draw else _iwae_objective(config),
                couples_examples=is_gaussian and config.sigma == "optimal",
                units=UNITS,
            ),
        ),
        prior=prior,
        generate=generate,
        encode=encode_sample,
        log_likelihood=None if config.autoencoder else log_likelihood,
        density="other" if of_rows else likelihood(config).density,
        observation=_observation(config) if is_alone else None,
        views=() if config.num_planes else views(config),
    )


def _observation(config: VAEConfig) -> Observation:
    def log_prob(params: Any, x: Array, z: Array, log_sigma: Any) -> Array:
        del log_sigma  # it has its own
        outputs = decode(config, params["vae"], z)
        nats = net.log_prob(config, params["vae"], x, outputs)
        if config.prior == "normal":
            return nats
        zeros = jnp.zeros_like(z)
        normal = losses.vae.normal_log_prob(z, zeros, zeros)
        return nats + log_prior(config, params["vae"], z) - normal

    def sample(params: Any, z: Array, keys: Array, log_sigma: Any) -> Array:
        outputs = decode(config, params["vae"], z)
        if config.likelihood == "gaussian":  # the very sigma of log_prob, unbounded
            mu, draw = likelihood(config).mean(outputs), likelihoods.gaussian_sample
            log_sigma = params["vae"]["log_sigma"]
            return jax.vmap(draw, (0, 0, None))(keys, mu, log_sigma)
        return jax.vmap(likelihood(config).sample)(keys, outputs)

    return Observation(log_prob, sample, likelihood(config).density)


def _one_draw_objective(config: VAEConfig) -> Any:
    def objective(
        params: Any, extra: Any, batch: Batch, key: Array, progress: Array
    ) -> tuple[Array, Aux]:
        params = net.given(config, params["vae"], batch.get("condition"))
        keys = example_keys(key, batch)
        mask, extra = batch.get("mask"), _moved(config, extra)
        x, log_det = net.to_inside(config, batch["x"], keys)
        mu, log_var = encode(config, params, x)
        z = mu
        if not config.autoencoder:
            eps = net.noise(keys, (config.latent_dim,))
            z = losses.vae.reparameterised(mu, log_var, eps)
        outputs = decode(config, params, z)
        log_sigma = _training_log_sigma(config, extra, x, outputs, mask)
        log_prob = log_det + net.log_prob(config, params, x, outputs, log_sigma)
        terms = {"distortion": -log_prob}
        if config.autoencoder:
            loss = -log_prob
        else:
            rate, price = _rate_and_price(config, params, z, mu, log_var)
            terms["rate"] = rate  # reported as it is, without floor or weight
            if config.geco is not None:
                loss = _geco(config, params, extra, x, outputs, price)
            else:
                warm = losses.vae.beta_warmup(progress, warmup=config.beta_warmup)
                beta = config.beta * warm
                loss = losses.vae.negative_elbo(log_prob, price, beta=beta)
        if not extra:
            return loss * batch.get("weight", 1.0), Aux(terms)
        terms["sigma"] = jnp.sqrt(extra["error"].mse)
        terms |= {name: extra[name] for name in extra if name == "multiplier"}
        means = likelihood(config).mean(outputs)
        extra = {**extra, "error": balance.observed(extra["error"], x, means, mask)}
        return loss * batch.get("weight", 1.0), Aux(terms, extra)

    return objective


def _first_extra(config: VAEConfig) -> Any:
    """What is carried from step to step where sigma is computed."""
    if config.likelihood != "gaussian" or config.sigma != "computed":
        return ()
    extra = {"error": balance.first_error(config.sigma_value or 1.0)}
    if config.geco is None:
        return extra
    # With this multiplier the loss is the ELBO of sigma = tolerance, but for a constant.
    return {**extra, "multiplier": jnp.float32(0.5 / config.geco**2)}


def _moved(config: VAEConfig, extra: Any) -> Any:
    """The carried state after the batch before, which every device knows alike."""
    if not extra:
        return extra
    moved: dict[str, Any] = {"error": balance.moved(extra["error"])}
    if config.geco is not None:
        last = extra["error"]
        following = balance.geco_multiplier(
            extra["multiplier"], last.last, tolerance=config.geco, rate=config.geco_rate
        )
        moved["multiplier"] = jnp.where(last.count > 0, following, extra["multiplier"])
    return moved


def _rate_and_price(
    config: VAEConfig, params: Any, z: Array, mu: Array, log_var: Array
) -> tuple[Array, Array]:
    """KL(Q(z given x) || P(z)), and what is paid for it before its weight, `[B]` nats."""
    if config.prior != "normal":
        rate = _drawn_rate(config, params, z, mu, log_var)
        return rate, rate
    kl = losses.vae.kl_standard_normal_per_dim(mu, log_var)
    price = losses.vae.free_bits(kl, minimum=config.free_bits)
    return jnp.sum(kl, axis=-1), price


def _drawn_rate(
    config: VAEConfig, params: Any, z: Array, mu: Array, log_var: Array
) -> Array:
    """Log Q(z given x) - log P(z) at a draw z of Q, `[B]` nats."""
    log_normal = losses.vae.normal_log_prob(z, mu, log_var)
    return log_normal - log_prior(config, params, z)


def _geco(
    config: VAEConfig, params: Any, extra: Any, x: Array, outputs: Array, price: Array
) -> Array:
    """The Lagrangian, and the term of value zero that trains the stored sigma."""
    means = likelihood(config).mean(outputs)
    lagrangian = balance.geco(
        balance.squared_error(x, means),
        price,
        multiplier=extra["multiplier"],
        tolerance=float(config.geco or 0.0),
        num_values=math.prod(x.shape[1:]),
    )
    return lagrangian - net.stored_term(x, means, params["log_sigma"])


def _training_log_sigma(
    config: VAEConfig, extra: Any, x: Array, outputs: Array, mask: Array | None
) -> Array | None:
    """Log sigma of the Gaussian in training where it is not the stored parameter."""
    if config.likelihood != "gaussian":
        return None
    if config.sigma == "optimal":
        return likelihoods.optimal_log_sigma(x, likelihood(config).mean(outputs), mask)
    return 0.5 * jnp.log(extra["error"].mse) if extra else None


def _iwae_objective(config: VAEConfig) -> Any:
    def objective(
        params: Any, extra: Any, batch: Batch, key: Array, progress: Array
    ) -> tuple[Array, Aux]:
        del extra, progress
        params = net.given(config, params["vae"], batch.get("condition"))
        keys = example_keys(key, batch)
        x, log_det = net.to_inside(config, batch["x"], keys)
        eps = net.noise(keys, (config.num_importance, config.latent_dim))
        eps = eps.swapaxes(0, 1)
        mu, log_var = encode(config, params, x)
        z = _draws(mu, log_var, eps)
        if config.gradient == "dreg":
            mu, log_var = jax.lax.stop_gradient((mu, log_var))
        terms = {}

        def weights_at(z: Array) -> Array:
            log_prob, log_ratio = _log_weight_terms(config, params, x, z, mu, log_var)
            # Called once, and in the trace of the loss: these are its own values.
            means = losses.vae.elbo_terms(
                log_prob.mean(axis=0) + log_det, log_ratio.mean(axis=0)
            )
            terms.update(means._asdict())
            return log_prob - log_ratio

        if config.gradient == "dreg":
            bound = losses.vae.dreg_iwae(weights_at, z)
        else:
            bound = losses.vae.iwae(weights_at(z))
        return -(bound + log_det) * batch.get("weight", 1.0), Aux(terms)

    return objective


def _draws(mu: Array, log_var: Array, eps: Array) -> Array:
    """K reparameterised draws for each example, `[K, B, L]`."""
    draw = jax.vmap(losses.vae.reparameterised, (None, None, 0))
    return draw(mu, log_var, eps)


def _log_weight_terms(
    config: VAEConfig, params: Any, x: Array, z: Array, mu: Array, log_var: Array
) -> tuple[Array, Array]:
    """Log p(x given z) and log N(z; mu, exp(log_var)) - log P(z) of `z [K, B, L]`.

    Each `[K, B]` nats; their difference is the log importance weight.
    """
    num, batch, _ = z.shape
    outputs = decode(config, params, z.reshape(num * batch, -1))
    outputs = outputs.reshape(num, batch, *outputs.shape[1:])
    # Mapped over K, x is not repeated in memory: 1.5 times faster a step at K = 5.
    log_prob = jax.vmap(lambda o: net.log_prob(config, params, x, o))(outputs)
    log_normal = jax.vmap(losses.vae.normal_log_prob, (0, None, None))
    return log_prob, log_normal(z, mu, log_var) - log_prior(config, params, z)


def _importance_likelihood(
    config: VAEConfig, params: Any, x: Array, keys: Array, num_samples: int
) -> LogLikelihood:
    """IWAE-K with K = num_samples, in chunks of samples; chunking changes no number."""
    x, log_det = net.to_inside(config, x, keys)
    mu, log_var = encode(config, params, x)
    numbers = math.prod(x.shape) * likelihood(config).num_outputs
    if config.prior == "vamp":
        numbers += mu.size * config.num_pseudo
    chunk = max(1, min(num_samples, NUMBERS // numbers))
    per_sample = jax.vmap(jax.vmap(jax.random.fold_in, (0, None)), (None, 0))

    def add(sums: Any, first: Array | int, num: int) -> Any:
        sample_keys = per_sample(keys, first + jnp.arange(num))
        eps = jax.vmap(lambda k: net.noise(k, (config.latent_dim,)))(sample_keys)
        z = _draws(mu, log_var, eps)
        log_prob, log_ratio = _log_weight_terms(config, params, x, z, mu, log_var)
        return estimators.add(sums, log_prob - log_ratio)

    full, rest = divmod(num_samples, chunk)
    sums = estimators.empty_sums(x.shape[0])
    sums, _ = jax.lax.scan(
        lambda sums, first: (add(sums, first, chunk), None),
        sums,
        jnp.arange(full) * chunk,
    )
    if rest:
        sums = add(sums, full * chunk, rest)
    estimate = estimators.finish(sums)
    return LogLikelihood(
        nats=estimate.log_likelihood + log_det,
        kind="bound",
        standard_error=estimate.standard_error,
        ess=estimate.ess,
    )
