"""Balance, VampPrior, autoencoder and rows: known optima, quadrature, what is refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import integrate, special, stats

from jaxgen import annealing, likelihoods
from jaxgen._checks import UserError
from jaxgen.columns import Column
from jaxgen.models import vae
from jaxgen.models.base import indexed_keys
from jaxgen.train import update

COLUMNS = (
    Column(name="a", mean=1.0, deviation=2.0),
    Column(name="b", kind="positive", mean=0.3, deviation=0.5),
)


def bound(shape=(1, 2, 1), columns=None, **options):
    options = {"latent_dim": 2, "hidden": (), "likelihood": "gaussian", **options}
    config, _ = vae.resolve(vae.VAEConfig(**options), shape, None, None, columns)
    return config, vae.make_vae(config)


def started(model, x, seed=0):
    return jax.jit(model.init)(jax.random.key(seed), {"x": x})


def trained(model, x, num_steps, rate=0.03):
    """The state after full-batch training, the rate falling to zero."""
    optimizers = {"vae": optax.adam(optax.cosine_decay_schedule(rate, num_steps))}
    state = update.init_state(model, optimizers, jax.random.key(0), {"x": x})
    advance = update.make_update(
        model, optimizers, num_steps=num_steps, ema_half_life=0.01
    )

    @jax.jit
    def train(state, key):
        body = lambda state, _: (advance(state, {"x": x}, key)[0], None)
        return jax.lax.scan(body, state, None, length=num_steps)[0]

    return train(state, jax.random.key(1))


def test_computed_sigma_converges_to_the_noise_of_a_linear_gaussian_vae():
    """The mean squared error is not the noise alone, but also what Q spreads:
    E|x - mean(z)|^2 / D = sigma^2 at the optimum of PPCA, where dELBO / dsigma = 0."""
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(2, 6)) * np.array([[1.0], [0.5]])
    data = rng.normal(size=(1000, 2)) @ mixing + 0.3 * rng.normal(size=(1000, 6)) + 0.5
    noise = np.sqrt(np.linalg.eigvalsh(np.cov(data.T, bias=True))[:4].mean())
    x = jnp.asarray(data, jnp.float32).reshape(-1, 1, 6, 1)
    _, model = bound((1, 6, 1), sigma="computed", sigma_value=1.0)
    state = trained(model, x, 1500)
    np.testing.assert_allclose(np.sqrt(state.extra["error"].mse), noise, rtol=0.01)
    np.testing.assert_allclose(np.exp(state.ema["vae"]["log_sigma"]), noise, rtol=0.01)


def test_geco_holds_its_constraint_at_the_rate_of_shannon():
    """Of N(0, I) in two dimensions and tolerance kappa^2 the least KL is -log kappa^2."""
    data = np.random.default_rng(0).normal(size=(2000, 2))
    data = (data - data.mean(axis=0)) / data.std(axis=0)
    x = jnp.asarray(data, jnp.float32).reshape(-1, 1, 2, 1)
    _, model = bound(geco=0.5)
    state = trained(model, x, 1200)
    np.testing.assert_allclose(state.extra["error"].mse, 0.25, rtol=0.03)
    objective = jax.jit(model.players[0].objective)
    arguments = state.ema, state.extra, {"x": x}, jax.random.key(2), jnp.float32(1)
    loss, aux = objective(*arguments)
    covariance = np.cov(data.T, bias=True)
    least = 0.5 * np.log(np.linalg.eigvalsh(covariance) / 0.25).sum()
    np.testing.assert_allclose(aux.metrics["rate"].mean(), least, rtol=0.03)
    # dR / dD of two numbers is -1 / kappa^2, so lambda |x - mu|^2 is priced 1 / (2 kappa^2).
    np.testing.assert_allclose(aux.metrics["multiplier"], 2.0, rtol=0.1)
    sigma = np.exp(state.ema["vae"]["log_sigma"])  # what samples and likelihoods use
    np.testing.assert_allclose(sigma, 0.5, rtol=0.03)
    assert np.all(np.isfinite(loss))


@functools.cache
def vamp():
    """A VampPrior over one latent, away from its start, and some images."""
    config, model = bound(
        (2, 2, 1),
        prior="vamp",
        num_pseudo=3,
        latent_dim=1,
        hidden=(4,),
        likelihood="bernoulli",
    )
    x = jnp.asarray(np.random.default_rng(0).integers(0, 2, (5, 2, 2, 1)), jnp.float32)
    params, extra = started(model, x)
    noise = np.random.default_rng(1)
    params = jax.tree.map(lambda p: p + 0.4 * noise.normal(size=p.shape), params)
    return config, model, jax.tree.map(jnp.float32, params), extra, x


def test_the_vamp_prior_is_the_mixture_of_its_pseudo_inputs_encodings():
    config, model, params, _, _ = vamp()
    mu, log_var = vae.encode(config, params["vae"], params["vae"]["pseudo"])
    mu, sigma = np.float64(mu[:, 0]), np.exp(0.5 * np.float64(log_var[:, 0]))
    z = np.linspace(-4, 4, 40).reshape(2, 20, 1)
    expected = special.logsumexp(stats.norm(mu, sigma).logpdf(z), axis=2) - np.log(3)
    got = vae.log_prior(config, params["vae"], jnp.float32(z))
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
    keys = indexed_keys(jax.random.key(0), jnp.arange(20_000))
    drawn = np.asarray(jax.jit(model.prior)(keys, params))[:, 0]
    cdf = lambda z: stats.norm(mu[:, None], sigma[:, None]).cdf(z).mean(axis=0)
    assert stats.kstest(drawn, cdf).pvalue > 1e-3
    np.testing.assert_allclose(model.prior(keys[5:7], params)[:, 0], drawn[5:7])
    with pytest.raises(ValueError, match=r"learned: prior\(keys, params\)"):
        model.prior(keys)


def test_importance_sampling_and_the_objective_know_the_vamp_prior():
    """Both against quadrature over the one latent."""
    config, model, params, extra, x = vamp()
    z = jnp.linspace(-12, 12, 6001)[:, None]
    logits = vae.decode(config, params["vae"], z).reshape(len(z), -1)
    pixels = np.asarray(x).reshape(5, -1)
    log_p = pixels @ np.float64(logits).T - np.logaddexp(0, logits).sum(axis=1)
    log_prior = np.float64(vae.log_prior(config, params["vae"], z))
    joint = np.exp(log_p + log_prior)
    exact = np.log(integrate.simpson(joint, x=np.asarray(z[:, 0]), axis=1))
    keys = indexed_keys(jax.random.key(0), jnp.arange(5))
    result = jax.jit(lambda *a: model.log_likelihood(*a, num_samples=4000))(
        params, x, keys
    )
    error = 4 * np.asarray(result.standard_error) + 1e-3
    assert np.all(np.abs(result.nats - exact) < error)

    def annealed(z):
        logits = vae.decode(config, params["vae"], z)
        ratio = vae.log_prior(config, params["vae"], z)
        ratio -= jnp.sum(-0.5 * jnp.square(z) - 0.5 * np.log(2 * np.pi), axis=1)
        return ratio + likelihoods.bernoulli_log_prob(x, logits)

    result = jax.jit(
        lambda keys: annealing.annealed_importance(
            annealed, keys, latent_shape=(1,), num_chains=200, num_temperatures=50
        )
    )(keys)
    error = 4 * np.asarray(result.standard_error) + 1e-3
    assert np.all(np.abs(result.log_likelihood - exact) < error)
    mu, log_var = vae.encode(config, params["vae"], x)
    density = stats.norm(np.float64(mu), np.exp(0.5 * np.float64(log_var)))
    log_q = density.logpdf(np.asarray(z[:, 0])[None])
    rate = integrate.simpson(
        np.exp(log_q) * (log_q - log_prior), x=np.asarray(z[:, 0]), axis=1
    )
    objective = lambda key: model.players[0].objective(
        params, extra, {"x": x}, key, jnp.float32(0)
    )
    loss, aux = jax.jit(jax.vmap(objective))(jax.random.split(jax.random.key(3), 4000))
    rates = np.asarray(aux.metrics["rate"])
    assert np.all(np.abs(rates.mean(axis=0) - rate) < 5 * rates.std(axis=0) / 60)
    np.testing.assert_allclose(loss, aux.metrics["distortion"] + rates, rtol=1e-5)
    eps = jax.random.normal(jax.random.key(4), (5, 1))
    elbo = vae.elbo(config, params["vae"], x, eps).elbo
    weights = vae.log_weights(config, params["vae"], x, eps[None])[0]
    np.testing.assert_allclose(elbo, weights, rtol=1e-4)


def test_pseudo_inputs_start_as_data_and_are_trained():
    _, model, params, extra, x = vamp()
    fresh, _ = started(model, x)
    np.testing.assert_array_equal(fresh["vae"]["pseudo"], x[:3])
    loss = lambda p: (
        model.players[0].objective(p, extra, {"x": x}, jax.random.key(0), 0.0)[0].sum()
    )
    slope = jax.jit(jax.grad(loss))(params)["vae"]["pseudo"]
    assert np.all(np.max(np.abs(slope), axis=(1, 2, 3)) > 0)


def test_an_autoencoder_has_neither_noise_nor_kl_nor_likelihood():
    config, model = bound((2, 2, 1), autoencoder=True, hidden=(4,), sigma="fixed")
    assert model.log_likelihood is None
    x = jax.random.uniform(jax.random.key(0), (5, 2, 2, 1))
    params, extra = started(model, x)
    keys = indexed_keys(jax.random.key(1), jnp.arange(5))
    z = model.encode(params, x, keys)
    mu, _ = vae.encode(config, params["vae"], x)
    np.testing.assert_array_equal(z, mu)
    args = params, extra, {"x": x}, jax.random.key(2), jnp.float32(0)
    loss, aux = model.players[0].objective(*args)
    squares = np.square(x - model.generate(params, z, keys)).sum(axis=(1, 2, 3))
    expected = 0.5 * squares / 0.1**2 + 2 * np.log(2 * np.pi * 0.1**2)
    np.testing.assert_allclose(loss, expected, rtol=1e-4)
    assert set(aux.metrics) == {"distortion"}
    assert len(model.views) == 2


@functools.cache
def of_rows():
    config, model = bound((2,), COLUMNS, latent_dim=1, hidden=(4,), sigma="learned")
    rng = np.random.default_rng(0)
    x = np.stack([rng.normal(1, 2, 6), np.exp(rng.normal(0.3, 0.5, 6))], axis=1)
    params, _ = started(model, jnp.float32(x))
    params = jax.tree.map(lambda p: p + 0.3 * rng.normal(size=p.shape), params)
    return config, model, jax.tree.map(jnp.float32, params), x


def moments(config, params, z):
    """Means `[P, 2]` of p(x|z) on the line, and sigma."""
    outputs = vae.decode(config, params["vae"], z)
    means = vae.likelihood(config).mean(outputs).reshape(len(z), 2)
    return np.float64(means), np.exp(np.float64(params["vae"]["log_sigma"]))


def test_the_likelihood_of_rows_is_in_their_units():
    config, model, params, x = of_rows()
    assert model.density == "other"
    z = jnp.linspace(-8, 8, 2001)[:, None]
    means, sigma = moments(config, params, z)
    line = np.stack([(x[:, 0] - 1) / 2, (np.log(x[:, 1]) - 0.3) / 0.5], axis=1)
    log_p = stats.norm(means[None], sigma).logpdf(line[:, None]).sum(axis=2)
    log_p += stats.norm.logpdf(z[:, 0])[None]
    exact = np.log(integrate.simpson(np.exp(log_p), x=np.asarray(z[:, 0]), axis=1))
    exact -= np.log(2.0) + np.log(0.5) + np.log(x[:, 1])
    keys = indexed_keys(jax.random.key(0), jnp.arange(6))
    result = jax.jit(lambda *a: model.log_likelihood(*a, num_samples=5000))(
        params, jnp.float32(x), keys
    )
    error = 4 * np.asarray(result.standard_error) + 1e-3
    assert np.all(np.abs(result.nats - exact) < error)


def test_a_sampled_row_has_the_noise_of_the_decoder():
    config, model, params, _ = of_rows()
    keys = indexed_keys(jax.random.key(0), jnp.arange(8000))
    z = jnp.zeros((8000, 1))
    rows = np.asarray(jax.jit(model.generate)(params, z, keys))
    (mean,), sigma = moments(config, params, z[:1])
    line = np.stack([(rows[:, 0] - 1) / 2, (np.log(rows[:, 1]) - 0.3) / 0.5], axis=1)
    np.testing.assert_allclose(line.mean(axis=0), mean, atol=5 * sigma / 90)
    np.testing.assert_allclose(line.std(axis=0), sigma, rtol=0.04)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"geco": 0.0}, "--geco and --geco-rate must be positive"),
        ({"geco": 0.1, "beta": 2.0}, "--geco finds the weight"),
        ({"geco": 0.1, "num_importance": 5}, "--geco finds the weight"),
        ({"geco": 0.1, "sigma": "optimal"}, "goes with --sigma computed"),
        ({"prior": "vamp", "free_bits": 0.1}, "--free-bits needs a KL for each"),
        ({"num_pseudo": 0}, "--num-pseudo must be at least 1"),
        ({"autoencoder": True, "beta": 2.0}, "--autoencoder has no KL"),
        ({"autoencoder": True, "prior": "vamp"}, "--autoencoder has no KL"),
        ({"autoencoder": True, "num_importance": 2}, "no importance weights"),
    ],
)
def test_config_refuses_two_policies_at_once(options, message):
    with pytest.raises(UserError, match=message):
        vae.VAEConfig(**options)


def test_resolve_refuses_what_does_not_fit_the_data():
    for options, message in (
        ({"geco": 0.1, "likelihood": "bernoulli"}, "--geco bounds a squared error"),
        ({"sigma": "computed", "num_importance": 2}, "--sigma computed needs"),
    ):
        with pytest.raises(UserError, match=message):
            bound(**options)
    for options, message in (
        ({"likelihood": "bernoulli"}, "takes --likelihood gaussian"),
        ({"net": "conv"}, "--net conv is not for tables"),
    ):
        with pytest.raises(UserError, match=message):
            bound((2,), COLUMNS, **options)
    given = (*COLUMNS, Column(name="c", is_context=True))
    with pytest.raises(UserError, match="no context columns"):
        bound((3,), given)


def test_geco_computes_sigma_and_starts_where_it_is_allowed():
    config, model = bound(geco=0.2)
    assert config.sigma == "computed"
    _, extra = started(model, jnp.ones((3, 1, 2, 1)))
    np.testing.assert_allclose(extra["error"].mse, 0.04, rtol=1e-6)
    np.testing.assert_allclose(extra["multiplier"], 12.5, rtol=1e-6)
