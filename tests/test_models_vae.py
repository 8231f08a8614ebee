"""The VAE family: known optima, exact K, every size, and what is refused."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

from jaxgen import likelihoods
from jaxgen._checks import UserError
from jaxgen.models import vae, vae_networks
from jaxgen.models.base import indexed_keys
from jaxgen.train import update


def bound(shape=(8, 8, 1), transform=None, **options):
    options = {"latent_dim": 3, "hidden": (16,), "width": 4, "levels": 2, **options}
    config, _ = vae.resolve(vae.VAEConfig(**options), shape, transform)
    return config, vae.make_vae(config)


def jitted(model, num):
    return jax.jit(lambda *args: model.log_likelihood(*args, num_samples=num))


def images(shape, likelihood, num=6):
    x = jax.random.randint(jax.random.key(9), (num, *shape), 0, 256)
    if likelihood == "bernoulli":
        return (x > 127).astype(jnp.float32)
    return (x + 0.5 * (likelihood == "gaussian")) / (255 + (likelihood == "gaussian"))


@pytest.mark.parametrize(
    ("net", "likelihood", "shape"),
    [
        ("mlp", "bernoulli", (8, 8, 1)),
        ("mlp", "gaussian", (7, 5, 3)),
        ("mlp", "logistic_mixture", (8, 8, 1)),
        pytest.param("conv", "bernoulli", (9, 8, 1), marks=pytest.mark.slow),
        ("conv", "logistic_mixture", (7, 5, 3)),
    ],
)
def test_make_vae_takes_any_size_channels_and_likelihood(net, likelihood, shape):
    config, model = bound(shape, net=net, likelihood=likelihood)
    x = images(shape, likelihood)
    key = jax.random.key(0)
    optimizers = {"vae": optax.adam(1e-3)}
    state = update.init_state(model, optimizers, key, {"x": x})
    advance = jax.jit(update.make_update(model, optimizers, num_steps=10))
    for _ in range(2):
        state, metrics = advance(state, {"x": x}, key)
    assert all(np.all(np.isfinite(value)) for value in metrics.values())
    centre = state.params["vae"]["centre"]
    np.testing.assert_allclose(centre, jnp.mean(x, axis=0), rtol=1e-6)  # not trained
    keys = indexed_keys(key, jnp.arange(6))
    z = model.encode(state.params, x, keys)
    made = model.generate(state.params, z, keys)
    assert made.shape == x.shape
    assert config.likelihood == "gaussian" or (made.min() >= 0 and made.max() <= 1)
    result = jitted(model, 3)(state.params, x, keys)
    assert result.nats.shape == (6,)
    assert result.kind == "bound"
    assert np.all(np.isfinite(result.nats))
    for _, view in model.views:
        assert jax.jit(view)(state.params, x).shape[2:] == shape


def test_the_one_layer_network_of_burda_has_its_number_of_parameters():
    _, model = bound(
        (28, 28, 1), "binarise", latent_dim=50, hidden=(200, 200), activation="tanh"
    )
    params, _ = model.init(jax.random.key(0), {"x": jnp.ones((2, 28, 28, 1))})
    dense = lambda a, b: a * b + b
    expected = dense(784, 200) + 2 * dense(200, 200) + dense(200, 100)
    expected += dense(50, 200) + dense(200, 784)
    trained = {name: params["vae"][name] for name in ("encoder", "decoder")}
    assert sum(leaf.size for leaf in jax.tree.leaves(trained)) == expected


def test_init_starts_the_decoder_from_the_mean_image():
    _, model = bound((4, 4, 1), likelihood="bernoulli")
    x = (jax.random.uniform(jax.random.key(0), (500, 4, 4, 1)) < 0.3).astype(
        jnp.float32
    )
    params, _ = model.init(jax.random.key(1), {"x": x})
    logits = params["vae"]["decoder"]["output"]["bias"]
    np.testing.assert_allclose(
        jax.nn.sigmoid(logits).reshape(4, 4, 1), x.mean(axis=0), atol=1e-5
    )
    np.testing.assert_allclose(params["vae"]["centre"], x.mean(axis=0), atol=1e-6)


@pytest.mark.parametrize("num", [1, 7, 150])
def test_log_likelihood_takes_exactly_k_samples_in_any_chunks(num, monkeypatch):
    config, model = bound(likelihood="bernoulli")
    x = images((8, 8, 1), "bernoulli")
    params, _ = jax.jit(model.init)(jax.random.key(0), {"x": x})
    keys = indexed_keys(jax.random.key(1), jnp.arange(6))
    results = []
    for rows in (6, 24, 10**6):
        monkeypatch.setattr(vae, "NUMBERS", 64 * rows)
        results.append(jitted(model, num)(params, x, keys))
    per_sample = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)), (0, None))
    normal = jax.vmap(jax.vmap(lambda k: jax.random.normal(k, (3,))))
    eps = normal(per_sample(keys, jnp.arange(num))).swapaxes(0, 1)
    weights = vae.log_weights(config, params["vae"], x, eps)
    assert weights.shape == (num, 6)
    by_hand = jax.nn.logsumexp(weights, axis=0) - np.log(num)
    for result in results:
        np.testing.assert_allclose(result.nats, by_hand, rtol=2e-6)
        assert np.all(result.ess <= num * (1 + 1e-5))


def test_log_likelihood_of_an_example_does_not_depend_on_its_batch():
    _, model = bound(likelihood="bernoulli")
    x = images((8, 8, 1), "bernoulli")
    params, _ = jax.jit(model.init)(jax.random.key(0), {"x": x})
    keys = indexed_keys(jax.random.key(1), jnp.arange(6))
    whole = jitted(model, 20)(params, x, keys).nats
    part = jitted(model, 20)(params, x[4:], keys[4:]).nats
    np.testing.assert_allclose(part, whole[4:], rtol=1e-6)


def test_elbo_agrees_with_the_objective_and_bounds_the_likelihood():
    config, model = bound(likelihood="bernoulli")
    x = images((8, 8, 1), "bernoulli")
    params, extra = jax.jit(model.init)(jax.random.key(0), {"x": x})
    eps = jax.random.normal(jax.random.key(2), (4000, 6, 3))
    terms = jax.jit(jax.vmap(lambda e: vae.elbo(config, params["vae"], x, e)))(eps)
    elbo = -(terms.distortion + terms.rate).mean(axis=0)
    keys = jax.random.split(jax.random.key(3), 400)
    objective = lambda key: model.players[0].objective(
        params, extra, {"x": x}, key, jnp.float32(0)
    )[0]
    losses = jax.jit(jax.vmap(objective))(keys)
    error = losses.std(axis=0) / 20
    assert np.all(np.abs(losses.mean(axis=0) + elbo) < 4 * error + 1e-3)
    keys = indexed_keys(jax.random.key(4), jnp.arange(6))
    likelihood = jitted(model, 2000)(params, x, keys)
    assert np.all(elbo < likelihood.nats + 3 * likelihood.standard_error)


@pytest.mark.parametrize("gradient", ["plain", "dreg"])
def test_importance_weighted_training_has_the_value_of_the_bound(gradient):
    config, model = bound(likelihood="bernoulli", num_importance=5, gradient=gradient)
    x = images((8, 8, 1), "bernoulli")
    params, extra = jax.jit(model.init)(jax.random.key(0), {"x": x})
    batch, key = {"x": x}, jax.random.key(5)
    loss, _ = model.players[0].objective(params, extra, batch, key, jnp.float32(0))
    keys = indexed_keys(key, jnp.arange(6))
    eps = jax.vmap(lambda k: jax.random.normal(k, (5, 3)))(keys).swapaxes(0, 1)
    weights = vae.log_weights(config, params["vae"], x, eps)
    np.testing.assert_allclose(
        loss, -(jax.nn.logsumexp(weights, axis=0) - np.log(5)), rtol=1e-6
    )


def test_dreg_training_has_the_doubly_reparameterised_gradient():
    config, model = bound(
        net="mlp", likelihood="bernoulli", num_importance=4, gradient="dreg"
    )
    x = images((8, 8, 1), "bernoulli")
    params, extra = jax.jit(model.init)(jax.random.key(0), {"x": x})
    key = jax.random.key(5)
    keys = indexed_keys(key, jnp.arange(6))
    eps = jax.vmap(lambda k: jax.random.normal(k, (4, 3)))(keys).swapaxes(0, 1)

    def trained(params):
        batch = {"x": x}
        return model.players[0].objective(params, extra, batch, key, 0.0)[0].sum()

    def by_definition(encoder):
        # Tucker et al. 2018, equation 8: squared weights, and only the path through z.
        own = {**params["vae"], "encoder": encoder}
        mu, log_var = vae.encode(config, own, x)
        z = mu[None] + jnp.exp(0.5 * log_var)[None] * eps
        logits = vae.decode(config, own, z.reshape(24, 3)).reshape(4, 6, -1)
        pixels = x.reshape(1, 6, -1)
        log_p = (pixels * logits - jnp.logaddexp(0.0, logits)).sum(-1)
        mu, log_var = jax.lax.stop_gradient((mu[None], log_var[None]))
        log_q = -0.5 * (jnp.square(z - mu) / jnp.exp(log_var) + log_var).sum(-1)
        log_w = log_p - 0.5 * jnp.square(z).sum(-1) - log_q
        weights = jax.lax.stop_gradient(jax.nn.softmax(log_w, axis=0))
        return -jnp.sum(jnp.square(weights) * log_w)

    actual = jax.jit(jax.grad(trained))(params)["vae"]["encoder"]
    expected = jax.jit(jax.grad(by_definition))(params["vae"]["encoder"])
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5 * np.abs(b).max())


def test_training_reaches_the_closed_form_of_a_linear_gaussian_vae():
    """Linear decoder and Gaussian noise: the optimum is probabilistic PCA."""
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(2, 6)) * np.array([[1.0], [0.5]])
    data = rng.normal(size=(1000, 2)) @ mixing + 0.3 * rng.normal(size=(1000, 6)) + 0.5
    # Maximum likelihood of PPCA (Tipping & Bishop 1999): sigma^2 is the mean of the
    # discarded eigenvalues of the covariance.
    values = np.linalg.eigvalsh(np.cov(data.T, bias=True))[::-1]
    spread = values[2:].mean()
    best = np.log(2 * np.pi) * 6 + np.log(values[:2]).sum() + 4 * np.log(spread) + 6
    x = jnp.asarray(data, jnp.float32).reshape(-1, 1, 6, 1)
    options = {"likelihood": "gaussian", "sigma": "learned", "sigma_value": 1.0}
    _, model = bound((1, 6, 1), latent_dim=2, hidden=(), **options)
    optimizers = {"vae": optax.adam(optax.cosine_decay_schedule(0.03, 1500))}
    state = update.init_state(model, optimizers, jax.random.key(0), {"x": x})
    advance = update.make_update(model, optimizers, num_steps=1500, ema_half_life=0.01)

    @jax.jit
    def train(state, key):
        body = lambda state, _: (advance(state, {"x": x}, key)[0], None)
        return jax.lax.scan(body, state, None, length=1500)[0]

    state = train(state, jax.random.key(1))
    keys = indexed_keys(jax.random.key(2), jnp.arange(1000))
    got = jitted(model, 20)(state.ema, x, keys).nats.mean()
    np.testing.assert_allclose(got, -0.5 * best, atol=0.003)
    np.testing.assert_allclose(
        np.exp(state.ema["vae"]["log_sigma"]), np.sqrt(spread), rtol=0.01
    )


def test_optimal_sigma_has_the_profile_value_and_trains_the_stored_sigma():
    x, mu = jax.random.uniform(jax.random.key(0), (2, 8, 4, 4, 1))
    log_sigma = jnp.float32(0.7)

    def log_prob(log_sigma):
        best = likelihoods.optimal_log_sigma(x, mu)
        return vae_networks._followed_log_prob(x, mu, log_sigma, best)

    value = log_prob(log_sigma)
    rmse = np.sqrt(np.mean((x - mu) ** 2))
    expected = stats.norm(np.asarray(mu), rmse).logpdf(x).sum(axis=(1, 2, 3))
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    slope = jax.grad(lambda s: log_prob(s).sum())
    assert abs(slope(jnp.log(rmse))) < 1e-2
    assert slope(log_sigma) < -1


@pytest.mark.parametrize(
    ("options", "transform", "likelihood", "resolved"),
    [
        ({}, None, "logistic_mixture", "levels"),
        ({}, "binarise", "bernoulli", "binarise"),
        ({}, "static", "bernoulli", "static"),
        ({}, "dequantise", "gaussian", "dequantise"),
        ({"likelihood": "gaussian"}, None, "gaussian", "dequantise"),
        ({"likelihood": "bernoulli"}, None, "bernoulli", "binarise"),
    ],
)
def test_resolve_fits_likelihood_and_transform(
    options, transform, likelihood, resolved
):
    config, got = vae.resolve(vae.VAEConfig(**options), (8, 8, 1), transform)
    assert (config.likelihood, got) == (likelihood, resolved)
    assert vae.resolve(config, (8, 8, 1), got) == (config, got)


def test_resolve_refuses_a_distribution_over_other_data():
    with pytest.raises(
        UserError, match="--likelihood gaussian.*dequantise, not levels"
    ):
        vae.resolve(vae.VAEConfig(likelihood="gaussian"), (8, 8, 1), "levels")


@pytest.mark.parametrize(
    "options",
    [
        {"latent_dim": 0},
        {"beta": -1.0},
        {"beta_warmup": 2.0},
        {"num_importance": 5, "beta": 2.0},
        {"num_importance": 5, "gradient": "analytic"},
        {"hidden": (8, 0)},
        {"levels": 80},
        {"beta": float("nan")},
    ],
)
def test_config_refuses_what_makes_no_sense(options):
    with pytest.raises(UserError, match="--"):
        vae.VAEConfig(**options)


def test_resolve_gives_sigma_what_the_gradient_allows():
    for num, sigma in ((1, "optimal"), (5, "learned")):
        config, _ = bound(likelihood="gaussian", num_importance=num)
        assert config.sigma == sigma
    with pytest.raises(UserError, match="--sigma optimal needs the analytic KL"):
        bound(likelihood="gaussian", num_importance=5, sigma="optimal")


def test_free_bits_and_warmup_enter_the_loss():
    _, model = bound(likelihood="bernoulli")
    x = images((8, 8, 1), "bernoulli")
    params, extra = jax.jit(model.init)(jax.random.key(0), {"x": x})
    args = (params, extra, {"x": x}, jax.random.key(1))
    loss, aux = model.players[0].objective(*args, jnp.float32(0.0))
    rate = aux.metrics["rate"]
    np.testing.assert_allclose(loss, aux.metrics["distortion"] + rate, rtol=1e-6)
    _, warm = bound(likelihood="bernoulli", beta_warmup=0.5, beta=2.0)
    for progress, beta in ((0.0, 0.0), (0.25, 1.0), (0.9, 2.0)):
        loss, aux = warm.players[0].objective(*args, jnp.float32(progress))
        expected = aux.metrics["distortion"] + beta * aux.metrics["rate"]
        np.testing.assert_allclose(loss, expected, rtol=1e-5)
    _, free = bound(likelihood="bernoulli", free_bits=50.0)
    loss, aux = free.players[0].objective(*args, jnp.float32(0.0))
    np.testing.assert_allclose(loss, aux.metrics["distortion"] + 150.0, rtol=1e-6)
    np.testing.assert_allclose(aux.metrics["rate"], rate, rtol=1e-6)  # as it is


def test_config_is_json_ready():
    config, _ = vae.resolve(vae.VAEConfig(), (8, 8, 1), None)
    assert dataclasses.asdict(config)["shape"] == (8, 8, 1)


def one_step(batch=6, shape=(8, 8, 1), **options):
    """The compiled update of a Bernoulli VAE, and its arguments."""
    _, model = bound(shape, likelihood="bernoulli", **options)
    x = {"x": images(shape, "bernoulli", batch)}
    optimizers = {"vae": optax.adam(1e-3)}
    state = update.init_state(model, optimizers, jax.random.key(0), x)
    # Away from the start, where the last convolutions of the blocks are zero.
    state = state._replace(
        params=jax.tree.map(lambda p: p + 0.03, state.params),
    )
    advance = jax.jit(update.make_update(model, optimizers, num_steps=10))
    return advance.lower(state, x, jax.random.key(1)), (state, x, jax.random.key(1))


@pytest.mark.parametrize("net", ["mlp", pytest.param("conv", marks=pytest.mark.slow)])
def test_remat_computes_again_and_changes_no_number(net):
    options = {"batch": 256, "net": net, "hidden": (64,) * 16}
    plain, arguments = one_step(**options)
    saving, _ = one_step(**options, remat=True)
    operation = {"mlp": "stablehlo.dot_general", "conv": "stablehlo.convolution"}[net]
    counts = [lowered.as_text().count(operation) for lowered in (plain, saving)]
    assert counts[1] > counts[0]
    plain, saving = plain.compile(), saving.compile()
    if net == "mlp":  # XLA:CPU keeps the blocks of convolutions all the same
        sizes = [c.memory_analysis().temp_size_in_bytes for c in (plain, saving)]
        assert sizes[1] < 0.75 * sizes[0], sizes
    expected, actual = plain(*arguments), saving(*arguments)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("net", ["mlp", pytest.param("conv", marks=pytest.mark.slow)])
def test_bfloat16_is_inside_the_networks_only(net):
    exact, arguments = one_step(net=net)
    low, _ = one_step(net=net, compute="bfloat16")
    products = [
        line
        for line in low.as_text().splitlines()
        if "stablehlo.dot_general" in line or "stablehlo.convolution" in line
    ]
    assert products
    assert all("bf16" in line for line in products)
    state, metrics = low.compile()(*arguments)
    assert {leaf.dtype for leaf in jax.tree.leaves(state)} == {
        jnp.dtype(jnp.float32),
        jnp.dtype(jnp.int32),
    }
    assert metrics["loss/vae"].dtype == jnp.float32
    config, _ = bound(likelihood="bernoulli", net=net, compute="bfloat16")
    params = state.params["vae"]
    mu, log_var = vae.encode(config, params, arguments[1]["x"])
    outputs = vae.decode(config, params, mu)
    assert mu.dtype == log_var.dtype == outputs.dtype == jnp.float32
    _, expected = exact.compile()(*arguments)
    assert metrics["loss/vae"] != expected["loss/vae"]
    np.testing.assert_allclose(metrics["loss/vae"], expected["loss/vae"], rtol=0.02)
