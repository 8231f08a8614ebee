"""Likelihoods of flows against SciPy; dequantisation against sums over all levels."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

from jaxgen import bijectors, estimators
from jaxgen.losses import flow as losses

KEY = jax.random.key(0)


def keys_of(num, seed=1):
    return jax.random.split(jax.random.key(seed), num)


def test_negative_log_likelihood_is_scipys_under_a_linear_map(x64):
    x = jax.random.normal(KEY, (6, 3))
    flow = bijectors.chain(bijectors.invertible_linear(), bijectors.actnorm())
    params = flow.init(KEY, 3 * x + 1)
    z, log_det = flow.to_latent(params, x)
    # z = x A + b, so x ~ N(-b A^-1, (A A^T)^-1).
    start = flow.to_latent(params, jnp.zeros((1, 3)))[0]
    matrix = flow.to_latent(params, jnp.eye(3))[0] - start
    inverse = np.linalg.inv(matrix)
    truth = stats.multivariate_normal(-(start @ inverse)[0], inverse.T @ inverse)
    got = losses.negative_log_likelihood(z, log_det)
    np.testing.assert_allclose(got, -truth.logpdf(x), rtol=1e-10)
    assert got.shape == (6,)


def test_it_sums_over_every_axis_and_keeps_float32(x64, plain_errors):
    z = jax.random.normal(KEY, (2, 3, 4, 1))
    got = losses.standard_normal_nll(z)
    np.testing.assert_allclose(got, -stats.norm.logpdf(z).sum((1, 2, 3)), rtol=1e-12)
    assert losses.standard_normal_nll(z.astype(jnp.bfloat16)).dtype == jnp.float32
    with pytest.raises(ValueError, match="not over the batch"):
        losses.negative_log_likelihood(z, jnp.zeros(()))
    with pytest.raises(ValueError, match="one value for each z"):
        losses.reverse_kl(z, jnp.zeros(2), jnp.zeros((2, 1)))


def test_reverse_kl_is_the_kl_of_two_gaussians():
    """x = s z + m against N(0, 1): KL = (s^2 + m^2 - 1)/2 - log s."""
    scale, shift, dim = 0.7, 0.4, 2
    z = jax.random.normal(KEY, (100000, dim))
    x = scale * z + shift
    log_det = jnp.full(len(z), dim * math.log(scale))
    terms = np.asarray(losses.reverse_kl(z, log_det, -losses.standard_normal_nll(x)))
    truth = dim * ((scale**2 + shift**2 - 1) / 2 - math.log(scale))
    assert float(terms.mean()) == pytest.approx(
        truth, abs=float(4 * terms.std() / math.sqrt(len(z)))
    )
    # With the target itself there is nothing to pay, for every single draw.
    same = losses.reverse_kl(z, log_det, -losses.standard_normal_nll(z) - log_det)
    np.testing.assert_allclose(same, 0, atol=1e-5)


@pytest.mark.parametrize("num_levels", [2, 32, 256])
def test_a_uniform_density_has_the_bits_of_the_levels_exactly(num_levels):
    levels = jnp.zeros((5, 4, 4, 3), jnp.uint8)
    x = losses.dequantised(levels, keys_of(5), num_levels=num_levels)
    log_density = jnp.zeros(5)  # of the uniform density on [0, 1)
    bound = losses.dequantisation_bound(log_density, num_dims=48, num_levels=num_levels)
    bits = estimators.bits_per_dim(-bound, 48, kind="discrete", num_levels=num_levels)
    np.testing.assert_allclose(bits, math.log2(num_levels), rtol=1e-6)
    bits = estimators.bits_per_dim(
        -log_density, 48, kind="continuous", num_levels=num_levels
    )
    np.testing.assert_allclose(bits, math.log2(num_levels), rtol=1e-6)
    assert x.shape == levels.shape


def test_levels_stay_apart_and_every_example_has_its_own_noise():
    levels = jnp.tile(jnp.arange(256)[None], (8, 1)).astype(jnp.uint8)
    keys = keys_of(8)
    x = np.asarray(losses.dequantised(levels, keys))
    np.testing.assert_array_equal(np.floor(x * 256), levels)
    assert x.max() < 1
    u = 256 * x - np.asarray(levels)
    assert stats.kstest(u.ravel(), "uniform").pvalue > 1e-3
    assert np.unique(u[:, 0]).size == 8
    alone = losses.dequantised(levels[3:4], keys[3:4])
    np.testing.assert_array_equal(alone, x[3:4])


def beta_mixture(x):
    """A density on [0, 1) whose integral over a level is known."""
    return 0.4 * stats.beta(2, 5).pdf(x) + 0.6 * stats.beta(8, 3).pdf(x)


def level_probability(num_levels):
    edges = np.arange(num_levels + 1) / num_levels
    cdf = 0.4 * special.betainc(2, 5, edges) + 0.6 * special.betainc(8, 3, edges)
    return np.diff(cdf)


@pytest.mark.parametrize("is_variational", [False, True])
def test_the_bound_is_below_the_probability_of_the_level_and_rises_with_draws(
    is_variational,
):
    num_levels, num = 8, 1000
    truth = np.log(level_probability(num_levels))
    levels = jnp.tile(jnp.arange(num_levels)[:, None], (1, 1))
    keys = jax.random.split(jax.random.key(1), (num, num_levels))
    draw = functools.partial(losses.dequantised, levels, num_levels=num_levels)
    draws = np.asarray(jax.vmap(draw)(keys))[..., 0]
    log_noise = np.zeros_like(draws)
    if is_variational:  # u of density (1 + 2 u) / 2, drawn by its inverse CDF
        u = num_levels * draws - np.arange(num_levels)
        u = (np.sqrt(1 + 8 * u) - 1) / 2
        log_noise = np.log(0.5 + u)
        draws = (np.arange(num_levels) + u) / num_levels
    log_weights = losses.dequantisation_bound(
        np.log(beta_mixture(draws)), log_noise, num_dims=1, num_levels=num_levels
    )
    log_weights = np.asarray(log_weights)
    error = 4 * np.std(log_weights, 0) / math.sqrt(num) + 1e-6
    means = []
    for k in 1, 5, 50:
        groups = log_weights.reshape(-1, k, num_levels)
        each = jax.vmap(estimators.importance_estimate)(groups).log_likelihood
        means.append(np.asarray(each).mean(0))
        assert np.all(means[-1] < truth + error)
    assert np.all(np.diff(means, axis=0) > -error)
    assert np.sum(means[1] - means[0]) > 0.01
    np.testing.assert_allclose(means[-1], truth, atol=0.04)
    assert np.exp(truth).sum() == pytest.approx(1)


def test_noise_shaped_like_the_density_makes_the_bound_exact():
    """q(u|x) proportional to p(x + u): the bound is log P(x) for every draw."""
    # p(x) = 2 x on [0, 1): in level k of n, u has density (k + u) / (k + 1/2).
    num_levels = 4
    k = jnp.arange(num_levels)
    u = jnp.array([[0.1], [0.5], [0.9]])
    log_p = jnp.log(2 * (k[None] + u) / num_levels)
    log_q = jnp.log((k[None] + u) / (k[None] + 0.5))
    bound = losses.dequantisation_bound(log_p, log_q, num_dims=1, num_levels=num_levels)
    truth = np.log((2 * np.arange(num_levels) + 1) / num_levels**2)
    np.testing.assert_allclose(bound, np.broadcast_to(truth, (3, 4)), rtol=1e-5)


def test_denoising_a_gaussian_is_the_linear_estimate():
    sigma, mean, deviation = 0.5, 1.0, 2.0
    y = jax.random.normal(KEY, (7, 2, 2, 1))
    total = deviation**2 + sigma**2

    def log_density(y):
        z = (y - mean) / math.sqrt(total)
        return -losses.standard_normal_nll(z) - 2 * math.log(total)

    got = losses.denoised(log_density, y, sigma=sigma)
    expected = mean + deviation**2 / total * (y - mean)
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_class_posterior_is_bayes_rule(plain_errors):
    log_likelihoods = jnp.array([[0.0, -800.0], [math.log(3.0), -801.0]])
    got = np.exp(losses.class_log_posterior(log_likelihoods))
    np.testing.assert_allclose(got[:, 0], [0.25, 0.75], rtol=1e-6)
    np.testing.assert_allclose(
        got[:, 1], [special.expit(1), special.expit(-1)], rtol=1e-4
    )
    got = np.exp(
        losses.class_log_posterior(log_likelihoods, jnp.log(jnp.array([0.9, 0.1])))
    )
    np.testing.assert_allclose(got[:, 0], [0.75, 0.25], rtol=1e-5)
    with pytest.raises(ValueError, match="K, B"):
        losses.class_log_posterior(jnp.zeros(3))
