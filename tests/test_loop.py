"""One seed, one result: killed and continued, resident and streamed."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen import data
from jaxgen._checks import UserError
from jaxgen.models import vae
from jaxgen.train import (
    assembly,
    checkpoint,
    keeping,
    loop,
    rundir,
    session,
    update,
    writing,
)
from jaxgen.train import config as configs
from jaxgen.train.keeping import Run

TINY = configs.RunConfig(
    family="vae",
    model=vae.VAEConfig(latent_dim=2, hidden=(8,), likelihood="bernoulli"),
    data=data.DataConfig(name="digits"),
    train=configs.TrainConfig(
        steps=12,
        batch_size=32,
        checkpoint_every=4,
        log_every=3,
        sample_every=6,
        ema_widths=(0.05, 0.1),
    ),
)


@pytest.fixture(scope="module")
def digits():
    return data.open_dataset(TINY.data)


def runs_in(path, digits, num_seeds):
    """Runs of seeds 0, 1, ... trained as one program."""
    runs = []
    for seed in range(num_seeds):
        train = dataclasses.replace(TINY.train, seed=seed)
        config = dataclasses.replace(TINY, train=train)
        bound = session.bind(session.resolve(config, digits))
        run = rundir.RunFolder(path / f"seed-{seed}")
        if not run.exists():
            run.claim()
            run.create(bound.config)
        runs.append(Run(bound, run))
    return runs


def run_in(path, digits, config=TINY, tensorboard=False):
    bound = session.bind(session.resolve(config, digits))
    run = rundir.RunFolder(path)
    if not run.exists():
        run.claim()
        run.create(bound.config)
    outcome = loop.train([Run(bound, run)], digits, tensorboard=tensorboard)
    return run, outcome


def leaves(path):
    loaded = session.load(path)
    target = session.abstract_state(session.bind(loaded.config))
    state, _ = checkpoint.restore(loaded.run.checkpoints, checkpoint.abstract(target))
    return [np.asarray(leaf) for leaf in jax.tree.leaves(state)]


@pytest.fixture(scope="module")
def whole(digits, tmp_path_factory):
    """The final state of an uninterrupted run, and the averages it has stored."""
    path = tmp_path_factory.mktemp("whole") / "run"
    run_in(path, digits)
    return leaves(path), stored(path)


def stored(path):
    """The bytes of each file of averages."""
    return {p.name: p.read_bytes() for p in (path / "averages").iterdir()}


def test_train_writes_what_scripts_rely_on(tmp_path, digits):
    run, outcome = run_in(tmp_path / "run", digits)
    assert outcome == loop.Outcome(12, 12, None)
    records = run.read_metrics()
    assert [r["step"] for r in records] == [3, 4, 6, 8, 9, 12]
    for record in records:
        total = record["distortion"] + record["rate"]
        np.testing.assert_allclose(record["loss"], total, rtol=1e-5)
    assert sorted(p.name for p in run.samples.iterdir()) == [
        "reals.png",
        "step_00000000.png",
        "step_00000006.png",
        "step_00000012.png",
    ]
    assert (run.checkpoints / "12" / "manifest.json").is_file()
    assert run.read_config().model.shape == (8, 8, 1)
    again, outcome = run_in(tmp_path / "run", digits)
    assert outcome.step_count == 0
    assert again.read_metrics() == records


@pytest.mark.parametrize("stop", [2, 7, 11])
def test_train_continues_bit_for_bit_after_a_crash(
    tmp_path, digits, whole, monkeypatch, stop
):
    real = writing.Writer.add

    def crash(self, done, count, metrics):
        if done < stop <= done + count:
            raise RuntimeError("power cut")
        real(self, done, count, metrics)

    monkeypatch.setattr(writing.Writer, "add", crash)
    with pytest.raises(RuntimeError, match="power cut"):
        run_in(tmp_path / "cut", digits)
    monkeypatch.setattr(writing.Writer, "add", real)
    run, outcome = run_in(tmp_path / "cut", digits)
    assert outcome.step == 12
    assert outcome.step_count == 12 - 4 * ((stop - 1) // 4)
    for a, b in zip(whole[0], leaves(tmp_path / "cut"), strict=True):
        np.testing.assert_array_equal(a, b)
    assert stored(tmp_path / "cut") == whole[1]
    assert whole[1].keys() == {"4.npz", "8.npz", "12.npz"}
    steps = [r["step"] for r in run.read_metrics()]
    assert steps == sorted(set(steps))
    assert steps[-1] == 12


@pytest.mark.slow
def test_train_goes_on_with_another_layout_and_ends_the_same(
    tmp_path, digits, monkeypatch
):
    def with_layout(**options):
        return dataclasses.replace(
            TINY, train=dataclasses.replace(TINY.train, **options)
        )

    one, _ = run_in(tmp_path / "one", digits)
    real = writing.Writer.add

    def crash(self, done, count, metrics):
        if done + count > 7:
            raise RuntimeError("power cut")
        real(self, done, count, metrics)

    monkeypatch.setattr(writing.Writer, "add", crash)
    first = with_layout(parallel="pmap", devices=4, steps_per_dispatch=2)
    with pytest.raises(RuntimeError, match="power cut"):
        run_in(tmp_path / "moved", digits, first)
    monkeypatch.setattr(writing.Writer, "add", real)
    second = with_layout(parallel="fsdp", devices=8, accumulate=2)
    moved, outcome = run_in(tmp_path / "moved", digits, second)
    assert outcome == loop.Outcome(12, 8, None)
    losses, expected = ([r["loss"] for r in run.read_metrics()] for run in (moved, one))
    np.testing.assert_allclose(losses, expected, rtol=1e-5)


def test_train_is_the_same_resident_and_streamed(tmp_path, digits, whole):
    class Remote:
        """The same examples behind `take` only, as a large set has them."""

        def __init__(self, source):
            self._source = source
            self.num_examples, self.shape = source.num_examples, source.shape

        def take(self, indices):
            return self._source.take(indices)

    remote = digits._replace(train=Remote(digits.train))
    run_in(tmp_path / "streamed", remote)
    for a, b in zip(whole[0], leaves(tmp_path / "streamed"), strict=True):
        np.testing.assert_array_equal(a, b)


def test_train_stops_at_the_first_non_finite_step_and_names_it(tmp_path, digits):
    config = dataclasses.replace(
        TINY,
        train=dataclasses.replace(
            TINY.train, learning_rate=1e30, warmup=0.0, schedule="constant"
        ),
    )
    with pytest.raises(writing.NonFiniteError) as caught:
        run_in(tmp_path / "run", digits, config)
    message = str(caught.value)
    assert "step 3" in message or "step 2" in message
    assert "gradient of vae['" in message
    assert not (tmp_path / "run" / "checkpoints").exists()  # nothing bad was saved


def test_reals_are_spread_over_the_set(tmp_path, digits):
    """The first patches of the photographs are all sky."""

    class Recorder:
        num_examples = digits.train.num_examples

        def take(self, indices):
            self.taken = indices
            return digits.train.take(indices)

    source = Recorder()
    bound = session.bind(session.resolve(TINY, digits))
    run = rundir.RunFolder(tmp_path / "run")
    run.claim()
    keeping.write_reals(digits._replace(train=source), Run(bound, run))
    assert (source.taken[0], source.taken[-1]) == (0, source.num_examples - 1)
    assert len(set(source.taken.tolist())) == 64
    assert (run.samples / "reals.png").is_file()


def test_train_saves_nothing_of_a_step_with_a_bad_metric(tmp_path, digits, monkeypatch):
    real = writing.Writer.add

    def add(self, done, count, metrics):
        bad = {"rate": metrics["rate"] + np.nan} if done + count == 8 else {}
        real(self, done, count, {**metrics, **bad})

    monkeypatch.setattr(writing.Writer, "add", add)
    with pytest.raises(writing.NonFiniteError, match=r"step [78]: rate is nan"):
        run_in(tmp_path / "run", digits)
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == ["4"]


def test_finite_copy_refuses_to_save_what_is_not_finite(digits):
    """The metrics of a step are of the parameters before its update."""
    bound = session.bind(session.resolve(TINY, digits))
    state = jax.tree.map(
        lambda a: jnp.ones(a.shape, a.dtype), session.abstract_state(bound)
    )
    copy = keeping.finite_copy(7, state)
    assert jax.tree.structure(copy) == jax.tree.structure(state)
    state.params["vae"]["decoder"]["output"]["bias"] += jnp.inf
    with pytest.raises(writing.NonFiniteError, match=r"step 7: .*'output'.*and 0 more"):
        keeping.finite_copy(7, state)


def test_check_finite_names_the_term_and_the_parameter():
    metrics = {
        "loss/vae": np.float32(np.nan),
        "rate": np.float32(np.inf),
        "distortion": np.float32(1.0),
        "gradient_norms/vae": np.array([1.0, np.nan], np.float32),
    }
    paths = {"vae": ["['decoder']['kernel']", "['encoder']['kernel']"]}
    with pytest.raises(
        writing.NonFiniteError, match=r"step 7: rate is inf.*vae\['encoder'\]"
    ):
        writing._check_finite(7, metrics, paths)


@pytest.mark.parametrize(
    "layout",
    [{}, pytest.param({"parallel": "pmap", "devices": 2}, marks=pytest.mark.slow)],
)
def test_seeds_trained_together_are_the_runs_trained_alone(
    tmp_path, digits, monkeypatch, layout
):
    """Also where a kill came between their checkpoints."""
    runs = runs_in(tmp_path, digits, 2)
    first = runs[0].session
    train = dataclasses.replace(first.config.train, **layout)
    config = dataclasses.replace(first.config, train=train)
    runs[0] = runs[0]._replace(session=first._replace(config=config))
    real = checkpoint.Checkpoints.save

    def cut(self, step, state):
        if step == 8 and "seed-1" in str(self._directory):
            raise RuntimeError("power cut")
        real(self, step, state)

    monkeypatch.setattr(checkpoint.Checkpoints, "save", cut)
    with pytest.raises(RuntimeError, match="power cut"):
        loop.train(runs, digits)
    assert checkpoint.steps(runs[0].folder.checkpoints)[0] == 8
    assert checkpoint.steps(runs[1].folder.checkpoints)[0] == 4
    monkeypatch.setattr(checkpoint.Checkpoints, "save", real)
    assert loop.train(runs, digits) == loop.Outcome(12, 8, None)
    for seed, run in enumerate(runs):
        alone, _ = run_in(tmp_path / f"alone-{seed}", digits, run.session.config)
        together, expected = (
            [r["loss"] for r in folder.read_metrics()] for folder in (run.folder, alone)
        )
        np.testing.assert_allclose(together, expected, rtol=1e-5)
        for a, b in zip(leaves(run.folder.path), leaves(alone.path), strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.max(np.abs(b)))


def test_seeds_far_apart_are_not_trained_together(tmp_path, digits):
    """The one that is ahead would lose what it has been trained."""
    runs = runs_in(tmp_path, digits, 2)
    loop.train(runs[:1], digits)
    before = runs[0].folder.read_metrics()
    with pytest.raises(UserError, match=r"seed-0 12, .*seed-1 0\); continue them one"):
        loop.train(runs, digits)
    assert runs[0].folder.read_metrics() == before


def test_seeds_of_a_stream_are_those_of_the_resident_set(digits):
    class Streamed:
        num_examples, shape = digits.train.num_examples, digits.train.shape
        take = digits.train.take

    rows = slice(8, 16)
    resident = assembly.make_feed(digits.train, [3, 4], 16, 5, 7, rows)
    streamed = assembly.make_feed(Streamed(), [3, 4], 16, 5, 7, rows)
    for indices, batch in zip(resident.items, streamed.items, strict=True):
        expected = resident.fetch(resident.resident, indices)
        assert batch.keys() == expected.keys()
        assert batch["x"].shape == (8, 2, 8, 8, 1)
        np.testing.assert_array_equal(batch["x"], expected["x"])


def test_a_bad_seed_is_named(tmp_path, digits, monkeypatch):
    real = writing.Writer.add

    def add(self, done, count, metrics):
        bad = metrics["rate"] + np.array([[0.0, np.nan]])
        real(self, done, count, {**metrics, "rate": bad})

    monkeypatch.setattr(writing.Writer, "add", add)
    with pytest.raises(writing.NonFiniteError, match=r"seed-1: step \d+: rate is nan"):
        loop.train(runs_in(tmp_path, digits, 2), digits)


def test_train_mirrors_to_tensorboard(tmp_path, digits):
    run, _ = run_in(tmp_path / "run", digits, tensorboard=True)
    events = list((run.path / "tensorboard").glob("events*"))
    assert events
    assert events[0].stat().st_size > 1000


def test_make_feed_refuses_a_batch_larger_than_the_set(digits):
    with pytest.raises(UserError, match="1437|1,437"):
        assembly.make_feed(digits.train, [0], 2000, 0, 1)


def test_sampler_depends_on_seed_and_number_only(digits):
    bound = session.bind(session.resolve(TINY, digits))
    params, _ = bound.model.init(jax.random.key(1), {"x": np.zeros((1, 8, 8, 1))})
    draw = assembly.Sampler(bound)
    images = np.concatenate([draw(params, 0), draw(params, 0, draw.num)])
    assert images.dtype == np.uint8
    assert np.any(images[:64] != images[64:])
    np.testing.assert_array_equal(draw(params, 0, 5), images[5:69])
    assert np.any(draw(params, 1) != images[:64])


def test_read_metrics_survives_a_torn_last_line(tmp_path):
    run = rundir.RunFolder(tmp_path)
    whole = [{"step": step} for step in (3, 4, 6, 8)]
    run.metrics.write_text("".join(json.dumps(r) + "\n" for r in whole))
    with open(run.metrics, "a") as file:
        file.write('17\n{}\n\\xff\n{"step": 13, "lo')
    assert run.read_metrics() == whole
    run.keep_metrics_until(6)
    lines = run.metrics.read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [3, 4, 6]


@pytest.mark.parametrize("steps_per_dispatch", [1, 0])
def test_train_traces_the_update_once(
    tmp_path, digits, monkeypatch, steps_per_dispatch
):
    """Whatever the intervals between metrics, samples and checkpoints are."""
    traces = []
    real = update.make_update

    def make_update(*args, **options):
        advance = real(*args, **options)

        def counted(*state_batch_key):
            traces.append(1)
            return advance(*state_batch_key)

        return counted

    monkeypatch.setattr(update, "make_update", make_update)
    train = dataclasses.replace(
        TINY.train, steps_per_dispatch=steps_per_dispatch, log_every=5
    )
    run_in(tmp_path / "run", digits, dataclasses.replace(TINY, train=train))
    assert len(traces) == 1
