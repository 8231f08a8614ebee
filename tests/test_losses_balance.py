"""Computed sigma and GECO: means over whole batches, and the Lagrangian."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from arrays import normal

from jaxgen import likelihoods
from jaxgen.losses import balance, vae

X, MU = normal(12, 3, 2), normal(12, 3, 2, seed=1)
# Parts of a batch have unlike numbers of examples that count.
MASK = np.array([1, 1, 1, 1, 1, 0, 0, 1, 0, 0, 0, 0], np.float32)


def test_squared_error_sums_over_an_example():
    expected = np.square(X - MU).sum(axis=(1, 2))
    np.testing.assert_allclose(balance.squared_error(X, MU), expected, rtol=1e-6)


def test_moved_is_the_exponential_mean_of_the_batches_errors():
    error, expected = balance.first_error(0.5), 0.25
    assert balance.moved(error).mse == 0.25  # nothing has been seen
    for seed in range(5):
        mu = (1 + seed) * normal(12, 3, 2, seed=seed)
        error = balance.moved(balance.observed(error, X, mu), memory=0.8)
        expected = 0.8 * expected + 0.2 * np.mean(np.square(X - mu))
    np.testing.assert_allclose(error.mse, expected, rtol=1e-5)


@pytest.mark.parametrize("num_parts", [1, 3, 4])
def test_observed_in_parts_is_the_mean_over_all_that_count(num_parts):
    """Averaged over parts, the sums keep the ratio that a mean of means would not."""
    x = np.where(MASK[:, None, None] > 0, X, np.nan)  # padding has no effect
    first = balance.first_error(0.5)
    parts = [
        balance.observed(first, x[i::num_parts], MU[i::num_parts], MASK[i::num_parts])
        for i in range(num_parts)
    ]
    error = jax.tree.map(lambda *leaves: sum(leaves) / num_parts, *parts)
    expected = np.mean(np.square(X - MU)[MASK > 0])
    np.testing.assert_allclose(error.last, expected, rtol=1e-6)
    np.testing.assert_allclose(error.mse, 0.25)
    moved = balance.moved(error).mse
    np.testing.assert_allclose(moved, 0.99 * 0.25 + 0.01 * expected, rtol=1e-6)


def test_nothing_is_differentiated_and_all_padding_moves_nothing():
    slope = jax.grad(lambda mu: balance.observed(balance.first_error(1.0), X, mu).total)
    assert not np.any(slope(jnp.asarray(MU)))
    error = balance.observed(balance.first_error(0.5), X, MU, 0 * MASK)
    assert balance.moved(error).mse == 0.25


def test_geco_at_half_the_precision_is_the_elbo_but_for_a_constant(x64):
    """lambda = 1 / (2 sigma^2): the same gradients as the Gaussian's negative ELBO."""
    x, mu, kl = jnp.asarray(X, float), jnp.asarray(MU, float), jnp.ones(12)
    sigma = 0.3

    def lagrangian(mu, kl):
        squares = balance.squared_error(x, mu)
        weight = 0.5 / sigma**2
        return balance.geco(squares, kl, multiplier=weight, tolerance=0.2, num_values=6)

    def elbo(mu, kl):
        log_prob = likelihoods.gaussian_log_prob(x, mu, np.log(sigma))
        return vae.negative_elbo(log_prob, kl)

    constant = lagrangian(mu, kl) - elbo(mu, kl)
    np.testing.assert_allclose(constant, constant[0], rtol=1e-10)
    expected = -6 * 0.2**2 * 0.5 / sigma**2 - 3 * np.log(2 * np.pi * sigma**2)
    np.testing.assert_allclose(constant, expected, rtol=1e-10)
    for number in (0, 1):
        slopes = [
            jax.grad(lambda *a, f=f: f(*a).sum(), number)(mu, kl)
            for f in (lagrangian, elbo)
        ]
        np.testing.assert_allclose(*slopes, rtol=1e-10)
    step = 1e-6 * jnp.ones_like(mu)
    ends = [float(lagrangian(mu + s * step, kl).sum()) for s in (1, -1)]
    slope = jax.grad(lambda mu: lagrangian(mu, kl).sum())(mu)
    np.testing.assert_allclose(slope.sum(), (ends[0] - ends[1]) / 2e-6, rtol=1e-6)


def test_geco_multiplier_rises_above_the_tolerance_and_falls_below():
    follow = lambda mse, **o: float(
        balance.geco_multiplier(2.0, mse, tolerance=0.5, rate=0.1, **o)
    )
    assert follow(0.25) == 2.0
    np.testing.assert_allclose(follow(0.375), 2 * np.exp(0.05), rtol=1e-6)
    np.testing.assert_allclose(follow(0.125), 2 * np.exp(-0.05), rtol=1e-6)
    np.testing.assert_allclose(follow(1e9), 2 * np.exp(0.1), rtol=1e-6)  # cut off
    low, high = balance.MULTIPLIERS
    for start, mse, end in ((low, 0.0, low), (high, 9.0, high)):
        got = balance.geco_multiplier(start, mse, tolerance=0.5)
        np.testing.assert_allclose(got, end, rtol=1e-6)


def test_nothing_pulls_at_the_multiplier():
    loss = lambda m: balance.geco(
        jnp.ones(3), jnp.ones(3), multiplier=m, tolerance=0.1, num_values=2
    ).sum()
    assert jax.grad(loss)(2.0) == 0


@pytest.mark.usefixtures("plain_errors")
def test_balance_says_what_does_not_fit():
    ones = jnp.ones(3)
    with pytest.raises(ValueError, match="sigma must be positive, got 0"):
        balance.first_error(0)
    with pytest.raises(ValueError, match=r"memory must be in \[0, 1\), got 1"):
        balance.moved(balance.first_error(1.0), memory=1)
    with pytest.raises(ValueError, match="x and mu must have the same shape"):
        balance.squared_error(jnp.ones((3, 2)), ones)
    with pytest.raises(ValueError, match="squared_error and kl must have the same"):
        balance.geco(ones, jnp.ones(2), multiplier=1.0, tolerance=0.1, num_values=2)
    with pytest.raises(ValueError, match="tolerance must be positive"):
        balance.geco(ones, ones, multiplier=1.0, tolerance=0.0, num_values=2)
    with pytest.raises(ValueError, match="rate must be positive"):
        balance.geco_multiplier(1.0, 1.0, tolerance=1.0, rate=-1.0)
