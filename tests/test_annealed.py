"""Annealed importance sampling of runs: on a model of known likelihood, and of families."""

import dataclasses
import functools
import json
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from arrays import normal
from doors import SHORT, call
from scipy import special

from jaxgen import data, models
from jaxgen._checks import RunError, UserError
from jaxgen.evaluate import annealed
from jaxgen.evaluate.likelihood import evaluate_likelihood
from jaxgen.models.base import (
    LogLikelihood,
    Model,
    Observation,
    indexed_keys,
    normal_prior,
)
from jaxgen.train import config as configs
from jaxgen.train.session import Loaded
from jaxgen.verify import linear_gaussian

NUM = 40
EFFORT = annealed.Annealing(200, 8, NUM)
KEYS = jax.random.split(jax.random.key(3), 6)


class _Shape:
    shape = (4,)


@dataclasses.dataclass
class _Square:
    shape: tuple = (2, 2, 1)


def linear(*, is_fitted=False):
    """The linear-Gaussian model as a run, its data rows, and its exact likelihood."""
    w, bias = linear_gaussian.W.astype(np.float32), linear_gaussian.BIAS

    def mean(z):
        return z @ jnp.asarray(w.T) + jnp.broadcast_to(jnp.float32(bias), (len(z), 4))

    def of_sigma(params, x, z, log_sigma):
        sigma = jnp.exp(log_sigma) if is_fitted else linear_gaussian.SIGMA
        squares = jnp.sum(jnp.square(x - mean(z)), -1) / sigma**2
        return -0.5 * squares - 2 * np.log(2 * np.pi) - 4 * jnp.log(sigma)

    def sample(params, z, keys, log_sigma):
        sigma = jnp.exp(log_sigma) if is_fitted else linear_gaussian.SIGMA
        return mean(z) + sigma * jax.vmap(lambda k: jax.random.normal(k, (4,)))(keys)

    def likelihood(params, x, keys, condition=None, *, num_samples):
        noise = jax.vmap(jax.random.uniform)(keys)
        return LogLikelihood(nats=x.sum(-1) + noise - num_samples, kind="bound")

    observation = Observation(of_sigma, sample, "other", is_fitted)
    model = Model(
        init=lambda key, batch: ({}, ()),
        players=(),
        prior=normal_prior((2,)),
        generate=lambda params, z, keys, condition=None: mean(z),
        log_likelihood=None if is_fitted else likelihood,
        density="other",
        observation=observation,
    )
    config = configs.RunConfig(
        family="vae",
        model=_Shape(),
        data=data.DataConfig(transform="none"),
        train=configs.TrainConfig(),
    )
    return Loaded(None, config, model, {}, 3, [])


def rows(num, seed):
    z, eps = normal(num, 2, seed=seed), normal(num, 4, seed=seed + 1)
    x = z @ linear_gaussian.W.T + linear_gaussian.BIAS + linear_gaussian.SIGMA * eps
    return np.float32(x)


def dataset():
    train, test = (data.ArraySource(rows(n, s)) for n, s in ((200, 10), (90, 20)))
    return data.Dataset("rows", train, test, (4,), None, ())


def rows_of_test():
    test = dataset().test
    return test.take(data.spread(test.num_examples, NUM))["x"]


def anneal(effort, **options):
    return annealed.evaluate_annealed(
        linear(), dataset(), annealed.Annealing(*effort), seed=5, **options
    )


@functools.cache
def told():
    seen = []
    result = anneal(EFFORT, num_samples=7, progress=lambda *done: seen.append(done))
    return result, seen


def simulated():
    """The images that the model itself makes, and the latents they come from."""
    key, index = jax.random.key(5), jnp.arange(NUM)
    z_keys, keys = (
        indexed_keys(jax.random.fold_in(key, purpose), index)
        for purpose in (annealed.LATENTS, annealed.SIMULATED)
    )
    model = linear().model
    z = model.prior(z_keys)
    return model.observation.sample({}, z, keys, 0.0), z


def test_the_linear_gaussian_model_lies_between_the_bounds_with_a_small_gap():
    result, _ = told()
    exact = linear_gaussian.exact_log_prob(rows_of_test())
    error = 4 * result["ais_monte_carlo_se"]
    assert error < 0.1
    assert abs(result["ais_nll_nats"] + exact.mean()) < error
    truth = linear_gaussian.exact_log_prob(np.asarray(simulated()[0])).mean()
    assert result["ais_simulated_log_p_lower"] < truth + error
    assert result["ais_simulated_log_p_upper"] > truth - error
    gap = result["ais_gap_nats"]
    assert gap + 3 * result["ais_gap_nats_se"] > 0
    assert gap < 0.1
    np.testing.assert_allclose(
        gap,
        result["ais_simulated_log_p_upper"] - result["ais_simulated_log_p_lower"],
        atol=1e-9,
    )
    assert 2 < result["ais_ess_mean"] <= 8


def test_short_chains_enclose_the_truth_from_afar_whatever_the_chunks():
    """17 leaves a filled-up last chunk, of which nothing may be counted."""
    seen = []
    result = anneal((3, 2, NUM))
    chunked = anneal((3, 2, NUM), batch_size=17, progress=lambda *d: seen.append(d))
    assert [done for done, _ in seen] == [17, 34, 40, 57, 74, 80, 97, 114, 120]
    assert chunked.keys() == result.keys()
    for name in result.keys() - {"ais_nll_nats_kind"}:
        assert chunked[name] == pytest.approx(result[name], rel=1e-4, abs=1e-4), name
    truth = linear_gaussian.exact_log_prob(rows_of_test())
    assert result["ais_nll_nats"] > 0.05 - truth.mean()
    assert result["ais_gap_nats"] > 0.3 + 3 * result["ais_gap_nats_se"]


def test_the_reverse_chains_start_at_the_latent_that_the_image_comes_from():
    """One temperature from there: the weight is 1 / p(x given z)."""
    x, z = simulated()
    expected = linear().model.observation.log_prob({}, x, z, 0.0)
    result = anneal((1, 2, NUM))
    assert result["ais_simulated_log_p_upper"] == pytest.approx(
        float(expected.mean()), rel=1e-5
    )


def test_what_is_told_beside_the_likelihood():
    result, seen = told()
    assert result["ais_nll_nats_kind"] == "bound"
    assert "ais_bits_per_dim" not in result  # of data that have none
    same = {"num_samples": 7, "num_images": NUM, "seed": 5}
    beside = evaluate_likelihood(linear(), dataset().test, **same)
    for name in ("nll_nats", "nll_nats_se"):
        assert result[f"ais_iwae_{name}"] == beside[name]
    assert [result[f"ais_{n}"] for n in ("temperatures", "chains", "images")] == [
        *EFFORT
    ]
    assert "ais_sigma" not in result
    assert seen[-1] == (3 * NUM, 3 * NUM)
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_a_fitted_sigma_is_the_likeliest_of_the_training_images():
    loaded, train = linear(is_fitted=True), dataset().train
    effort = annealed.Annealing(300)
    fitted = annealed._fitted(loaded, loaded.model.observation, train, effort, 1)
    x = train.take(data.spread(200, annealed.FIT[1]))["x"]
    sigmas = np.linspace(0.3, 1.0, 200)
    signal = linear_gaussian.W @ linear_gaussian.W.T
    values = []
    for sigma in sigmas:
        covariance = signal + sigma**2 * np.eye(4)
        centred = x - linear_gaussian.BIAS
        squares = np.sum(centred @ np.linalg.inv(covariance) * centred, axis=1)
        values.append(-0.5 * (squares.mean() + np.linalg.slogdet(covariance)[1]))
    expected = sigmas[np.argmax(values)]
    assert abs(fitted - math.log(expected)) < 0.15


def test_a_continuous_decoder_judges_dequantised_images():
    """Where p(x given z) does not depend on z, one temperature is exact."""

    def log_prob(params, x, z, log_sigma):
        return x.sum((1, 2, 3)) + 0 * z.sum(-1)

    def sample(params, z, keys, log_sigma):
        return jnp.zeros((len(z), 2, 2, 1))

    loaded, x = linear(), np.full((3, 2, 2, 1), 100, np.uint8)
    loaded = loaded._replace(
        model=loaded.model._replace(
            observation=Observation(log_prob, sample, "continuous"), log_likelihood=None
        ),
        config=dataclasses.replace(
            loaded.config, data=data.DataConfig(transform="levels"), model=_Square()
        ),
    )
    split = data.ArraySource(x)
    images = data.Dataset("tiny", split, split, (2, 2, 1), None, ())
    result = annealed.evaluate_annealed(loaded, images, annealed.Annealing(1, 2, 3))
    key = jax.random.fold_in(jax.random.key(0), 0)
    prepared = data.prepare({"x": x}, key, transform="dequantise")["x"]
    mean = float(prepared.sum((1, 2, 3)).mean())
    assert result["ais_nll_nats"] == pytest.approx(-mean, rel=1e-6)
    bits = -mean / (4 * math.log(2)) + 8
    assert result["ais_bits_per_dim"] == pytest.approx(bits, rel=1e-6)


def test_a_likelihood_that_is_not_finite_is_an_error():
    values = np.array([0.0, -np.inf, np.nan])
    with pytest.raises(RunError, match="2 of 4 likelihoods are not finite: more --ais"):
        annealed._check_finite(values, np.zeros(1))


@pytest.mark.parametrize(
    ("effort", "message"),
    [
        ((0, 1, 1), "--ais must be at least 1, got 0"),
        ((1, 0, 1), "--ais-chains must be at least 1, got 0"),
        ((1, 1, 91), r"--ais-images must be in 1 \.\. 90, the test split, got 91"),
    ],
)
def test_wrong_efforts_are_refused(effort, message):
    with pytest.raises(UserError, match=message):
        annealed.evaluate_annealed(linear(), dataset(), annealed.Annealing(*effort))


def test_a_model_without_an_observation_is_refused():
    loaded = linear()
    loaded = loaded._replace(model=loaded.model._replace(observation=None))
    with pytest.raises(
        UserError, match=r"--ais: vae of digits has no decoder p\(x given"
    ):
        annealed.evaluate_annealed(loaded, dataset(), EFFORT)


# ---- the families' own p(x given z)


def bound(family, transform=None, classes=None, **options):
    cls = models.FAMILIES[family].config_class
    resolve = models.FAMILIES[family].resolve
    config, _ = resolve(cls(**options), (4, 4, 1), transform, classes)
    model = models.FAMILIES[family].make(config)
    batch = {"x": jnp.full((2, 4, 4, 1), 0.5)}
    return model, model.init(jax.random.key(1), batch)[0]


@pytest.mark.parametrize("transform", ["binarise", "levels", "dequantise"])
def test_a_vae_draws_what_its_likelihood_says(transform):
    """Draws have the decoder's mean, and a score of mean zero."""
    options = {"hidden": (8,), "latent_dim": 2, "mixture": 2}
    model, params = bound("vae", transform, sigma_value=2e-3, **options)
    z, keys = normal(6, 2), KEYS
    draw = jax.jit(model.observation.sample)
    x = draw(params, z, keys, 0.0)
    assert x.shape == (6, 4, 4, 1)
    chex.assert_trees_all_close(draw(params, z[2:], keys[2:], 0.0), x[2:], rtol=1e-5)
    assert model.observation.density == model.density
    many = jax.random.split(jax.random.key(4), 4000)
    same = np.broadcast_to(z[:1], (4000, 2))
    x = draw(params, same, many, 0.0)
    mean = model.generate(params, z[:1], KEYS[:1])
    # The score of z has mean zero under p(x given z), and only there.
    score = jax.jit(
        jax.grad(lambda z: model.observation.log_prob(params, x, z, 0.0).sum())
    )(same)
    np.testing.assert_allclose(x.mean(0), mean[0], atol=0.05)
    error = score.std(axis=0) / math.sqrt(len(x))
    assert np.all(np.abs(score.mean(axis=0)) < 4.5 * error)
    if transform == "dequantise":  # below the bound of a network's log sigma
        np.testing.assert_allclose(jnp.std(x - mean), 2e-3, rtol=0.03)
        log_prob = model.observation.log_prob(params, x, same, 0.0)
        entropy = 16 * (0.5 + 0.5 * math.log(2 * math.pi) + math.log(2e-3))
        np.testing.assert_allclose(-log_prob.mean(), entropy, atol=0.2)


def test_importance_sampling_of_a_vae_and_its_observation_agree():
    model, params = bound("vae", "binarise", hidden=(8,), latent_dim=2)
    x = jnp.asarray(normal(6, 4, 4, 1) > 0, jnp.float32)
    by_bound = jax.jit(functools.partial(model.log_likelihood, num_samples=3000))(
        params, x, KEYS
    )
    z = normal(3000, 6, 2)
    log_prob = jax.vmap(lambda z: model.observation.log_prob(params, x, z, 0.0))(z)
    by_prior = special.logsumexp(log_prob, axis=0) - math.log(3000)
    np.testing.assert_allclose(by_bound.nats, by_prior, atol=0.1)


@pytest.mark.parametrize("label", [None, 2])
def test_a_gan_is_the_even_mixture_of_its_classes(label):
    sampling = models.gan.Sampling(label=label)
    options = {"width": 4, "latent_dim": 3, "blocks": 1, "patch": 4}
    model, params = bound(
        "gan", classes=3, conditional=True, sampling=sampling, **options
    )
    z, log_sigma = normal(6, 3), jnp.log(1e-3)
    x = jax.jit(model.observation.sample)(params, z, KEYS, log_sigma)
    labels = range(3) if label is None else [label]
    means = np.stack(
        [model.generate(params, z, KEYS, jnp.full(6, label)) for label in labels]
    )
    squares = np.sum(np.square(np.asarray(x) - means), axis=(2, 3, 4)) / 1e-6
    each = -0.5 * squares - 16 * (0.5 * math.log(2 * math.pi) + math.log(1e-3))
    expected = special.logsumexp(each, axis=0) - math.log(len(labels))
    got = jax.jit(model.observation.log_prob)(params, x, z, log_sigma)
    np.testing.assert_allclose(got, expected, rtol=1e-4)
    assert np.all(squares.min(axis=0) < 50)  # of 16 squares of deviates
    assert len(set(squares.argmin(axis=0).tolist())) > 1 or len(labels) == 1
    assert (model.observation.density, model.observation.is_fitted) == (
        "continuous",
        True,
    )


def test_a_gan_of_rows_has_no_observation():
    columns = tuple(models.gan.columns.Column(name=n, kind="real") for n in "ab")
    resolve = models.FAMILIES["gan"].resolve
    config, _ = resolve(models.gan.GANConfig(), (2,), None, None, columns)
    assert models.FAMILIES["gan"].make(config).observation is None


# ---- the door


@pytest.mark.slow
@pytest.mark.parametrize("family", ["vae", "gan"])
def test_evaluate_tells_the_annealed_likelihood(family, tmp_path, capsys):
    run = tmp_path / "run"
    short = {"vae": SHORT, "gan": ["--width", "8", "--steps", "2"]}[family]
    status, _, err = call(capsys, "train", family, *short, "--out", run)
    assert status == 0, err
    argv = ["evaluate", run, "--ais", "4", "--ais-chains", "2", "--ais-images", "3"]
    status, out, err = call(capsys, *argv, "--num-samples", "2")
    assert status == 0, err
    result = json.loads((run / "evaluation.json").read_text())
    kind = {"vae": "bound", "gan": "estimate"}[family]
    assert (result["ais_nll_nats_kind"], result["ais_bits_per_dim_kind"]) == (
        kind,
        kind,
    )
    offset = 8 * (family == "gan")  # dequantised
    bits = result["ais_nll_nats"] / (64 * math.log(2)) + offset
    assert result["ais_bits_per_dim"] == pytest.approx(bits, rel=1e-5)
    assert ("ais_sigma" in result) == (family == "gan")
    assert (result["nll_nats"] is not None) == (family == "vae")
    for name in ("ais_nll_nats", "ais_gap_nats", "ais_images"):
        assert f"{name} " in out
    assert "annealed: " in err
    assert f"({kind}, 3 test images)" in err
    page = (run / "report.html").read_text()
    assert "<th>ais_gap_nats</th>" in page
