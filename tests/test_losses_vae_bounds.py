"""Importance weighted bounds of VAEs, alone and in the linear-Gaussian model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from arrays import normal

from jaxgen.losses import vae
from jaxgen.verify import linear_gaussian
from jaxgen.verify.linear_gaussian import BIAS, PRECISION

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


# ---- the linear-Gaussian model, whose posterior is known

X = np.array([0.9, -0.4, 1.5, -1.1])
LOG_P = linear_gaussian.exact_log_prob(X)
POSTERIOR = (
    linear_gaussian.posterior_mean(X).astype(np.float32),
    (-np.log(PRECISION)).astype(np.float32),
)
MISSPECIFIED = (POSTERIOR[0] + np.float32([0.3, -0.4]), POSTERIOR[1] + np.float32(0.4))


def log_joint(z, bias=BIAS):
    """log p(X, z), `[..., 2] -> [...]`."""
    log_prior = -0.5 * jnp.sum(jnp.square(z), -1) - np.log(2 * np.pi)
    return log_prior + linear_gaussian.log_likelihood(z, X, bias)


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
