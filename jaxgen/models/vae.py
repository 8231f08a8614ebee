"""Variational autoencoder: a generator coupled with an encoder Q(z given x).

`encode`, `decode` and `elbo` are pure functions of (config, params, arrays); `make_vae`
binds them to the contract of `jaxgen.models.base`.

References:
    Kingma & Welling 2013, arXiv:1312.6114. Burda et al. 2015 (importance weighting),
    arXiv:1509.00519. Rybkin et al. 2021 (optimal sigma), arXiv:2006.13202.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxgen import estimators, likelihoods, losses
from jaxgen.models.base import (
    Aux,
    Batch,
    LogLikelihood,
    Model,
    Observation,
    Player,
    example_keys,
    normal_prior,
)
from jaxgen.models.vae_config import VAEConfig, resolve
from jaxgen.nets import coders

__all__ = [
    "VAEConfig",
    "decode",
    "elbo",
    "encode",
    "likelihood",
    "log_weights",
    "make_vae",
    "resolve",
]

NUMBERS = 2**20  # outputs of the decoder at once in importance sampling


def encode(config: VAEConfig, params: Any, x: Array) -> tuple[Array, Array]:
    """Mean and log variance of Q(z given x), each `[B, L]`; `x [B, H, W, C]` in [0, 1]."""
    centre = jax.lax.stop_gradient(params["centre"])  # the mean image: not trained
    x = x - centre[None]
    return coders.applied(
        _encoder(config), params["encoder"], x, compute=config.compute
    )


def decode(config: VAEConfig, params: Any, z: Array) -> Array:
    """Parameters of p(x given z), `[B, H, W, C * num_outputs]`, for `likelihood(config)`."""
    outputs = coders.applied(
        _decoder(config), params["decoder"], z, compute=config.compute
    )
    if config.likelihood != "gaussian":
        return outputs
    return likelihoods.gaussian_outputs(outputs, params["log_sigma"])


def likelihood(config: VAEConfig) -> likelihoods.Likelihood:
    """The distribution whose parameters `decode` gives."""
    if config.likelihood == "logistic_mixture":
        return likelihoods.logistic_mixture(num_components=config.mixture)
    return likelihoods.LIKELIHOODS[str(config.likelihood)]()


def elbo(config: VAEConfig, params: Any, x: Array, eps: Array) -> losses.vae.ElboTerms:
    """The evidence lower bound by its two terms, single sample, analytic KL.

    Args:
        config: Resolved options.
        params: `{"encoder", "decoder", ...}`.
        x: `[B, H, W, C]` in [0, 1].
        eps: Standard normal noise, `[B, L]`.

    Returns:
        Distortion -log p(x given z) and rate KL(Q(z given x) || P(z)), each `[B]` nats
        summed over pixels and latents; their property `elbo` is the bound.
    """
    mu, log_var = encode(config, params, x)
    outputs = decode(config, params, losses.vae.reparameterised(mu, log_var, eps))
    log_prob = _log_prob(config, params, x, outputs)
    return losses.vae.elbo_terms(log_prob, losses.vae.kl_standard_normal(mu, log_var))


def log_weights(config: VAEConfig, params: Any, x: Array, eps: Array) -> Array:
    """Log p(x, z) - log Q(z given x) of K samples, `[K, B]` nats; `eps [K, B, L]`."""
    mu, log_var = encode(config, params, x)
    z = _draws(mu, log_var, eps)
    log_prob, log_ratio = _log_weight_terms(config, params, x, z, mu, log_var)
    return log_prob - log_ratio


def make_vae(config: VAEConfig) -> Model:
    """Binds a resolved config to the contract of `jaxgen.models.base.Model`."""
    analytic = config.gradient == "analytic"
    objective = _elbo_objective(config) if analytic else _iwae_objective(config)
    coupled = config.likelihood == "gaussian" and config.sigma == "optimal"

    def generate(params: Any, z: Array, keys: Array, condition: Any = None) -> Array:
        del keys, condition  # x = G(z) is the mean of p(x given z)
        return _mean(config, params["vae"], z)

    def encode_sample(
        params: Any, x: Array, keys: Array, condition: Any = None
    ) -> Array:
        del condition
        mu, log_var = encode(config, params["vae"], x)
        eps = _noise(keys, (config.latent_dim,))
        return losses.vae.reparameterised(mu, log_var, eps)

    return Model(
        init=lambda key, batch: ({"vae": _init(config, key, batch)}, ()),
        players=(Player("vae", objective, couples_examples=coupled),),
        prior=normal_prior((config.latent_dim,)),
        generate=generate,
        encode=encode_sample,
        log_likelihood=lambda params, x, keys, condition=None, *, num_samples: (
            _importance_likelihood(config, params["vae"], x, keys, num_samples)
        ),
        density=likelihood(config).density,
        observation=_observation(config),
        views=(
            (
                "reconstructions (data above, mean of p(x|z) at z = mu below)",
                _rebuilt(config),
            ),
            (
                "interpolations between the encodings of two images",
                _interpolated(config),
            ),
            (
                "traversals of the most used latent variables, -3 to 3",
                _traversed(config),
            ),
        ),
    )


def _observation(config: VAEConfig) -> Observation:
    def log_prob(params: Any, x: Array, z: Array, log_sigma: Any) -> Array:
        del log_sigma  # it has its own
        outputs = decode(config, params["vae"], z)
        return _log_prob(config, params["vae"], x, outputs)

    def sample(params: Any, z: Array, keys: Array, log_sigma: Any) -> Array:
        outputs = decode(config, params["vae"], z)
        if config.likelihood == "gaussian":  # the very sigma of log_prob, unbounded
            mu, draw = likelihood(config).mean(outputs), likelihoods.gaussian_sample
            log_sigma = params["vae"]["log_sigma"]
            return jax.vmap(draw, (0, 0, None))(keys, mu, log_sigma)
        return jax.vmap(likelihood(config).sample)(keys, outputs)

    return Observation(log_prob, sample, likelihood(config).density)


def _elbo_objective(config: VAEConfig) -> Any:
    def objective(
        params: Any, extra: Any, batch: Batch, key: Array, progress: Array
    ) -> tuple[Array, Aux]:
        del extra
        eps = _noise(example_keys(key, batch), (config.latent_dim,))
        mu, log_var = encode(config, params["vae"], batch["x"])
        z = losses.vae.reparameterised(mu, log_var, eps)
        outputs = decode(config, params["vae"], z)
        log_prob = _log_prob(config, params["vae"], batch["x"], outputs, batch)
        kl = losses.vae.kl_standard_normal_per_dim(mu, log_var)
        price = losses.vae.free_bits(kl, minimum=config.free_bits)
        warm = losses.vae.beta_warmup(progress, warmup=config.beta_warmup)
        loss = losses.vae.negative_elbo(log_prob, price, beta=config.beta * warm)
        rate = jnp.sum(kl, axis=-1)  # reported as it is, without floor or weight
        return loss, Aux(losses.vae.elbo_terms(log_prob, rate)._asdict())

    return objective


def _iwae_objective(config: VAEConfig) -> Any:
    def objective(
        params: Any, extra: Any, batch: Batch, key: Array, progress: Array
    ) -> tuple[Array, Aux]:
        del extra, progress
        x, keys = batch["x"], example_keys(key, batch)
        eps = _noise(keys, (config.num_importance, config.latent_dim)).swapaxes(0, 1)
        mu, log_var = encode(config, params["vae"], x)
        z = _draws(mu, log_var, eps)
        if config.gradient == "dreg":
            mu, log_var = jax.lax.stop_gradient((mu, log_var))
        terms = {}

        def weights_at(z: Array) -> Array:
            log_prob, log_ratio = _log_weight_terms(
                config, params["vae"], x, z, mu, log_var
            )
            # Called once, and in the trace of the loss: these are its own values.
            means = losses.vae.elbo_terms(log_prob.mean(axis=0), log_ratio.mean(axis=0))
            terms.update(means._asdict())
            return log_prob - log_ratio

        if config.gradient == "dreg":
            bound = losses.vae.dreg_iwae(weights_at, z)
        else:
            bound = losses.vae.iwae(weights_at(z))
        return -bound, Aux(terms)

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
    log_prob = jax.vmap(lambda o: _log_prob(config, params, x, o))(outputs)
    log_normal = jax.vmap(losses.vae.normal_log_prob, (0, None, None))
    zeros = jnp.zeros_like(mu)
    return log_prob, log_normal(z, mu, log_var) - log_normal(z, zeros, zeros)


def _importance_likelihood(
    config: VAEConfig, params: Any, x: Array, keys: Array, num_samples: int
) -> LogLikelihood:
    """IWAE-K with K = num_samples, in chunks of samples; chunking changes no number."""
    mu, log_var = encode(config, params, x)
    outputs = math.prod(x.shape) * likelihood(config).num_outputs
    chunk = max(1, min(num_samples, NUMBERS // outputs))
    per_sample = jax.vmap(jax.vmap(jax.random.fold_in, (0, None)), (None, 0))

    def add(sums: Any, first: Array | int, num: int) -> Any:
        sample_keys = per_sample(keys, first + jnp.arange(num))
        eps = jax.vmap(lambda k: _noise(k, (config.latent_dim,)))(sample_keys)
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
        nats=estimate.log_likelihood,
        kind="bound",
        standard_error=estimate.standard_error,
        ess=estimate.ess,
    )


def _rebuilt(config: VAEConfig) -> Any:
    def view(params: Any, x: Array) -> Array:
        mu, _ = encode(config, params["vae"], x[:16])
        return jnp.stack([x[:16], _mean(config, params["vae"], mu)])

    return view


def _interpolated(config: VAEConfig, rows: int = 6, columns: int = 12) -> Any:
    def view(params: Any, x: Array) -> Array:
        pairs = max(1, min(rows, x.shape[0] // 2))
        mu, _ = encode(config, params["vae"], x)
        t = jnp.linspace(0.0, 1.0, columns)[None, :, None]
        ends = jnp.arange(2 * pairs) % x.shape[0]  # a lone image goes to itself
        z = (1.0 - t) * mu[ends[0::2], None] + t * mu[ends[1::2], None]
        images = _mean(config, params["vae"], z.reshape(pairs * columns, -1))
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
        images = _mean(config, params["vae"], z.reshape(-1, mu.shape[1]))
        return images.reshape(len(dims), columns, *images.shape[1:])

    return view


def _init(config: VAEConfig, key: Array, batch: Batch) -> Any:
    """Parameters; both networks start from the mean image, as Burda et al. 2015 do."""
    x, mean = batch["x"][:1], jnp.mean(batch["x"], axis=0)
    encoder_key, decoder_key = jax.random.split(key)
    z = jnp.zeros((1, config.latent_dim))
    params = {
        "encoder": _encoder(config).init(encoder_key, x)["params"],
        "decoder": _decoder(config).init(decoder_key, z)["params"],
        "centre": mean,
    }
    if config.likelihood == "gaussian":
        params["log_sigma"] = jnp.log(jnp.float32(config.sigma_value))
    if config.likelihood == "bernoulli" and config.net == "mlp":
        mean = jnp.clip(mean, 0.001, 0.999)
        params["decoder"]["output"]["bias"] = jnp.log(mean / (1.0 - mean)).reshape(-1)
    return params


def _log_prob(
    config: VAEConfig, params: Any, x: Array, outputs: Array, batch: Batch | None = None
) -> Array:
    """Log p(x given z), `[B]` nats; the batch is given where sigma may be fitted to it."""
    if config.likelihood == "gaussian":
        mu, log_sigma = likelihood(config).mean(outputs), params["log_sigma"]
        if config.sigma == "fixed":
            log_sigma = jax.lax.stop_gradient(log_sigma)
        if config.sigma == "optimal" and batch is not None:
            return _optimal_log_prob(x, mu, log_sigma, batch.get("mask"))
        return likelihoods.gaussian_log_prob(x, mu, log_sigma)
    return likelihood(config).log_prob(x, outputs)


def _optimal_log_prob(
    x: Array, mu: Array, log_sigma: Array, mask: Array | None
) -> Array:
    """The Gaussian's value and gradient at the batch's best sigma.

    The parameter log_sigma, which evaluation uses, is trained by the same likelihood
    with the means frozen; that term adds nothing to the value.
    """
    best = likelihoods.optimal_log_sigma(x, mu, mask)
    profile = likelihoods.gaussian_log_prob(x, mu, best)
    frozen = likelihoods.gaussian_log_prob(x, jax.lax.stop_gradient(mu), log_sigma)
    return profile + frozen - jax.lax.stop_gradient(frozen)


def _mean(config: VAEConfig, params: Any, z: Array) -> Array:
    return likelihood(config).mean(decode(config, params, z))


def _noise(keys: Array, shape: tuple[int, ...]) -> Array:
    """Standard normal noise of `shape` for every key, `[B, *shape]`."""
    return jax.vmap(lambda key: jax.random.normal(key, shape))(keys)


def _encoder(config: VAEConfig) -> Any:
    if config.net == "mlp":
        return coders.MLPEncoder(
            config.hidden, config.latent_dim, config.activation, config.remat
        )
    return coders.ConvEncoder(
        config.width, config.levels, config.blocks, config.latent_dim, config.remat
    )


def _decoder(config: VAEConfig) -> Any:
    if config.shape is None:
        raise ValueError("vae: config.shape is None: call resolve(config, shape, ...)")
    height, width, channels = config.shape
    if config.likelihood != "gaussian":
        channels *= likelihood(config).num_outputs
    if config.net == "mlp":
        hidden = config.hidden[::-1]
        return coders.MLPDecoder(
            hidden, (height, width), channels, config.activation, config.remat
        )
    return coders.ConvDecoder(
        config.width,
        config.levels,
        config.blocks,
        (height, width),
        channels,
        config.remat,
    )
