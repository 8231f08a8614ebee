"""The networks of a VAE, the space they work in, and its prior.

Inside, data are `[B, H, W, C]`: images as they come in [0, 1], rows of a table brought to
the whole line, as images of one pixel. The parameters are `{"encoder", "decoder",
"centre"}`, with `"log_sigma"` of a Gaussian and `"pseudo"` of a VampPrior.

On a task z given c is N(mu(c), diag sigma(c)^2), of a third network, `"prior"` (Sohn et al.
2015, NeurIPS 28). What is called z elsewhere is then (z - mu(c)) / sigma(c), of which Q is a
density and N(0, I) the prior: KL and weights are the same. `given` puts c beside the
parameters: a VAE that is told c is one with other networks.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxgen import bijectors, columns, likelihoods, losses, mixtures
from jaxgen.models.base import Batch
from jaxgen.models.vae_config import VAEConfig
from jaxgen.nets import coders
from jaxgen.nets.conditioning import beside

GIVEN = "given"  # beside the parameters
SPREAD = 2**31 - 1  # what an example's key is folded with for its rounded values


def to_inside(config: VAEConfig, x: Array, keys: Array) -> tuple[Array, Array]:
    """Data as a batch has them, inside, and the log-determinant of the way, `[B]`."""
    if config.columns is None:
        return x, bijectors.no_change(jnp.asarray(x))
    own = jax.vmap(jax.random.fold_in, (0, None))(keys, SPREAD)  # not those of z
    x, log_det = columns.to_line(config.columns).to_latent(
        (), columns.spread(config.columns, x, own)
    )
    return x[:, None, None], log_det


def to_data(config: VAEConfig, x: Array) -> Array:
    """The inverse of `to_inside`."""
    if config.columns is None:
        return x
    rows, _ = columns.to_line(config.columns).to_data((), x[:, 0, 0])
    return columns.rounded(config.columns, rows)


def given(config: VAEConfig, params: Any, condition: Array | None) -> Any:
    """The parameters, with a condition `[B, H, W, K]` in [0, 1] beside them on a task."""
    if not config.num_planes:
        return params
    if condition is None:
        raise ValueError("vae: a model of answers needs the condition, [B, H, W, K]")
    return {**params, GIVEN: 2 * condition - 1}


def encode(config: VAEConfig, params: Any, x: Array) -> tuple[Array, Array]:
    """Mean and log variance of Q(z given x), each `[B, L]`; `x [B, H, W, C]` inside."""
    centre = jax.lax.stop_gradient(params["centre"])  # the mean image: not trained
    x = beside(x - centre[None], params.get(GIVEN), config.num_planes)
    return coders.applied(
        _encoder(config), params["encoder"], x, compute=config.compute
    )


def decode(config: VAEConfig, params: Any, z: Array) -> Array:
    """Parameters of p(x given z), `[B, H, W, C * num_outputs]`, for `likelihood(config)`.

    Where a condition is given, z may have K rows for each of its own, the K outermost.
    """
    told = []
    if config.num_planes:
        planes = params[GIVEN]
        mu, log_var = coders.applied(
            _encoder(config), params["prior"], planes, compute=config.compute
        )
        times = len(z) // len(planes)
        z = jnp.tile(mu, (times, 1)) + jnp.tile(jnp.exp(log_var / 2), (times, 1)) * z
        told = [jnp.tile(planes, (times, 1, 1, 1))]
    outputs = coders.applied(
        _decoder(config), params["decoder"], z, *told, compute=config.compute
    )
    if config.likelihood != "gaussian":
        return outputs
    return likelihoods.gaussian_outputs(outputs, params["log_sigma"])


def likelihood(config: VAEConfig) -> likelihoods.Likelihood:
    """The distribution whose parameters `decode` gives."""
    if config.likelihood == "logistic_mixture":
        return likelihoods.logistic_mixture(num_components=config.mixture)
    return likelihoods.LIKELIHOODS[str(config.likelihood)]()


def log_prob(
    config: VAEConfig,
    params: Any,
    x: Array,
    outputs: Array,
    log_sigma: Array | None = None,
) -> Array:
    """Log p(x given z), `[B]` nats, of the stored sigma or of that of the training."""
    if config.likelihood != "gaussian":
        return likelihood(config).log_prob(x, outputs)
    mu, stored = likelihood(config).mean(outputs), params["log_sigma"]
    if log_sigma is not None:
        return _followed_log_prob(x, mu, stored, log_sigma)
    if config.sigma == "fixed":
        stored = jax.lax.stop_gradient(stored)
    return likelihoods.gaussian_log_prob(x, mu, stored)


def _followed_log_prob(x: Array, mu: Array, stored: Array, log_sigma: Array) -> Array:
    """The Gaussian's value and gradient at a sigma that is found, not trained."""
    log_prob = likelihoods.gaussian_log_prob(x, mu, log_sigma)
    return log_prob + stored_term(x, mu, stored)


def stored_term(x: Array, mu: Array, stored: Array) -> Array:
    """Zeros that train the stored log sigma, which evaluation uses.

    It follows the same likelihood with the means frozen.
    """
    frozen = likelihoods.gaussian_log_prob(x, jax.lax.stop_gradient(mu), stored)
    return frozen - jax.lax.stop_gradient(frozen)


def mean(config: VAEConfig, params: Any, z: Array) -> Array:
    """The mean of p(x given z), inside."""
    return likelihood(config).mean(decode(config, params, z))


def prior(config: VAEConfig, params: Any, keys: Array) -> Array:
    """Draws of P(z), `[B, L]`, one for each key."""
    if config.prior == "normal":
        return noise(keys, (config.latent_dim,))
    mu, log_var = _pseudo_posteriors(config, params)
    which, keys = jax.vmap(jax.random.split, out_axes=1)(keys)
    k = jax.vmap(lambda key: jax.random.randint(key, (), 0, config.num_pseudo))(which)
    return losses.vae.reparameterised(mu[k], log_var[k], noise(keys, mu.shape[1:]))


def log_prior(config: VAEConfig, params: Any, z: Array) -> Array:
    """Log P(z) in nats, `[..., L] -> [...]`.

    `jaxgen.annealing` starts from N(0, I): give it log p(x given z) + log_prior(z) - log
    N(z; 0, I) in place of log p(x given z), and it is right for a VampPrior too.
    """
    flat = z.reshape(-1, z.shape[-1])
    if config.prior == "normal":
        zeros = jnp.zeros_like(flat)
        return losses.vae.normal_log_prob(flat, zeros, zeros).reshape(z.shape[:-1])
    density = mixtures.diagonal_log_prob(flat, *_pseudo_posteriors(config, params))
    return density.reshape(z.shape[:-1])


def noise(keys: Array, shape: tuple[int, ...]) -> Array:
    """Standard normal noise of `shape` for every key, `[B, *shape]`."""
    return jax.vmap(lambda key: jax.random.normal(key, shape))(keys)


def init(config: VAEConfig, key: Array, batch: Batch) -> Any:
    """Parameters; both networks start from the mean image, as Burda et al. 2015 do."""
    keys = jax.vmap(jax.random.key)(jnp.zeros(len(batch["x"]), jnp.uint32))
    x, _ = to_inside(config, batch["x"], keys)
    mean = jnp.mean(x, axis=0)
    encoder_key, decoder_key = jax.random.split(key)
    z, seen = jnp.zeros((1, config.latent_dim)), beside(x[:1], None, config.num_planes)
    planes = seen[..., x.shape[-1] :]
    told = [planes] if config.num_planes else []
    params = {
        "encoder": _encoder(config).init(encoder_key, seen)["params"],
        "decoder": _decoder(config).init(decoder_key, z, *told)["params"],
        "centre": mean,
    }
    if config.num_planes:
        own = jax.random.fold_in(key, 1)
        params["prior"] = _encoder(config).init(own, planes)["params"]
    if config.prior == "vamp":
        params["pseudo"] = jnp.resize(x, (config.num_pseudo, *x.shape[1:]))
    if config.likelihood == "gaussian":
        params["log_sigma"] = jnp.log(jnp.float32(config.sigma_value or 1.0))
    if config.likelihood == "bernoulli" and config.net == "mlp":
        mean = jnp.clip(mean, 0.001, 0.999)
        params["decoder"]["output"]["bias"] = jnp.log(mean / (1.0 - mean)).reshape(-1)
    return params


def _pseudo_posteriors(config: VAEConfig, params: Any) -> tuple[Array, Array]:
    """The Gaussians whose mean is a VampPrior, `[num_pseudo, L]` each."""
    return encode(config, params, params["pseudo"])


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
    height, width, channels = (1, 1, *config.shape)[-3:]
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
