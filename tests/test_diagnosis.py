"""Findings of a diagnosis, each on data of known answer, and the door to them."""

import dataclasses
import json
import math
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from doors import SHORT, call
from PIL import Image
from scipy import stats
from test_diagnosis_statistics import linear_gaussian

from jaxgen import data, models
from jaxgen._checks import RunError, UserError
from jaxgen.evaluate import diagnosis, features
from jaxgen.evaluate.diagnosis import (
    command,
    diffusion,
    flow,
    gan,
    page,
    records,
    samples,
    vae,
    vae_problems,
)
from jaxgen.evaluate.features import Features
from jaxgen.models import gan as gans
from jaxgen.models.vae_config import Sampling, VAEConfig, resolve
from jaxgen.train import config as configs

NUM, UNITS, SIGMA = 800, 6, 0.1
SLOPES = np.array([1.0, 0.8, 0.6, 0.5, 0.4, 0.3])


def config(**options):
    return resolve(VAEConfig(latent_dim=UNITS, **options), (8, 8, 1), None)[0]


GAUSSIAN = config(likelihood="gaussian")


def subject_of(x, model=GAUSSIAN, *, sigma=SIGMA, lines=(), columns=None):
    """What a diagnosis asks of a run, without one; images are compared by some pixels."""
    apply = features.pixels().apply if columns is None else np.asarray
    by = Features("some", "0" * 64, "none", lambda x: apply(x)[:, :UNITS])
    source = data.ArraySource(x)
    run = SimpleNamespace(read_metrics=lambda: list(lines))
    params = {"vae": {"log_sigma": np.float32(math.log(sigma))}}
    return records.Subject(
        loaded=SimpleNamespace(
            config=SimpleNamespace(model=model, family="vae"), run=run, params=params
        ),
        dataset=data.Dataset("toy", source, source, x.shape[1:], None, (), columns),
        test={"x": x},
        features=by,
        draw=lambda start: x[start : start + 64],
        seed=0,
    )


def images(values):
    """Values `[N, UNITS]` of deviation about 1 as the first pixels of images."""
    x = np.full((len(values), 8, 8, 1), 128, np.uint8)
    x.reshape(len(x), -1)[:, :UNITS] = np.clip(np.rint(128 + 25 * values), 0, 255)
    return x


def seen_of(mean=0.0, slopes=SLOPES):
    """What a VAE of known posterior, sigma = 0.1, makes of data; P(z) is N(mean, I)."""
    x, mu, log_var, z = linear_gaussian(slopes, SIGMA, num=NUM)
    rng = np.random.default_rng(9)
    prior = mean + rng.standard_normal(z.shape)
    kl = 0.5 * (mu**2 + np.exp(log_var) - 1 - log_var)
    noise = SIGMA * rng.standard_normal((2, *z.shape))
    seen = vae_problems.Seen(
        mu=mu,
        log_var=log_var,
        z=z,
        distortion=-stats.norm.logpdf(x, slopes * z, SIGMA).sum(axis=1),
        rate=kl.sum(axis=1),
        kl=kl,
        squared_error=np.mean((x - slopes * z) ** 2, axis=1),
        rebuilt=images(slopes * z),
        of_data=images(slopes * z + noise[0]),
        prior=prior,
        of_prior=images(slopes * prior + noise[1]),
    )
    return images(x), seen


def findings(x, seen, model=GAUSSIAN, **options):
    subject = subject_of(x, model, **options)
    sigma = vae_problems.weighing(subject, seen)
    return {
        "collapse": vae_problems.collapse(subject, seen, sigma),
        "balance": vae_problems.balance(subject, seen, sigma),
        "prior": vae_problems.prior_mismatch(subject, seen),
        "variance": vae_problems.variance_loss(subject, seen),
    }


def wrong(found):
    return [name for name, each in found.items() if each.is_clean is False]


def test_every_family_has_its_diagnosis():
    assert set(diagnosis.DIAGNOSES) == set(models.FAMILIES)


def test_a_vae_that_is_right_is_clean_and_its_figures_are_the_closed_forms():
    found = findings(*seen_of())
    assert wrong(found) == []
    told = found["balance"].figures
    share = SIGMA**2 / (SLOPES**2 + SIGMA**2)
    rate = -0.5 * np.log(share).sum()  # KL of an exact posterior is I(x; z)
    assert told["rate_nats"] == pytest.approx(rate, abs=4 * told["rate_nats_se"])
    # The expected distortion of a draw of an exact posterior: that of the true z.
    distortion = UNITS * (0.5 + math.log(SIGMA * math.sqrt(2 * math.pi)))
    error = told["distortion_nats_se"]
    assert told["distortion_nats"] == pytest.approx(distortion, abs=4 * error)
    assert told["calibrated_sigma"] == pytest.approx(SIGMA, rel=0.05)
    assert told["effective_beta"] == pytest.approx(1.0, rel=0.1)
    assert told["calibration_gain_nats"] == pytest.approx(0.0, abs=0.5)
    told = found["collapse"].figures
    assert (told["active_units"], told["units"]) == (UNITS, UNITS)
    np.testing.assert_allclose(told["variance_law"], 1.0, atol=0.2)
    np.testing.assert_allclose(told["kl_by_unit"], -0.5 * np.log(share), atol=0.3)
    told = found["prior"].figures
    assert told["squared_norm"] == pytest.approx(UNITS, rel=0.1)
    assert abs(told["kernel_gap"]) < 5 * told["kernel_of_prior_se"]


@pytest.mark.parametrize(
    ("sigma", "beta", "effective", "is_clean", "mend"),
    [
        (0.1, 1.0, 1.0, True, None),
        (0.01, 1.0, 0.01, False, "--sigma computed, optimal or learned"),
        (0.3, 1.0, 9.0, False, "--sigma computed, optimal or learned"),
        (0.1, 20.0, 20.0, False, "--beta 1"),
        (0.1, 0.1, 0.1, False, "--beta 1"),
        (0.1, 0.0, 0.0, False, "--beta 1"),
    ],
)
def test_the_effective_beta_is_beta_times_the_variances(
    sigma, beta, effective, is_clean, mend
):
    model = config(likelihood="gaussian", sigma="fixed", beta=beta)
    x, seen = seen_of()
    found = findings(x, seen, model, sigma=sigma)["balance"]
    assert found.figures["effective_beta"] == pytest.approx(effective, rel=0.1)
    assert (found.is_clean, found.mend) == (is_clean, mend)
    # What a calibrated sigma would gain: the difference of the Gaussians' densities.
    error, calibrated = found.figures["sigma"], found.figures["calibrated_sigma"]
    nodes, weights = np.polynomial.hermite_e.hermegauss(20)
    density = [stats.norm.logpdf(calibrated * nodes, 0, s) for s in (calibrated, error)]
    gain = 64 * np.sum((density[0] - density[1]) * weights) / math.sqrt(2 * math.pi)
    assert found.figures["calibration_gain_nats"] == pytest.approx(gain, abs=1e-6)


def test_the_effective_beta_of_geco_is_by_its_last_multiplier():
    """The weight 1 / 2 s^2 of the squared error, s = 0.05, where the error is 0.1."""
    model = config(likelihood="gaussian", geco=0.1)
    lines = [{"multiplier": 3.0}, {"step": 2, "multiplier": 0.5 / 0.05**2}, {"step": 3}]
    found = findings(*seen_of(), model, lines=lines)["balance"]
    assert found.figures["effective_beta"] == pytest.approx(0.25, rel=0.1)
    assert not wrong(findings(*seen_of(), model))  # no line yet: its tolerance


def test_an_error_unlike_that_of_training_is_told_as_such():
    found = findings(*seen_of(), sigma=0.02)["balance"]
    assert not found.is_clean
    assert "--patience" in found.mend


def test_collapse_counts_the_unused_and_names_the_price():
    x, seen = seen_of(slopes=np.array([1.0, 0.8, 0, 0, 0, 0]))
    found = findings(x, seen)["collapse"]
    assert (found.is_clean, found.figures["active_units"]) == (False, 2)
    assert found.verdict == "4 of 6 latent variables are unused"
    assert "--latent-dim" in found.mend
    costly = config(likelihood="gaussian", beta=20.0)
    assert findings(x, seen, costly)["collapse"].mend == "--beta 1"
    x, seen = seen_of(slopes=np.zeros(UNITS))
    seen = seen._replace(rebuilt=images(0.01 * seen.z))
    assert (
        "all 6 latent variables have collapsed" in findings(x, seen)["collapse"].verdict
    )


def test_mutual_information_at_its_ceiling_leaves_the_rest_of_the_rate_untold():
    x, seen = seen_of()
    told = findings(x, seen)["collapse"]
    assert told.figures["marginal_kl_nats"] is None
    assert "more examples" in told.missing["marginal_kl_nats"]
    _, seen = seen_of(slopes=0.05 * SLOPES)
    told = findings(x, seen)["collapse"].figures
    # An exact posterior of N(0, I) has the marginal N(0, I).
    assert told["marginal_kl_nats"] == pytest.approx(0.0, abs=0.1)
    assert told["mutual_information_nats"] > 0.2


@pytest.mark.parametrize("mean", [0.0, 1.5])
def test_prior_mismatch_is_told_where_z_differs(mean):
    found = findings(*seen_of(mean))["prior"]
    assert found.is_clean == (mean == 0)
    told = found.figures
    assert (told["c2st_logistic_accuracy"] > 0.9) == (mean > 0)
    if mean:
        assert told["frechet_gap"] > 0
        assert "--ex-post" in found.mend
        sampled = dataclasses.replace(GAUSSIAN, sampling=Sampling(ex_post="gmm"))
        assert "--components" in findings(*seen_of(mean), sampled)["prior"].mend


def test_prior_mismatch_is_told_where_only_what_is_decoded_shows_it():
    x, seen = seen_of()
    other = images(SLOPES[::-1] * seen.prior)
    found = findings(x, seen._replace(of_prior=other))["prior"]
    assert not found.is_clean
    assert "decode to" in found.verdict


def test_variance_loss_is_that_of_reconstructions():
    x, seen = seen_of()
    # Of independent errors Var x^ = Var x - MSE: here half of the variance is left.
    found = findings(x, seen._replace(rebuilt=images(math.sqrt(0.5) * SLOPES * seen.z)))
    told = found["variance"]
    assert wrong(found) == ["variance"]
    assert told.figures["ratio"] == pytest.approx(0.49, abs=0.02)
    spectrum = told.figures["spectrum"]
    assert {len(v) for v in spectrum.values()} == {len(spectrum["frequency"])}
    assert told.figures["fine_ratio"] == pytest.approx(0.5, abs=0.05)


def test_what_a_vae_has_not_is_null_with_a_reason():
    x, seen = seen_of()
    found = findings(x, seen, config(likelihood="logistic_mixture"))
    for name in ("sigma", "calibrated_sigma", "calibration_gain_nats"):
        assert found["balance"].figures[name] is None
        assert found["balance"].missing[name] == vae_problems.NOT_GAUSSIAN
    assert found["balance"].is_clean
    found = findings(x, seen, config(likelihood="gaussian", prior="vamp"))
    assert found["collapse"].figures["variance_law"] is None
    assert found["collapse"].figures["active_units"] == UNITS
    found = findings(x, seen, config(likelihood="gaussian", autoencoder=True))
    assert found["balance"].is_clean is None
    assert found["balance"].figures["calibrated_sigma"] > 0
    told = {**found["balance"].figures, **found["collapse"].figures}
    assert told["rate_nats"] is told["rate_nats_se"] is told["effective_beta"] is None
    assert told["active_units"] is told["kl_by_unit"] is None
    assert wrong(found) == []
    for each in found.values():
        nulls = {n for n, v in each.figures.items() if v is None}
        assert nulls == {n for n in nulls if n.removesuffix("_se") in each.missing}


def test_fewer_examples_than_variables_leave_the_total_correlation_out():
    x, seen = seen_of()
    few = vae_problems.Seen(*(a[:20] for a in seen))
    wide = few._replace(z=np.tile(few.z, (1, 4)), prior=np.tile(few.prior, (1, 4)))
    found = vae_problems.prior_mismatch(subject_of(x[:20]), wide)
    assert found.figures["total_correlation_nats"] is None
    assert (
        "more examples than latent variables, 24"
        in (found.missing["total_correlation_of_prior_nats"])
    )


def test_health_of_a_gan_is_that_of_its_last_lines():
    healthy = {"step": 1, "samples/diversity": 0.9, "right/pair": 0.6}
    alike = healthy | {"samples/diversity": 0.05, "collapse": "the samples are alike"}
    found = gan.judge_health(gans.collapse, [healthy] * 5, 0)
    assert found.is_clean
    assert found.figures["diversity"] == 0.9
    assert found.figures["classes"] is None
    assert "metrics.jsonl" in found.missing["classes"]
    found = gan.judge_health(gans.collapse, [healthy, *[alike] * 3], 1)
    assert not found.is_clean
    assert "5.0 % of the variance" in found.verdict
    assert (found.figures["collapsed_lines"], found.figures["rollbacks"]) == (3, 1)
    found = gan.judge_health(gans.collapse, [*[alike] * 3, *[healthy] * 3], 0)
    assert found.is_clean
    assert "3 earlier lines" in found.verdict
    assert gan.judge_health(gans.collapse, [healthy] * 2, 0).is_clean is None
    assert gan.judge_health(gans.collapse, [], 0).is_clean is None


def test_levels_of_noise_are_held_against_the_linear_denoiser_and_training_data():
    sigma = np.geomspace(0.01, 10, 5)
    linear = sigma / np.hypot(sigma, 1.0)
    found = diffusion.judge_levels(sigma, linear, 0.9 * linear, 0.85 * linear)
    assert found.is_clean
    worse = linear * [0.9, 0.9, 0.9, 1.2, 1.1]
    found = diffusion.judge_levels(sigma, linear, worse, worse)
    assert "from sigma 1.78 to 10" in found.verdict
    assert found.figures["largest_excess"] == pytest.approx(1.2)
    found = diffusion.judge_levels(sigma, linear, 0.8 * linear, 0.5 * linear)
    assert "1.6 times that on training data" in found.verdict
    assert "--patience" in found.mend


def flow_seen(*, scale=1.0, error=0.0, between=0.0, certified=0.0, dims=4):
    z = scale * np.random.default_rng(0).standard_normal((500, dims))
    errors = np.full((100, dims), error)
    certified = None if certified is None else np.full(4, certified)
    return flow.Seen(z, errors, np.full(100, between), certified)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({}, None),
        ({"error": 0.01}, "inverse"),
        ({"error": math.nan}, "inverse"),
        ({"between": 0.1}, "log_det"),
        ({"certified": -0.1}, "log_det"),
        ({"certified": None}, None),
        ({"scale": 1.3}, "latents"),
        ({"scale": 0.7}, "latents"),
    ],
)
def test_a_flow_is_held_against_its_own_way_back_and_the_normal(options, problem):
    seen = flow_seen(**options)
    found = {
        "inverse": flow.judge_inverse(seen),
        "log_det": flow.judge_log_det(seen),
        "latents": flow.judge_latents(seen, 0),
    }
    assert wrong(found) == [problem] * (problem is not None)
    for each in found.values():
        json.dumps(each.to_dict(), allow_nan=False)
        assert (each.mend is None) == each.is_clean
    square = found["latents"].figures["mean_square"]
    assert square == pytest.approx(options.get("scale", 1.0) ** 2, rel=0.1)


def test_a_jacobian_that_is_not_taken_is_null_not_0():
    found = flow.judge_log_det(flow_seen(certified=None)).to_dict()
    assert found["figures"]["log_det_against_jacobian_nats"] is None
    assert found["missing"]["log_det_against_jacobian_nats"] == flow.TOO_MANY


def test_samples_are_held_against_what_real_data_get():
    figures = {f"{n}_of_real_data": 0.8 for n in samples.MANIFOLDS}
    right = samples._few(figures | {"precision": 0.5, "coverage": 0.41})
    assert right == {}
    told = samples._few(figures | {"precision": 0.5, "coverage": 0.3})
    assert list(told) == ["coverage"]
    assert told["coverage"].startswith("30 % of the test examples")


def test_figures_that_are_not_finite_are_null():
    told = records.plain(
        {"a": np.float32(1.5), "b": [np.nan, 2], "c": math.inf, "d": np.int64(3)}
        | {"e": None, "f": np.array([1.0]), "g": np.bool_(True), "h": "word"}
    )
    assert told == {
        "a": 1.5, "b": [None, 2], "c": None, "d": 3, "e": None, "f": [1.0], "g": True,
        "h": "word",
    }  # fmt: skip


def test_the_verdict_names_problems_and_what_could_not_be_told():
    def told(**states):
        found = {
            name: records.Finding(title="", figures={}, verdict="", is_clean=state)
            for name, state in states.items()
        }
        return diagnosis.verdict(records.Told(findings=found, made={}))

    assert told(a=True, b=True) == "clean"
    assert told(a=False, b=True, c=False) == "problems: a, c"
    assert told(a=None, b=True) == "clean; not told: a"
    assert told(a=None, b=False) == "problems: b; not told: a"


def test_too_few_examples_are_one_line():
    x = np.zeros((19, 2, 2, 1), np.uint8)
    with pytest.raises(
        UserError, match="at least 20 test and training examples, there are 19"
    ):
        diagnosis.diagnose(None, subject_of(x).dataset)
    alike = np.full((30, 2, 2, 1), 7, np.uint8)
    with pytest.raises(UserError, match="toy: all 30 test examples"):
        diagnosis.diagnose(None, subject_of(alike).dataset)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    from jaxgen import cli

    path = tmp_path_factory.mktemp("runs") / "run"
    with pytest.raises(SystemExit) as stop:
        cli.main(["train", "vae", *SHORT, "--out", str(path)])
    assert not stop.value.code
    return path


def test_diagnose_writes_json_picture_and_a_section_of_the_report(run, capsys):
    status, out, err = call(capsys, "diagnose", run, "--num", "64", "--json")
    assert status == 0
    assert "64 samples in 128 dimensions" in err
    told = json.loads(out)
    assert told == json.loads((run / "diagnosis.json").read_text())
    assert list(told["problems"]) == ["collapse", "balance", "variance", "prior"]
    assert told["num_examples"] == 64
    assert told["sampling"]["ex_post"] == "none"
    for found in told["problems"].values():
        nulls = {
            n.removesuffix("_se") for n, v in found["figures"].items() if v is None
        }
        assert nulls == set(found["missing"])
        assert found["is_clean"] or found["mend"]
    with Image.open(run / "diagnosis.png") as picture:
        assert picture.size[0] > picture.size[1] > 200
    report = (run / "report.html").read_text()
    assert "<h2>Diagnosis</h2>" in report
    assert told["problems"]["prior"]["verdict"] in report
    assert report.count("data:image/png") >= 2
    # In words, of the same file.
    shown = page.text(told)
    assert shown.startswith(f"{told['verdict']} (vae, step 12, 64 test images)")
    assert "effective_beta" in shown
    assert "spectrum" in shown


def test_a_report_without_a_diagnosis_has_no_section(run, tmp_path):
    folder = SimpleNamespace(diagnosis=run / "config.json", path=run)
    assert page.section(folder) == ""
    folder = SimpleNamespace(diagnosis=tmp_path / "none", path=tmp_path)
    assert page.section(folder) == ""


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--num", "19"], "--num must be at least 20, got 19"),
        (["--features", "pixel"], "did you mean 'pixels'"),
        (["--seed", "-1"], "--seed must be in 0"),
        (["--nums", "5"], "did you mean --num?"),
    ],
)
def test_a_mistake_is_one_line(run, capsys, argv, message):
    status, out, err = call(capsys, "diagnose", run, *argv)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert message in err
    status, _, err = call(capsys, "diagnose", run / "none")
    assert (status, err.count("\n")) == (2, 1)


def test_what_is_not_finite_is_refused(monkeypatch):
    x, seen = seen_of()
    bad = {n: np.array(a) for n, a in seen._asdict().items()}
    bad["mu"][3, 2] = np.nan
    monkeypatch.setattr(vae, "_compiled", lambda subject: lambda *_: bad)
    monkeypatch.setattr(vae, "BATCH", NUM)
    with pytest.raises(RunError, match="the model's mu is not finite on test data"):
        vae.look(subject_of(x))


def test_every_flag_that_is_named_is_there():
    parts = [data.DataConfig, configs.TrainConfig, command.DiagnoseOptions]
    for family in models.FAMILIES.values():
        parts += [family.config_class, type(family.config_class().sampling)]
    known = {f.name for part in parts for f in dataclasses.fields(part)} | {"data"}
    folder = Path(diagnosis.__file__).parent
    named = re.findall(
        r"--([a-z][a-z-]*)", " ".join(path.read_text() for path in folder.glob("*.py"))
    )
    assert len(named) > 20
    assert {name.replace("-", "_") for name in named} - known == {"help"}
