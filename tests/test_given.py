"""What networks are told of each example: planes of a task, and now and then nothing."""

import types

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.models import given

KEY = jax.random.key(0)


def on_a_task(**options):
    return types.SimpleNamespace(num_planes=2, num_classes=None, **options)


def test_planes_are_told_from_minus_one_to_one_with_one_of_ones():
    planes = jax.random.uniform(KEY, (3, 4, 5, 2))
    told = given.told(on_a_task(), planes)
    np.testing.assert_allclose(told[..., :2], 2 * planes - 1, atol=1e-6)
    np.testing.assert_array_equal(told[..., 2], 1)


def test_of_some_examples_no_planes_are_told():
    keys = jax.random.split(KEY, 600)
    batch = {"condition": jnp.full((600, 2, 2, 2), 0.7)}

    def told(dropout):
        return np.asarray(given.dropped(on_a_task(label_dropout=dropout), batch, keys))

    whole = given.told(on_a_task(), batch["condition"])
    np.testing.assert_array_equal(told(0.0), whole)
    np.testing.assert_array_equal(told(1.0), 0)
    some = told(0.25)
    kept = some.any(axis=(1, 2, 3))
    np.testing.assert_array_equal(some, np.where(kept[:, None, None, None], whole, 0))
    assert abs(kept.mean() - 0.75) < 4 * np.sqrt(0.75 * 0.25 / 600)
