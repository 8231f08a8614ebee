"""How far a model is from a known density: against the divergence of two Gaussians."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen import targets
from jaxgen.columns import Column
from jaxgen.evaluate import known
from jaxgen.models import flow

KEY = jax.random.key(0)


def untrained(mean, deviation):
    """A normal with this mean and deviation."""
    column = Column(name="x", mean=mean, deviation=deviation)
    config, _ = flow.resolve(
        flow.FlowConfig(width=4, depth=1, bins=2, waves=0), (1,), None, None, (column,)
    )
    params, _ = flow.make_flow(config).init(KEY, {"x": jnp.zeros((8, 1))})
    return config, params


@pytest.mark.parametrize("has_entropy", [True, False])
def test_distance_is_the_divergence_of_two_normals(has_entropy):
    mean, deviation = 0.5, 2.0
    target = targets.gaussian_chain(1)
    told = known.distance(
        target if has_entropy else target._replace(entropy=None),
        *untrained(mean, deviation),
    )
    truth = math.log(deviation) + (1 + mean**2) / (2 * deviation**2) - 0.5
    error = told["distance_se"]
    assert 1e-4 < error < 4e-3
    assert told["distance"] == pytest.approx(truth, abs=4 * error)
    entropy = 0.5 * math.log(2 * math.pi * math.e)
    assert told["entropy"] == pytest.approx(entropy, abs=1e-9 if has_entropy else 0.01)
    assert told["nll"] == pytest.approx(entropy + truth, abs=0.01)
    same = known.distance(target, *untrained(0.0, 1.0))
    assert same["distance"] == pytest.approx(0, abs=1e-5)


def test_columns_are_standardised_by_draws():
    target = targets.gaussians(np.array([[3.0, -1.0]]), 0.5)
    for column, mean in zip(known.columns(target), (3.0, -1.0), strict=True):
        assert column.mean == pytest.approx(mean, abs=0.02)
        assert column.deviation == pytest.approx(0.5, abs=0.02)


@pytest.mark.slow
def test_training_draws_fresh_examples_at_every_step_and_averages():
    """The mean of a Gaussian, to which one batch of 16 again and again would not lead."""
    options = known.Options(
        steps=200, batch_size=16, depth=1, width=4, bins=2, waves=0, seed=3
    )
    target = targets.gaussians(np.zeros((1, 1)), 1.0)
    config, params, _ = known.fit(target, options, net="coupling")
    told = known.distance(target, config, params)
    assert told["distance"] < 0.03
