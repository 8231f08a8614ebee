"""Samples judged by a classifier, its training, and the likelihood of some images."""

import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from doors import SHORT, TINY, call, jaxgen

from jaxgen import cli, data
from jaxgen._checks import UserError
from jaxgen.evaluate import classifier, formats
from jaxgen.evaluate.likelihood import evaluate_likelihood
from jaxgen.models.base import LogLikelihood, Model
from jaxgen.nets.classifier import LeNet
from jaxgen.train import config as configs
from jaxgen.train.session import Loaded

BRIEF = classifier.Recipe(
    num_steps=150, learning_rate=1e-2, channels=(8, 16, 16), hidden=32
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A short run on digits."""
    path = tmp_path_factory.mktemp("runs") / "run"
    with pytest.raises(SystemExit) as stop:
        cli.main(["train", "vae", *SHORT, "--out", str(path)])
    assert not stop.value.code
    return path


def as_classifier(function):
    """A classifier of images whose first pixel says which row of a table they get."""
    return classifier.Classifier(lambda x: function(np.asarray(x)[:, 0, 0, 0]), None)


def numbered(num, start=0):
    x = np.arange(start, start + num, dtype=np.uint8)
    return np.broadcast_to(x[:, None, None, None], (num, 2, 2, 1))


def test_summarise_by_hand():
    table = np.array(
        [[0.95, 0.05, 0], [0.9, 0.1, 0], [0.0, 0.901, 0.099], [0.5, 0.4, 0.1]]
    )
    result = classifier.summarise(table)
    assert result == {
        "num_judged": 4,
        "confident_share": 0.5,  # 0.9 itself is not above 0.9
        "confident_share_se": 0.25,  # sqrt(0.5 * 0.5 / 4)
        "class_shares": [0.75, 0.25, 0.0],
        "smallest_class_share": 0.0,
        "largest_class_share": 0.75,
    }
    single = classifier.summarise(np.float32(table))
    assert single["confident_share"] == 0.5


def test_judge_counts_each_sample_and_real_image_once():
    # Images 0..5 are of class 0, beyond of class 1; the classifier is sure of even ones.
    def probabilities(first):
        sure = np.where(first % 2 == 0, 0.99, 0.6)
        right = (first > 5).astype(int)
        table = np.repeat(((1 - sure) / 2)[:, None], 3, axis=1)
        table[np.arange(len(first)), right] = sure
        return table

    test = data.ArraySource(numbered(11).copy(), np.array([0] * 4 + [1] * 7))
    seen = []
    result = classifier.judge(
        as_classifier(probabilities),
        lambda start: numbered(4, start),
        test,
        6,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert result == {
        "num_judged": 6,
        "confident_share": 0.5,
        "confident_share_se": pytest.approx(np.sqrt(0.25 / 6)),
        "class_shares": [1.0, 0.0, 0.0],
        "smallest_class_share": 0.0,
        "largest_class_share": 1.0,
        # Of 0, 2, 4, 6, 8, 10: spread over the split, not its first six.
        "real_confident_share": 1.0,
        "real_confident_share_se": 0.0,
        "num_real": 6,
        "classifier_accuracy": 9 / 11,  # 4 and 5 are of the other class
    }
    assert seen == [(4, 6), (6, 6)]
    args = as_classifier(probabilities), lambda start: numbered(4, start), test
    many = classifier.judge(*args, 20)
    assert (many["num_judged"], many["num_real"]) == (20, 11)
    assert many["real_confident_share"] == 6 / 11


@pytest.mark.slow
def test_classifier_learns_digits_the_same_way_each_time_and_is_kept(
    fresh_cache, monkeypatch
):
    digits = data.open_dataset(data.DataConfig())
    before = set(fresh_cache.iterdir())
    first = classifier.make_classifier(digits, recipe=BRIEF)
    (entry,) = set(fresh_cache.iterdir()) - before
    result = classifier.judge(
        first, lambda start: digits.test.arrays["x"], digits.test, 360
    )
    assert result["classifier_accuracy"] > 0.9
    assert result["confident_share"] == result["real_confident_share"]
    assert min(result["class_shares"]) > 0.05
    entry.unlink()
    again = classifier.make_classifier(digits, recipe=BRIEF)
    jax.tree.map(np.testing.assert_array_equal, first.params, again.params)

    def refuse(*args):
        raise AssertionError("trained although it was kept")

    monkeypatch.setattr(classifier, "train", refuse)
    kept = classifier.make_classifier(digits, recipe=BRIEF)
    jax.tree.map(np.testing.assert_array_equal, first.params, kept.params)
    x = digits.test.arrays["x"][:5]
    np.testing.assert_array_equal(kept.probabilities(x), first.probabilities(x))
    np.testing.assert_allclose(kept.probabilities(x).sum(axis=1), 1, rtol=1e-6)


@pytest.mark.parametrize("change", ["label", "x", "recipe"])
def test_another_set_or_recipe_is_trained_anew(fresh_cache, monkeypatch, change):
    monkeypatch.setattr(classifier, "train", lambda net, examples, recipe: _zeros(net))
    x = np.zeros((12, 8, 8, 3), np.uint8)
    label = np.arange(12) % 4
    classifier.make_classifier(tiny(x, label), recipe=BRIEF)
    classifier.make_classifier(tiny(x, label), recipe=BRIEF)
    assert len(list(fresh_cache.iterdir())) == 1
    if change == "label":
        label = np.where(np.arange(12) == 11, 0, label)
    elif change == "x":
        x[11, 7, 7, 2] = 1
    recipe = classifier.Recipe(seed=1) if change == "recipe" else BRIEF
    classifier.make_classifier(tiny(x, label), recipe=recipe)
    assert len(list(fresh_cache.iterdir())) == 2


def _zeros(net):
    shape = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32)
    forms = jax.eval_shape(net.init, jax.random.key(0), shape)
    return jax.tree.map(lambda form: np.zeros(form.shape, np.float32), forms)


def tiny(x, label, num_classes=4):
    source = data.ArraySource(x, label)
    return data.Dataset("tiny", source, source, source.shape, num_classes, ())


@pytest.mark.parametrize(
    ("num_classes", "message"), [(None, "tiny has no labels"), (1, "one class only")]
)
def test_make_classifier_refuses_what_has_no_classes(num_classes, message):
    x = np.zeros((4, 8, 8, 1), np.uint8)
    label = None if num_classes is None else np.zeros(4)
    with pytest.raises(UserError, match=message):
        classifier.make_classifier(tiny(x, label, num_classes))


@pytest.mark.parametrize("shape", [(8, 8, 1), (9, 13, 3)])
def test_lenet_takes_any_size_from_8_by_8(shape):
    net = LeNet(7)
    x = jax.random.uniform(jax.random.key(0), (2, *shape))
    logits = net.apply(net.init(jax.random.key(1), x), x)
    assert logits.shape == (2, 7)
    assert np.all(np.isfinite(logits))
    # Each example by itself, and not all alike.
    np.testing.assert_allclose(
        net.apply(net.init(jax.random.key(1), x), x[1:]),
        logits[1:],
        rtol=1e-4,
        atol=1e-5,
    )
    assert np.any(np.abs(logits[0] - logits[1]) > 1e-3)


def test_shifted_moves_the_batch_by_at_most_that_and_repeats_edges():
    x = jnp.arange(2 * 5 * 6).reshape(2, 5, 6, 1).astype(jnp.uint8)
    rows, columns = np.arange(5), np.arange(6)
    expected = {}
    for down in range(-2, 3):
        for right in range(-2, 3):
            r = np.clip(rows + down, 0, 4)
            c = np.clip(columns + right, 0, 5)
            expected[(down, right)] = np.asarray(x)[:, r][:, :, c]
    seen = set()
    for i in range(150):
        moved = np.asarray(classifier._shifted(x, jax.random.key(i), 2))
        matches = [k for k, v in expected.items() if np.array_equal(v, moved)]
        assert len(matches) == 1
        seen.update(matches)
    assert seen == set(expected)
    assert classifier._shifted(x, jax.random.key(0), 0) is x


def noisy_loaded():
    def log_likelihood(params, x, keys, condition=None, *, num_samples):
        return LogLikelihood(nats=jax.vmap(jax.random.uniform)(keys), kind="estimate")

    model = Model((), (), (), (), log_likelihood=log_likelihood)
    shape = configs.RunConfig(
        family="vae",
        model=_Shape(),
        data=data.DataConfig(transform="levels"),
        train=configs.TrainConfig(),
    )
    return Loaded(None, shape, model, {}, 3, [])


class _Shape:
    shape = (2, 2, 1)


@pytest.mark.parametrize("num_images", [None, 3, 1])
def test_evaluate_likelihood_spreads_images_and_keeps_the_noise_of_each(num_images):
    chosen = {None: range(5), 3: (0, 2, 4), 1: (0,)}[num_images]
    key = jax.random.fold_in(jax.random.key(7), 1)
    noise = [float(jax.random.uniform(jax.random.fold_in(key, i))) for i in chosen]
    source = data.ArraySource(numbered(5).copy())
    result = evaluate_likelihood(
        noisy_loaded(),
        source,
        num_samples=1,
        num_images=num_images,
        seed=7,
        batch_size=2,
    )
    assert result["num_examples"] == len(chosen)
    np.testing.assert_allclose(result["nll_nats"], -np.mean(noise), rtol=1e-6)


def test_evaluate_likelihood_refuses_more_images_than_there_are():
    source = data.ArraySource(numbered(5).copy())
    for num in (0, 6):
        with pytest.raises(UserError, match=r"--num-images must be in 1 \.\. 5"):
            evaluate_likelihood(noisy_loaded(), source, num_samples=1, num_images=num)


def test_figure_tells_shares_in_percent_and_the_rest_as_it_is():
    values = {
        "confident_share": 0.9745,
        "confident_share_se": 0.0035,
        "class_shares": [0.1015, 0.0985, 0.8],
        "classifier_accuracy": 0.9912,
        "bits_per_dim": 3.68,
        "odd_share": None,
    }
    told = {name: formats.figure(values, name) for name in values}
    assert told["confident_share"] == "97.45 ± 0.35 %"
    assert told["class_shares"] == "10.2, 9.8, 80.0 %"
    assert told["classifier_accuracy"] == "99.12 %"
    assert told["bits_per_dim"] == "3.68"
    assert told["odd_share"] == "none %"


@pytest.mark.slow
def test_evaluate_judges_samples_in_json_table_and_report(run, capsys):
    argv = ("evaluate", run, "--num-samples", "1", "--num-images", "5", "--judge", "70")
    argv += ("--num", "0")
    status, out, err = call(capsys, *argv, "--json")
    assert status == 0, err
    result = json.loads(out)
    assert (result["num_examples"], result["num_judged"]) == (5, 70)
    assert len(result["class_shares"]) == 10
    assert sum(result["class_shares"]) == pytest.approx(1)
    assert result["classifier_accuracy"] > 0.9
    assert json.loads((run / "evaluation.json").read_text()) == result
    page = (run / "report.html").read_text()
    for name in ("confident_share", "class_shares"):
        assert f"<th>{name}</th><td>{formats.figure(result, name)}</td>" in page
    _, out, _ = call(capsys, *argv, "--seed", "1")
    other = json.loads((run / "evaluation.json").read_text())
    assert other["class_shares"] != result["class_shares"]
    assert other["real_confident_share"] == result["real_confident_share"]
    assert ", ".join(f"{share:.4f}" for share in other["class_shares"]) in out


@pytest.mark.slow
def test_classifier_is_right_on_99_percent_of_mnist(mnist_dir, tmp_path):
    if mnist_dir is None:
        print("no MNIST here: digits instead")
        data, least = (), 0.97
    else:
        data, least = ("--data", "mnist", "--data-dir", mnist_dir), 0.99
    run, few = (
        tmp_path / "run",
        ("--num-samples", "1", "--num-images", "5", "--num", "0"),
    )
    environment = {**os.environ, "JAXGEN_CACHE": str(tmp_path / "cache")}
    for argv in (
        ("train", "vae", *TINY, "--steps", "2", *data, "--out", run),
        ("evaluate", run, *few, "--judge", "300", "--json"),
    ):
        process = jaxgen(*argv, env=environment)
        out, err = process.communicate()
        assert process.returncode == 0, err
    told = json.loads(out)
    assert told["classifier_accuracy"] >= least
    assert told["real_confident_share"] > 0.95
