"""The diffusion family: what it is before training, what it learns, its options."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen import schedules
from jaxgen._checks import UserError
from jaxgen.columns import Column
from jaxgen.models import diffusion
from jaxgen.models import diffusion_denoiser as net
from jaxgen.models.base import indexed_keys
from jaxgen.train import update

SHAPE = (8, 8, 1)
SLOW = pytest.mark.slow


def resolved(shape=SHAPE, num_classes=None, sampling=None, **options):
    sampling = diffusion.Sampling(**(sampling or {}))
    options = {"widths": (8,), "blocks": 1, **options}
    config = diffusion.DiffusionConfig(sampling=sampling, **options)
    return diffusion.resolve(config, shape, None, num_classes)[0]


def images(num, shape=SHAPE, seed=0):
    return jax.random.uniform(jax.random.key(seed), (num, *shape))


def made(x, **options):
    config = resolved(x.shape[1:], **options)
    model = diffusion.make_diffusion(config)
    params, _ = jax.jit(model.init)(jax.random.key(0), {"x": x})
    return config, model, params


def randomised(params):
    """Of a network none of whose parameters is zero."""
    leaves, tree = jax.tree.flatten(params["net"])
    noise = [
        leaf + 0.2 * jax.random.normal(jax.random.key(i), leaf.shape)
        for i, leaf in enumerate(leaves)
    ]
    return {**params, "net": tree.unflatten(noise)}


def keys(num, seed=5):
    return indexed_keys(jax.random.key(seed), jnp.arange(num))


def test_sigma_data_and_mean_are_those_of_the_data():
    x = images(16, (8, 8, 2))
    config, _, params = made(x)
    centred = np.asarray(2 * x - 1) - np.asarray(2 * x - 1).mean(axis=(0, 1, 2))
    np.testing.assert_allclose(
        params["denoiser"]["sigma_data"], centred.std(), rtol=1e-5
    )
    shifted, log_det = net.from_data(config, params["denoiser"], x)
    np.testing.assert_allclose(shifted, centred, atol=1e-6)
    np.testing.assert_allclose(log_det, 128 * np.log(2), rtol=1e-6)
    back = net.to_data(config, params["denoiser"], shifted)
    np.testing.assert_allclose(back, x, atol=1e-6)


@pytest.mark.parametrize(
    "schedule",
    [
        "rectified_flow",
        *(pytest.param(s, marks=SLOW) for s in ("edm", "cosine", "ddpm", "ve")),
    ],
)
def test_before_training_it_is_the_best_linear_denoiser(schedule):
    """F = 0 makes D the posterior mean of N(0, sigma_data^2) on every schedule."""
    x = images(4)
    config, _, params = made(x)
    params = params["denoiser"]
    noise_schedule = schedules.SCHEDULES[schedule]()
    denoise = net.denoiser(config, params, schedule=noise_schedule)
    for t in (0.1, 0.5, 1.0):
        alpha, sigma = noise_schedule.alpha(t), noise_schedule.sigma(t)
        variance = params["sigma_data"] ** 2
        expected = alpha * variance / (alpha**2 * variance + sigma**2) * x
        np.testing.assert_allclose(denoise(x, t), expected, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize(
    "predicts",
    ["v", *(pytest.param(p, marks=SLOW) for p in ("edm", "x0", "eps", "velocity"))],
)
def test_it_is_one_denoiser_on_every_schedule(predicts):
    """D depends on x_t / alpha and sigma / alpha only, whatever is predicted."""
    x = images(2)
    config, _, params = made(x, predicts=predicts)
    params = randomised(params["denoiser"])
    estimates = []
    for make in schedules.SCHEDULES.values():
        schedule = make()
        t = schedule.inverse(jnp.float32(-1.0))
        denoise = jax.jit(net.denoiser(config, params, schedule=schedule))
        estimates.append(denoise(schedule.alpha(t) * x, t))
    for other in estimates[1:]:
        np.testing.assert_allclose(other, estimates[0], rtol=1e-2, atol=5e-3)
    assert np.std(estimates[0] - x) > 0.05


def test_a_temperature_draws_samples_to_their_mean():
    """By just so much, where the denoiser is linear, along the probability flow."""
    x = 0.4 + 0.2 * images(4)  # far from black and white, where samples are cut
    found = []
    for temperature in (0.0, 0.5, 1.0):
        sampling = {"num_steps": 8, "temperature": temperature}
        _, model, params = made(x, sampling=sampling)
        found.append(jax.jit(model.generate)(params, model.prior(keys(4)), keys(4)))
    np.testing.assert_allclose(
        found[1] - found[0], 0.5 * (found[2] - found[0]), atol=1e-5
    )
    assert np.std(found[2] - found[0]) > 0.03


@pytest.mark.parametrize("likelihood", ["ode", "vlb"])
def test_likelihood_before_training_is_the_gaussians(likelihood):
    x = images(6)
    options = {"likelihood": likelihood, "ode_steps": 32}
    config, model, params = made(x, sampling=options)
    sigma_data = float(params["denoiser"]["sigma_data"])
    y = np.asarray(net.from_data(config, params["denoiser"], x)[0], np.float64)
    # sigma_min is what is left of the noise: the density is that of data with it.
    variance = sigma_data**2 + (0.002**2 if likelihood == "ode" else 0.0)
    squares = np.sum(y**2, axis=(1, 2, 3)) / variance
    exact = -0.5 * squares - 0.5 * y[0].size * math.log(2 * math.pi * variance)
    exact += y[0].size * math.log(2.0)
    result = model.log_likelihood(params, x, keys(6), num_samples=256)
    if likelihood == "ode":
        np.testing.assert_allclose(result.nats, exact, atol=0.02)
        assert np.all(np.abs(result.step_error) < 0.02)
    else:
        assert result.kind == "bound"
        below = np.mean(exact - np.asarray(result.nats))
        spread = float(np.sqrt(np.sum(np.square(result.standard_error)))) / len(x)
        assert -4 * spread < below < 4 * spread + 0.05 * exact.std() + 0.5


@pytest.mark.parametrize(
    "sampler",
    [
        "dpmpp_2m",
        *(
            pytest.param(s, marks=SLOW)
            for s in ("heun", "euler", "ddim", "ddpm", "stochastic")
        ),
    ],
)
def test_samples_before_training_are_the_gaussian(sampler):
    x = images(64, seed=3) * 0.2 + 0.4  # so narrow that nothing is cut off at 0 and 1
    sampling = {"sampler": sampler, "num_steps": 200}  # Euler's error falls as 1 / N
    config, model, params = made(x, sampling=sampling)
    z = model.prior(keys(64))
    samples = jax.jit(model.generate)(params, z, keys(64, 6))
    y, _ = net.from_data(config, params["denoiser"], samples)
    sigma_data = float(params["denoiser"]["sigma_data"])
    np.testing.assert_allclose(np.std(y) / sigma_data, 1.0, atol=0.04)
    alone = jax.jit(model.generate)(params, z[3:5], keys(64, 6)[3:5])
    np.testing.assert_allclose(samples[3:5], alone, atol=1e-5)


@pytest.mark.parametrize(
    "schedule",
    ["rectified_flow", *(pytest.param(s, marks=SLOW) for s in ("edm", "cosine"))],
)
def test_generate_leads_back_from_what_encode_gives(schedule):
    x = images(4, seed=4) * 0.2 + 0.4
    sampling = {"sampler": "heun", "num_steps": 60}
    _, model, params = made(x, noise_schedule=schedule, sampling=sampling)
    z = jax.jit(model.encode)(params, x, keys(4))
    np.testing.assert_allclose(
        jax.jit(model.generate)(params, z, keys(4)), x, atol=5e-3
    )


KINDS = [
    {},
    {"conditional": True},
    {"one_step": True},
    {
        "noise_schedule": "rectified_flow",
        "predicts": "velocity",
        "noise_levels": "logit_normal",
    },
    {
        "noise_schedule": "ddpm",
        "predicts": "eps",
        "weighting": "simple",
        "noise_levels": "uniform",
    },
    {
        "noise_schedule": "cosine",
        "predicts": "v",
        "weighting": "min_snr",
        "noise_levels": "uniform",
    },
    {
        "noise_schedule": "ve",
        "predicts": "x0",
        "weighting": "sigmoid",
        "noise_levels": "log_uniform",
    },
    {"weighting": "vlb", "noise_levels": "log_uniform"},
    {"net": "transformer", "width": 32, "depth": 2},
]


@pytest.mark.parametrize(
    "options",
    [KINDS[0], *(pytest.param(kind, marks=SLOW) for kind in KINDS[1:])],
    ids=str,
)
def test_training_lowers_the_loss_of_every_kind(options):
    import optax

    x = jnp.tile(images(1), (32, 1, 1, 1))
    config, model, _ = made(x, num_classes=3, **options)
    optimizers = {"denoiser": optax.adam(3e-3)}
    batch = {"x": x, "label": jnp.arange(32) % 3}
    state = update.init_state(model, optimizers, jax.random.key(1), batch)
    advance = jax.jit(update.make_update(model, optimizers, num_steps=60))
    losses = []
    for _ in range(60):
        state, metrics = advance(state, batch, jax.random.key(2))
        loss = metrics.get("velocity_error", metrics["loss/denoiser"])
        losses.append(float(loss))
    assert np.all(np.isfinite(losses))
    assert np.mean(losses[-10:]) < 0.85 * np.mean(losses[:5])
    kept = state.params["denoiser"]
    np.testing.assert_array_equal(kept["mean"], made(x)[2]["denoiser"]["mean"])


@SLOW
def test_labels_are_told_dropped_and_chosen():
    x = images(8)
    config, model, params = made(x, num_classes=3, conditional=True)
    params = {"denoiser": randomised(params["denoiser"])}
    z = model.prior(keys(8))

    def drawn(condition=None, **sampling):
        sampling = diffusion.Sampling(sampler="euler", num_steps=3, **sampling)
        chosen = dataclasses.replace(config, sampling=sampling)
        made = diffusion.make_diffusion(chosen)
        return jax.jit(made.generate)(params, z, keys(8), condition)

    np.testing.assert_allclose(
        drawn(label=2), drawn(jnp.full(8, 2)), rtol=1e-5, atol=1e-5
    )
    assert np.any(np.abs(drawn(label=2) - drawn(label=1)) > 1e-3)
    np.testing.assert_allclose(
        drawn(label=2, guidance=0.0), drawn(jnp.full(8, 3)), rtol=1e-4, atol=1e-4
    )
    each = np.stack([drawn(label=k) for k in range(3)])
    own = np.asarray(drawn())  # every sample is one of its classes, not all the same
    chosen = np.abs(each - own[None]).max(axis=(2, 3, 4)).argmin(axis=0)
    assert len(set(chosen.tolist())) > 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampling": {"num_steps": 0}}, "--num-steps must be at least 1"),
        ({"sampling": {"eta": 1.5}}, r"--eta must be in \[0, 1\]"),
        ({"sampling": {"guidance": 2.0}}, "--conditional"),
        ({"sampling": {"label": 1}}, "--conditional"),
        ({"sampling": {"sampler": "mean_flow"}}, "--one-step"),
        ({"sampling": {"ode_steps": 3}}, "must be even"),
        ({"conditional": True}, "labels"),
        ({"shape": (4, 8, 1)}, "8x8"),
        ({"net": "transformer", "patch": 3}, "6 x 6 or 9 x 9"),
        ({"widths": ()}, "--widths"),
        ({"label_dropout": 2.0}, "--label-dropout"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_one_line(options, message):
    with pytest.raises(UserError, match=message):
        resolved(**options)


def test_rows_before_training_are_the_gaussian_in_their_units():
    """A positive column and one of deviation 3: the density of both, and the samples."""
    rng = np.random.default_rng(0)
    x = np.stack([rng.normal(2, 3, 400), np.exp(rng.normal(1, 0.5, 400))], axis=1)
    columns = (
        Column(name="a", mean=2.0, deviation=3.0),
        Column(name="b", kind="positive", mean=1.0, deviation=0.5),
    )
    options = diffusion.Sampling(likelihood="ode")
    config = diffusion.DiffusionConfig(sampling=options, width=8, blocks=1)
    config, transform = diffusion.resolve(config, (2,), None, None, columns)
    assert (config.net, transform) == ("mlp", "none")
    model = diffusion.make_diffusion(config)
    x = jnp.float32(x)
    params, _ = jax.jit(model.init)(jax.random.key(0), {"x": x})
    own = params["denoiser"]
    line = np.stack([(x[:, 0] - 2) / 3, (np.log(x[:, 1]) - 1) / 0.5], axis=1)
    y = line - line.mean(axis=0)
    np.testing.assert_allclose(own["sigma_data"], y.std(), rtol=1e-4)
    variance = float(own["sigma_data"]) ** 2 + 0.002**2
    exact = -0.5 * np.sum(y**2, axis=1) / variance - math.log(2 * math.pi * variance)
    exact -= math.log(3) + math.log(0.5) + np.log(x[:, 1])
    got = jax.jit(lambda *a: model.log_likelihood(*a, num_samples=1))(
        params, x[:20], keys(20)
    )
    np.testing.assert_allclose(got.nats, exact[:20], atol=0.02)
    drawn = jax.jit(model.generate)(params, model.prior(keys(2000)), keys(2000, 6))
    assert drawn.shape == (2000, 2)
    assert np.all(drawn[:, 1] > 0)
    spread = [np.std(drawn[:, 0]) / 3, np.std(np.log(drawn[:, 1])) / 0.5]
    np.testing.assert_allclose(spread, float(own["sigma_data"]), rtol=0.06)
    assert model.density == "other"
    assert not model.views


def test_resolve_of_rows_refuses_what_is_for_images():
    columns = (Column(name="a"), Column(name="b"))
    for options, message in (
        ({"net": "unet"}, "--net unet is not for tables: mlp"),
        ({"conditional": True}, "--conditional needs data with labels"),
    ):
        config = diffusion.DiffusionConfig(**options)
        with pytest.raises(UserError, match=message):
            diffusion.resolve(config, (2,), None, None, columns)
    given = (Column(name="a"), Column(name="b", is_context=True))
    with pytest.raises(UserError, match="no context columns"):
        diffusion.resolve(diffusion.DiffusionConfig(), (2,), None, None, given)
    with pytest.raises(UserError, match="--net mlp is not for images"):
        resolved(net="mlp")
