"""Columns on the line: log-determinants, round trips, rounding, what a network is told."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen import columns
from jaxgen.columns import Column

ALL = (
    Column(name="r", mean=5.0, deviation=3.0),
    Column(name="p", kind="positive", mean=0.3, deviation=0.7),
    Column(name="b", kind="bounded", low=-1.0, high=2.0, step=0.5, deviation=1.4),
    Column(name="a", kind="angle", low=-90.0, high=270.0),
)


def rows(num=50):
    rng = np.random.default_rng(0)
    return np.stack(
        [
            5 + 3 * rng.normal(size=num),
            np.exp(rng.normal(size=num)),
            -1 + 3 * rng.random(num),
            -90 + 360 * rng.random(num),
        ],
        1,
    )


def test_the_map_to_the_line_knows_its_determinant_and_its_way_back():
    with jax.enable_x64(True):
        x = jnp.asarray(rows())
        line = columns.to_line(ALL)
        z, log_det = line.to_latent((), x)
        slopes = jax.vmap(jax.jacfwd(lambda x: line.to_latent((), x[None])[0][0]))(x)
        np.testing.assert_allclose(
            log_det, np.log(np.abs(np.linalg.det(slopes))), rtol=1e-9, atol=1e-9
        )
        back, log_det_back = line.to_data((), z)
        np.testing.assert_allclose(back, x, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(log_det_back, -log_det, rtol=1e-9, atol=1e-9)


def test_angles_are_told_as_points_of_a_circle():
    told = columns.features(ALL[3:], jnp.array([[-90.0], [269.999], [90.0]]))
    np.testing.assert_allclose(told, [[1, 0], [1, 0], [-1, 0]], atol=1e-4)


def test_rounded_values_are_told_at_the_middle_of_their_step():
    column = Column(name="n", step=2.0, mean=5.0, deviation=1.0)
    np.testing.assert_allclose(columns.features([column], jnp.array([[4.0]])), 0)


def test_values_are_spread_over_their_step_and_come_back():
    x = jnp.array([[1.0, 2.0, 0.5, 3.0], [1.0, 2.0, -1.0, 3.0]])
    keys = jax.random.split(jax.random.key(0), 2)
    spread = columns.spread(ALL, x, keys)
    np.testing.assert_array_equal(spread[:, [0, 1, 3]], x[:, [0, 1, 3]])
    assert np.all((spread[:, 2] >= x[:, 2]) & (spread[:, 2] < x[:, 2] + 0.5))
    assert np.all(spread[:, 2] != x[:, 2])
    np.testing.assert_allclose(columns.rounded(ALL, spread), x)
    outside = columns.rounded(ALL, jnp.array([[0.0, 1.0, 2.4, 0.0]]))
    assert float(outside[0, 2]) == pytest.approx(2.0)
