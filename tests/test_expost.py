"""Priors fitted afterwards: from encodings to samples, and what is refused."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from doors import SHORT, TINY, call

from jaxgen import data, mixtures
from jaxgen._checks import UserError
from jaxgen.data import latents as files
from jaxgen.models import vae
from jaxgen.models.base import indexed_keys
from jaxgen.train import expost, latents, session


def keys(num, seed=0):
    return indexed_keys(jax.random.key(seed), jnp.arange(num))


def test_the_fitted_gaussian_makes_the_moments_of_a_linear_decoder_right():
    """x = W z + b: mean and covariance of x are those of the decoded encodings."""
    rng = np.random.default_rng(0)
    codes = rng.gamma(2.0, size=(4000, 3)) @ rng.normal(size=(3, 3)) * [100, 1e-2, 1]
    codes = np.float32(codes + [0, 5, -3])
    mixture = expost.fitted(codes, 1)
    drawn = np.asarray(jax.jit(mixtures.sample)(mixture, keys(40_000)))
    weights = rng.normal(size=(3, 5)) / codes.std(axis=0)[:, None]
    decoded, expected = drawn @ weights, codes @ weights
    deviation = expected.std(axis=0)
    mean = (decoded.mean(axis=0) - expected.mean(axis=0)) / deviation
    np.testing.assert_allclose(mean, 0, atol=0.025)
    scale = np.outer(deviation, deviation)
    difference = (np.cov(decoded.T) - np.cov(expected.T)) / scale
    np.testing.assert_allclose(difference, 0, atol=0.04)


def test_fitted_mixtures_are_those_of_the_encodings_whatever_their_scale():
    rng = np.random.default_rng(0)
    which = rng.random(3000) < 0.3
    codes = np.where(which[:, None], [300, 0.02], [-100, -0.01]) + rng.normal(
        size=(3000, 2)
    ) * [20, 1e-3]
    mixture = expost.fitted(np.float32(codes), 2)
    order = np.argsort(mixture.log_weights)
    np.testing.assert_allclose(np.exp(mixture.log_weights)[order][0], 0.3, atol=0.03)
    means = np.asarray(mixture.means)[order]
    np.testing.assert_allclose(means[0], [300, 0.02], rtol=0.02)
    np.testing.assert_allclose(means[1], [-100, -0.01], rtol=0.02)


@pytest.mark.parametrize(
    ("deviations", "factor"), [([0.5, 0.5], 2.0), ([0.2, 1.4], 1.0)]
)
def test_renormalised_spreads_as_the_encodings_and_leaves_a_right_prior(
    deviations, factor
):
    wanted = np.array([1.0, 1.0]) if factor == 2 else np.array(deviations)
    train = np.random.default_rng(0).normal(size=(50_000, 2)) * wanted + 3.0
    centre = jnp.array([1.0, -1.0])
    draw = lambda params, keys: (
        centre[None]
        + params[None] * jax.vmap(lambda key: jax.random.normal(key, (2,)))(keys)
    )
    plain = expost.Prior(jnp.array(deviations), draw, "N")
    prior = expost.renormalised(plain, train)
    np.testing.assert_allclose(prior.params["factor"], factor, rtol=0.02)
    drawn = np.asarray(prior.draw(prior.params, keys(20_000)))
    np.testing.assert_allclose(drawn.mean(axis=0), centre, atol=0.05)
    total = np.sqrt(drawn.var(axis=0).mean())
    np.testing.assert_allclose(total, np.sqrt(np.mean(wanted**2)), rtol=0.02)
    np.testing.assert_allclose(prior.draw(prior.params, keys(9)[4:]), drawn[4:9])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    from jaxgen import cli

    path = tmp_path_factory.mktemp("runs") / "run"
    with pytest.raises(SystemExit) as stop:
        cli.main(["train", "vae", *SHORT, "--out", str(path)])
    assert not stop.value.code
    return path


def drawn(capsys, run, *options):
    out = run / "images.npz"
    status, _, err = call(capsys, "sample", run, "--num", "8", "--out", out, *options)
    assert status == 0, err
    return np.load(out, allow_pickle=False)["images"].astype(int), err


def test_encodings_are_draws_of_q_at_the_training_data_alone(run):
    loaded = session.load(run)
    codes = latents.of(loaded)
    config = loaded.config
    opened = data.with_validation(data.open_dataset(config.data), 1)
    num, held = opened.train.num_examples, opened.validation.num_examples
    assert (num, held) == (1293, 144)
    assert codes.train.shape == (8 * num, 2)  # 10,000 and more
    assert codes.validation.shape == (held, 2)
    assert codes.test.shape == (opened.test.num_examples, 2)
    x = opened.train.take(np.arange(num))["x"] / np.float32(255)
    mu, log_var = vae.encode(config.model, loaded.params["vae"], x)
    deviates = codes.train.reshape(8, num, 2) - np.asarray(mu)[None]
    deviates = deviates / np.exp(0.5 * np.asarray(log_var))[None]
    np.testing.assert_allclose(deviates.mean(), 0, atol=0.03)
    np.testing.assert_allclose(deviates.std(), 1, atol=0.03)
    assert abs(np.corrcoef(deviates[0].ravel(), deviates[1].ravel())[0, 1]) < 0.1
    before = (run / files.FILE).stat().st_mtime_ns
    np.testing.assert_array_equal(latents.of(loaded).train, codes.train)
    assert (run / files.FILE).stat().st_mtime_ns == before  # read, not made again
    rows = data.open_dataset(data.DataConfig(name=f"latents:{run}"))
    np.testing.assert_array_equal(rows.validation.take(np.arange(144))["x"], codes[1])
    deviation = codes.train[:, 1].std()
    np.testing.assert_allclose(rows.columns[1].deviation, deviation, rtol=1e-5)


def test_a_fit_is_kept_until_the_run_is_another(run, capsys):
    own, _ = drawn(capsys, run)
    gmm, err = drawn(capsys, run, "--ex-post", "gmm", "--components", "3")
    assert "z is drawn from 3 Gaussians fitted to 10,344 encodings" in err
    assert np.any(own != gmm)
    path = run / "prior-3.npz"
    kept = path.read_bytes()
    again, _ = drawn(capsys, run, "--ex-post", "gmm", "--components", "3")
    np.testing.assert_array_equal(again, gmm)
    assert path.read_bytes() == kept
    stale = dict(np.load(path, allow_pickle=False))
    stale["digest"], stale["means"] = "another", stale["means"] + 9
    for damage in (lambda: np.savez(path, **stale), lambda: path.write_bytes(b"PK")):
        damage()
        again, _ = drawn(capsys, run, "--ex-post", "gmm", "--components", "3")
        np.testing.assert_array_equal(again, gmm)
        with np.load(path, allow_pickle=False) as file:
            assert str(file["digest"]) != "another"
    spread, err = drawn(capsys, run, "--ex-post", "gaussian", "--renormalise")
    assert "a Gaussian fitted" in err
    assert ", times 1.0" in err or ", times 0.99" in err


def test_another_prior_has_no_likelihood(run, capsys):
    status, out, _ = call(
        capsys, "evaluate", run, "--ex-post", "gaussian", "--num-samples", 2, "--json"
    )
    assert status == 0
    told = json.loads(out)
    assert "nll_nats" not in told
    assert told["sampling"]["ex_post"] == "gaussian"
    assert expost.load(run).model.log_likelihood is not None


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--ex-post", "gmm", "--components", "0"], "--components must be at least 1"),
        (["--ex-post", "gmm", "--prior-run", "x"], "z is drawn from one of them"),
        (["--renormalise"], "goes with --ex-post or --prior-run"),
        (["--ex-post", "gmm", "--components", "99999"], "must be at most 10344"),
        (["--prior-run", "nowhere"], "no such run folder: nowhere"),
    ],
    ids=str,
)
def test_sample_refuses_in_one_line(run, capsys, argv, message):
    status, out, err = call(capsys, "sample", run, *argv)
    assert (status, out) == (2, "")
    assert message in err.splitlines()[-1]


def test_a_prior_run_must_be_of_these_latents(run, capsys):
    status, _, err = call(capsys, "sample", run, "--prior-run", run)
    assert status == 2
    assert f"was trained on digits: train it with --data latents:{run}" in err


def test_training_takes_no_prior_that_is_fitted_afterwards(capsys, tmp_path):
    argv = ["train", "vae", *SHORT, "--ex-post", "gmm", "--out", tmp_path / "run"]
    status, _, err = call(capsys, *argv)
    assert status == 2
    assert "are for a trained model" in err


def test_latents_refuse_what_has_none(run, capsys, tmp_path):
    loaded = session.load(run)
    blind = loaded._replace(model=loaded.model._replace(encode=None))
    with pytest.raises(UserError, match="a model of vae has no encoder"):
        latents._check(blind)
    flat = loaded._replace(model=loaded.model._replace(encode=lambda p, x, k: x))
    with pytest.raises(UserError, match=r"have the shape \(8, 8, 1\)"):
        latents._check(flat)
    for argv, message in (
        (["--data", f"latents:{tmp_path}"], "is not a run folder"),
        (["--data", f"latents:{run}", "--columns", "z0=skip"], "are all real"),
        (["--data", f"latents:{run}", "--image-size", "8"], "is for images"),
    ):
        status, _, err = call(capsys, "train", "flow", *argv)
        assert status == 2
        assert message in err.splitlines()[-1]


PRIORS = {
    "flow": ["--width", "8", "--depth", "2"],
    "vae": ["--hidden", "8", "--latent-dim", "2"],
    "diffusion": ["--width", "8", "--blocks", "1", "--num-steps", "3"],
    "gan": ["--width", "8", "--blocks", "1"],
}


@pytest.mark.slow
@pytest.mark.parametrize("family", PRIORS)
def test_any_family_of_rows_is_a_prior(family, run, capsys, tmp_path):
    other = tmp_path / family
    argv = ["--data", f"latents:{run}", "--steps", "12", "--batch-size", "32"]
    argv = ["train", family, *argv, *PRIORS[family], "--out", other]
    status, _, err = call(capsys, *argv)
    assert status == 0, err
    own, _ = drawn(capsys, run)
    images, err = drawn(capsys, run, "--prior-run", other, "--renormalise")
    assert f"z is drawn from {family} {other}, times" in err
    assert np.any(images != own)
    again, _ = drawn(capsys, run, "--prior-run", other, "--renormalise")
    np.testing.assert_array_equal(images, again)


@pytest.mark.slow
def test_a_prior_of_earlier_encodings_is_refused_and_a_fit_is_made_anew(
    capsys, tmp_path
):
    run, other = tmp_path / "run", tmp_path / "flow"
    argv = ["train", "vae", *TINY, "--checkpoint-every", "4", "--out", run]
    assert call(capsys, *argv, "--steps", "8")[0] == 0
    rows = ["train", "flow", "--data", f"latents:{run}", *PRIORS["flow"]]
    assert call(capsys, *rows, "--steps", "5", "--out", other)[0] == 0
    drawn(capsys, run, "--ex-post", "gaussian")
    kept = (run / "prior-1.npz").read_bytes()
    assert call(capsys, *argv, "--steps", "12")[0] == 0
    status, _, err = call(capsys, "sample", run, "--prior-run", other)
    assert status == 2
    assert "before it was trained on: train it anew" in err
    drawn(capsys, run, "--ex-post", "gaussian")
    assert (run / "prior-1.npz").read_bytes() != kept
    status, _, err = call(capsys, *rows, "--steps", "9", "--out", other)
    assert status == 2
    assert "not those the run was begun with" in err
