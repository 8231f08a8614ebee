"""Modes that are known: of Gaussians in the plane, and of stacked images."""

import json

import numpy as np
import pytest
from doors import call

from jaxgen import data, targets
from jaxgen._checks import UserError
from jaxgen.data import ArraySource, DataConfig, stacked
from jaxgen.evaluate import classifier, modes


def test_a_perfect_sampler_has_all_modes_and_the_floor():
    centres, rng = targets.grid_centres(5, spacing=2.0), np.random.default_rng(0)
    told = []
    for _ in range(20):
        which = rng.integers(0, 25, 4000)
        x = centres[which] + 0.05 * rng.standard_normal((4000, 2))
        told.append(modes.near_centres(x, centres, 0.05))
    assert all(t["modes"] == 25 for t in told)
    good = np.mean([t["good_share"] for t in told])
    np.testing.assert_allclose(good, 1 - np.exp(-4.5), atol=1e-3)  # 3 deviations in 2-D
    kl = np.mean([t["reverse_kl"] for t in told])
    np.testing.assert_allclose(kl, told[0]["reverse_kl_floor"], rtol=0.25)
    np.testing.assert_allclose(told[0]["reverse_kl_floor"], 24 / 8000, rtol=0.02)


def test_modes_by_hand():
    told = modes.of_labels(np.array([0, 0, 2, 2]), 4)
    assert told["modes"] == 2
    np.testing.assert_allclose(told["reverse_kl"], np.log(2))
    assert modes.of_labels(np.array([], int), 4)["reverse_kl"] == np.inf
    far = modes.near_centres(np.full((3, 2), 9.0), np.zeros((1, 2)), 0.1)
    assert far["good_share"] == 0
    assert far["modes"] == 0


def test_stacked_images_are_triples_with_the_label_of_all_three():
    dataset = data.open_dataset(DataConfig(name="stacked:digits"))
    assert dataset.shape == (8, 8, 3)
    assert dataset.num_classes == 1000
    assert dataset.parts.name == "digits"
    parts = dataset.parts.train.arrays
    found = {
        image.tobytes(): label
        for image, label in zip(parts["x"], parts["label"], strict=True)
    }
    some = dataset.train.take(np.arange(50))
    for image, label in zip(some["x"], some["label"], strict=True):
        digits = [
            found[np.ascontiguousarray(image[..., i : i + 1]).tobytes()]
            for i in range(3)
        ]
        assert label == 100 * digits[0] + 10 * digits[1] + digits[2]
    assert len(np.unique(dataset.train.arrays["label"])) == 1000
    held_out = {image.tobytes() for image in dataset.parts.test.arrays["x"]}
    for image in dataset.test.take(np.arange(50))["x"]:
        channels = np.moveaxis(image, -1, 0)
        assert {c.tobytes() for c in channels} <= held_out
    again = data.open_dataset(DataConfig(name="stacked:digits"))
    np.testing.assert_array_equal(again.test.arrays["x"], dataset.test.arrays["x"])


def test_what_cannot_be_stacked_is_refused():
    with pytest.raises(UserError, match="only grey images"):
        data.open_dataset(DataConfig(name="stacked:photos"))
    plain = data.open_dataset(DataConfig())
    with pytest.raises(UserError, match="no labels"):
        stacked.stacked(plain._replace(num_classes=None))


def test_judge_counts_the_modes_of_all_channels():
    """Of samples whose first pixel is the class that the classifier sees."""
    judge = classifier.Classifier(
        lambda x: np.eye(10)[np.asarray(x)[:, 0, 0, 0].astype(int)], None
    )
    label = np.arange(10, dtype=np.int32)
    x = np.zeros((10, 2, 2, 1), np.uint8)
    x[:, 0, 0, 0] = label
    source = ArraySource(x, label)
    parts = data.Dataset("ten", source, source, (2, 2, 1), 10, ())

    def draw(start):
        numbers = (start + np.arange(64)) % 500
        images = np.zeros((64, 2, 2, 3), np.uint8)
        images[:, 0, 0] = np.stack(
            [numbers // 100, numbers // 10 % 10, numbers % 10], 1
        )
        return images

    told = classifier.judge_stacked(judge, draw, parts, 1000)
    assert told["modes"] == 500
    assert told["num_modes"] == 1000
    assert told["num_judged"] == 1000
    assert told["classifier_accuracy"] == 1.0
    np.testing.assert_allclose(told["reverse_kl"], np.log(2), rtol=1e-6)


@pytest.mark.slow
def test_a_gan_of_stacked_digits_is_trained_and_judged(tmp_path, capsys):
    argv = ["train", "gan", "--data", "stacked:digits", "--width", "8", "--steps", "20"]
    run = tmp_path / "run"
    code, _, err = call(capsys, *argv, "--batch-size", "16", "--out", run)
    assert code == 0, err
    argv = ["evaluate", run, "--judge", "256", "--num", "64", "--json"]
    code, out, err = call(capsys, *argv)
    assert code == 0, err
    told = json.loads(out)
    assert told["num_judged"] == 256
    assert 1 <= told["modes"] <= 256
    assert told["nll_nats"] is told["bits_per_dim"] is None
    assert "by itself" in told["quality"]["coverage"]["preprocessing"]
    lines = (run / "metrics.jsonl").read_text().splitlines()
    assert "samples/classes" in json.loads(lines[-1])
