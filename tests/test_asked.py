"""Runs on a task: several answers, their figures and pictures, and cascades of two runs."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen import cli, data, tasks
from jaxgen._checks import UserError
from jaxgen.bench import questions
from jaxgen.evaluate import asked, tables
from jaxgen.train import answering, assembly, cascade, session

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
    assert 20 < told["num_decided"] < 100
    assert told["recognised"]["value"] < 0.9  # by the other half alone
    off = answering_with(loaded, lambda z, c: 1 - c[..., :-1])
    told = asked.evaluate(off, dataset, 1)["answers"]
    assert told["disagreement"]["value"] > 0.9
    assert told["settled"]["value"] < 3e-3
    assert told["recognised"]["value"] < 0.9


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
    out = tmp_path / "large.npz"
    assert told("sample", runs / "plain", "--then", runs / "larger", "--out", out) == 0
    with np.load(out, allow_pickle=False) as file:
        assert file["images"].shape == (64, 16, 16, 1)
    for argv, message in (
        (("diagnose", halves), "jaxgen diagnose is not for a run on --task inpaint"),
        (("edit", halves, "--task", "enlarge"), "was trained on --task inpaint"),
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
    interval = {"value": 0.25, "low": 0.2, "high": 0.3}
    answers = dict.fromkeys(("best", "of_mean", "diversity"), interval)
    modes = {"none_share": interval, "shares": [0.29, 0.71]}
    found = {
        "flow": {"num_parameters": 1234, "answers": answers | {"modes": modes}},
        "mean": {"num_parameters": 5, "answers": answers | {"disagreement": None}},
    }
    heading, _, first, second = questions.table(found).splitlines()
    assert heading.count("|") == first.count("|") == second.count("|")
    assert first.startswith("| flow | 1,234 | 0.2500 (0.2000 to 0.3000) | ")
    assert "| 29.0 71.0 |" in first
    assert second.endswith("|  |  |  |  |")


def test_an_unknown_entrant_is_named(tmp_path):
    options = questions.Options(data="digits", names=("vea",), out=tmp_path)
    with pytest.raises(UserError, match="did you mean 'vae'"):
        questions.experiment(options, ["--task", "inpaint"], {"vae": "vae"})
