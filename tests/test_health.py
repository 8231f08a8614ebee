"""Collapses: seen, told, gone back from, and refused where there is nothing to see."""

import shutil
import signal

import jax.numpy as jnp
import numpy as np
import pytest
import test_loop
from doors import call

from jaxgen import data, models
from jaxgen._checks import RunError, UserError
from jaxgen.models import gan, vae
from jaxgen.models.base import Aux, Model, Player, normal_prior
from jaxgen.train import config as configs
from jaxgen.train import health, loop, rundir, session
from jaxgen.train.keeping import Run

LENGTH = 0.9  # of the way that the toy can go before its samples are all alike


def shrinking(config):
    """Its one parameter moves on by the learning rate; its samples shrink with it."""
    del config

    def objective(params, extra, batch, key, progress):
        del key, progress
        return jnp.full(len(batch["x"]), -params["walk"]["place"]), Aux({})

    def generate(params, z, keys, condition=None):
        left = jnp.maximum(LENGTH - params["walk"]["place"], 0)
        x = jnp.clip(0.5 + left * z, 0, 1)
        return jnp.broadcast_to(x[:, None, None], (len(z), 8, 8, 1))

    return Model(
        init=lambda key, batch: ({"walk": {"place": jnp.float32(0.0)}}, ()),
        players=(Player("walk", objective),),
        prior=normal_prior((1,)),
        generate=generate,
        collapse=lambda records: gan.collapse(
            [{"samples/diversity": r["samples/diversity"]} for r in records]
        ),
    )


@pytest.fixture
def toy(monkeypatch):
    """The families with the toy in the place of the VAE."""
    family = models.FAMILIES["vae"]._replace(make=shrinking)
    monkeypatch.setitem(models.FAMILIES, "vae", family)


def begun(path, **options):
    """A run of the toy whose parameter goes 0.04 a step, and its data."""
    dataset = data.open_dataset(data.DataConfig())
    train = configs.TrainConfig(
        **{
            "steps": 60, "batch_size": 16, "log_every": 2, "checkpoint_every": 2,
            "learning_rate": 0.04, "schedule": "constant", "warmup": 0.0, **options,
        }
    )  # fmt: skip
    config = configs.RunConfig(
        family="vae",
        model=vae.VAEConfig(latent_dim=1, hidden=(8,)),
        data=data.DataConfig(),
        train=train,
    )
    bound = session.bind(session.resolve(config, dataset))
    folder = rundir.RunFolder(path)
    if not folder.exists():
        folder.claim()
        folder.create(bound.config)
    return Run(bound, folder), dataset


def test_a_collapse_is_told_and_training_goes_on(toy, tmp_path, capsys):
    run, dataset = begun(tmp_path / "run")
    assert loop.train([run], dataset).step == 60
    err = capsys.readouterr().err
    assert err.count("collapse: the samples are nearly alike") == 1
    records = run.folder.read_metrics()
    first = next(r["step"] for r in records if health.NAME in r)
    diversity = {r["step"]: r["samples/diversity"] for r in records}
    # The third line in a row below a tenth of the variance of data.
    low = [step for step in diversity if diversity[step] < 0.1]
    assert first == low[2] == low[0] + 4
    assert f"healthy until step {first - 6}" in err
    assert "collapse, at" in health.notes(run.folder)[0]


def test_of_several_runs_each_is_told_by_its_name(toy, tmp_path, capsys):
    options = {"steps": 30, "checkpoint_every": 30}
    runs = [begun(tmp_path / f"seed-{n}", seed=n, **options) for n in (0, 1)]
    loop.train([run for run, _ in runs], runs[0][1])
    lines = [line for line in capsys.readouterr().err.splitlines() if "alike" in line]
    assert [line.split(": ")[0] for line in lines] == [
        str(tmp_path / "seed-0"),
        str(tmp_path / "seed-1"),
    ]


def test_nothing_is_called_a_collapse_in_the_first_tenth(toy, tmp_path):
    """The samples are alike from step 5 on; of 100 steps that is early."""
    options = {"steps": 100, "learning_rate": 0.2, "checkpoint_every": 100}
    run, dataset = begun(tmp_path / "run", **options)
    loop.train([run], dataset)
    first = next(r["step"] for r in run.folder.read_metrics() if health.NAME in r)
    # Three lines, the first of them after step 10.
    assert first == 16


def test_a_damaged_note_of_rollbacks_is_told_not_taken_for_none(toy, tmp_path):
    run, dataset = begun(tmp_path / "run", on_collapse="rollback", steps=26)
    note = run.folder.path / "rollbacks.json"
    for text in ("[{", "{}1", "[1]", '[{"from": 3}]', "3"):
        note.write_text(text)
        with pytest.raises(RunError, match="mend it, or remove it"):
            loop.train([run], dataset)
    assert not run.folder.metrics.exists()


def test_stopping_saves_nothing_of_the_collapse(toy, tmp_path):
    run, dataset = begun(tmp_path / "run", on_collapse="stop")
    with pytest.raises(health.CollapseError, match="rollback goes on") as stopped:
        loop.train([run], dataset)
    step = int(str(stopped.value).split(":")[0].removeprefix("step "))
    saved = [int(p.name) for p in run.folder.checkpoints.iterdir()]
    assert max(saved) == step - 2
    assert min(saved) <= step - 6


def test_going_back_halves_the_rate_and_is_recorded(toy, tmp_path, capsys):
    run, dataset = begun(tmp_path / "run", on_collapse="rollback", steps=26)
    assert loop.train([run], dataset).step == 26
    went = health.rollbacks(run.folder.path)
    assert [(r["from"], r["to"]) for r in went] == [(26, 20)] * 2
    assert "back to step" in capsys.readouterr().err
    steps = [r["step"] for r in run.folder.read_metrics()]
    assert steps == list(range(2, 27, 2))
    expected = 0.04 * 20 + 0.01 * 6
    ended = [leaf for leaf in test_loop.leaves(run.folder.path) if leaf.shape == ()]
    assert any(np.isclose(leaf, expected, rtol=1e-3) for leaf in ended)
    assert run.folder.read_config().train.learning_rate == 0.04
    assert "went back from step" in health.notes(run.folder)[0]


def test_a_run_that_went_back_continues_bit_for_bit(toy, tmp_path):
    """Stopped after it went back, and continued, as if it had not been."""
    whole, dataset = begun(tmp_path / "whole", on_collapse="rollback", steps=26)
    loop.train([whole], dataset)
    assert health.rollbacks(whole.folder.path)
    cut, _ = begun(tmp_path / "cut", on_collapse="rollback", steps=26)
    loop.train([cut], dataset)
    shutil.rmtree(cut.folder.checkpoints / "26")  # as a kill before it leaves it
    again, _ = begun(tmp_path / "cut", on_collapse="rollback", steps=26)
    assert loop.train([again], dataset).step == 26
    assert health.rollbacks(cut.folder.path) == health.rollbacks(whole.folder.path)
    for a, b in zip(
        test_loop.leaves(whole.folder.path),
        test_loop.leaves(cut.folder.path),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)


def test_a_signal_that_meets_a_collapse_still_ends_the_training(
    toy, tmp_path, monkeypatch
):
    run, dataset = begun(tmp_path / "run", on_collapse="rollback")
    met = health.Collapse(step=8, healthy=4, evidence="as planted")
    outcomes = [loop.Outcome(8, 8, signal.SIGTERM, met)]
    monkeypatch.setattr(loop, "_train_once", lambda *a, **k: outcomes.pop())
    outcome = loop.train([run], dataset)
    assert (outcome.step, outcome.signal) == (0, signal.SIGTERM)
    assert health.rollbacks(run.folder.path) == [
        {"from": 8, "to": 0, "evidence": "as planted"}
    ]


def test_going_back_ends_after_three_times(toy, tmp_path):
    run, dataset = begun(
        tmp_path / "run", on_collapse="rollback", steps=400, log_every=2
    )
    with pytest.raises(health.CollapseError, match="after 3 times"):
        loop.train([run], dataset)
    assert len(health.rollbacks(run.folder.path)) == 3


def test_the_figures_of_samples_are_those_of_data_for_data(tmp_path):
    run, dataset = begun(tmp_path / "run")
    made = gan.make_gan(gan.resolve(gan.GANConfig(width=8), (8, 8, 1), None)[0])
    watch = health.Watch(
        [run._replace(session=run.session._replace(model=made))], dataset
    )
    real = dataset.test.take(np.arange(64))["x"]
    told = watch.look(real)
    assert 0.85 < told["samples/diversity"] < 1.1
    assert told["samples/classes"] == 1.0
    ones = dataset.train.take(np.flatnonzero(dataset.train.arrays["label"] == 1)[:64])
    told = watch.look(ones["x"])
    assert told["samples/classes"] < 0.35
    assert watch.look(np.repeat(real[:1], 64, axis=0))["samples/diversity"] == 0


def test_what_cannot_be_watched_is_refused(tmp_path, capsys):
    run, dataset = begun(tmp_path / "run", on_collapse="rollback")
    made = gan.make_gan(gan.resolve(gan.GANConfig(width=8), (8, 8, 1), None)[0])
    watched = run.session._replace(model=made)
    health.check(watched, 1, dataset)
    with pytest.raises(UserError, match="for one run at a time"):
        health.check(watched, 2, dataset)
    grey = data.ArraySource(np.full((9, 8, 8, 1), 7, np.uint8))
    with pytest.raises(UserError, match="are alike"):
        health.check(watched, 1, dataset._replace(train=grey))
    with pytest.raises(UserError, match="vae is not watched"):
        health.check(run.session, 1, dataset)
    told, _ = begun(tmp_path / "told")
    health.check(told.session, 2, dataset._replace(train=grey))
    out = tmp_path / "out"
    code, _, err = call(capsys, "train", "gan", "--batch-size", "1", "--out", out)
    assert (code, "--batch-size 1: gan learns nothing" in err) == (2, True)
    code, _, err = call(capsys, "train", "gan", "--patience", "3", "--out", out)
    assert (code, "several players" in err) == (2, True)
    code, _, err = call(capsys, "train", "gan", "--batch-size", "4000", "--out", out)
    assert (code, "4,000" in err or "4000" in err) == (2, True)
    argv = ("train", "vae", "--on-collapse", "stop", "--out", out)
    code, _, err = call(capsys, *argv)
    assert (code, "vae is not watched for collapses" in err) == (2, True)
    assert not out.exists()


def test_a_penalty_beyond_float32_stops_the_run_at_its_player(tmp_path, capsys):
    argv = ["train", "gan", "--width", "8", "--steps", "4", "--batch-size", "16"]
    code, _, err = call(capsys, *argv, "--gamma", "1e36", "--out", tmp_path / "run")
    assert code == 1
    (line,) = [line for line in err.splitlines() if "not finite" in line]
    assert "gradient of discriminator" in line
