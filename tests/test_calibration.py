"""Ranks and coverage: uniform where the model is the truth, not where it is not."""

from typing import NamedTuple

import jax
import numpy as np
import pytest

from jaxgen.columns import Column
from jaxgen.data import ArraySource
from jaxgen.evaluate import calibration
from jaxgen.models import flow


class Stub(NamedTuple):
    model: object
    config: object
    params: object


class Config(NamedTuple):
    model: object


def judged(rows, columns):
    """An untrained flow is the normal that its columns' mean and deviation say."""
    config, _ = flow.resolve(
        flow.FlowConfig(width=8, depth=1, bins=2),
        (len(columns),),
        None,
        None,
        columns,
    )
    model = flow.make_flow(config)
    rows = np.asarray(rows, np.float32)
    params, _ = jax.jit(model.init)(jax.random.key(0), {"x": rows})
    loaded = Stub(model, Config(config), params)
    return calibration.evaluate_calibration(loaded, ArraySource(rows))


@pytest.mark.parametrize(
    ("mean", "deviation", "is_right"), [(0, 1, True), (0.8, 1, False), (0, 1.6, False)]
)
def test_the_right_normal_is_calibrated_and_no_other(mean, deviation, is_right):
    rng = np.random.default_rng(0)
    rows = 3 + 2 * (mean + deviation * rng.normal(size=(600, 2)))
    columns = tuple(Column(name=n, mean=3.0, deviation=2.0) for n in "ab")
    result = judged(rows, columns)
    assert (result["rank_p_min"] > 1e-3) == is_right
    assert (abs(result["coverage_80"] - 0.8) < 0.05) == is_right
    assert (result["density_rank_p"] > 1e-3) == is_right
    assert sum(result["ranks"]["a"]) == result["num_ranked"] == 600


def test_rounded_columns_have_uniform_ranks_too():
    rng = np.random.default_rng(0)
    rows = np.floor(5 + 1.5 * rng.normal(size=(600, 1)))
    result = judged(rows, (Column(name="a", step=1.0, mean=5.0, deviation=1.5),))
    assert result["rank_p_min"] > 1e-3


def test_ranks_are_within_the_row_s_own_context():
    """Of what is given nothing is asked, however it is distributed."""
    rng = np.random.default_rng(0)
    rows = np.stack([50 * rng.random(400), rng.normal(size=400)], 1)
    result = judged(rows, (Column(name="c", is_context=True), Column(name="a")))
    assert list(result["ranks"]) == ["a"]
    assert result["rank_p_min"] > 1e-3


def test_summary_counts_regions_from_the_densest():
    density = np.linspace(0, 1, 1001)
    ranks = np.stack([density, np.full(1001, 0.5)], 1)
    result = calibration.summarise(ranks, density, ["good", "bad"])
    for level in (50, 80, 95):
        assert abs(result[f"coverage_{level}"] - level / 100) < 2e-3
    assert result["rank_p_column"] == "bad"
    assert result["rank_p_min"] < 1e-9
    assert result["density_rank_p"] > 0.99
