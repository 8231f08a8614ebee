"""Estimators against NumPy, SciPy, replication and the linear-Gaussian model."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from jax.test_util import check_grads

from jaxgen import estimators


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


MASK = np.float32([1, 1, 0, 1, 0])

# Every function of arrays, with arrays of B = 5.
CASES = {
    "importance_estimate": (
        lambda w: tuple(estimators.importance_estimate(w)),
        normal(6, 5),
    ),
    "bits_per_dim": (
        lambda nll: estimators.bits_per_dim(nll, 12, kind="continuous"),
        normal(5),
    ),
    "masked_mean": (lambda v: estimators.masked_mean(v, MASK), normal(5)),
    "mean_and_standard_error": (
        lambda v: tuple(estimators.mean_and_standard_error(v, MASK)),
        normal(5),
    ),
}


@pytest.mark.parametrize("name", sorted(CASES))
def test_all_jit_equals_eager_in_one_trace(name):
    function, x = CASES[name]
    chex.clear_trace_counter()
    compiled = jax.jit(chex.assert_max_traces(function, n=1))
    for scale in (1.0, 2.0):
        chex.assert_trees_all_close(
            compiled(scale * x), function(scale * x), rtol=1e-5, atol=1e-6
        )


@pytest.mark.parametrize("name", sorted(CASES))
def test_all_gradients_equal_finite_differences(name):
    function, x = CASES[name]
    with jax.enable_x64():
        check_grads(
            jax.jit(function), (x.astype(float),), order=1, modes=["rev"], rtol=1e-5
        )


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (
            lambda: estimators.importance_estimate(jnp.zeros(3)),
            r"importance_estimate: log_weights must be \[K, B\], got shape \(3,\)",
        ),
        (
            lambda: estimators.add(estimators.empty_sums(4), jnp.zeros((4, 3))),
            r"add: log_weights must be \[K, B\] with B = 4, got shape \(4, 3\); draws",
        ),
        (
            lambda: estimators.add(estimators.empty_sums(4), jnp.zeros(4)),
            r"add: log_weights must be \[K, B\], got shape \(4,\)",
        ),
        (
            lambda: estimators.empty_sums(0),
            r"empty_sums: num_examples must be positive, got 0",
        ),
        (
            lambda: estimators.bits_per_dim(1.0, 3, kind="discreet"),
            r"unknown kind 'discreet'; did you mean 'discrete'\?",
        ),
        (
            lambda: estimators.bits_per_dim(1.0, 0, kind="discrete"),
            r"bits_per_dim: num_dims must be positive, got 0",
        ),
        (
            lambda: estimators.masked_mean(jnp.zeros(3), jnp.zeros(4)),
            r"masked_mean: .* values \(3,\), mask \(4,\)",
        ),
        (
            lambda: estimators.masked_mean(jnp.zeros((3, 1)), jnp.zeros(3)),
            r"masked_mean: values must be \[B\], got shape \(3, 1\)",
        ),
        (
            lambda: estimators.mean_and_standard_error(jnp.zeros((3, 1))),
            r"mean_and_standard_error: values must be \[B\]",
        ),
    ],
)
def test_all_wrong_arguments_are_named(plain_errors, call, match):
    with pytest.raises(ValueError, match=match):
        call()


# ---- importance sampling


def test_importance_estimate_equals_numpy():
    log_weights = 1.5 * normal(9, 4)
    w = np.exp(log_weights.astype(float))
    got = estimators.importance_estimate(log_weights)
    np.testing.assert_allclose(got.log_likelihood, np.log(w.mean(0)), rtol=1e-5)
    np.testing.assert_allclose(
        got.standard_error, w.std(0, ddof=1) / 3 / w.mean(0), rtol=1e-4
    )
    np.testing.assert_allclose(got.ess, w.sum(0) ** 2 / (w**2).sum(0), rtol=1e-5)
    np.testing.assert_allclose(got.max_weight, w.max(0) / w.sum(0), rtol=1e-5)


def test_importance_estimate_is_equivariant_and_takes_any_offset():
    log_weights = normal(9, 4)
    order = np.array([2, 0, 3, 1])
    whole = estimators.importance_estimate(log_weights)
    chex.assert_trees_all_close(
        estimators.importance_estimate(log_weights[:, order]),
        jax.tree.map(lambda a: a[order], whole),
        rtol=1e-6,
    )
    far = estimators.importance_estimate(log_weights - 5000)
    np.testing.assert_allclose(
        far.log_likelihood + 5000, whole.log_likelihood, atol=1e-3
    )
    np.testing.assert_allclose(far.ess, whole.ess, rtol=1e-2)


def test_importance_estimate_standard_error_is_the_spread_over_replications():
    log_weights = 0.7 * normal(200, 5000)
    got = estimators.importance_estimate(log_weights)
    spread = float(jnp.std(got.log_likelihood))
    assert abs(float(jnp.mean(got.standard_error)) / spread - 1) < 0.05
    within = jnp.abs(got.log_likelihood - 0.7**2 / 2) < 2 * got.standard_error
    assert 0.92 < float(jnp.mean(within)) < 0.98


@pytest.mark.parametrize("num", [1, 7, 150])
def test_importance_estimate_uses_exactly_the_weights_it_gets(num):
    log_weights = normal(num, 3)
    got = estimators.importance_estimate(log_weights)
    expected = np.log(np.exp(log_weights).mean(0))
    np.testing.assert_allclose(got.log_likelihood, expected, rtol=1e-5, atol=1e-6)
    same = estimators.importance_estimate(np.zeros((num, 3), np.float32) - 4)
    np.testing.assert_allclose(same.log_likelihood, -4 * np.ones(3), rtol=1e-6)
    np.testing.assert_allclose(same.ess, num * np.ones(3), rtol=1e-6)
    np.testing.assert_allclose(same.max_weight, np.ones(3) / num, rtol=1e-6)


def test_importance_estimate_of_one_draw_has_no_known_error():
    got = estimators.importance_estimate(jnp.array([[-3.0, -700.0]]))
    np.testing.assert_array_equal(got.log_likelihood, [-3.0, -700.0])
    np.testing.assert_array_equal(got.standard_error, [np.inf, np.inf])
    np.testing.assert_array_equal(got.ess, [1.0, 1.0])
    np.testing.assert_array_equal(got.max_weight, [1.0, 1.0])


def test_importance_estimate_shows_that_one_draw_carries_all():
    got = estimators.importance_estimate(jnp.array([[1e4], [-1e4], [0.0]]))
    np.testing.assert_allclose(got.log_likelihood, [1e4 - np.log(3)])
    np.testing.assert_allclose([got.ess[0], got.max_weight[0]], [1.0, 1.0])
    gradient = jax.grad(
        lambda w: estimators.importance_estimate(w).log_likelihood.sum()
    )(jnp.array([[1e4], [-1e4], [0.0]]))
    np.testing.assert_array_equal(gradient, [[1.0], [0.0], [0.0]])


def test_importance_estimate_of_zero_weights_is_minus_inf_and_nan_stays_nan():
    inf, nan = np.inf, np.nan
    got = estimators.importance_estimate(
        jnp.array([[-inf, 0.0, nan], [-inf, -inf, 0.0]])
    )
    np.testing.assert_allclose(got.log_likelihood, [-inf, -np.log(2), nan], rtol=1e-6)
    np.testing.assert_array_equal(got.ess[:2], [0.0, 1.0])
    np.testing.assert_array_equal(got.max_weight[:2], [0.0, 1.0])
    np.testing.assert_allclose(got.standard_error[:2], [inf, 1.0], rtol=1e-6)


@pytest.mark.parametrize("chunks", [[150], [1] * 150, [7] * 21 + [3], [149, 1]])
def test_add_gives_the_same_for_every_chunking(chunks):
    log_weights = 3 * normal(150, 4) + np.linspace(-50, 50, 150)[:, None]
    log_weights = log_weights.astype(np.float32)
    add, sums, start = jax.jit(estimators.add), estimators.empty_sums(4), 0
    for size in chunks:
        sums = add(sums, log_weights[start : start + size])
        start += size
    assert int(sums.count) == 150
    chex.assert_trees_all_close(
        estimators.finish(sums),
        estimators.importance_estimate(log_weights),
        rtol=1e-6,
        atol=1e-6,
    )


def test_add_runs_in_a_scan_also_after_chunks_of_zero_weights():
    log_weights = normal(6, 5, 4)
    log_weights[0] = -np.inf
    sums, _ = jax.lax.scan(
        lambda sums, chunk: (estimators.add(sums, chunk), None),
        estimators.empty_sums(4),
        log_weights,
    )
    chex.assert_trees_all_close(
        estimators.finish(sums),
        estimators.importance_estimate(log_weights.reshape(30, 4)),
        rtol=1e-6,
    )


def test_importance_estimate_of_the_linear_gaussian_model():
    # x = 2 z + 0.5 eps: log p(x) = log N(x; 0, 4.25); the posterior is Gaussian too.
    x = np.float32([0.3, -2.0, 4.0])
    log_p = scipy.stats.norm.logpdf(x, 0, np.sqrt(4.25))

    def log_weights(mean, std, num):
        z = mean + std * normal(num, 3, seed=6)
        return (
            scipy.stats.norm.logpdf(z)
            + scipy.stats.norm.logpdf(x, 2 * z, 0.5)
            - scipy.stats.norm.logpdf(z, mean, std)
        ).astype(np.float32)

    mean, std = 2 * x / 4.25, np.sqrt(0.25 / 4.25)
    exact = estimators.importance_estimate(log_weights(mean, std, 50))
    np.testing.assert_allclose(exact.log_likelihood, log_p, atol=1e-5)
    assert (exact.standard_error < 1e-3).all()
    np.testing.assert_allclose(exact.ess, np.full(3, 50.0), rtol=1e-5)
    broad = estimators.importance_estimate(log_weights(mean + 0.1, 1.5 * std, 5000))
    off = np.abs(broad.log_likelihood - log_p)
    assert (off < 4 * broad.standard_error).all()
    assert (broad.standard_error < 0.02).all()


# ---- bits per dimension


def test_bits_per_dim_of_the_uniform_model_is_eight_for_both_kinds():
    num_dims = 3 * 32 * 32
    discrete = estimators.bits_per_dim(
        num_dims * np.log(256.0), num_dims, kind="discrete"
    )
    continuous = estimators.bits_per_dim(0.0, num_dims, kind="continuous")
    np.testing.assert_allclose([discrete, continuous], [8.0, 8.0], rtol=1e-6)
    digits = estimators.bits_per_dim(0.0, 64, kind="continuous", num_levels=17)
    np.testing.assert_allclose(digits, np.log2(17), rtol=1e-6)


def test_bits_per_dim_of_one_nat_per_dim():
    got = estimators.bits_per_dim(jnp.array([10.0, -10.0]), 10, kind="discrete")
    np.testing.assert_allclose(got, [1.442695, -1.442695], rtol=1e-6)
    got = estimators.bits_per_dim(jnp.array([10.0, -10.0]), 10, kind="continuous")
    np.testing.assert_allclose(got, [9.442695, 6.557305], rtol=1e-6)


def test_bits_per_dim_of_a_density_equals_that_of_its_levels():
    # The density 2 x on [0, 1], and the probabilities it gives to the 256 bins.
    edges = np.linspace(0, 1, 257)
    probabilities = np.diff(edges**2)
    discrete = -np.sum(probabilities * np.log(probabilities))
    continuous = -np.sum(probabilities * np.log(probabilities * 256))
    got = [
        estimators.bits_per_dim(discrete, 1, kind="discrete"),
        estimators.bits_per_dim(continuous, 1, kind="continuous"),
    ]
    np.testing.assert_allclose(got[0], got[1], rtol=1e-5)


# ---- means


def test_masked_mean_ignores_padding_whatever_it_holds():
    values = jnp.array([1.0, 2.0, 6.0, np.nan, np.inf])
    mask = jnp.array([1, 1, 1, 0, 0])
    for kind in (bool, np.int32, np.float32):
        assert estimators.masked_mean(values, mask.astype(kind)) == 3.0
    gradient = jax.grad(lambda v: estimators.masked_mean(v, mask))(values)
    np.testing.assert_allclose(gradient, [1 / 3, 1 / 3, 1 / 3, 0, 0], rtol=1e-6)
    assert estimators.masked_mean(values, jnp.zeros(5)) == 0.0


def test_masked_mean_over_padded_batches_is_the_mean_over_all():
    values = normal(23)
    padded = np.concatenate([values, np.full(1, 99, np.float32)]).reshape(3, 8)
    mask = (np.arange(24) < 23).reshape(3, 8)
    means = [
        float(estimators.masked_mean(*pair)) for pair in zip(padded, mask, strict=True)
    ]
    np.testing.assert_allclose(
        np.average(means, weights=mask.sum(1)), values.mean(), rtol=1e-5
    )


def test_mean_and_standard_error_equals_scipy():
    values = 3 + normal(40)
    got = estimators.mean_and_standard_error(values)
    np.testing.assert_allclose(got.mean, values.mean(), rtol=1e-6)
    np.testing.assert_allclose(got.standard_error, scipy.stats.sem(values), rtol=1e-5)
    padded = np.concatenate([values, np.full(9, np.nan, np.float32)])
    masked = estimators.mean_and_standard_error(padded, np.arange(49) < 40)
    chex.assert_trees_all_close(masked, got, rtol=1e-6)


def test_mean_and_standard_error_of_one_value_is_unknown():
    got = estimators.mean_and_standard_error(jnp.array([2.0, 5.0]), jnp.array([0, 1]))
    assert (float(got.mean), float(got.standard_error)) == (5.0, np.inf)
