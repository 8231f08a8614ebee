"""A table from a file to samples, from the command line."""

import csv
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from doors import call
from PIL import Image

from jaxgen import cli
from jaxgen.models.base import indexed_keys
from jaxgen.train import session

SMALL = ["--width", "8", "--depth", "2", "--bins", "4", "--steps", "60"]


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    path = tmp_path_factory.mktemp("table") / "storks.csv"
    rng = np.random.default_rng(0)
    place = rng.random(300)
    storks = np.exp(1 + place + 0.3 * rng.normal(size=300))
    births = rng.poisson(20 * place + 1)
    with open(path, "w") as file:
        file.write("place,storks,births,importance\n")
        for row in zip(place, storks, births, 1 + place, strict=True):
            file.write(",".join(f"{value:.6g}" for value in row) + "\n")
    return path


def test_a_table_is_trained_judged_sampled_and_continued(table, tmp_path, capsys):
    run, columns = tmp_path / "run", ["place=context", "importance=weight"]
    argv = ["train", "flow", "--data", f"table:{table}", *SMALL, "--out", run]
    status, out, err = call(capsys, *argv, "--columns", *columns)
    assert status == 0, err
    assert out == f"run: {run}\n"
    assert "births" in err
    assert "240 rows 3" in err
    told = json.loads((run / "evaluation.json").read_text())
    assert told["num_examples"] == 30
    assert 0 <= told["coverage_80"] <= 1
    assert "bits_per_dim" not in told
    assert sorted(told["ranks"]) == ["births", "storks"]
    with Image.open(run / "samples" / "reals.png") as picture:
        assert min(picture.size) >= 256
    page = (run / "report.html").read_text()
    assert "per row" in page
    assert "ranks of test rows" in page
    assert "validation" in page
    status, out, err = call(
        capsys, "sample", run, "--num", "70", "--given", "place=0.25"
    )
    assert status == 0, err
    with open(run / "sample.csv", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["place", "storks", "births"]
    values = np.array(rows[1:], float)
    assert values.shape == (70, 3)
    np.testing.assert_array_equal(values[:, 0], 0.25)
    np.testing.assert_array_equal(values[:, 2], np.round(values[:, 2]))
    assert values[:, 1].min() > 0
    status, out, err = call(capsys, "evaluate", run, "--json")
    assert json.loads(out)["nll_nats"] == pytest.approx(told["nll_nats"])
    status, _, err = call(capsys, *argv, "--columns", *columns)
    assert status == 0
    assert "has finished" in err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--columns", "plaec=skip"], "'plaec'"),
        (["--net", "glow"], "--net glow is not for tables"),
        (["--noise", "0.1"], "--noise and --conditional are for images"),
        (["--transform", "dequantise"], "is for images"),
    ],
)
def test_a_mistake_about_a_table_is_one_line(table, tmp_path, capsys, argv, message):
    status, out, err = call(
        capsys, "train", "flow", "--data", f"table:{table}", *argv, "--out", tmp_path
    )
    assert status == 2
    assert out == ""
    assert message in err
    assert len(err.splitlines()) == 1


@pytest.fixture(scope="module")
def short_run(table, tmp_path_factory):
    """A run of two steps, told the place."""
    path = tmp_path_factory.mktemp("short") / "run"
    argv = ["train", "flow", "--data", f"table:{table}", *SMALL[:-1], "2"]
    argv += ["--columns", "place=context", "importance=skip", "--out", str(path)]
    with pytest.raises(SystemExit) as stop:
        cli.main(argv)
    assert not stop.value.code
    return path


def test_rows_have_their_density_beside_them(short_run, tmp_path, capsys):
    argv = ("sample", short_run, "--num", "70", "--log-prob", "--out")
    status, _, err = call(capsys, *argv, tmp_path / "rows.csv")
    assert status == 0, err
    with open(tmp_path / "rows.csv", newline="") as file:
        names, *rows = csv.reader(file)
    assert names == ["place", "storks", "births", "log_prob"]
    rows = np.array(rows, np.float32)
    loaded = session.load(short_run)
    keys = indexed_keys(jax.random.fold_in(jax.random.key(0), 1), jnp.arange(70))
    expected = loaded.model.log_likelihood(
        loaded.params, jnp.asarray(rows[:, :3]), keys, num_samples=1
    ).nats
    assert np.ptp(expected) > 1
    np.testing.assert_allclose(rows[:, 3], expected, rtol=1e-3, atol=1e-3)
    status, _, err = call(capsys, *argv, tmp_path / "rows.npz")
    assert status == 0, err
    stored = np.load(tmp_path / "rows.npz", allow_pickle=False)
    np.testing.assert_array_equal(stored["rows"], rows[:, :3])
    np.testing.assert_array_equal(stored["log_prob"], rows[:, 3])
    status, _, err = call(capsys, *argv, tmp_path / "rows.png")
    assert status == 2
    assert "--log-prob: --out must end in .csv or .npz" in err


def test_a_context_that_is_none_is_named_at_sampling(short_run, tmp_path, capsys):
    run = short_run
    for given, message in (
        ("storks=1", "unknown context column 'storks'"),
        ("place=far", "'far' is not a number"),
    ):
        status, _, err = call(capsys, "sample", run, "--given", given)
        assert status == 2
        assert message in err
    status, _, err = call(capsys, "sample", run, "--out", tmp_path / "rows.txt")
    assert status == 2
    assert "must end in .csv or .npz or .png for rows" in err
