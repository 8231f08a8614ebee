"""Mixtures of Gaussians beside SciPy and scikit-learn."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats
from sklearn import exceptions
from sklearn import mixture as sklearn_mixture

from jaxgen import mixtures
from jaxgen.models.base import indexed_keys

KEY = jax.random.key(0)


def three(num=600, seed=0):
    """Points of three Gaussians in two dimensions, of unlike weights and covariances."""
    rng = np.random.default_rng(seed)
    centres = np.array([[0.0, 0.0], [4.0, 1.0], [-2.0, 5.0]])
    factors = np.array([[[1, 0], [0.5, 0.3]], [[0.3, 0], [0, 1]], [[0.7, 0], [-1, 1]]])
    which = rng.choice(3, num, p=[0.5, 0.3, 0.2])
    return centres[which] + np.einsum(
        "nij,nj->ni", factors[which], rng.normal(size=(num, 2))
    )


def by_scipy(mixture, z):
    parts = [
        np.asarray(w) + stats.multivariate_normal(m, f @ f.T).logpdf(z)
        for w, m, f in zip(*map(np.asarray, mixture), strict=True)
    ]
    return special.logsumexp(parts, axis=0)


def test_diagonal_log_prob_is_the_direct_mixture(x64):
    rng = np.random.default_rng(0)
    z, mu, log_var = (rng.normal(size=s) for s in ((50, 3), (7, 3), (7, 3)))
    parts = [
        stats.norm(m, np.exp(0.5 * v)).logpdf(z).sum(axis=1)
        for m, v in zip(mu, log_var, strict=True)
    ]
    expected = special.logsumexp(parts, axis=0) - np.log(7)
    got = mixtures.diagonal_log_prob(z, mu, log_var)
    np.testing.assert_allclose(got, expected, rtol=1e-12)
    far = mixtures.diagonal_log_prob(1e4 + z, mu, log_var)
    assert np.all(np.isfinite(far))
    slope = jax.grad(lambda mu: mixtures.diagonal_log_prob(z, mu, log_var).sum())(mu)
    step = 1e-6 * rng.normal(size=mu.shape)
    ends = [mixtures.diagonal_log_prob(z, mu + s * step, log_var) for s in (1, -1)]
    difference = float(jnp.sum(ends[0] - ends[1])) / 2
    np.testing.assert_allclose(jnp.sum(slope * step), difference, rtol=1e-6)


def test_log_prob_is_that_of_scipy(x64):
    z = three(40)
    mixture = mixtures.started(z, KEY, num_components=3)
    np.testing.assert_allclose(
        mixtures.log_prob(mixture, z), by_scipy(mixture, z), rtol=1e-10
    )
    assert abs(np.exp(mixture.log_weights).sum() - 1) < 1e-12


def test_gaussian_has_the_moments_of_the_points():
    z = three().astype(np.float32)
    one = mixtures.gaussian(z)
    np.testing.assert_allclose(one.means[0], z.mean(axis=0), rtol=1e-5)
    covariance = one.factors[0] @ one.factors[0].T
    np.testing.assert_allclose(covariance, np.cov(z.T, bias=True), rtol=1e-4)
    flat = mixtures.gaussian(np.ones((5, 2)))  # no variance at all
    np.testing.assert_allclose(flat.factors[0], 1e-3 * np.eye(2), atol=1e-6)


@pytest.mark.parametrize("num_steps", [1, 12])
def test_improved_takes_the_steps_of_scikit_learn(num_steps, x64):
    z = three()
    first = mixture = mixtures.started(z, KEY, num_components=4)
    gained = []
    for _ in range(num_steps):
        mixture, log_prob = jax.jit(mixtures.improved)(mixture, z)
        gained.append(float(log_prob))
    assert np.all(np.diff(gained) >= -1e-9)
    covariances = np.einsum("kij,klj->kil", first.factors, first.factors)
    peer = sklearn_mixture.GaussianMixture(
        4,
        tol=0,
        max_iter=num_steps,
        weights_init=np.exp(first.log_weights),
        means_init=np.asarray(first.means),
        precisions_init=np.linalg.inv(covariances),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", exceptions.ConvergenceWarning)
        peer.fit(z)
    np.testing.assert_allclose(np.exp(mixture.log_weights), peer.weights_, rtol=1e-8)
    np.testing.assert_allclose(mixture.means, peer.means_, rtol=1e-8)
    covariances = np.einsum("kij,klj->kil", mixture.factors, mixture.factors)
    np.testing.assert_allclose(covariances, peer.covariances_, rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(
        mixtures.log_prob(mixture, z), peer.score_samples(z), rtol=1e-8
    )


def test_fit_is_as_good_as_scikit_learn_and_finds_the_components():
    z = three().astype(np.float32)
    fitted = jax.jit(lambda z, key: mixtures.fit(z, key, num_components=3))(z, KEY)
    peer = sklearn_mixture.GaussianMixture(3, n_init=5, random_state=0).fit(z)
    assert float(fitted.log_prob) > peer.score(z) - 0.01
    assert 2 <= int(fitted.num_steps) < 200
    order = np.argsort(fitted.mixture.log_weights)
    np.testing.assert_allclose(
        np.exp(fitted.mixture.log_weights[order]), [0.2, 0.3, 0.5], atol=0.05
    )
    np.testing.assert_allclose(
        fitted.mixture.means[order], [[-2, 5], [4, 1], [0, 0]], atol=0.3
    )


def test_sample_has_the_moments_and_each_draw_its_own_key():
    z = three().astype(np.float32)
    fitted = mixtures.fit(z, KEY, num_components=3).mixture
    keys = indexed_keys(jax.random.key(1), jnp.arange(20_000))
    drawn = np.asarray(jax.jit(mixtures.sample)(fitted, keys))
    np.testing.assert_allclose(drawn.mean(axis=0), z.mean(axis=0), atol=0.06)
    np.testing.assert_allclose(np.cov(drawn.T), np.cov(z.T), rtol=0.05, atol=0.08)
    np.testing.assert_array_equal(mixtures.sample(fitted, keys[7:9]), drawn[7:9])


def test_started_puts_every_component_somewhere():
    z = np.concatenate([np.zeros((90, 2)), [[9, 9]], [[-9, 9]]]).astype(np.float32)
    z = z + 0.01 * np.random.default_rng(0).normal(size=z.shape).astype(np.float32)
    mixture = mixtures.started(z, KEY, num_components=3)
    counts = np.sort(np.exp(mixture.log_weights)) * len(z)
    np.testing.assert_allclose(counts, [1, 1, 90], rtol=1e-3)


@pytest.mark.usefixtures("plain_errors")
def test_mixtures_say_what_does_not_fit():
    z = jnp.ones((5, 2))
    with pytest.raises(ValueError, match=r"must be in 1 .. 5, the number of points"):
        mixtures.fit(z, KEY, num_components=6)
    with pytest.raises(ValueError, match=r"z must be \[N, D\], got shape \(5,\)"):
        mixtures.gaussian(z[:, 0])
    with pytest.raises(ValueError, match=r"with D = 3, that of the components"):
        mixtures.diagonal_log_prob(z, jnp.ones((4, 3)), jnp.ones((4, 3)))
    with pytest.raises(ValueError, match=r"with D = 2"):
        mixtures.log_prob(mixtures.gaussian(z), jnp.ones((5, 3)))
