"""The logistic mixture against SciPy, sums over all levels, and its own samples."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from arrays import LEVELS

from jaxgen import estimators, likelihoods

KEY = jax.random.key(0)


def one_pixel(logit_weights, means, log_scales, num=256):
    """The same mixture for `num` images of one pixel."""
    fields = (jnp.float32(a) for a in (logit_weights, means, log_scales))
    return likelihoods.LogisticMixture(
        *(jnp.tile(a[None, None, None, None], (num, 1, 1, 1, 1)) for a in fields)
    )


mixture_log_prob = jax.jit(likelihoods.logistic_mixture_log_prob)
mixture_mean = jax.jit(likelihoods.logistic_mixture_mean)
mixture_slope = jax.jit(
    jax.grad(lambda m, x: likelihoods.logistic_mixture_log_prob(x, m).sum())
)

MIXTURES = {
    "moderate": ([0.3, -0.4, 1.0], [0.2, 0.5, 0.9], [-3.0, -1.0, -4.0]),
    "narrow": ([0.0, 0.0, 1.0], [0.5, 100.3 / 255, 1.0], [-8.0, -100.0, -9.0]),
    "broad": ([0.0, 5.0, 0.0], [0.5, -3.0, 0.1], [10.0, 3.0, 0.0]),
    "far": ([0.0, 0.0, 9.0], [1e4, -1e4, 0.0], [-8.0, -100.0, -6.0]),
    "between levels": ([0.0] * 3, [100.5 / 255] * 3, [-7.0] * 3),
    "lopsided": ([1e4, -1e4, 0.0], [0.1, 0.9, 0.5], [-2.0, -2.0, -5.0]),
}


@pytest.mark.parametrize("name", sorted(MIXTURES))
def test_logistic_mixture_log_prob_sums_to_one_over_the_levels(name):
    mixture, x = one_pixel(*MIXTURES[name]), LEVELS.reshape(256, 1, 1, 1)
    each = mixture_log_prob(x, mixture)
    chex.assert_tree_all_finite((each, mixture_slope(mixture, x)))
    assert abs(np.exp(np.float64(each)).sum() - 1) < 1e-5
    assert (each <= 1e-6).all()


def test_logistic_mixture_log_prob_equals_scipy():
    weights, means, log_scales = (np.array(a) for a in MIXTURES["moderate"])
    cdf = scipy.stats.logistic(means, np.exp(log_scales)).cdf
    edges = (np.arange(257) - 0.5)[:, None] / 255
    edges[0], edges[-1] = -np.inf, np.inf
    shares = np.exp(weights) / np.exp(weights).sum()
    expected = np.log(np.diff(cdf(edges), axis=0) @ shares)
    got = mixture_log_prob(
        LEVELS.reshape(256, 1, 1, 1), one_pixel(*MIXTURES["moderate"])
    )
    np.testing.assert_allclose(got, expected, rtol=2e-5)


def test_logistic_mixture_log_prob_is_right_far_in_the_tail():
    # 0.98 from the mean of a logistic of scale e^-7: by differences of the CDF, log 0.
    x = jnp.full((1, 1), 250 / 255)
    mixture = likelihoods.LogisticMixture(
        *(jnp.full((1, 1, 1), a) for a in (0.0, 0.0, -7.0))
    )
    scale = np.exp(-7.0)
    expected = -249.5 / 255 / scale + np.log(-np.expm1(-1 / 255 / scale))
    got = mixture_log_prob(x, mixture)
    np.testing.assert_allclose(got, [expected], rtol=1e-5)


def test_logistic_mixture_log_prob_rounds_to_the_nearest_level():
    mixture = one_pixel(*MIXTURES["moderate"])
    x = LEVELS.reshape(256, 1, 1, 1)
    np.testing.assert_allclose(
        mixture_log_prob(x + 0.001, mixture),
        mixture_log_prob(x, mixture),
        rtol=1e-6,
    )


def test_logistic_mixture_can_be_uniform_and_is_then_eight_bits():
    uniform = one_pixel(np.zeros(256), np.arange(256) / 255, np.full(256, -8.0))
    each = mixture_log_prob(LEVELS.reshape(256, 1, 1, 1), uniform)
    bits = estimators.bits_per_dim(-each, 1, kind="discrete")
    np.testing.assert_allclose(bits, np.full(256, 8.0), atol=1e-4)
    # And what a decoder gives before training is not far from it.
    likelihood = likelihoods.logistic_mixture()
    each = likelihood.log_prob(LEVELS.reshape(256, 1), jnp.zeros((256, 15)))
    assert abs(np.mean(estimators.bits_per_dim(-each, 1, kind="discrete")) - 8) < 1.5


@pytest.mark.parametrize("name", sorted(MIXTURES))
def test_logistic_mixture_mean_is_near_the_mean_of_the_levels(name):
    mixture, x = one_pixel(*MIXTURES[name]), LEVELS.reshape(256, 1, 1, 1)
    each = np.exp(np.float64(mixture_log_prob(x, mixture)))
    got = np.ravel(mixture_mean(mixture))[0]
    tolerance = 0.5 if min(MIXTURES[name][2]) < -5.54 else 0.05
    assert abs(got - each @ LEVELS) * 255 < tolerance + 1e-3


def test_logistic_mixture_sample_has_the_probabilities_of_log_prob():
    num, mixture = 60_000, MIXTURES["moderate"]
    draws = np.ravel(
        likelihoods.logistic_mixture_sample(KEY, one_pixel(*mixture, num=num))
    )
    counts = np.bincount(np.round(draws * 255).astype(int), minlength=256)
    np.testing.assert_allclose(draws * 255, np.round(draws * 255), atol=1e-3)
    expected = num * np.exp(
        np.float64(mixture_log_prob(LEVELS.reshape(256, 1, 1, 1), one_pixel(*mixture)))
    )
    # Chi-square over the 256 levels, both edges included.
    assert expected.min() > 5
    assert scipy.stats.chisquare(counts, expected / expected.sum() * num).pvalue > 1e-3
    for edge in (0, 255):
        assert abs(counts[edge] - expected[edge]) < 4 * np.sqrt(expected[edge])


def test_split_logistic_mixture_gives_weights_means_and_scales_of_each_channel():
    outputs = jnp.arange(12.0).reshape(1, 12)  # one pixel, C = 2, M = 2
    mixture = likelihoods.split_logistic_mixture(outputs, num_components=2)
    np.testing.assert_array_equal(mixture.logit_weights, [[[0, 1], [6, 7]]])
    np.testing.assert_allclose(mixture.means, [[[1.5, 2.0], [4.5, 5.0]]])
    np.testing.assert_allclose(
        mixture.log_scales + np.log(2), [[[4, 5], [10, 11]]], rtol=1e-6
    )
