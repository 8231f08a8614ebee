"""Runs on a task: several answers, their figures and pictures, and cascades of two runs."""

import dataclasses
import json
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen import cli, data, tasks
from jaxgen._checks import UserError
from jaxgen.bench import pinned, questions
from jaxgen.evaluate import asked, tables
from jaxgen.train import answering, assembly, cascade, rundir, session
from jaxgen.train import config as configs

TINY = ["--hidden", "8", "--mixture", "1", "--steps", "2", "--batch-size", "16"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folders of three tiny VAEs: of digits, of their hidden halves, of larger ones."""
    folder = tmp_path_factory.mktemp("runs")
    flags = {
        "plain": [],
        "halves": ["--task", "inpaint", "--mask", "half"],
        "larger": ["--task", "enlarge", "--image-size", "16"],
    }
    for name, own in flags.items():
        with pytest.raises(SystemExit) as stop:
            cli.main(["train", "vae", *TINY, *own, "--out", str(folder / name)])
        assert not stop.value.code
    return folder


def answering_with(loaded, generate):
    return loaded._replace(
        model=loaded.model._replace(generate=lambda p, z, keys, c: generate(z, c))
    )


def test_an_answer_depends_on_seed_question_and_number_alone():
    def answer(params, keys, question):
        noise = jax.vmap(lambda key: jax.random.normal(key, (2,)))(keys)
        return params * question + noise

    asked_for = np.arange(10.0, dtype=np.float32).reshape(5, 2)
    whole = answering.several(answer, 2.0, [asked_for], 4, seed=3)
    assert whole.shape == (5, 4, 2)
    some = answering.several(answer, 2.0, [asked_for[:3]], 2, seed=3, at_once=5)
    np.testing.assert_allclose(some, whole[:3, :2], rtol=1e-6)
    noise = whole - 2 * asked_for[:, None]
    assert len(np.unique(noise)) == noise.size
    other = answering.several(answer, 2.0, [asked_for], 4, seed=4)
    assert np.abs(other - whole).min() > 0


def test_masks_are_of_the_number_of_an_example_and_the_seed(runs):
    loaded = session.load(runs / "halves")
    config = dataclasses.replace(loaded.config.data, mask="pixels")
    test = data.open_dataset(loaded.config.data).test

    def masks(chosen, seed=0):
        given = answering.conditions(config, test, np.array(chosen), seed)
        return given["condition"][..., -1]

    many = masks([3, 7, 9])
    np.testing.assert_array_equal(masks([7]), many[1:2])
    assert np.any(many[0] != many[1])
    assert np.any(masks([7], seed=1) != many[1])


def test_samples_of_a_run_on_a_task_answer_test_examples(runs):
    loaded = session.load(runs / "halves")
    shown = answering_with(loaded, lambda z, c: c[..., :-1])
    draw = assembly.Sampler(shown)
    test = data.open_dataset(loaded.config.data).test
    seen = test.take(np.arange(3, 3 + draw.num))["x"].copy()
    seen[:, :, 4:] = 0
    off = draw(loaded.params, 0, 3).astype(int) - seen
    assert np.abs(off).max() <= 1  # levels, but for rounding
    assert draw(loaded.params, 0, 350).shape == (draw.num, 8, 8, 1)  # past the end


def test_figures_of_answers_are_those_of_the_answers(runs):
    loaded = session.load(runs / "halves")
    dataset = data.open_dataset(loaded.config.data)
    blank = answering_with(loaded, lambda z, c: c[..., :-1])
    told = asked.evaluate(blank, dataset, 3)["answers"]
    chosen = data.spread(dataset.test.num_examples, asked.NUM_QUESTIONS)
    truth = dataset.test.take(chosen)["x"].astype(np.float64) / 255
    expected = np.sqrt(np.mean(truth[:, :, 4:] ** 2, axis=(1, 2, 3))).mean()
    assert told["best"]["value"] == pytest.approx(expected, abs=2e-3)
    assert told["of_mean"]["value"] == pytest.approx(expected, abs=2e-3)
    assert told["diversity"]["value"] == 0
    assert told["disagreement"]["value"] < 3e-3
    assert (told["num_questions"], told["num_answers"]) == (100, 3)
    assert told["recognised"]["value"] < 0.9  # by the other half alone
    off = answering_with(loaded, lambda z, c: 1 - c[..., :-1])
    told = asked.evaluate(off, dataset, 1)["answers"]
    assert told["disagreement"]["value"] > 0.9
    assert told["settled"]["value"] < 3e-3
    assert told["recognised"]["value"] < 0.9
    brighter = answering_with(
        loaded, lambda z, c: c[..., :-1] + c[..., :-1].mean((1, 2, 3), keepdims=True)
    )
    one, many = (  # alike, so that of four no more is known than of one
        asked.evaluate(brighter, dataset, num)["answers"]["disagreement"]
        for num in (1, 4)
    )
    assert one["high"] - one["low"] > 3e-3
    for end in ("low", "high"):
        assert one[end] == pytest.approx(many[end], abs=1e-4)


def test_answers_that_are_none_of_the_possible_ones_are_told_as_such(runs):
    dataset = data.open_dataset(data.DataConfig(name="peg:2", task="next-frame"))
    loaded = session.load(runs / "halves")
    model = dataclasses.replace(loaded.config.model, shape=(16, 16, 1))
    config = dataclasses.replace(
        loaded.config,
        model=model,
        data=data.DataConfig(name="peg:2", task="next-frame", transform="levels"),
    )
    blank = answering_with(loaded._replace(config=config), lambda z, c: 0 * c[..., :1])
    told = asked.evaluate(blank, dataset, 2)["answers"]
    assert told["modes"]["none_share"]["value"] == 1
    assert told["modes"]["shares"] is told["modes"]["reverse_kl"] is None
    assert told["disagreement"] is None
    json.dumps(told, allow_nan=False)
    assert "None of the answers is a possible one." in tables.text({"answers": told})


def test_the_truth_is_recognised(runs):
    loaded = session.load(runs / "halves")
    dataset = data.open_dataset(loaded.config.data)
    chosen = data.spread(dataset.test.num_examples, 100)
    given = answering.conditions(loaded.config.data, dataset.test, chosen, 0)
    found = np.repeat(given["x"][:, None], 2, axis=1)
    told = asked.recognised(dataset, given["condition"], found, chosen)
    assert told["recognised"]["value"] > 0.97
    train = dataset.train.take(np.arange(dataset.train.num_examples))
    seen, every = given["x"][:, :, :4], train["x"][:, :, :4].astype(float) / 255
    apart = np.square(seen[:, None] - every[None]).sum((2, 3, 4))
    near = train["label"][np.argsort(apart, axis=1)[:, :10]]
    truth = dataset.test.take(chosen)["label"]
    tenth, next_one = np.sort(apart, axis=1)[:, 9:11].T  # of a tie either may be taken
    expected = np.sum(np.all(near == truth[:, None], axis=1))
    assert abs(told["num_decided"] - expected) <= np.sum(next_one - tenth < 1e-4) < 20
    one = asked.recognised(dataset, given["condition"], found[:, :1], chosen)
    assert one["recognised"] == told["recognised"]  # of two alike no more is known


def test_the_picture_has_what_is_given_answers_mean_and_truth(runs):
    loaded = session.load(runs / "halves")
    test = data.open_dataset(loaded.config.data).test
    found = answering_with(
        loaded, lambda z, c: jnp.broadcast_to(z[:, :1, None, None], (len(z), 8, 8, 1))
    )
    images = asked.picture(found, test)
    assert images.shape == (asked.ROWS, 3 + asked.COLUMNS, 8, 8, 1)
    np.testing.assert_array_equal(images[:, 0, :, 4:], 0.5)
    np.testing.assert_allclose(images[:, 0, :, :4], images[:, -1, :, :4], atol=1e-6)
    np.testing.assert_allclose(
        images[:, -2], images[:, 1 : 1 + asked.COLUMNS].mean(axis=1), atol=1e-6
    )
    agree = np.abs(images[:, 1:-2] - images[:, -1:])[..., :4, :]
    assert agree.max() <= 1 / 255


def test_a_cascade_enlarges_the_samples_of_its_base(runs):
    base, top = session.load(runs / "plain"), session.load(runs / "larger")
    repeated = answering_with(top, lambda z, c: c[..., :-1])
    draw = cascade.Cascade(base, repeated)
    large = draw(top.params, 5, 64)
    small = assembly.Sampler(base)(base.params, 5, 64)
    assert large.shape == (64, 16, 16, 1)
    means = large.reshape(64, 8, 2, 8, 2, 1).mean(axis=(2, 4))
    assert np.abs(means - small).max() <= 1
    noisy = cascade.Cascade(base, repeated, level=0.1)(top.params, 5, 64)
    assert np.abs(noisy.astype(int) - large).max() <= 1  # the means are as they were


def test_noise_of_a_cascade_is_told_and_is_not_in_what_answers_agree_with(
    runs, monkeypatch
):
    base, top = session.load(runs / "plain"), session.load(runs / "larger")
    given = []
    monkeypatch.setattr(
        assembly.Sampler, "answers", lambda self, *args: given.extend(args[-2:])
    )
    draw = cascade.Cascade(base, top, level=0.1)
    monkeypatch.setattr(
        draw, "_small", lambda *_: np.full((64, 8, 8, 1), 128, np.uint8)
    )
    draw(top.params, 5)
    told, seen = given
    assert told.shape == seen.shape == (64, 16, 16, 2)
    np.testing.assert_allclose(told[..., 1], 0.1 / tasks.MOST_NOISE, rtol=1e-6)
    assert np.all(seen[..., 1] == 0)
    np.testing.assert_allclose(seen[..., 0], 128.5 / 256, rtol=1e-6)
    noise = told[:, ::2, ::2, 0] - seen[:, ::2, ::2, 0]
    assert 0.095 < noise.std() < 0.105
    np.testing.assert_array_equal(told[:, ::2, ::2], told[:, 1::2, 1::2])
    given.clear()
    for seed, start in ((5, 1), (5, 64), (6, 0)):
        draw(top.params, seed, start)
    moved, later, other = given[::2]
    np.testing.assert_allclose(moved[:-1], told[1:], atol=1e-6)
    assert np.abs(later - told)[..., 0].max() > 0.1
    assert np.abs(other - told)[..., 0].max() > 0.1


def scaled(loaded, scale, shape):
    """A run as if it enlarged by this to that; its network is not asked."""
    config = dataclasses.replace(
        loaded.config,
        data=dataclasses.replace(loaded.config.data, scale=scale),
        model=dataclasses.replace(loaded.config.model, shape=shape),
    )
    return loaded._replace(config=config)


def test_a_cascade_by_four_takes_images_of_a_quarter(runs, monkeypatch):
    base, top = session.load(runs / "plain"), session.load(runs / "larger")
    wide, given = scaled(top, 4, (32, 32, 1)), []
    monkeypatch.setattr(
        assembly.Sampler, "answers", lambda self, *args: given.append(args[-1])
    )
    draw = cascade.Cascade(base, wide)
    small = np.arange(64, dtype=np.uint8).reshape(1, 8, 8, 1).repeat(64, axis=0)
    monkeypatch.setattr(draw, "_small", lambda *_: small)
    draw(top.params, 0)
    assert given[0].shape == (64, 32, 32, 2)
    blocks = given[0][..., 0].reshape(64, 8, 4, 8, 4)
    np.testing.assert_allclose(
        blocks, (small + 0.5)[:, :, None, :, None, 0].repeat(4, 2).repeat(4, 4) / 256
    )
    with pytest.raises(UserError, match=r"makes examples of 16x16x1, .* of 8x8x1"):
        cascade.Cascade(scaled(base, None, (16, 16, 1)), wide)


def test_training_puts_noise_on_what_is_to_be_enlarged(runs, monkeypatch):
    top, told = session.load(runs / "larger"), []
    make = data.make_prepare

    def seen(config, **options):
        told.append(make(config, **options))
        return told[-1]

    monkeypatch.setattr(data, "make_prepare", seen)
    layout = types.SimpleNamespace(axis_name=None)
    assembly.make_advance(session.bind(top.config), layout)
    raw = data.open_dataset(top.config.data).train.take(np.arange(16))
    raw["index"] = np.arange(16, dtype=np.int32)
    (prepare,) = told
    levels = jax.jit(prepare)(raw, jax.random.key(0))["condition"][..., 1]
    assert np.ptp(levels) > 0.1


def test_answers_agree_with_what_is_seen_whatever_the_model_says(runs):
    loaded = session.load(runs / "halves")
    test = data.open_dataset(loaded.config.data).test
    off = answering_with(loaded, lambda z, c: 1 - c[..., :-1])
    draw = assembly.Sampler(off)
    truth = test.take(np.arange(draw.num))["x"].astype(int)
    drawn = draw(loaded.params, 0)
    assert np.abs(drawn.astype(int) - truth)[:, :, :4].max() <= 1
    assert drawn[:, :, 4:].min() == 255  # the model's: nothing is seen there


@pytest.mark.parametrize(
    ("first", "second", "level", "message"),
    [
        ("plain", "plain", 0, "has no task: a run on --task enlarge would chain"),
        ("plain", "halves", 0, "is on --task inpaint"),
        ("larger", "larger", 0, "makes examples of 16x16x1, .* enlarges .* 8x8x1"),
        ("plain", "larger", 0.3, "--noise must be in 0 .. 0.2"),
        ("plain", "larger", -0.1, "--noise must be in 0 .. 0.2"),
    ],
)
def test_runs_that_do_not_chain_are_refused(runs, first, second, level, message):
    with pytest.raises(UserError, match=message):
        cascade.Cascade(
            session.load(runs / first), session.load(runs / second), level=level
        )


def told(*argv):
    with pytest.raises(SystemExit) as stop:
        cli.main(list(map(str, argv)))
    return stop.value.code


def test_commands_on_runs_of_tasks(runs, tmp_path, capsys):
    halves = runs / "halves"
    assert told("evaluate", halves, "--num", 0, "--answers", 2, "--num-samples", 2) == 0
    assert "error of the best answer" in capsys.readouterr().out
    page = (halves / "report.html").read_text()
    assert asked.CAPTION[1:] in page
    assert told("edit", halves, "--num", 2, "--out", tmp_path / "edit.png") == 0
    assert "what is seen is met within 0.0" in capsys.readouterr().err
    out, larger = tmp_path / "large.npz", runs / "larger"
    top = "--then", larger
    base = "--base", runs / "plain", "--num", 0, "--num-images", 2, "--num-samples", 1
    assert told("sample", runs / "plain", *top, "--out", out) == 0
    with np.load(out, allow_pickle=False) as file:
        assert file["images"].shape == (64, 16, 16, 1)
    for argv, message in (
        (("diagnose", halves), "jaxgen diagnose is not for a run on --task inpaint"),
        (("edit", halves, "--task", "enlarge"), "was trained on --task inpaint"),
        (("sample", runs / "plain", *top, "--noise", 0.3), "--noise must be in 0"),
        (("evaluate", larger, *base, "--noise", 0.3), "--noise must be in 0"),
        (("edit", runs / "plain"), "--task says what is asked"),
        (("sample", halves, "--ex-post", "gmm"), "is not for a run on --task inpaint"),
        (("train", "vae", "--task", "inpant"), "did you mean|inpaint"),
        (("train", "gan", "--task", "inpaint", "--augment", "0.3"), "no --augment"),
        (("train", "vae", "--task", "inpaint", "--prior", "vamp"), "--prior vamp"),
        (("train", "flow", "--task", "inpaint", "--conditional"), "leave one"),
    ):
        assert told(*argv) == 2
        lines = capsys.readouterr().err.splitlines()
        assert any(part in lines[-1] for part in message.split("|")), lines


def test_a_table_has_a_row_for_each_model():
    interval = lambda value: {"value": value, "low": 0.2, "high": 0.8}
    names = ("best", "of_mean", "diversity", "disagreement", "recognised")
    answers = {name: interval(0.25 + 0.1 * i) for i, name in enumerate(names)}
    modes = {"none_share": interval(0.75), "shares": [0.29, 0.71]}
    found = {
        "flow": {"num_parameters": 1234, "answers": answers | {"modes": modes}},
        "mean": {"num_parameters": 5, "answers": dict.fromkeys(names)},
    }
    heading, _, first, second = questions.table(found).splitlines()
    assert heading.count("|") == first.count("|") == second.count("|")
    cells = dict(zip(heading.split(" | "), first.split(" | "), strict=True))
    assert cells["best"] == "0.2500 (0.2000 to 0.8000)"
    assert cells["mean"][:6] == "0.3500"
    assert cells["diversity"][:6] == "0.4500"
    assert cells["off"][:6] == "0.5500"
    assert cells["none"][:6] == "0.7500"
    assert cells["recognised |"][:6] == "0.6500"
    assert (cells["parameters"], cells["modes"]) == ("1,234", "29.0 71.0")
    assert second == "| mean | 5 |" + 7 * "  |"


def test_entrants_are_judged_anew_by_other_answers_or_others_drawn_so(
    tmp_path, monkeypatch
):
    called = []

    def command(self, argv, log):
        del self, log
        name, *rest = argv[argv.index("-m") + 2 :]
        called.append(name)
        if name == "train":
            run = rundir.RunFolder(Path(rest[-1]))
            run.path.mkdir(parents=True, exist_ok=True)
            config = configs.default(rest[0])
            sampling = dataclasses.replace(
                config.model.sampling, temperature=float(rest[2])
            )
            model = dataclasses.replace(config.model, sampling=sampling)
            config = dataclasses.replace(config, model=model)
            run.write_config(session.resolve(config, data.open_dataset(config.data)))
        else:
            config = rundir.RunFolder(Path(rest[0])).read_config()
            told = {
                "answers": {"num_answers": int(rest[-1])},
                "sampling": dataclasses.asdict(config.model.sampling),
            }
            (Path(rest[0]) / "evaluation.json").write_text(json.dumps(told))
        return ""

    monkeypatch.setattr(pinned.Cores, "command", command)
    drawn = (2, 1.0), (3, 1.0), (3, 1.0), (3, 0.6), (3, 0.6)
    for num, temperature in drawn:
        entrant = questions.Entrant(
            "one", "diffusion", ["--temperature", str(temperature)]
        )
        found = questions.compete([entrant], tmp_path, num_answers=num, jobs=1)["one"]
        assert found["answers"]["num_answers"] == num
        assert found["sampling"]["temperature"] == temperature
    assert (called.count("evaluate"), called.count("train")) == (3, len(drawn))


def test_roll_outs_show_every_fifth_frame(runs):
    loaded = session.load(runs / "halves")
    model = dataclasses.replace(loaded.config.model, shape=(16, 16, 1))
    config = dataclasses.replace(loaded.config, model=model)
    brighter = answering_with(
        loaded._replace(config=config), lambda z, c: c[..., 1:2] + 1 / 255
    )
    test = data.open_dataset(data.DataConfig(name="peg:2")).test
    found = questions.rolled(brighter, test).astype(int)
    first = test.take(data.spread(test.num_examples, 4))["condition"][..., 1:]
    assert found.shape == (4, 11, 16, 16, 1)
    for number in range(11):
        expected = np.minimum(first.astype(int) + 5 * number, 255)
        assert np.abs(found[:, number] - expected).max() <= 1


def test_an_unknown_entrant_is_named(tmp_path):
    options = questions.Options(data="digits", names=("vea",), out=tmp_path)
    with pytest.raises(UserError, match="did you mean 'vae'"):
        questions.experiment(options, ["--task", "inpaint"], {"vae": "vae"})
