"""Augmentation: nothing at probability 0, whole pixels, gradients, known shares."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen import augmentation

KEY = jax.random.key(0)


def images(num=64, shape=(8, 6, 3)):
    return jax.random.uniform(KEY, (num, *shape), minval=-1, maxval=1)


def keys_of(num):
    return jax.random.split(jax.random.key(1), num)


@pytest.mark.parametrize("shape", [(8, 6, 3), (5, 7, 1)])
def test_probability_zero_changes_no_bit_and_one_changes_all(shape):
    x = images(shape=shape)
    same = augmentation.augmented(x, keys_of(64), 0.0)
    np.testing.assert_array_equal(same, x)
    for name in augmentation.CHANGES:
        other = augmentation.augmented(x, keys_of(64), 1.0, changes=(name,))
        assert other.shape == x.shape
        assert np.mean(np.any(other != x, axis=(1, 2, 3))) > 0.8


def test_each_image_has_its_own_change_whatever_the_batch():
    x, keys = images(), keys_of(64)
    whole = augmentation.augmented(x, keys, 0.6)
    parts = [
        augmentation.augmented(x[i : i + 16], keys[i : i + 16], 0.6)
        for i in range(0, 64, 16)
    ]
    np.testing.assert_allclose(whole, np.concatenate(parts), atol=1e-6)
    alike = jnp.repeat(x[:1], 64, axis=0)
    assert len(np.unique(augmentation.augmented(alike, keys, 1.0), axis=0)) == 64


def test_changes_are_made_as_often_as_is_said_and_independently():
    x = jnp.ones((4000, 4, 4, 1))
    keys = keys_of(4000)
    alone = {
        name: np.any(
            augmentation.augmented(x, keys, 0.3, changes=(name,)) != x, axis=(1, 2, 3)
        )
        for name in ("color", "cutout")
    }
    for changed in alone.values():
        assert np.mean(changed) == pytest.approx(0.3, abs=0.03)
    both = augmentation.augmented(x, keys, 0.3, changes=("color", "cutout"))
    no_cut = np.all(both != 0, axis=(1, 2, 3))
    grey = np.any(both != x, axis=(1, 2, 3)) & no_cut
    assert np.mean(grey) == pytest.approx(0.3 * 0.7, abs=0.03)


def test_shifts_move_whole_pixels_evenly_and_fill_with_zeros():
    x = jnp.zeros((3000, 16, 8, 1)).at[:, 8, 4].set(1.0)
    moved = np.asarray(augmentation.shifted(x, keys_of(3000)))
    assert set(np.unique(moved)) == {0.0, 1.0}
    np.testing.assert_array_equal(moved.sum((1, 2, 3)), 1)
    rows, columns = np.nonzero(moved[..., 0])[1:]
    for places, middle, reach in ((rows, 8, 2), (columns, 4, 1)):
        counts = np.bincount(places)[middle - reach :]
        assert len(counts) == 2 * reach + 1
        np.testing.assert_allclose(counts / 3000, 1 / len(counts), atol=0.04)


def test_a_cut_is_a_rectangle_of_half_the_sides_or_its_part_at_an_edge():
    cut = np.asarray(augmentation.cut_out(jnp.ones((500, 8, 6, 1)), keys_of(500)))
    for image in cut[..., 0]:
        rows, columns = np.nonzero(image == 0)
        assert len(rows) == (np.ptp(rows) + 1) * (np.ptp(columns) + 1)
        assert 2 <= np.ptp(rows) + 1 <= 4
        assert 1 <= np.ptp(columns) + 1 <= 3
    assert np.all(np.mean(cut == 0, axis=(0, 3)) > 0.05)


def test_gradients_pass_through_to_the_pixels_that_stay():
    x, keys = images(8), keys_of(8)
    total = lambda x: jnp.sum(
        augmentation.augmented(x, keys, 1.0) * jnp.arange(6.0)[None, None, :, None]
    )
    slope, step = jax.grad(total)(x), 1e-2
    direction = jax.random.normal(jax.random.key(3), x.shape)
    truth = (total(x + step * direction) - total(x - step * direction)) / (2 * step)
    assert float(jnp.sum(slope * direction)) == pytest.approx(float(truth), rel=2e-3)
    cut = jax.grad(lambda x: jnp.sum(augmentation.cut_out(x, keys)))(x)
    np.testing.assert_array_equal(
        cut, np.asarray(augmentation.cut_out(jnp.ones_like(x), keys))
    )


def test_colours_keep_grey_grey_and_move_the_mean_by_the_brightness():
    grey = jnp.repeat(images(32, (4, 4, 1)), 3, axis=-1)
    other = np.asarray(augmentation.coloured(grey, keys_of(32)))
    np.testing.assert_allclose(np.ptp(other, axis=-1), 0, atol=1e-6)
    moved = (other - grey).mean((1, 2, 3))
    assert np.all(np.abs(moved) <= 0.5)
    assert np.ptp(moved) > 0.5


def test_the_probability_rises_where_the_discriminator_is_sure():
    adapted = augmentation.adapted_probability
    assert float(adapted(0.2, 0.9, 0.01)) == pytest.approx(0.21)
    assert float(adapted(0.2, 0.3, 0.01)) == pytest.approx(0.19)
    assert float(adapted(0.2, 0.6, 0.01)) == pytest.approx(0.2)
    assert float(adapted(0.0, -1.0, 0.01)) == 0
    assert float(adapted(0.8, 1.0, 0.5, largest=0.9)) == pytest.approx(0.9)


def test_an_unknown_change_names_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'cutout'"):
        augmentation.augmented(images(2), keys_of(2), 0.5, changes=("cutot",))
