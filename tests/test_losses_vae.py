"""Losses of VAEs against closed forms, SciPy and the linear-Gaussian model."""

import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
import scipy.stats
from jax.test_util import check_grads

from jaxgen.losses import vae

RNG = np.random.default_rng(0)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


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


@pytest.fixture
def plain_errors():
    """Our own messages: in the test run beartype would speak first."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


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
    assert scipy.stats.kstest(np.ravel(z), "norm", (2.0, np.exp(-0.5))).pvalue > 1e-3


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


# ---- importance weights


def test_iwae_value_is_log_mean_exp():
    weights = normal(7, 5)
    expected = np.log(np.mean(np.exp(weights), axis=0))
    np.testing.assert_allclose(vae.iwae(weights), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(vae.iwae(weights[:1]), weights[0])
    far = vae.iwae(weights - 1e4)
    np.testing.assert_allclose(far + 1e4, expected, atol=2e-3)


def test_iwae_of_lognormal_weights_is_below_the_truth():
    # log w ~ N(0, 1): log E w = 0.5, the bound at K = 50 is 0.483; the sum of
    # normalised weights times log weights, which one library logs, is 0.949.
    weights = normal(50, 20_000)
    bound = np.asarray(vae.iwae(weights))
    error = bound.std() / np.sqrt(bound.size)
    assert abs(bound.mean() - 0.483) < 4 * error + 5e-4
    shares = jax.nn.softmax(weights, axis=0)
    assert abs(float((shares * weights).sum(0).mean()) - 0.949) < 0.02


def test_iwae_gradient_is_the_normalised_weight_and_follows_the_better_draw():
    gradient = jax.grad(lambda w: vae.iwae(w).sum())(jnp.array([[0.0], [1.0], [3.0]]))
    np.testing.assert_allclose(
        gradient[:, 0], jax.nn.softmax(jnp.array([0.0, 1.0, 3.0])), rtol=1e-5
    )
    assert gradient[0, 0] < gradient[1, 0] < gradient[2, 0]
    extreme = jax.grad(lambda w: vae.iwae(w).sum())(jnp.array([[-1e4], [1e4]]))
    np.testing.assert_array_equal(extreme, [[0.0], [1.0]])


# ---- the linear-Gaussian model x = W z + b + sigma eps, with orthogonal columns of W,
# so that the posterior is a diagonal Gaussian and log p(x) has a closed form.

W = np.linalg.qr(np.random.default_rng(5).normal(size=(4, 2)))[0] * [2.0, 0.5]
BIAS = np.array([0.1, -0.3, 0.7, 0.2])
SIGMA = 0.6
X = np.array([0.9, -0.4, 1.5, -1.1])
LOG_P = scipy.stats.multivariate_normal(BIAS, W @ W.T + SIGMA**2 * np.eye(4)).logpdf(X)
PRECISION = 1 + np.sum(W**2, axis=0) / SIGMA**2
POSTERIOR = (
    (W.T @ (X - BIAS) / SIGMA**2 / PRECISION).astype(np.float32),
    (-np.log(PRECISION)).astype(np.float32),
)
MISSPECIFIED = (POSTERIOR[0] + np.float32([0.3, -0.4]), POSTERIOR[1] + np.float32(0.4))


def log_joint(z, bias=BIAS):
    """log p(X, z), `[..., 2] -> [...]`."""
    centred = jnp.asarray(X) - bias
    residual = jnp.broadcast_to(centred, (*z.shape[:-1], 4)) - z @ jnp.asarray(W.T)
    return (
        -0.5 * jnp.sum(jnp.square(z), -1)
        - 0.5 * jnp.sum(jnp.square(residual), -1) / SIGMA**2
        - 3 * np.log(2 * np.pi)
        - 4 * np.log(SIGMA)
    )


def draws(mu, log_var, eps):
    return jax.vmap(vae.reparameterised, (None, None, 0))(mu, log_var, eps)


def log_weights(z, mu, log_var, bias=BIAS):
    log_q = jax.vmap(vae.normal_log_prob, (0, None, None))(z, mu, log_var)
    return log_joint(z, bias) - log_q


def bound(mu, log_var, eps, *, doubly, bias=BIAS):
    """The bound `[B]` for encoder outputs `[B, 2]` and noise `[K, B, 2]`."""
    z = draws(mu, log_var, eps)
    if not doubly:
        return vae.iwae(log_weights(z, mu, log_var, bias))
    fixed = jax.lax.stop_gradient((mu, log_var))
    return vae.dreg_iwae(lambda z: log_weights(z, *fixed, bias), z)


@jax.jit
def iwae_values(mu, log_var, eps):
    return bound(mu, log_var, eps, doubly=False)


def encoder_gradients(q, eps, *, doubly):
    """One gradient of the bound with respect to (mu, log_var) per example, `[B, 4]`."""
    outputs = tuple(jnp.tile(part[None], (eps.shape[1], 1)) for part in q)
    gradients = jax.jit(
        jax.grad(
            lambda mu, log_var: bound(mu, log_var, eps, doubly=doubly).sum(),
            argnums=(0, 1),
        )
    )(*outputs)
    return np.asarray(jnp.concatenate(gradients, axis=-1))


@pytest.mark.parametrize("num_draws", [1, 2, 50])
def test_linear_gaussian_exact_posterior_gives_log_p_without_variance(num_draws):
    mu, log_var = (jnp.tile(part[None], (20, 1)) for part in POSTERIOR)
    got = iwae_values(mu, log_var, normal(num_draws, 20, 2))
    np.testing.assert_allclose(got, np.full(20, LOG_P), atol=1e-5)


def test_linear_gaussian_bounds_are_ordered_below_log_p():
    eps = normal(50, 8000, 2, seed=4)
    mu, log_var = (jnp.tile(part[None], (8000, 1)) for part in MISSPECIFIED)
    values = [np.asarray(iwae_values(mu, log_var, eps[:k])) for k in (1, 5, 50)]
    means = [v.mean() for v in values] + [LOG_P]
    errors = [v.std() / np.sqrt(v.size) for v in values]
    for lower, higher, error in zip(means[:-1], means[1:], errors, strict=True):
        assert lower + 3 * error < higher
    assert LOG_P - means[2] < 0.02
    gap = vae.kl_normal(*(part[None] for part in (*MISSPECIFIED, *POSTERIOR)))
    assert abs(means[0] - (LOG_P - float(gap[0]))) < 4 * errors[0]


def test_linear_gaussian_elbo_from_its_terms_is_log_p_at_the_posterior():
    mu, log_var = (jnp.tile(part[None], (20_000, 1)) for part in POSTERIOR)
    z = vae.reparameterised(mu, log_var, normal(20_000, 2, seed=8))
    log_likelihood = log_joint(z) - vae.normal_log_prob(z, 0 * z, 0 * z)
    terms = vae.elbo_terms(log_likelihood, vae.kl_standard_normal(mu, log_var))
    error = float(terms.elbo.std()) / np.sqrt(20_000)
    assert abs(float(terms.elbo.mean()) - LOG_P) < 4 * error


def test_dreg_iwae_value_and_decoder_gradient_are_those_of_iwae():
    eps = normal(6, 5, 2, seed=2)
    mu, log_var = (jnp.tile(part[None], (5, 1)) for part in MISSPECIFIED)

    def by_bias(doubly):
        return jax.jit(
            jax.value_and_grad(
                lambda bias: bound(mu, log_var, eps, doubly=doubly, bias=bias).sum()
            )
        )(jnp.asarray(BIAS))

    plain, double = by_bias(False), by_bias(True)
    np.testing.assert_allclose(double[0], plain[0], rtol=1e-6)
    np.testing.assert_allclose(double[1], plain[1], rtol=1e-4, atol=1e-5)


def test_dreg_iwae_gradient_is_the_squared_weight_on_the_path_through_z():
    eps = normal(4, 3, 2, seed=7)
    mu, log_var = (jnp.tile(part[None], (3, 1)) for part in MISSPECIFIED)
    z = draws(mu, log_var, eps)
    values, pullback = jax.vjp(jax.jit(lambda z: log_weights(z, mu, log_var)), z)
    shares = jax.nn.softmax(values, axis=0)
    (slope,) = pullback(jnp.ones_like(values))
    to_mu = (shares[..., None] ** 2 * slope).sum(0)
    path = 0.5 * jnp.exp(0.5 * log_var)[None] * eps
    to_log_var = (shares[..., None] ** 2 * slope * path).sum(0)
    expected = jnp.concatenate([to_mu, to_log_var], axis=-1)
    got = encoder_gradients(MISSPECIFIED, eps, doubly=True)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_dreg_iwae_scales_with_the_loss_and_skips_what_the_loss_skips():
    eps = normal(4, 3, 2, seed=7)
    mu, log_var = (jnp.tile(part[None], (3, 1)) for part in MISSPECIFIED)
    scale = jnp.array([-0.25, 0.0, 2.0])
    got = jax.jit(
        jax.grad(lambda mu: (scale * bound(mu, log_var, eps, doubly=True)).sum())
    )(mu)
    whole = encoder_gradients(MISSPECIFIED, eps, doubly=True)[:, :2]
    np.testing.assert_allclose(got, scale[:, None] * whole, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("num_draws", [1, 5])
def test_dreg_iwae_encoder_gradient_is_unbiased_with_less_variance(num_draws):
    size = 20_000
    eps = normal(num_draws, size, 2, seed=11)
    plain = encoder_gradients(MISSPECIFIED, eps, doubly=False)
    double = encoder_gradients(MISSPECIFIED, eps, doubly=True)
    if num_draws == 1:
        gap = jax.grad(
            lambda q: (
                -vae.kl_normal(q[0][None], q[1][None], *(p[None] for p in POSTERIOR))[0]
            )
        )(tuple(map(jnp.asarray, MISSPECIFIED)))
        truth, truth_error = np.concatenate(gap), 0.0
    else:
        truth, truth_error = plain.mean(0), plain.std(0) / np.sqrt(size)
    error = np.hypot(double.std(0) / np.sqrt(size), truth_error)
    assert (np.abs(double.mean(0) - truth) < 4 * error).all()
    assert (np.abs(truth) > 8 * error).sum() >= 3  # the test can tell
    assert (double.var(0) < plain.var(0)).all()


@pytest.mark.parametrize("num_draws", [1, 5])
def test_dreg_iwae_encoder_gradient_vanishes_at_the_posterior(num_draws):
    eps = normal(num_draws, 50, 2)
    double = encoder_gradients(POSTERIOR, eps, doubly=True)
    np.testing.assert_allclose(double, np.zeros((50, 4)), atol=2e-5)
    assert np.abs(encoder_gradients(POSTERIOR, eps, doubly=False)).max() > 0.1
