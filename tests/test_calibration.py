"""Ranks and coverage: uniform where the model is the truth, not where it is not."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxgen.columns import Column
from jaxgen.data import ArraySource
from jaxgen.evaluate import calibration
from jaxgen.models import flow
from jaxgen.models.base import LogLikelihood, Model, normal_prior


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


def test_ranks_are_of_samples_that_are_given_what_their_row_was():
    """A flow whose mean is the context: ranks among another row's samples are extreme."""
    columns = (Column(name="a"), Column(name="c", is_context=True))
    config, _ = flow.resolve(
        flow.FlowConfig(width=8, depth=1, bins=2), (2,), None, None, columns
    )

    def log_prob(params, x, keys, condition=None, *, num_samples):
        del params, keys, num_samples
        given = x[:, 1:] if condition is None else condition
        return LogLikelihood(
            nats=-0.5 * jnp.sum((x[:, :1] - given) ** 2, axis=1), kind="exact"
        )

    shifted = Model(
        init=lambda key, batch: ((), ()),
        players=(),
        prior=normal_prior((1,)),
        generate=lambda params, z, keys, condition: jnp.concatenate(
            [z + condition, condition], axis=1
        ),
        log_likelihood=log_prob,
    )
    rng = np.random.default_rng(0)
    given = 30 * rng.normal(size=(400, 1))
    rows = np.concatenate([given + rng.normal(size=(400, 1)), given], 1)
    source = ArraySource(rows.astype(np.float32))
    loaded = Stub(shifted, Config(config), ())
    result = calibration.evaluate_calibration(loaded, source)
    assert list(result["ranks"]) == ["a"]
    assert result["rank_p_min"] > 1e-3
    assert result["density_rank_p"] > 1e-3
    assert abs(result["coverage_80"] - 0.8) < 0.08


def test_every_row_has_samples_of_its_own():
    """Of one row again and again the ranks differ."""
    result = judged(np.full((200, 1), 3.0), (Column(name="a", mean=3.0),))
    assert np.count_nonzero(result["ranks"]["a"]) >= 3


def test_the_worst_column_is_told_with_a_price_for_their_number():
    uniform = (np.arange(500) + 0.5) / 500
    ranks = np.stack([uniform, uniform**1.15, uniform], 1)
    p_value = stats.kstest(uniform**1.15, "uniform").pvalue
    result = calibration.summarise(ranks, uniform, ["a", "b", "c"])
    assert result["rank_p_column"] == "b"
    assert result["rank_p_min"] == pytest.approx(3 * p_value)


def test_summary_counts_regions_from_the_densest():
    density = np.linspace(0, 1, 1001)
    ranks = np.stack([density, np.full(1001, 0.5)], 1)
    result = calibration.summarise(ranks, density, ["good", "bad"])
    for level in (50, 80, 95):
        assert abs(result[f"coverage_{level}"] - level / 100) < 2e-3
    assert result["rank_p_column"] == "bad"
    assert result["rank_p_min"] < 1e-9
    assert result["density_rank_p"] > 0.99
