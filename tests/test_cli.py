"""The doors: what a person types, and what comes back."""

import json
import subprocess
import sys

import numpy as np
import pytest
from doors import SHORT, TINY, call
from PIL import Image

from jaxgen import cli, data

KEPT = [*SHORT, "--ema-widths", "0.05", "0.1"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished short run on digits, which has stored its averages."""
    path = tmp_path_factory.mktemp("runs") / "run"
    with pytest.raises(SystemExit) as stop:
        cli.main(["train", "vae", *KEPT, "--out", str(path)])
    assert not stop.value.code
    return path


def test_train_ends_with_the_run_line_and_leaves_a_whole_folder(tmp_path, capsys):
    status, out, err = call(capsys, "train", "vae", *SHORT, "--out", tmp_path / "r")
    assert status == 0
    assert out.splitlines()[-1] == f"run: {tmp_path / 'r'}"
    assert "report:" in err
    assert "nats" in err
    names = {p.name for p in (tmp_path / "r").iterdir()}
    assert names >= {"config.json", "environment.json", "metrics.jsonl", "samples"}
    assert names >= {"checkpoints", "report.html", "evaluation.json"}
    assert "averages" not in names
    status, out, err = call(capsys, "train", "vae", *SHORT, "--out", tmp_path / "r")
    assert status == 0
    assert "has finished its 12 steps" in err
    assert out.splitlines()[-1] == f"run: {tmp_path / 'r'}"


def test_train_refuses_another_architecture_and_shows_the_difference(run, capsys):
    before = (run / "config.json").read_bytes()
    status, _, err = call(
        capsys, "train", "vae", *KEPT, "--out", run, "--hidden", "9", "--seed", "3"
    )
    assert status == 2
    assert "model.hidden: [8] -> [9]; train.seed: 0 -> 3" in err
    assert (run / "config.json").read_bytes() == before


def test_an_error_of_the_system_names_its_file(capsys, monkeypatch):
    def refuse(argv):
        raise PermissionError(13, "Permission denied", "/some/file")

    monkeypatch.setattr(cli, "_list", refuse)
    status, _, err = call(capsys, "list")
    assert (status, err) == (1, "jaxgen: /some/file: Permission denied\n")


def test_dry_run_prints_config_parameters_and_shapes_and_writes_nothing(
    tmp_path, capsys
):
    status, out, _ = call(
        capsys, "train", "vae", *SHORT, "--dry-run", "--out", tmp_path / "r"
    )
    assert status == 0
    assert not (tmp_path / "r").exists()
    assert '"likelihood": "logistic_mixture"' in out
    assert "parameters:" in out
    assert "batch.x" in out
    assert "[32, 8, 8, 1]" in out


def test_sample_depends_on_seed_and_index_only(run, tmp_path, capsys):
    images = {}
    for num, seed in ((5, 0), (70, 0), (5, 1)):
        out = tmp_path / f"{num}-{seed}.npz"
        status, printed, _ = call(
            capsys, "sample", run, "--num", num, "--seed", seed, "--out", out
        )
        assert status == 0
        assert printed.strip() == str(out)
        images[num, seed] = np.load(out, allow_pickle=False)["images"]
    assert images[70, 0].shape == (70, 8, 8, 1)
    assert images[70, 0].dtype == np.uint8
    np.testing.assert_array_equal(images[70, 0][:5], images[5, 0])
    assert np.any(images[5, 0] != images[5, 1])
    status, _, _ = call(capsys, "sample", run, "--out", tmp_path / "grid.png")
    with Image.open(tmp_path / "grid.png") as grid:
        assert grid.size == (284, 284)


def test_evaluate_prints_one_json_object_over_the_whole_test_split(run, capsys):
    argv = ("evaluate", run, "--num-samples", "3", "--num", "0", "--json")
    status, out, _ = call(capsys, *argv)
    assert status == 0
    result = json.loads(out)
    assert result["num_examples"] == 360
    for name in ("nll_nats", "bits_per_dim"):
        assert result[name] > 0
        assert result[f"{name}_se"] > 0
        assert result[f"{name}_kind"] == "bound"
    np.testing.assert_allclose(
        result["bits_per_dim"], result["nll_nats"] / (64 * np.log(2)), rtol=1e-6
    )
    assert 1 <= result["ess_min"] <= result["ess_mean"] <= 3
    assert json.loads((run / "evaluation.json").read_text()) == result
    assert json.loads(call(capsys, *argv)[1]) == result


def test_evaluate_and_sample_use_an_average_of_another_width(run, tmp_path, capsys):
    argv = ("evaluate", run, "--num-samples", 3, "--num", 0, "--json")
    given = json.loads(call(capsys, *argv)[1])
    status, out, err = call(capsys, *argv, "--ema-width", 0.08)
    assert status == 0, err
    assert "average of width 0.08 at step 12: rebuilt from 3 moments" in err
    rebuilt = json.loads(out)
    assert rebuilt["ema_width"] == 0.08
    assert rebuilt["nll_nats"] != given["nll_nats"]
    argv = ("sample", run, "--out", tmp_path / "s.png", "--ema-width")
    assert call(capsys, *argv, 0.08)[0] == 0
    status, _, err = call(capsys, *argv, 0.5)
    assert status == 2
    assert err == "jaxgen: --ema-width must be in (0, 0.28), got 0.5\n"


@pytest.mark.parametrize("widths", [("0.3",), ("0.1", "nan"), ("0.1", "0.1")])
def test_train_refuses_widths_that_no_average_has(tmp_path, capsys, widths):
    argv = ("train", "vae", *SHORT, "--out", tmp_path / "r", "--ema-widths", *widths)
    status, _, err = call(capsys, *argv)
    assert status == 2
    assert err.startswith("jaxgen: --ema-widths must be different numbers in (0, 0.28)")


def test_evaluate_does_not_depend_on_its_batches(run):
    from jaxgen.evaluate.likelihood import evaluate_likelihood
    from jaxgen.train import session

    loaded = session.load(run)
    test = data.open_dataset(loaded.config.data).test
    results = [
        evaluate_likelihood(loaded, test, num_samples=2, batch_size=size)["nll_nats"]
        for size in (100, 7, 360)
    ]
    np.testing.assert_allclose(results, results[0], rtol=1e-6)


def test_list_names_models_data_sets_and_experiments(capsys):
    status, out, _ = call(capsys, "list")
    assert status == 0
    for name in ("vae", "digits", "photos", "folder:PATH", "vae_digits.py"):
        assert name in out


def corrupt_image(tmp_path):
    for i in range(4):
        Image.new("RGB", (9, 9), (i, 0, 0)).save(tmp_path / f"{i}.png")
    (tmp_path / "bad.png").write_bytes(b"not an image")
    return ["train", "vae", "--data", f"folder:{tmp_path}", "--batch-size", "64"]


MISTAKES = {
    "command": (["trian", "vae"], "did you mean 'train'"),
    "no command": ([], "usage"),
    "model": (["train", "vea"], "did you mean 'vae'"),
    "data set": (["train", "vae", "--data", "digitz"], "did you mean 'digits'"),
    "option": (["train", "vae", "--stepz", "5"], "did you mean --steps"),
    "choice": (["train", "vae", "--net", "cnn"], "mlp"),
    "number": (["train", "vae", "--steps", "many"], "--steps"),
    "no value": (["train", "vae", "--steps"], "--steps"),
    "devices": (["train", "vae", "--devices", "9"], "this machine has 8"),
    "parts": (
        ["train", "vae", "--accumulate", "3"],
        "--batch-size 128 does not divide",
    ),
    "whole batch": (
        ["train", "vae", "--likelihood", "gaussian", "--sigma", "optimal"]
        + ["--transform", "dequantise", "--parallel", "pmap"],
        "depends on the whole batch",
    ),
    "no steps": (["train", "vae", "--steps", "0"], "--steps must be at least 1"),
    "rate": (["train", "vae", "--learning-rate", "-1"], "--learning-rate"),
    "batch": (["train", "vae", "--batch-size", "5000"], "1437|1,437"),
    "channels": (["train", "vae", "--channels", "2"], "channels"),
    "likelihood": (
        ["train", "vae", "--likelihood", "gaussian", "--transform", "levels"],
        "dequantise",
    ),
    "data dir": (
        ["train", "vae", "--data", "mnist", "--data-dir", "/no/such/place"],
        "/no/such/place",
    ),
    "folder": (["train", "vae", "--data", "folder:/no/such"], "/no/such"),
    "no folder": (["train", "vae", "--data", "folder:"], "folder:PATH"),
    "run": (["sample", "/no/such/run"], "no such run folder"),
    "out": (["sample", "RUN", "--out", "a.gif"], ".png or .npz"),
    "out folder": (["sample", "RUN", "--out", "/no/such/a.png"], "no such folder"),
    "density": (["sample", "RUN", "--log-prob"], "--log-prob is for rows of a table"),
    "num": (["sample", "RUN", "--num", "0"], "--num must be at least 1"),
    "samples": (["evaluate", "RUN", "--num-samples", "0"], "--num-samples"),
    "images": (["evaluate", "RUN", "--num-images", "361"], "1 .. 360"),
    "judge": (["evaluate", "RUN", "--judge", "-1"], "--judge must be 0"),
    "quality": (["evaluate", "RUN", "--num", "-1"], "--num must be 0"),
    "few": (["evaluate", "RUN", "--num", "7"], "--num must be 0 (none) or at least 20"),
    "place": (["train", "vae", "--out", "/proc/run"], "/proc/run cannot be made"),
    "list": (["list", "everything"], "no arguments"),
    "hidden": (["train", "vae", "--hidden", "0"], "--hidden"),
    "nan": (["train", "vae", "--beta", "nan"], "finite"),
    "seed": (["sample", "RUN", "--seed", "99999999999999999999"], "--seed"),
    "fewer steps": (
        ["train", "vae", *KEPT, "--steps", "5", "--out", "RUN"],
        "12 steps",
    ),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_give_one_clear_line_and_status_2(case, run, capsys):
    argv, expected = MISTAKES[case]
    argv = [str(run) if a == "RUN" else a for a in argv]
    status, out, err = call(capsys, *argv)
    assert status == 2
    if case != "no command":
        lines = err.strip().splitlines()
        assert len(lines) == 1, err
        assert lines[0].startswith("jaxgen: ")
        assert any(part in lines[0] for part in expected.split("|")), err
        assert out == ""


def test_folders_that_are_not_runs_are_left_alone(tmp_path, capsys):
    (tmp_path / "thesis.txt").write_text("years of work")
    status, _, err = call(capsys, "train", "vae", *SHORT, "--out", tmp_path)
    assert status == 2
    assert "no config.json" in err
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]
    status, _, err = call(capsys, "sample", tmp_path)
    assert status == 2
    assert "not a run folder" in err
    (tmp_path / "config.json").write_text('{"version": 1, "family": "vea"}')
    status, _, err = call(capsys, "evaluate", tmp_path)
    assert status == 2
    assert "did you mean 'vae'" in err


def test_two_images_are_enough_for_a_run_and_a_report(tmp_path, capsys):
    for i in range(2):
        Image.new("RGB", (9, 11), (90 * i, 40, 0)).save(tmp_path / f"{i}.png")
    argv = ["train", "vae", *TINY, "--steps", "2", "--data", f"folder:{tmp_path}"]
    argv += ["--net", "mlp", "--image-size", "4", "--batch-size", "1"]
    status, _, err = call(capsys, *argv, "--out", tmp_path / "run")
    assert status == 0, err
    assert (tmp_path / "run" / "report.html").is_file()
    argv = ("evaluate", tmp_path / "run", "--num-samples", "1", "--json")
    status, out, err = call(capsys, *argv)
    assert status == 0
    result = json.loads(out, parse_constant=lambda name: pytest.fail(name))
    assert "quality" not in result
    assert "at least 20" in err
    assert result["nll_nats_se"] is None  # of one example
    assert result["monte_carlo_se"] is None  # of one sample


def test_a_missing_tensorboardx_is_one_line_before_anything_is_made(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    status, _, err = call(
        capsys, "train", "vae", *SHORT, "--tensorboard", "--out", tmp_path / "r"
    )
    assert status == 2
    assert "[tensorboard]" in err
    assert not (tmp_path / "r").exists()


def test_empty_folder_and_too_few_images(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    status, _, err = call(capsys, "train", "vae", "--data", f"folder:{tmp_path}/empty")
    assert (status, len(err.strip().splitlines())) == (2, 1)
    (tmp_path / "few").mkdir()
    status, _, err = call(capsys, *corrupt_image(tmp_path / "few"))
    *notes, last = err.strip().splitlines()
    assert status == 2
    assert last.startswith("jaxgen: --batch-size 64: expected 1 to ")
    assert any("bad.png" in note for note in notes)  # why there are so few


def test_two_processes_do_not_train_in_one_folder(run, capsys):
    import fcntl

    with open(run / "lock", "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        status, _, err = call(
            capsys, "train", "vae", *SHORT, "--steps", "20", "--out", run
        )
    assert status == 2
    assert "another process" in err
    assert '"steps": 12' in (run / "config.json").read_text()


def test_failure_ends_the_process_before_its_tear_down():
    """Which aborts now and then, with another status, where libraries begin threads."""
    code = """
import atexit, sys
from jaxgen import _signals
atexit.register(lambda: print("torn down"))
_signals.fail_at_once(lambda: print("told"))
_signals.fail_at_once(lambda: sys.exit(3))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (3, "told\n")
