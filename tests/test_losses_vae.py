"""Losses of VAEs against closed forms, quadrature, SciPy and finite differences."""

import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from arrays import normal
from jax.test_util import check_grads

from jaxgen.losses import vae

RNG = np.random.default_rng(0)


def quadratic_log_weights(z):
    return -jnp.sum(jnp.square(z - 0.3), axis=tuple(range(2, z.ndim)))


# Every function of arrays whose first axis is the batch, with such arrays.
CASES = {
    "kl_standard_normal": (vae.kl_standard_normal, 2, (6, 3)),
    "kl_standard_normal_per_dim": (vae.kl_standard_normal_per_dim, 2, (6, 3)),
    "kl_normal": (vae.kl_normal, 4, (6, 2, 3)),
    "normal_log_prob": (vae.normal_log_prob, 3, (6, 2, 3)),
    "reparameterised": (vae.reparameterised, 3, (6, 3)),
    "elbo_terms": (lambda a, b: vae.elbo_terms(a, b).elbo, 2, (6,)),
    "negative_elbo": (lambda a, b: vae.negative_elbo(a, b, beta=0.3), 2, (6,)),
    "free_bits": (lambda kl: vae.free_bits(kl, minimum=0.1), 1, (6, 3)),
    "beta_warmup": (lambda f: vae.beta_warmup(f, warmup=0.7), 1, (6,)),
    "iwae": (lambda w: vae.iwae(jnp.swapaxes(w, 0, 1)), 1, (6, 4)),
    "dreg_iwae": (
        lambda z: vae.dreg_iwae(quadratic_log_weights, jnp.swapaxes(z, 0, 1)),
        1,
        (6, 4, 3),
    ),
}


@pytest.fixture(params=sorted(CASES))
def case(request):
    function, num, shape = CASES[request.param]
    return function, tuple(normal(*shape, seed=i + 1) for i in range(num))


# ---- all functions


def test_all_jit_equals_eager_in_one_trace(case):
    function, args = case
    chex.clear_trace_counter()
    compiled = jax.jit(chex.assert_max_traces(function, n=1))
    for scale in (1.0, 0.5):
        scaled = tuple(scale * a for a in args)
        np.testing.assert_allclose(
            compiled(*scaled), function(*scaled), rtol=2e-6, atol=1e-6
        )


def test_all_examples_are_independent_and_keep_their_order(case):
    function, args = case
    order = np.array([3, 0, 5, 1, 4, 2])
    np.testing.assert_allclose(
        function(*(a[order] for a in args)), function(*args)[order], rtol=1e-6
    )
    changed = tuple(np.concatenate([a[:5], a[5:] + 1]) for a in args)
    np.testing.assert_allclose(function(*changed)[:5], function(*args)[:5], rtol=1e-6)


@pytest.mark.parametrize("name", sorted(set(CASES) - {"dreg_iwae"}))
def test_all_gradients_equal_finite_differences(name):
    function, num, shape = CASES[name]
    with jax.enable_x64():
        args = tuple(RNG.normal(size=shape) for _ in range(num))
        check_grads(
            jax.jit(function), args, order=1, modes=["rev"], rtol=1e-6, atol=1e-6
        )


def test_all_bfloat16_inputs_give_float32(case):
    function, args = case
    out = function(*(jnp.asarray(a, jnp.bfloat16) for a in args))
    assert out.dtype == jnp.float32


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (
            lambda a, b: vae.kl_standard_normal(a, b),
            r"kl_standard_normal: mu and log_var must .* mu \(4, 3\), log_var \(4, 1\)",
        ),
        (
            lambda a, b: vae.kl_standard_normal_per_dim(a, b),
            r"kl_standard_normal_per_dim: mu and log_var must have the same shape",
        ),
        (
            lambda a, b: vae.kl_normal(a, a, a, b),
            r"kl_normal: .* log_var_p \(4, 1\); broadcast explicitly",
        ),
        (
            lambda a, b: vae.normal_log_prob(a, a, b),
            r"normal_log_prob: .* log_var \(4, 1\)",
        ),
        (
            lambda a, b: vae.reparameterised(a, a, b),
            r"reparameterised: .* eps \(4, 1\)",
        ),
        (
            lambda a, b: vae.kl_standard_normal(a[0, 0], a[0, 0]),
            r"kl_standard_normal: mu must have at least 1 axes",
        ),
        (
            lambda a, b: vae.elbo_terms(a, a),
            r"elbo_terms: log_likelihood must be \[B\], got shape \(4, 3\)",
        ),
        (
            lambda a, b: vae.negative_elbo(a[0], b[:, 0]),
            r"log_likelihood \(3,\), kl \(4,\)",
        ),
        (
            lambda a, b: vae.negative_elbo(a[0], a[1], beta=a[2]),
            r"negative_elbo: beta must be a scalar, got shape \(3,\)",
        ),
        (
            lambda a, b: vae.iwae(a[0]),
            r"iwae: log_weights must be \[K, B\], got shape \(3,\)",
        ),
        (
            lambda a, b: vae.dreg_iwae(lambda z: z, a[0]),
            r"dreg_iwae: z must be \[K, B, ...\], got shape \(3,\)",
        ),
        (
            lambda a, b: vae.dreg_iwae(lambda z: z[:, 0], a),
            r"log_weight_fn\(z\) must be \[K, B\] = \(4, 3\), got shape \(4,\)",
        ),
        (
            lambda a, b: vae.free_bits(a, minimum=-1.0),
            r"free_bits: minimum must be 0 or more nats, got -1.0",
        ),
        (
            lambda a, b: vae.free_bits(a[0, 0], minimum=1.0),
            r"free_bits: kl_per_dim must have at least 1 axes",
        ),
        (
            lambda a, b: vae.beta_warmup(0.5, warmup=1000),
            r"beta_warmup: warmup must be in \[0, 1\], got 1000; give the fraction",
        ),
        (
            lambda a, b: vae.beta_warmup(0.5, warmup=0.5, cycles=0),
            r"beta_warmup: cycles must be positive, got 0",
        ),
    ],
)
def test_all_wrong_arguments_are_named(plain_errors, call, match):
    with pytest.raises(ValueError, match=match):
        call(jnp.zeros((4, 3)), jnp.zeros((4, 1)))


def test_import_loads_neither_flax_nor_anything_heavy():
    code = (
        "import sys; import jaxgen.losses, jaxgen.likelihoods, jaxgen.estimators; "
        "heavy = {'flax', 'orbax', 'grain', 'tensorflow', 'tensorflow_datasets', "
        "'sklearn', 'matplotlib', 'PIL', 'tyro', 'rich'}; "
        "print(*heavy & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout.strip(), done.returncode) == ("", 0), done.stderr


# ---- Gaussians


def test_kl_standard_normal_equals_quadrature():
    mu, log_var = 0.7, -0.9
    grid = np.linspace(-12, 12, 200_001)
    q = scipy.stats.norm(mu, np.exp(log_var / 2))
    integrand = q.pdf(grid) * (q.logpdf(grid) - scipy.stats.norm.logpdf(grid))
    expected = np.sum(integrand) * (grid[1] - grid[0])
    got = vae.kl_standard_normal(jnp.full((2, 3), mu), jnp.full((2, 3), log_var))
    np.testing.assert_allclose(got, [3 * expected] * 2, rtol=1e-5)


def test_kl_standard_normal_sums_its_terms_over_all_event_axes():
    mu, log_var = normal(4, 2, 3, seed=1), normal(4, 2, 3, seed=2)
    terms = vae.kl_standard_normal_per_dim(mu, log_var)
    assert terms.shape == (4, 2, 3)
    total = vae.kl_standard_normal(mu, log_var)
    np.testing.assert_allclose(total, terms.sum((1, 2)), rtol=1e-6)
    zeros = jnp.zeros_like(mu)
    np.testing.assert_allclose(
        total, vae.kl_normal(mu, log_var, zeros, zeros), rtol=1e-5
    )


def test_kl_standard_normal_keeps_its_digits_near_the_prior():
    log_var = np.float32([[1e-3], [-1e-3], [1e-4], [0.0]])
    exact = 0.5 * (np.expm1(log_var.astype(float)) - log_var)[:, 0]
    got = np.asarray(vae.kl_standard_normal(np.zeros_like(log_var), log_var))
    np.testing.assert_allclose(got, exact, rtol=1e-2)
    assert (got >= 0).all()


@pytest.mark.parametrize("log_var", [-80.0, 80.0])
def test_gaussian_losses_have_finite_gradients_at_the_extremes(log_var):
    mu, log_var = jnp.full((2, 3), 1.5), jnp.full((2, 3), log_var)
    functions = [
        lambda m, v: vae.kl_standard_normal(m, v).sum(),
        lambda m, v: vae.kl_normal(m, v, 0 * m, v).sum(),
        lambda m, v: vae.reparameterised(m, v, m).sum(),
        lambda m, v: 1e-9 * vae.normal_log_prob(0 * m, m, v).sum(),
    ]
    for function in functions:
        value, gradients = jax.value_and_grad(function, argnums=(0, 1))(mu, log_var)
        assert np.isfinite(value)
        chex.assert_tree_all_finite(gradients)


def test_kl_normal_equals_monte_carlo():
    mu_q, log_var_q, mu_p, log_var_p = (normal(3, 2, seed=i) for i in range(4))
    eps = normal(40_000, 3, 2, seed=9)
    z = mu_q + np.exp(log_var_q / 2) * eps
    log_ratio = (
        scipy.stats.norm.logpdf(z, mu_q, np.exp(log_var_q / 2))
        - scipy.stats.norm.logpdf(z, mu_p, np.exp(log_var_p / 2))
    ).sum(-1)
    error = log_ratio.std(0) / np.sqrt(len(eps))
    got = np.asarray(vae.kl_normal(mu_q, log_var_q, mu_p, log_var_p))
    assert (np.abs(got - log_ratio.mean(0)) < 4 * error).all()
    assert (4 * error < 0.05 * got + 0.05).all()  # the test can tell


def test_kl_normal_is_zero_of_itself_and_positive_otherwise():
    mu, log_var = normal(5, 3, seed=1), normal(5, 3, seed=2)
    np.testing.assert_array_equal(vae.kl_normal(mu, log_var, mu, log_var), np.zeros(5))
    assert (vae.kl_normal(mu, log_var, log_var, mu) > 0).all()


def test_normal_log_prob_equals_scipy():
    x, mu, log_var = (normal(4, 2, 3, seed=i) for i in range(3))
    expected = scipy.stats.norm.logpdf(x, mu, np.exp(log_var / 2)).sum((1, 2))
    np.testing.assert_allclose(vae.normal_log_prob(x, mu, log_var), expected, rtol=1e-5)


def test_reparameterised_has_the_moments_of_the_normal():
    eps = normal(50_000, 1, seed=3)
    z = vae.reparameterised(jnp.full(eps.shape, 2.0), jnp.full(eps.shape, -1.0), eps)
    assert abs(z.mean() - 2.0) < 4 * np.exp(-0.5) / np.sqrt(50_000)
    assert abs(z.var() / np.exp(-1.0) - 1) < 4 * np.sqrt(2 / 50_000)
    law = scipy.stats.norm(2.0, np.exp(-0.5))
    assert scipy.stats.kstest(np.ravel(z), law.cdf).pvalue > 1e-3


# ---- the bound


def test_elbo_terms_keep_rate_and_distortion_apart():
    terms = vae.elbo_terms(jnp.array([-3.0, -1.0]), jnp.array([0.5, 2.0]))
    np.testing.assert_allclose(terms.distortion, [3.0, 1.0])
    np.testing.assert_allclose(terms.rate, [0.5, 2.0])
    np.testing.assert_allclose(terms.elbo, [-3.5, -3.0])


def test_negative_elbo_weighs_the_rate_only():
    log_likelihood, kl = jnp.array([-3.0, -1.0]), jnp.array([0.5, 2.0])
    np.testing.assert_allclose(vae.negative_elbo(log_likelihood, kl), [3.5, 3.0])
    np.testing.assert_allclose(vae.negative_elbo(log_likelihood, kl, beta=4), [5, 9])
    traced = jax.jit(lambda beta: vae.negative_elbo(log_likelihood, kl, beta=beta))
    np.testing.assert_allclose(traced(0.0), [3.0, 1.0])


def test_free_bits_floor_each_coordinate_of_each_example():
    kl = jnp.array([[0.1, 0.7, 3.0], [0.0, 0.0, 0.0]])
    np.testing.assert_allclose(vae.free_bits(kl, minimum=0.5), [4.2, 1.5], rtol=1e-6)
    np.testing.assert_allclose(vae.free_bits(kl, minimum=0.0), kl.sum(1), rtol=1e-6)
    gradient = jax.grad(lambda k: vae.free_bits(k, minimum=0.5).sum())(kl)
    np.testing.assert_array_equal(gradient, [[0, 1, 1], [0, 0, 0]])


def test_beta_warmup_is_linear_then_one():
    steps = jnp.array([0.0, 0.1, 0.2, 0.4, 0.7, 1.0])
    expected = [0.0, 0.25, 0.5, 1.0, 1.0, 1.0]
    np.testing.assert_allclose(
        vae.beta_warmup(steps, warmup=0.4), expected, rtol=1e-6, atol=1e-7
    )
    np.testing.assert_array_equal(vae.beta_warmup(steps, warmup=0.0), np.ones(6))
    assert vae.beta_warmup(0.5, warmup=1.0) == 0.5
    assert vae.beta_warmup(1, warmup=1.0) == 1


def test_beta_warmup_repeats_in_cycles_and_ends_at_one():
    steps = jnp.array([0.0, 0.0625, 0.125, 0.2, 0.25, 0.3125, 0.5, 0.99, 1.0])
    expected = [0.0, 0.5, 1.0, 1.0, 0.0, 0.5, 0.0, 1.0, 1.0]
    got = vae.beta_warmup(steps, warmup=0.5, cycles=4)
    np.testing.assert_allclose(got, expected, atol=1e-6)
