"""Oracles of the VAE: a model whose marginal is known, quadrature, and sums to one."""

import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen import annealing, estimators, likelihoods
from jaxgen.losses import vae
from jaxgen.verify import linear_gaussian
from jaxgen.verify.records import Records, at_least, at_most, compiled, equal

NUM, DRAWS = 2000, 50
X = np.array([0.9, -0.4, 1.5, -1.1])
LOG_P = float(linear_gaussian.exact_log_prob(X))
POSTERIOR = linear_gaussian.posterior_mean(X), -np.log(linear_gaussian.PRECISION)
OTHER = POSTERIOR[0] + np.array([0.3, -0.4]), POSTERIOR[1] + 0.4
# KL(OTHER || POSTERIOR), by hand.
GAP = 0.5 * np.sum(
    np.exp(0.4) - 1 - 0.4 + np.array([0.09, 0.16]) * linear_gaussian.PRECISION
)
MU = np.array([[0.0, 0.5, -2.0], [1e-3, 3.0, -0.7]])
LOG_VAR = np.array([[0.0, -4.0, 1.5], [1e-3, 0.3, -1.0]])
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(24)
WEIGHTS = WEIGHTS / WEIGHTS.sum()


def _bounds(q: tuple, *, doubly: bool = False) -> tuple[np.ndarray, ...]:
    """ELBO and bounds of 1, 5 and 50 draws of NUM examples, and a slope in mu."""
    eps = np.random.default_rng(0).normal(size=(DRAWS, NUM, 2))

    def weights(z: jax.Array, mu: jax.Array, log_var: jax.Array) -> jax.Array:
        log_prior = vae.normal_log_prob(z, 0 * z, 0 * z)
        log_q = vae.normal_log_prob(z, mu, log_var)
        return log_prior + linear_gaussian.log_likelihood(z, X) - log_q

    def all_of(mu: jax.Array, log_var: jax.Array) -> tuple:
        z = jax.vmap(vae.reparameterised, (None, None, 0))(mu, log_var, eps)
        log_likelihood = linear_gaussian.log_likelihood(z[0], X)
        kl = vae.kl_standard_normal(mu, log_var)
        elbo = -vae.negative_elbo(log_likelihood, kl)
        each = jax.vmap(weights, (0, None, None))(z, mu, log_var)
        return elbo, *(vae.iwae(each[:num]) for num in (1, 5, DRAWS))

    def slope_of(mu: jax.Array, log_var: jax.Array) -> jax.Array:
        z = jax.vmap(vae.reparameterised, (None, None, 0))(mu, log_var, eps[:5])
        fixed = jax.lax.stop_gradient((mu, log_var))
        each = jax.vmap(weights, (0, None, None))
        return vae.dreg_iwae(lambda z: each(z, *fixed), z).sum()

    outputs = tuple(jnp.tile(jnp.asarray(part)[None], (NUM, 1)) for part in q)
    if doubly:
        value, slope = compiled(jax.value_and_grad(slope_of))(*outputs)
        return np.asarray(value) / NUM, np.asarray(slope)
    return tuple(np.asarray(b) for b in compiled(all_of)(*outputs))


def exact_posterior() -> Records:
    """With the posterior for q every bound is log p(x), draw by draw."""
    _, *bounds = _bounds(POSTERIOR)
    value, slope = _bounds(POSTERIOR, doubly=True)
    return (
        *(
            equal(f"IWAE-{num} with the exact posterior is log p(x)", b, LOG_P, 1e-9)
            for num, b in zip((1, 5, DRAWS), bounds, strict=True)
        ),
        equal("DReG's bound with the exact posterior is log p(x)", value, LOG_P, 1e-9),
        equal("DReG's gradient is zero there", slope, 0, 1e-9),
    )


def other_posterior() -> Records:
    """With another q the bounds lie below log p(x), in order, the ELBO by the KL."""
    elbo, one, five, many = _bounds(OTHER)

    def error(values: np.ndarray) -> float:
        return 4 * float(values.std()) / math.sqrt(NUM)

    truth = LOG_P - GAP
    return (
        equal("ELBO is log p(x) less the KL", elbo.mean(), truth, error(elbo)),
        equal("IWAE-1 has the ELBO for its mean", one.mean(), truth, error(one)),
        at_most("ELBO is below IWAE-5", one.mean() - five.mean(), 0),
        at_most("IWAE-5 is below IWAE-50", five.mean() - many.mean(), 0),
        at_most("IWAE-50 is below log p(x)", many.mean(), LOG_P, error(many)),
    )


def divergences() -> Records:
    """KLs by Gauss-Hermite quadrature, which is exact for Gaussians."""
    mu_p, log_var_p = 0.5 * MU[:, ::-1] + 0.3, LOG_VAR[:, ::-1]
    z = MU[..., None] + np.exp(0.5 * LOG_VAR)[..., None] * NODES
    log_q = -0.5 * (NODES**2 + LOG_VAR[..., None])

    def truth(mu: np.ndarray, log_var: np.ndarray) -> np.ndarray:
        squares = (z - mu[..., None]) ** 2 * np.exp(-log_var)[..., None]
        return (log_q + 0.5 * (squares + log_var[..., None])) @ WEIGHTS

    standard = truth(0 * MU, 0 * MU)
    per_dim = vae.kl_standard_normal_per_dim(MU, LOG_VAR)
    mu, log_var = (np.repeat(a[..., None], len(NODES), -1) for a in (MU, LOG_VAR))
    draws = vae.reparameterised(mu, log_var, np.broadcast_to(NODES, z.shape))
    mean = np.asarray(draws) @ WEIGHTS
    variance = (np.asarray(draws) - mean[..., None]) ** 2 @ WEIGHTS
    kl, both = vae.kl_standard_normal(MU, LOG_VAR), truth(mu_p, log_var_p).sum(1)
    return (
        equal("KL to N(0, I), per coordinate", per_dim, standard, 1e-9),
        equal("KL to N(0, I), nats", kl, standard.sum(1), 1e-9),
        equal(
            "KL of two Gaussians, nats",
            vae.kl_normal(MU, LOG_VAR, mu_p, log_var_p),
            both,
            1e-9 * (1 + both),
        ),
        equal("mean of a reparameterised draw", mean, MU, 1e-9),
        equal("variance of a reparameterised draw", variance, np.exp(LOG_VAR), 1e-9),
    )


def probabilities() -> Records:
    """Likelihoods of discrete data sum to one, densities integrate to one."""
    rng = np.random.default_rng(1)
    bits = np.array(list(itertools.product([0.0, 1.0], repeat=3)))
    logits = np.broadcast_to([-3.0, 0.2, 7.0], bits.shape)
    total = np.exp(likelihoods.bernoulli_log_prob(bits, logits)).sum()
    far = likelihoods.bernoulli_log_prob(np.array([[0.0, 1.0]]), np.array([[1e4, 1e4]]))

    parameters = rng.normal(size=(8, 1, 1, 3 * 4)) * 2 - np.repeat([0, 0, 2.0], 4)
    outputs = np.broadcast_to(parameters, (8, 256, 1, 12)).reshape(2048, 12)
    levels = np.arange(256) / 255
    mixture = likelihoods.split_logistic_mixture(outputs, num_components=4)
    logs = likelihoods.logistic_mixture_log_prob(np.tile(levels, 8)[:, None], mixture)
    shares = np.exp(np.asarray(logs)).reshape(8, 256)
    means = np.asarray(likelihoods.logistic_mixture_mean(mixture)).reshape(8, 256)

    line = np.linspace(-30, 30, 6001)[:, None]
    gaussian = likelihoods.gaussian_log_prob(line, np.full_like(line, 0.7), 0.8)
    normal = vae.normal_log_prob(line, 0 * line - 0.4, 0 * line + 1.1)
    return (
        equal("Bernoulli: sum of all probabilities", total, 1, 1e-12),
        equal("Bernoulli: log probability at a logit of 1e4", far, -1e4, 1e-6),
        equal("logistic mixture: sum over 256 levels", shares.sum(1), 1, 1e-9),
        equal(
            "logistic mixture: mean, by half a level",
            means[:, 0],
            shares @ levels,
            0.5 / 255,
        ),
        equal("Gaussian likelihood: integral", 0.01 * np.exp(gaussian).sum(), 1, 1e-9),
        equal("normal density: integral", 0.01 * np.exp(normal).sum(), 1, 1e-9),
    )


def scales() -> Records:
    """The best sigma is where the likelihood has no slope; units of bits."""
    x, mu = np.random.default_rng(2).normal(size=(2, 20, 3))
    slope = jax.grad(lambda s: likelihoods.gaussian_log_prob(x, mu, s).sum())
    best = likelihoods.optimal_log_sigma(x, mu)
    uniform = np.array([64 * math.log(256), 0.0])
    bits = (
        estimators.bits_per_dim(uniform[0], 64, kind="discrete"),
        estimators.bits_per_dim(uniform[1], 64, kind="continuous"),
    )
    return (
        equal("slope of the likelihood at the optimal sigma", slope(best), 0, 1e-9),
        equal("bits/dim of uniform levels", bits[0], 8, 1e-12),
        equal("bits/dim of the uniform density", bits[1], 8, 1e-12),
    )


def importance() -> Records:
    """Estimates of importance weights, whole and in chunks."""
    weights = np.random.default_rng(3).normal(size=(7, 5)) - 300
    whole = estimators.importance_estimate(weights)
    sums = estimators.empty_sums(5)
    for part in (weights[:2], weights[2:]):
        sums = estimators.add(sums, part)
    chunked = estimators.finish(sums)
    truth = np.log(np.mean(np.exp(weights), axis=0))
    w = np.exp(weights + 300)
    return (
        equal("importance sampling: log mean weight", whole[0], truth, 1e-9),
        equal("in two chunks as in one", np.stack(chunked), np.stack(whole), 1e-9),
        equal("effective sample size", whole.ess, w.sum(0) ** 2 / (w**2).sum(0), 1e-9),
        equal(
            "standard error of the log mean weight",
            whole.standard_error,
            w.std(0, ddof=1) / math.sqrt(7) / w.mean(0),
            1e-9,
        ),
    )


def annealed() -> Records:
    """Annealed importance sampling from below, and backwards from above."""
    num, chains = 200, 4
    rng = np.random.default_rng(4)
    z = rng.normal(size=(num, 2))
    noise = linear_gaussian.SIGMA * rng.normal(size=(num, 4))
    x = z @ linear_gaussian.W.T + linear_gaussian.BIAS + noise
    truth = linear_gaussian.exact_log_prob(x)

    def run(keys: jax.Array, x: jax.Array, z: jax.Array) -> tuple:
        def log_prob(z: jax.Array) -> jax.Array:
            return linear_gaussian.log_likelihood(z, x)

        knobs: dict[str, Any] = {"num_temperatures": 150, "num_leapfrog": 4}
        lower = annealing.annealed_importance(
            log_prob, keys, latent_shape=(2,), num_chains=chains, **knobs
        )
        exact = jnp.broadcast_to(z, (chains, *z.shape))
        upper = annealing.reverse_annealed_importance(log_prob, keys, exact, **knobs)
        return lower.log_likelihood, upper.log_likelihood

    keys = jax.random.split(jax.random.key(0), num)
    lower, upper = (np.asarray(v) - truth for v in compiled(run)(keys, x, z))
    error = [4 * v.std() / math.sqrt(num) for v in (lower, upper)]
    return (
        at_most("AIS is below log p(x)", lower.mean(), 0, error[0]),
        at_least("reverse AIS is above log p(x)", upper.mean(), 0, error[1]),
        equal("gap between the two, nats", upper.mean() - lower.mean(), 0, 0.1),
    )


ORACLES = (
    exact_posterior,
    other_posterior,
    divergences,
    probabilities,
    scales,
    importance,
    annealed,
)
