"""Tasks: pure, example by example, and held against what was seen."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen import operators, tasks

NAMES = ("colourise", "inpaint", "enlarge")


def images(num=6, channels=3):
    x = jax.random.uniform(jax.random.key(0), (num, 8, 12, channels))
    return x, jax.random.split(jax.random.key(1), num)


@pytest.mark.parametrize("name", NAMES)
def test_split_is_of_each_example_alone_and_under_jit(name):
    x, keys = images()
    task = tasks.make(name, most_noise=0.2)
    condition, target = task.split(x, keys)
    assert condition.shape == (6, 8, 12, task.num_planes(3))
    np.testing.assert_array_equal(target, x)
    some, _ = jax.jit(task.split)(x[3:5], keys[3:5])
    np.testing.assert_allclose(some, condition[3:5], atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_the_truth_agrees_with_what_was_seen(name):
    x, keys = images()
    task = tasks.make(name)
    condition, _ = task.split(x, keys)
    np.testing.assert_allclose(tasks.disagreement(task, x, condition), 0, atol=1e-6)
    assert task.shown(condition).shape[:3] == (6, 8, 12)


@pytest.mark.parametrize("name", NAMES)
def test_settled_answers_agree_and_are_the_nearest(name):
    x, keys = images()
    task = tasks.make(name)
    condition, _ = task.split(x, keys)
    guess = jnp.clip(x + 0.3 * jax.random.normal(jax.random.key(5), x.shape), 0, 1)
    assert tasks.disagreement(task, guess, condition).min() > 0.02
    settled = tasks.settled(task, guess, condition)
    np.testing.assert_allclose(
        tasks.disagreement(task, settled, condition), 0, atol=1e-5
    )
    assert jnp.sum((settled - guess) ** 2) <= jnp.sum((x - guess) ** 2)


def test_disagreement_is_the_worst_number_of_what_is_seen():
    x, keys = images()
    task = tasks.enlarge(2)
    condition, _ = task.split(x, keys)
    off = x.at[2, 4:6, 4:6, 1].add(0.25)
    expected = [0, 0, 0.25, 0, 0, 0]
    np.testing.assert_allclose(
        tasks.disagreement(task, off, condition), expected, atol=1e-6
    )


def test_inpaint_shows_nothing_of_what_is_hidden():
    x, keys = images()
    task = tasks.inpaint("pixels")
    hidden = operators.pixel_mask(keys, 8, 12)
    condition, _ = task.split(x, keys)
    np.testing.assert_array_equal(condition[..., -1:], hidden)
    changed, _ = task.split(jnp.where(hidden > 0, 1 - x, x), keys)
    np.testing.assert_array_equal(changed, condition)
    np.testing.assert_array_equal(condition[..., :-1], x * (1 - hidden))


def test_enlarge_tells_the_level_of_its_noise():
    x, keys = images(2000, 1)
    x = jnp.full_like(x, 0.5)
    condition, _ = tasks.enlarge(4, most_noise=0.2).split(x, keys)
    level = tasks.MOST_NOISE * condition[:, 0, 0, -1]
    assert 0 <= level.min() < 0.002
    assert 0.198 < level.max() <= 0.2
    # Each of the 2 x 3 block means has noise of that deviation, repeated in its block.
    z = (condition[:, ::4, ::4, 0] - 0.5) / level[:, None, None]
    assert abs(float(z.var()) - 1) < 4 * np.sqrt(2 / z.size)
    blocks = condition[:, :4, :4, 0]
    np.testing.assert_array_equal(
        blocks, jnp.broadcast_to(blocks[:, :1, :1], blocks.shape)
    )
    clean, _ = tasks.enlarge(4).split(x, keys)
    assert not jnp.any(clean[..., -1])


def test_next_frame_shows_the_last_of_the_past():
    given = jnp.arange(7.0)[None, None, None] * jnp.ones((1, 2, 2, 1))
    task = tasks.next_frame(3)
    np.testing.assert_array_equal(task.shown(given), given[..., 3:6])
    x = jnp.ones((1, 2, 2, 3))
    assert tasks.disagreement(task, x, given) == 0
    np.testing.assert_array_equal(tasks.settled(task, x, given), x)
    with pytest.raises(TypeError, match="no function of the frame"):
        task.split(x, jax.random.split(jax.random.key(0), 1))


def test_what_does_not_fit_is_said():
    x, keys = images(channels=1)
    with pytest.raises(ValueError, match="3 channels"):
        tasks.colourise().split(x, keys)
    with pytest.raises(ValueError, match="scale must divide"):
        tasks.enlarge(5).split(x, keys)
    with pytest.raises(ValueError, match="did you mean 'boxes'"):
        tasks.inpaint("boxen")
    with pytest.raises(ValueError, match="did you mean 'enlarge'"):
        tasks.make("enlarg")
