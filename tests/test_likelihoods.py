"""All likelihoods; Bernoulli and Gaussian against SciPy and their own samples."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from arrays import binary, levels, normal
from jax.test_util import check_grads

from jaxgen import likelihoods

KEY = jax.random.key(0)
SHAPE = (4, 2, 3, 2)  # B, H, W, C


# Every likelihood, with data of its own kind.
RECORDS = {
    "bernoulli": (likelihoods.bernoulli(), binary(*SHAPE)),
    "gaussian": (likelihoods.gaussian(), levels(*SHAPE)),
    "logistic_mixture": (
        likelihoods.logistic_mixture(num_components=3),
        levels(*SHAPE),
    ),
}


@pytest.fixture(params=sorted(RECORDS))
def record(request):
    """The likelihood, data `[B, H, W, C]` and outputs `[B, H, W, C * num_outputs]`."""
    likelihood, x = RECORDS[request.param]
    likelihood = likelihood._replace(
        log_prob=jax.jit(likelihood.log_prob),
        mean=jax.jit(likelihood.mean),
        sample=jax.jit(likelihood.sample),
    )
    return likelihood, x, normal(*SHAPE[:3], 2 * likelihood.num_outputs, seed=1)


# ---- the record


def test_likelihoods_are_all_tested_and_read_only():
    assert set(RECORDS) == set(likelihoods.LIKELIHOODS)
    with pytest.raises(TypeError, match="does not support item assignment"):
        likelihoods.LIKELIHOODS["new"] = likelihoods.bernoulli


def test_likelihood_shapes(record):
    likelihood, x, outputs = record
    assert likelihood.log_prob(x, outputs).shape == (4,)
    assert likelihood.mean(outputs).shape == SHAPE
    assert likelihood.sample(KEY, outputs).shape == SHAPE
    assert likelihood.log_prob(x, outputs.astype(jnp.bfloat16)).dtype == jnp.float32
    vectors = likelihood.log_prob(x[:, 0, 0], outputs[:, 0, 0])
    assert vectors.shape == (4,)


@pytest.mark.parametrize("name", sorted(RECORDS))
def test_likelihood_jit_equals_eager_in_one_trace(name):
    likelihood, x = RECORDS[name]
    outputs = normal(*SHAPE[:3], 2 * likelihood.num_outputs, seed=1)
    functions = [
        lambda outputs: likelihood.log_prob(x, outputs),
        likelihood.mean,
        lambda outputs: likelihood.sample(KEY, outputs),
    ]
    for function in functions:
        chex.clear_trace_counter()
        compiled = jax.jit(chex.assert_max_traces(function, n=1))
        compiled(0.5 * outputs)
        np.testing.assert_allclose(
            compiled(outputs), function(outputs), rtol=1e-5, atol=1e-6
        )


def test_likelihood_examples_are_independent_and_keep_their_order(record):
    likelihood, x, outputs = record
    order = np.array([2, 0, 3, 1])
    np.testing.assert_allclose(
        likelihood.log_prob(x[order], outputs[order]),
        likelihood.log_prob(x, outputs)[order],
        rtol=1e-6,
    )


def test_likelihood_sums_over_pixels(record):
    likelihood, x, outputs = record
    once = likelihood.log_prob(x, outputs)
    twice = likelihood.log_prob(
        np.concatenate([x, x], 1), np.concatenate([outputs, outputs], 1)
    )
    np.testing.assert_allclose(twice, 2 * once, rtol=1e-5)


def test_likelihood_outputs_of_one_channel_lie_together(record):
    likelihood, _, outputs = record
    changed = outputs.copy()
    changed[..., : likelihood.num_outputs] += 1.0
    for function in (likelihood.mean, lambda o: likelihood.sample(KEY, o)):
        before, after = np.asarray(function(outputs)), np.asarray(function(changed))
        np.testing.assert_array_equal(before[..., 1], after[..., 1])
        assert (before[..., 0] != after[..., 0]).any()


def test_likelihood_gradients_equal_finite_differences(record):
    likelihood, x, outputs = record
    with jax.enable_x64():
        check_grads(
            lambda outputs: likelihood.log_prob(x[:1], outputs),
            (outputs[:1].astype(float),),
            order=1,
            modes=["rev"],
            rtol=1e-5,
        )


@pytest.mark.parametrize("size", [0.0, 1e4, -1e4])
def test_likelihood_is_finite_at_extreme_outputs(record, size):
    likelihood, x, outputs = record
    outputs = np.sign(outputs) * size
    if likelihood.density == "continuous":  # means far away are honestly far
        outputs = outputs / 1e2
    value, gradient = jax.value_and_grad(
        lambda outputs: likelihood.log_prob(x, outputs).sum()
    )(outputs)
    chex.assert_tree_all_finite((value, gradient, likelihood.mean(outputs)))
    chex.assert_tree_all_finite(likelihood.sample(KEY, outputs))


def test_likelihood_mean_is_the_mean_of_its_samples(record):
    likelihood, _, outputs = record
    outputs = outputs[:1]
    keys = jax.random.split(KEY, 4000)
    draws = np.asarray(jax.jit(jax.vmap(likelihood.sample, (0, None)))(keys, outputs))
    error = draws.std(0) / np.sqrt(4000)
    assert (np.abs(draws.mean(0) - likelihood.mean(outputs)) < 4.5 * error + 1e-4).all()


def test_likelihood_name_tells_discrete_from_continuous():
    kinds = {name: likelihood.density for name, (likelihood, _) in RECORDS.items()}
    assert kinds == {
        "bernoulli": "discrete",
        "gaussian": "continuous",
        "logistic_mixture": "discrete",
    }


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (
            lambda x: likelihoods.bernoulli_log_prob(x, x[:, :1]),
            r"bernoulli_log_prob: x and logits must .* x \(4, 2\), logits \(4, 1\)",
        ),
        (
            lambda x: likelihoods.gaussian_log_prob(x, x[:, :1], x),
            r"gaussian_log_prob: .* mu \(4, 1\)",
        ),
        (
            lambda x: likelihoods.gaussian_log_prob(x, x, x[0]),
            r"gaussian_log_prob: .* log_sigma \(2,\); broadcast explicitly",
        ),
        (
            lambda x: likelihoods.gaussian_sample(KEY, x, x[0]),
            r"gaussian_sample: .* log_sigma \(2,\)",
        ),
        (
            lambda x: likelihoods.gaussian_outputs(x, x[0]),
            r"gaussian_outputs: .* log_sigma \(2,\)",
        ),
        (
            lambda x: likelihoods.optimal_log_sigma(x, x[:, :1]),
            r"optimal_log_sigma: .* mu \(4, 1\)",
        ),
        (
            lambda x: likelihoods.optimal_log_sigma(x, x, x),
            r"optimal_log_sigma: mask must be \[B\] = \(4,\), got shape \(4, 2\)",
        ),
        (
            lambda x: likelihoods.gaussian().log_prob(x, x[:, :1]),
            r"gaussian: outputs must have C \* 2 channels, got shape \(4, 1\)",
        ),
        (
            lambda x: likelihoods.split_logistic_mixture(x, num_components=2),
            r"split_logistic_mixture: outputs must have C \* 6 channels",
        ),
        (
            lambda x: likelihoods.logistic_mixture(num_components=0),
            r"logistic_mixture: num_components must be positive, got 0",
        ),
        (
            lambda x: likelihoods.logistic_mixture_log_prob(
                x, likelihoods.LogisticMixture(x, x, x)
            ),
            r"logistic_mixture_log_prob: the mixture must be \[\*x.shape, M\]",
        ),
        (
            lambda x: likelihoods.logistic_mixture_mean(
                likelihoods.LogisticMixture(x, x, x[:1])
            ),
            r"logistic_mixture_mean: .* log_scales \(1, 2\)",
        ),
    ],
)
def test_all_wrong_arguments_are_named(plain_errors, call, match):
    with pytest.raises(ValueError, match=match):
        call(jnp.zeros((4, 2)))


# ---- Bernoulli


def test_bernoulli_log_prob_equals_scipy():
    x, logits = binary(4, 2, 3), 2 * normal(4, 2, 3)
    expected = scipy.stats.bernoulli.logpmf(x, 1 / (1 + np.exp(-logits))).sum((1, 2))
    np.testing.assert_allclose(
        likelihoods.bernoulli_log_prob(x, logits), expected, rtol=1e-5
    )


@pytest.mark.parametrize("logit", [104.0, -104.0, 1e4, -1e4])
@pytest.mark.parametrize("x", [0.0, 1.0])
def test_bernoulli_log_prob_is_right_at_any_logit(x, logit):
    # log(-expm1(log_sigmoid)) is NaN or inf here from a logit of about 104 on.
    value, gradient = jax.value_and_grad(
        lambda logits: likelihoods.bernoulli_log_prob(jnp.array([[x]]), logits).sum()
    )(jnp.array([[logit]]))
    right = (logit > 0) == (x == 1)
    np.testing.assert_allclose(value, 0.0 if right else -abs(logit), atol=1e-6)
    np.testing.assert_allclose(gradient, [[x - (logit > 0)]], atol=1e-6)


def test_bernoulli_log_prob_of_grey_is_the_mean_over_binarisations():
    logits, grey = jnp.array([[0.4], [-2.0]]), jnp.array([[0.3], [0.9]])
    black = likelihoods.bernoulli_log_prob(0 * grey, logits)
    white = likelihoods.bernoulli_log_prob(0 * grey + 1, logits)
    np.testing.assert_allclose(np.exp(black) + np.exp(white), [1, 1], rtol=1e-6)
    np.testing.assert_allclose(
        likelihoods.bernoulli_log_prob(grey, logits),
        (1 - grey[:, 0]) * black + grey[:, 0] * white,
        rtol=1e-6,
    )


def test_bernoulli_sample_is_binary_with_the_right_frequency():
    logits = jnp.full(20_000, 1.0)
    draws = np.asarray(likelihoods.bernoulli_sample(KEY, logits))
    assert set(np.unique(draws)) == {0.0, 1.0}
    p = 1 / (1 + np.exp(-1))
    assert abs(draws.mean() - p) < 4 * np.sqrt(p * (1 - p) / 20_000)
    np.testing.assert_allclose(likelihoods.bernoulli_mean(1.0), p, rtol=1e-6)


# ---- Gaussian


def test_gaussian_log_prob_equals_scipy():
    x, mu, log_sigma = (normal(4, 2, 3, seed=i) for i in range(3))
    expected = scipy.stats.norm.logpdf(x, mu, np.exp(log_sigma)).sum((1, 2))
    got = likelihoods.gaussian_log_prob(x, mu, log_sigma)
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    shared = scipy.stats.norm.logpdf(x, mu, np.exp(-0.7)).sum((1, 2))
    got = likelihoods.gaussian_log_prob(x, mu, -0.7)
    np.testing.assert_allclose(got, shared, rtol=1e-5)


def test_gaussian_outputs_carry_a_fixed_sigma_unchanged():
    x, mu = levels(*SHAPE), normal(*SHAPE)
    record = likelihoods.gaussian()
    for log_sigma in (np.log(0.1), 0.0, normal(*SHAPE, seed=2)):
        outputs = likelihoods.gaussian_outputs(mu, jnp.float32(log_sigma))
        assert outputs.shape == (*SHAPE[:3], SHAPE[3] * record.num_outputs)
        np.testing.assert_allclose(
            record.log_prob(x, outputs),
            likelihoods.gaussian_log_prob(x, mu, jnp.float32(log_sigma)),
            rtol=1e-6,
        )
        np.testing.assert_array_equal(record.mean(outputs), mu)


def test_gaussian_sample_has_the_moments_of_the_normal():
    mu, log_sigma = jnp.full(50_000, 0.4), jnp.full(50_000, -1.0)
    for draws in (
        likelihoods.gaussian_sample(KEY, mu, log_sigma),
        likelihoods.gaussian_sample(KEY, mu, -1.0),
    ):
        law = scipy.stats.norm(0.4, np.exp(-1.0))
        fit = scipy.stats.kstest(np.asarray(draws), law.cdf)
        assert fit.pvalue > 1e-3


def test_optimal_log_sigma_is_the_log_of_the_rmse_and_the_best_sigma():
    x, mu = levels(*SHAPE), 0.3 * normal(*SHAPE)
    got = likelihoods.optimal_log_sigma(x, mu)
    np.testing.assert_allclose(got, np.log(np.sqrt(np.mean((x - mu) ** 2))), rtol=1e-5)
    slope, curvature = (
        derivative(lambda s: likelihoods.gaussian_log_prob(x, mu, s).sum())(got)
        for derivative in (jax.grad, lambda f: jax.grad(jax.grad(f)))
    )
    np.testing.assert_allclose(slope, 0, atol=1e-3)
    assert curvature < 0


def test_optimal_log_sigma_leaves_padding_out_whatever_it_holds():
    x, mu = levels(*SHAPE), 0.3 * normal(*SHAPE)
    expected = likelihoods.optimal_log_sigma(x[:3], mu[:3])
    padded = np.concatenate([x[:3], np.full_like(x[:1], np.nan)])
    for mask in (np.array([True, True, True, False]), np.float32([1, 1, 1, 0])):
        got, gradient = jax.value_and_grad(
            lambda mu, mask=mask: likelihoods.optimal_log_sigma(padded, mu, mask)
        )(mu)
        np.testing.assert_allclose(got, expected, rtol=1e-6)
        chex.assert_tree_all_finite(gradient)
        assert not gradient[3].any()


def test_optimal_log_sigma_is_bounded_for_a_perfect_reconstruction():
    x = jnp.asarray(levels(*SHAPE))
    got, gradient = jax.value_and_grad(likelihoods.optimal_log_sigma, argnums=1)(x, x)
    assert -6 <= got < -5.99
    chex.assert_tree_all_finite(gradient)
    near = likelihoods.optimal_log_sigma(x, x + np.exp(-4.9))
    np.testing.assert_allclose(near, -4.9, atol=1e-4)


def test_soft_lower_bound_is_exact_above_smooth_below_and_never_dead():
    x = jnp.array([-200.0, -7.0, -6.0, -5.001, -4.999, 0.0, 80.0])
    got = likelihoods.soft_lower_bound(x, -6.0)
    np.testing.assert_array_equal(got[4:], x[4:])
    assert (got >= -6).all()
    np.testing.assert_allclose(got[1:4], -6 + np.exp(x[1:4] + 5), rtol=1e-6)
    slope = jax.vmap(jax.grad(lambda x: likelihoods.soft_lower_bound(x, -6.0)))(x)
    np.testing.assert_allclose(slope[3:], np.ones(4), rtol=2e-3)
    assert (slope[1:] > 0).all()
    chex.assert_tree_all_finite(slope)
