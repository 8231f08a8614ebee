"""What may be chosen anew for a trained model, at every door.

Slow, all of it: a denoiser is compiled for each.
"""

import json

import numpy as np
import pytest
from doors import call

pytestmark = pytest.mark.slow
TINY = ["--conditional", "--widths", "8", "--blocks", "1", "--batch-size", "16"]
TINY += ["--num-steps", "2", "--learning-rate", "0.05"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    from jaxgen import cli

    path = tmp_path_factory.mktemp("runs") / "run"
    with pytest.raises(SystemExit) as stop:
        cli.main(["train", "diffusion", *TINY, "--steps", "60", "--out", str(path)])
    assert not stop.value.code
    return path


def drawn(capsys, run, *options):
    out = run / "images.npz"
    status, _, err = call(capsys, "sample", run, "--num", "8", "--out", out, *options)
    assert status == 0, err
    return np.load(out, allow_pickle=False)["images"].astype(int)


def test_sample_takes_another_sampler_class_and_path(run, capsys):
    default = drawn(capsys, run)
    np.testing.assert_array_equal(default, drawn(capsys, run, "--num-steps", "2"))
    for options in (
        ["--sampler", "heun"],
        ["--num-steps", "5"],
        ["--label", "3"],
        ["--guidance", "3"],
        ["--path", "rectified_flow"],
    ):
        assert np.any(drawn(capsys, run, *options) != default), options


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--label", "10"], "--label must be in 0 .. 9"),
        (["--sampler", "mean_flow"], "--one-step"),
        (["--sampler", "hoin"], "dpmpp_2m"),
        (["--num-steps", "0"], "at least 1"),
        (["--width", "9"], "--width"),
    ],
    ids=str,
)
def test_sample_refuses_in_one_line(run, capsys, argv, message):
    status, out, err = call(capsys, "sample", run, *argv)
    assert (status, out) == (2, "")
    assert message in err
    assert len(err.splitlines()) == 1


def test_a_typo_of_the_run_is_told_before_its_options(tmp_path, capsys):
    status, _, err = call(capsys, "sample", tmp_path / "no", "--sampler", "heun")
    assert status == 2
    assert str(tmp_path / "no") in err
    assert "sampler" not in err


def test_evaluate_and_the_report_tell_what_was_chosen(run, capsys):
    options = ["--likelihood", "ode", "--ode-steps", "4", "--probes", "3"]
    options += ["--num-images", "5", "--num", "0", "--json"]
    status, out, _ = call(capsys, "evaluate", run, *options)
    assert status == 0
    told = json.loads(out)
    assert told["nll_nats_kind"] == "estimate"
    assert told["sampling"]["ode_steps"] == 4
    assert told["step_error_mean"] > 0
    assert told["monte_carlo_se"] > 0
    assert told["num_examples"] == 5
    assert json.loads((run / "evaluation.json").read_text()) == told
    page = (run / "report.html").read_text()
    assert "--widths 8 " in page  # in the command that goes on
    assert "--ode-steps" not in page  # it is the evaluation's, not the run's
    assert "error of the estimate of x_0 by noise level" in page
    assert "along the chain" in page


def test_a_run_goes_on_with_another_sampler(run, capsys):
    argv = ["train", "diffusion", *TINY, "--sampler", "heun", "--steps", "64"]
    status, _, err = call(capsys, *argv, "--out", run)
    assert status == 0
    assert "changed since the run began: model.sampling.sampler: auto -> heun" in err


def test_a_dry_run_knows_the_class(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, out, _ = call(capsys, "train", "diffusion", *TINY, "--dry-run")
    assert status == 0
    assert "batch.x" in out
