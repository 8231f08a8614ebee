"""Operators as matrices: adjoint, the four conditions of Moore and Penrose; masks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from arrays import normal

from jaxgen import operators

SIZE = 4, 6, 3
HIDDEN = np.zeros((1, 4, 6, 1), np.float32)
HIDDEN[0, 1:3, 2:5] = 1
OPERATORS = {
    "luma": operators.luma(),
    "mask": operators.mask(jnp.asarray(HIDDEN)),
    "block_mean": operators.block_mean(2),
}


def matrix(function, size):
    """A linear function of a batch as a matrix, by the unit images `[D, *size]`."""
    units = np.eye(int(np.prod(size)), dtype=np.float32).reshape(-1, *size)
    return np.asarray(function(jnp.asarray(units))).reshape(len(units), -1).T


@pytest.mark.parametrize("name", OPERATORS)
def test_operators_have_their_adjoint_and_pseudo_inverse(name):
    operator = OPERATORS[name]
    seen = operator.apply(jnp.zeros((1, *SIZE))).shape[1:]
    a = matrix(operator.apply, SIZE)
    back = matrix(operator.pseudo_inverse, seen)
    np.testing.assert_array_equal(matrix(operator.adjoint, seen), a.T)
    np.testing.assert_allclose(back, np.linalg.pinv(a), atol=1e-6)
    np.testing.assert_allclose(a @ a.T @ a, operator.gram * a, atol=1e-6)


def test_operators_see_what_they_say():
    x = jnp.asarray(normal(2, *SIZE))
    grey = OPERATORS["luma"].apply(x)
    np.testing.assert_allclose(grey[..., 0], x @ jnp.array([0.299, 0.587, 0.114]))
    np.testing.assert_allclose(sum(operators.LUMA), 1)
    small = OPERATORS["block_mean"].apply(x)
    assert small.shape == (2, 2, 3, 3)
    np.testing.assert_allclose(small[1, 1, 2], x[1, 2:4, 4:6].mean((0, 1)), rtol=1e-5)
    seen = OPERATORS["mask"].apply(x)
    np.testing.assert_array_equal(seen, np.where(HIDDEN > 0, 0, x))


def test_consistent_is_the_nearest_image_of_which_y_is_seen():
    x, other = jnp.asarray(normal(2, *SIZE)), jnp.asarray(normal(2, *SIZE, seed=1))
    for name, operator in OPERATORS.items():
        y = operator.apply(other)
        near = operators.consistent(operator, x, y)
        np.testing.assert_allclose(operator.apply(near), y, atol=1e-6, err_msg=name)
        # What is moved is at right angles to what A does not see.
        unseen = other - operator.pseudo_inverse(y)
        product = jnp.sum((near - x) * unseen, axis=(1, 2, 3))
        np.testing.assert_allclose(product, 0, atol=1e-4, err_msg=name)


def test_consistent_within_keeps_to_the_range_and_moves_no_further_than_needed():
    rng = np.random.default_rng(2)
    x, other = (jnp.asarray(rng.uniform(size=(2, *SIZE)), jnp.float32) for _ in "xy")
    other = jnp.round(other)  # as far out as can be
    for name, operator in OPERATORS.items():
        y = operator.apply(other)
        near = operators.consistent_within(operator, x, y)
        assert (near >= 0).all(), name
        assert (near <= 1).all(), name
        np.testing.assert_allclose(operator.apply(near), y, atol=2e-6, err_msg=name)
        # Nearest: no way to another such image leads back towards x.
        product = jnp.sum((near - x) * (other - near), axis=(1, 2, 3))
        assert (product > -1e-4).all(), name
        assert jnp.linalg.norm(near - x) < jnp.linalg.norm(other - x), name


@pytest.mark.parametrize("name", operators.MASKS)
def test_masks_belong_to_the_example(name):
    keys = jax.random.split(jax.random.key(0), 64)
    make = jax.jit(lambda keys: operators.MASKS[name](keys, 8, 6))
    hidden = make(keys)
    assert hidden.shape == (64, 8, 6, 1)
    assert set(np.unique(hidden)) == {0.0, 1.0}
    np.testing.assert_array_equal(make(keys[::-1]), hidden[::-1])
    counts = np.asarray(hidden).sum((1, 2, 3))
    drawn = len({a.tobytes() for a in np.asarray(hidden)})
    expected = {"centre": 12, "half": 24}
    if name in expected:
        assert set(counts) == {expected[name]}
        assert drawn == 1
    else:
        assert drawn > 30
    if name == "boxes":
        for one in np.asarray(hidden)[..., 0]:
            rows, columns = one.any(1), one.any(0)
            assert rows.sum() * columns.sum() == one.sum()
            assert 2 <= rows.sum() <= 6
            assert 1 <= columns.sum() <= 4
        everywhere = np.asarray(hidden).mean(0)
        assert everywhere.min() > 0  # even at the corners
    if name == "pixels":
        share = counts.sum() / hidden.size
        assert abs(share - 0.75) < 4 * np.sqrt(0.75 * 0.25 / hidden.size)


def test_masks_hide_where_they_say():
    keys = jax.random.split(jax.random.key(0), 1)
    middle = np.zeros((8, 8))
    middle[2:6, 2:6] = 1
    np.testing.assert_array_equal(operators.centre_mask(keys, 8, 8)[0, ..., 0], middle)
    right = np.tile([0, 0, 0, 1, 1], (3, 1))
    np.testing.assert_array_equal(operators.half_mask(keys, 3, 5)[0, ..., 0], right)


@pytest.mark.parametrize(
    ("operator", "size", "message"),
    [
        (operators.luma(), (4, 4, 1), r"luma: x must have 3 channels"),
        (operators.block_mean(4), (8, 6, 1), r"block_mean: scale must divide .* 8x6"),
        (OPERATORS["mask"], (4, 4, 1), r"mask: x must be .*\(2, 4, 4, 1\) and \(1, 4"),
    ],
)
def test_operators_refuse_other_images(operator, size, message):
    with pytest.raises(ValueError, match=message):
        operator.apply(jnp.zeros((2, *size)))


def test_block_mean_refuses_no_scale():
    with pytest.raises(ValueError, match="block_mean: scale must be positive"):
        operators.block_mean(0)
