"""Early stopping: the best parameters are kept, and a run ends where it should."""

import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_loop
import toys
from doors import call

from jaxgen import data, models
from jaxgen._checks import UserError
from jaxgen.models import vae
from jaxgen.models.base import Aux, Model, Player
from jaxgen.train import assembly, loop, parallel, rundir, session, stopping, validation
from jaxgen.train import config as configs
from jaxgen.train.keeping import Run

# Where the parameters are at best is known: see `wandering`.
TRAIN = configs.TrainConfig(
    steps=60, batch_size=16, checkpoint_every=3, log_every=4, sample_every=60,
    learning_rate=0.1, schedule="constant", warmup=0.0, ema_half_life=0.0, patience=3,
)  # fmt: skip

REAL = vae.VAEConfig(latent_dim=2, hidden=(8,), likelihood="bernoulli")
SEEDS = (0, 1, 2)


def wandering(config):
    """Its one parameter moves on by the learning rate, from 0, whatever the data are.

    The loss is least where it is 0.1 times their number of pixels.
    """
    del config

    def objective(params, extra, batch, key, progress):
        del key
        place = params["walk"]["place"]
        # Its gradient is -1 in training and none of it is seen in validation.
        is_validation = progress == 1
        best = jnp.sum(jnp.ones_like(batch["x"][0])) / 10
        loss = jnp.where(is_validation, jnp.square(place - best), -place)
        return jnp.full(len(batch["x"]), loss), Aux({"progress": progress}, extra + 1)

    return Model(
        init=lambda key, batch: ({"walk": {"place": jnp.float32(0.0)}}, jnp.int32(0)),
        players=(Player("walk", objective),),
        prior=lambda keys, params=None: jnp.zeros((len(keys), 1)),
        generate=lambda params, z, keys, condition=None: jnp.zeros((len(z), 4, 4, 1)),
    )


@pytest.fixture
def toy(monkeypatch):
    """The families with the toy in the place of the VAE."""
    family = models.FAMILIES["vae"]._replace(make=wandering)
    monkeypatch.setitem(models.FAMILIES, "vae", family)


def tiny_set(num=200):
    x = np.random.default_rng(0).integers(0, 256, (num, 4, 4, 1)).astype(np.uint8)
    train, test = data.ArraySource(x[:-20]), data.ArraySource(x[-20:])
    return data.Dataset("tiny", train, test, (4, 4, 1), None, ())


def runs_in(path, dataset, *, seeds=(0,), model=REAL, **options):
    """Runs of several seeds, as one program trains them."""
    runs = []
    for seed in seeds:
        train = dataclasses.replace(TRAIN, seed=seed, **options)
        config = configs.RunConfig(
            family="vae", model=model, data=data.DataConfig(), train=train
        )
        bound = session.bind(session.resolve(config, dataset))
        folder = rundir.RunFolder(path / f"seed-{seed}")
        if not folder.exists():
            folder.claim()
            folder.create(bound.config)
        folder.write_config(bound.config)
        runs.append(Run(bound, folder))
    return runs


def losses(folder):
    return stopping.history(folder.read_metrics())


def place(folder):
    return float(session.load(folder.path).params["walk"]["place"])


def test_train_stops_at_the_right_step_with_the_best_parameters(tmp_path, toy):
    """At 1.6, the best place, it is after 16 steps; it is judged after 15 and 18."""
    (run,) = runs_in(tmp_path, tiny_set())
    assert loop.train([run], tiny_set()) == loop.Outcome(24, 24, None)
    found = losses(run.folder)
    assert [step for step, _ in found] == list(range(3, 25, 3))
    np.testing.assert_allclose(
        [loss for _, loss in found], [(s / 10 - 1.6) ** 2 for s, _ in found], rtol=1e-3
    )
    loaded = session.load(run.folder.path)
    assert (loaded.step, loaded.best_step) == (24, 15)
    assert place(run.folder) == pytest.approx(1.5, rel=1e-3)
    assert loaded.notes == ["the parameters of step 15: the best validation loss"]
    assert stopping.told(run.folder.read_metrics(), run.session.config.train) == (
        "stopped early at step 24: no better validation loss since step 15, whose "
        "parameters are used"
    )
    assert (run.folder.samples / "step_00000024.png").is_file()


def test_train_stopped_early_trains_nothing_when_called_again(tmp_path, toy):
    (run,) = runs_in(tmp_path, tiny_set())
    loop.train([run], tiny_set())
    records = run.folder.read_metrics()
    assert loop.train([run], tiny_set()) == loop.Outcome(24, 0, None)
    assert run.folder.read_metrics() == records
    longer = runs_in(tmp_path, tiny_set(), patience=5)
    assert loop.train(longer, tiny_set()) == loop.Outcome(30, 6, None)
    assert run.folder.read_metrics()[: len(records)] == records
    assert place(run.folder) == pytest.approx(1.5, rel=1e-3)


def test_train_without_patience_trains_to_the_end(tmp_path, toy):
    (run,) = runs_in(tmp_path, tiny_set(), patience=0)
    split = data.with_validation(tiny_set(), 1)
    assert loop.train([run], split) == loop.Outcome(60, 60, None)
    assert losses(run.folder) == []
    assert session.load(run.folder.path).best_step is None
    assert place(run.folder) == pytest.approx(6.0, rel=1e-3)


def test_train_counts_a_loss_that_is_not_finite_as_not_better(
    tmp_path, toy, monkeypatch
):
    real = validation.Validator._losses

    def none_at_six(self, state):
        step = int(np.ravel(state.step)[0])
        return [float("inf")] if step in (6, 9, 12) else real(self, state)

    monkeypatch.setattr(validation.Validator, "_losses", none_at_six)
    (run,) = runs_in(tmp_path, tiny_set())
    assert loop.train([run], tiny_set()).step == 12
    assert losses(run.folder)[1] == (6, float("inf"))
    assert json.loads(run.folder.metrics.read_text().splitlines()[2])["step"] == 6
    assert '"validation_loss": null' in run.folder.metrics.read_text()
    assert place(run.folder) == pytest.approx(0.3, rel=1e-3)
    assert loop.train([run], tiny_set()).step_count == 0


@pytest.mark.parametrize("stop", [8, 14])
def test_train_with_patience_continues_bit_for_bit_after_a_crash(
    tmp_path, monkeypatch, stop
):
    """The best is of a step before the kill, or after it."""
    options = {"steps": 18, "learning_rate": 0.05, "model": REAL}
    options |= {"ema_half_life": 0.1, "patience": 2}
    (whole,) = runs_in(tmp_path / "whole", tiny_set(), **options)
    expected = loop.train([whole], tiny_set())
    (cut,) = runs_in(tmp_path / "cut", tiny_set(), **options)
    real = validation.Validator.judge

    def crash(self, done, state):
        if done >= stop:
            raise RuntimeError("power cut")
        return real(self, done, state)

    monkeypatch.setattr(validation.Validator, "judge", crash)
    with pytest.raises(RuntimeError, match="power cut"):
        loop.train([cut], tiny_set())
    monkeypatch.setattr(validation.Validator, "judge", real)
    outcome = loop.train([cut], tiny_set())
    assert outcome.step == expected.step
    assert outcome.step_count < expected.step_count
    assert losses(cut.folder) == losses(whole.folder)
    ours, theirs = (test_loop.leaves(r.folder.path) for r in (cut, whole))
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    "layout",
    [{}, pytest.param({"parallel": "pmap", "devices": 2}, marks=pytest.mark.slow)],
)
def test_seeds_stop_with_the_last_of_them_and_each_keeps_its_best(tmp_path, layout):
    """As alone: the one that would stop first is not judged again."""
    options = {"learning_rate": 0.1, "model": REAL, "patience": 1, **layout}
    alone = [
        runs_in(tmp_path / "alone", tiny_set(), seeds=[s], **options)[0] for s in SEEDS
    ]
    ends = [loop.train([run], tiny_set()).step for run in alone]
    assert len(set(ends)) > 1  # or nothing is tested
    together = runs_in(tmp_path / "together", tiny_set(), seeds=SEEDS, **options)
    assert loop.train(together, tiny_set()).step == max(ends)
    for ours, expected in zip(together, alone, strict=True):
        np.testing.assert_allclose(
            losses(ours.folder), losses(expected.folder), rtol=1e-4
        )
        loaded = [session.load(run.folder.path) for run in (ours, expected)]
        for a, b in zip(*(jax.tree.leaves(x.params) for x in loaded), strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-4 * np.max(np.abs(b)))


def state_and_split():
    """A session whose state has a best that is not its average, and its data."""
    dataset = data.with_validation(tiny_set(), 1)
    train = dataclasses.replace(TRAIN, ema_half_life=0.1)
    config = configs.RunConfig(
        family="vae", model=REAL, data=data.DataConfig(), train=train
    )
    bound = session.bind(session.resolve(config, dataset))
    (state,) = assembly.first_states([bound], dataset)
    moved = jax.tree.map(lambda leaf: leaf + 0.01, state.averages)
    return bound, state._replace(averages=moved), dataset.validation


@pytest.mark.parametrize("kind", ["sharded", "fsdp", "pmap"])
@pytest.mark.parametrize("better", [True, False])
def test_judge_is_the_same_on_every_layout(kind, better):
    bound, state, split = state_and_split()
    layout = parallel.Layout(kind, 8, batch_size=TRAIN.batch_size)
    one = validation.Validator(
        bound, parallel.Layout("sharded", 1, batch_size=TRAIN.batch_size), split, [[]]
    )
    _, (expected,) = one.judge(
        3, state._replace(best=jax.tree.map(jnp.copy, state.ema))
    )
    before = [] if better else [(1, 0.0)]
    validator = validation.Validator(bound, layout, split, [before])
    placed = layout.place(state)
    judged, (told,) = validator.judge(3, placed)
    assert told[stopping.NAME] == pytest.approx(expected[stopping.NAME], rel=1e-5)
    wanted = state.ema if better else state.best
    view = layout.view(judged.best)
    for a, b in zip(jax.tree.leaves(view), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_array_equal(a, b)
    shardings = [
        [leaf.sharding for leaf in jax.tree.leaves(tree)]
        for tree in (judged.best, placed.best)
    ]
    assert shardings[0] == shardings[1]


def test_judge_takes_the_mean_over_the_examples_once():
    """18 examples in batches of 16, by the objective itself."""
    bound, state, split = state_and_split()
    layout = parallel.Layout("sharded", 1, batch_size=16)
    _, (told,) = validation.Validator(bound, layout, split, [[]]).judge(3, state)
    key = jax.random.key(validation.SEED)
    batch = {**split.take(np.arange(18)), "index": np.arange(18)}
    transform = bound.config.data.transform
    batch = data.prepare(batch, jax.random.fold_in(key, 0), transform=transform)
    objective, key = bound.model.players[0].objective, jax.random.fold_in(key, 1)
    loss, _ = objective(state.averages[0], state.extra, batch, key, 1.0)
    assert told[stopping.NAME] == pytest.approx(float(np.mean(loss)), rel=1e-5)


def test_is_over_counts_the_losses_since_the_best():
    found = [(3, 2.0), (6, 1.0), (9, 1.0), (12, float("inf"))]
    assert stopping.best(found) == (6, 1.0)
    assert stopping.is_over(found, 2)
    assert not stopping.is_over(found, 3)
    assert not stopping.is_over(found, 0)
    assert not stopping.is_over([], 1)
    assert stopping.best([]) == (0, float("inf"))


def test_with_validation_holds_a_tenth_out_once():
    dataset = tiny_set()
    split = data.with_validation(dataset, 2)
    assert (split.train.num_examples, split.validation.num_examples) == (162, 18)
    assert "18 examples" in split.notes[-1]
    assert data.with_validation(split, 2) is split
    assert data.with_validation(dataset, 0) is dataset


def test_patience_may_change_but_not_begin_or_end():
    assert configs.may_change("train.patience", 2, 5)
    assert configs.may_change("train.patience", None, 0)
    assert not configs.may_change("train.patience", 0, 5)
    assert not configs.may_change("train.patience", 5, 0)


def test_resolve_fills_patience_in_and_it_comes_back_from_json():
    config = configs.default("vae")
    assert config.train.patience is None
    resolved = session.resolve(config, tiny_set())
    assert resolved.train.patience == 0
    given = dataclasses.replace(config.train, patience=4)
    resolved = session.resolve(dataclasses.replace(config, train=given), tiny_set())
    stored = json.loads(json.dumps(configs.to_dict(resolved)))
    assert configs.from_dict(stored) == resolved
    assert resolved.train.patience == 4
    with pytest.raises(UserError, match="--patience must be not negative, got -1"):
        configs.TrainConfig(patience=-1)


def test_bind_refuses_patience_with_several_players(monkeypatch):
    family = models.FAMILIES["vae"]._replace(make=lambda config: toys.dirac_gan())
    monkeypatch.setitem(models.FAMILIES, "vae", family)
    config = session.resolve(configs.default("vae"), tiny_set())
    session.bind(config)
    train = dataclasses.replace(config.train, patience=1)
    with pytest.raises(UserError, match="--patience: vae has several players"):
        session.bind(dataclasses.replace(config, train=train))


def test_the_doors_tell_of_a_run_that_stopped_early(tmp_path, capsys):
    command = ["train", "vae", "--hidden", "8", "--latent-dim", "2", "--mixture", "1"]
    command += ["--batch-size", "32", "--steps", "400", "--checkpoint-every", "5"]
    command += ["--learning-rate", "0.3", "--schedule", "constant", "--patience", "1"]
    command += ["--out", tmp_path / "r"]
    status, _, err = call(capsys, *command)
    assert status == 0
    assert "144 examples) held out" in err
    assert "\nstopped early at step " in err
    page = (tmp_path / "r" / "report.html").read_text()
    assert "finished: stopped early" in page
    assert "--patience 2" in page
    assert re.search(r"loss: loss [\d.]+, validation_loss [\d.]+ at step", page)
    status, _, err = call(capsys, *command)
    assert status == 0
    assert "has finished: stopped early at step" in err
    assert "compiled" not in err
    status, out, err = call(capsys, "sample", tmp_path / "r")
    assert status == 0
    assert "the best validation loss" in err
    evaluate = ["evaluate", tmp_path / "r", "--num-samples", "1", "--num-images", "5"]
    status, out, err = call(capsys, *evaluate, "--num", "0", "--json")
    judged = json.loads(out)
    assert judged["best_step"] == judged["step"] - 5
