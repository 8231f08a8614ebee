"""Tasks as a run's data have them: what is given, and what is refused."""

import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen import data, listing, tasks
from jaxgen._checks import UserError
from jaxgen.data import ArraySource, DataConfig, conditions
from jaxgen.data.config import TaskName


def raw(channels=1, num=6, **more):
    x = np.random.default_rng(0).integers(0, 256, (num, 8, 8, channels), np.uint8)
    return {"x": x, **more}


@pytest.mark.parametrize("task", ["inpaint", "enlarge", "colourise"])
def test_a_condition_belongs_to_the_example_not_to_the_batch(task):
    config = conditions.resolved(DataConfig(transform="dequantise", task=task))
    prepare = data.make_prepare(config, training=True)
    whole = prepare(raw(3), jax.random.key(0))
    part = {"x": raw(3)["x"][4:], "index": jnp.arange(4, 6)}
    some = prepare(part, jax.random.key(0))
    for name in ("x", "condition"):
        np.testing.assert_allclose(some[name], whole[name][4:], atol=1e-6)
    other = prepare(raw(3), jax.random.key(1))["condition"]
    assert np.abs(other - whole["condition"]).max() > 1e-3


def test_the_transform_comes_before_the_task():
    config = DataConfig(transform="binarise", task="inpaint", mask="half")
    batch = data.make_prepare(config)(raw(), jax.random.key(0))
    hidden = batch["condition"][..., 1:] > 0
    seen = np.where(hidden, 0, batch["x"])
    np.testing.assert_array_equal(batch["condition"][..., :1], seen)
    assert set(np.unique(batch["x"])) == {0.0, 1.0}


def test_only_training_has_noise_in_what_is_to_be_enlarged():
    config = DataConfig(transform="levels", task="enlarge", scale=2)
    levels = [
        data.make_prepare(config, training=training)(raw(), jax.random.key(0))[
            "condition"
        ][..., -1]
        for training in (False, True)
    ]
    assert not np.any(levels[0])
    assert len(np.unique(levels[1])) == 6


def test_clips_bring_their_own_condition():
    given = np.random.default_rng(1).integers(0, 256, (6, 8, 8, 5), np.uint8)
    config = DataConfig(transform="levels", task="next-frame")
    batch = data.make_prepare(config)(raw(condition=given), jax.random.key(0))
    np.testing.assert_allclose(batch["condition"], given / np.float32(255), rtol=1e-6)
    plain = data.make_prepare(DataConfig(transform="levels"))
    assert "condition" not in plain(raw(condition=given), jax.random.key(0))
    source = ArraySource(raw()["x"], condition=given)
    dataset = data.Dataset("clips", source, source, (8, 8, 1), None, ())
    assert conditions.with_task(dataset, config).num_planes == 5


def test_every_task_is_listed_and_taken_by_the_command_line():
    assert set(typing.get_args(TaskName)) == set(tasks.TASKS)
    for name, line in tasks.TASKS.items():
        assert f"  {name} " in listing.text()
        assert line in listing.text()


def test_the_number_of_planes_goes_with_the_data_set():
    for name, task, planes in (
        ("digits", None, 0),
        ("digits", "inpaint", 2),
        ("digits", "enlarge", 2),
        ("photos", "colourise", 1),
    ):
        assert data.open_dataset(DataConfig(name=name, task=task)).num_planes == planes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "colourise"}, "of digits are grey .8x8x1.: inpaint and enlarge fit"),
        (
            {"task": "enlarge", "scale": 4, "image_size": 10},
            "--scale 4 does not divide the images of digits, 10x10; --scale 2 does",
        ),
        ({"task": "enlarge", "image_size": 9}, "9x9; no other does"),
        ({"task": "next-frame"}, "is for clips; digits holds single images"),
        ({"task": "inpaint", "name": "table:wine"}, "is for images; .*wine holds rows"),
        ({"task": "enlarge", "name": "text:pydoc"}, "pydoc holds texts"),
        ({"mask": "half"}, "--mask is for --task inpaint"),
        ({"scale": 2, "task": "inpaint"}, "--scale is for --task enlarge"),
    ],
)
def test_a_task_that_does_not_fit_is_refused(options, message):
    with pytest.raises(UserError, match=message):
        data.open_dataset(DataConfig(**options))
