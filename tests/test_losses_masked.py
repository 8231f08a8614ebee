"""Both estimators of the bound of masked diffusion, and what they hide.

That their mean over all masks is the mean over all orders is an oracle: test_verify.py.
"""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

from jaxgen.losses import masked as losses
from jaxgen.verify import masked as oracles


def keys_of(num, seed=0):
    return jax.random.split(jax.random.key(seed), num)


def test_a_product_distribution_pays_its_exact_nll_by_every_mask_of_all(x64):
    """Where tokens are independent the bound is the NLL, and by number n = L is it too."""
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(1, 4, 5)))
    tokens = jnp.asarray(np.random.default_rng(1).integers(0, 5, (6, 4)))
    truth = -special.log_softmax(np.asarray(logits), axis=-1)
    truth = truth[0, np.arange(4), np.asarray(tokens)].sum(axis=1)
    logits = jnp.broadcast_to(logits, (6, 4, 5))
    every = jnp.ones((6, 4), bool)
    nll = losses.cross_entropy(tokens, logits)
    np.testing.assert_allclose(losses.bound_by_number(nll, every), truth, rtol=1e-12)
    np.testing.assert_allclose(
        losses.bound_by_share(nll, every, jnp.ones(6)), truth, rtol=1e-12
    )
    told = losses.any_order_bound(
        lambda x, h: logits, tokens, keys_of(6), num_samples=400
    )
    np.testing.assert_allclose(
        np.asarray(told.nats - truth) / np.asarray(told.standard_error), 0, atol=4
    )


def test_the_share_is_hidden_token_by_token():
    share = jnp.asarray([0.0, 0.2, 0.7, 1.0])
    hidden = losses.hidden_by_share(keys_of(4), share, length=5000)
    assert hidden.dtype == bool
    error = np.sqrt(share * (1 - share) / 5000)
    np.testing.assert_array_less(np.abs(hidden.mean(1) - share), 4 * error + 1e-9)


def test_the_number_is_hidden_exactly_and_every_set_as_likely():
    number = jnp.tile(jnp.arange(5), 2000)
    hidden = np.asarray(losses.hidden_by_number(keys_of(10_000), number, length=4))
    np.testing.assert_array_equal(hidden.sum(axis=1), number)
    pairs = hidden[np.asarray(number) == 2] @ 2 ** np.arange(4)
    sets = [sum(2**i for i in pair) for pair in itertools.combinations(range(4), 2)]
    counts = [np.sum(pairs == value) for value in sets]
    assert sum(counts) == 2000
    assert stats.chisquare(counts).pvalue > 1e-4


def test_numbers_of_even_levels_are_uniform_from_one():
    level = (jnp.arange(700) + 0.5) / 700
    number = np.asarray(losses.number_at(level, length=7))
    np.testing.assert_array_equal(np.bincount(number), [0] + [100] * 7)
    ends = losses.number_at(jnp.asarray([0.0, 1 - 2.0**-24, 1.0]), length=7)
    np.testing.assert_array_equal(ends, [1, 7, 7])


def test_what_is_hidden_depends_on_the_own_key_alone():
    keys, share = keys_of(6), jnp.full(6, 0.5)
    for draw, of in (
        (losses.hidden_by_share, share),
        (losses.hidden_by_number, jnp.full(6, 9)),
    ):
        whole = np.asarray(draw(keys, of, length=20))
        part = np.asarray(draw(keys[2:4], of[2:4], length=20))
        np.testing.assert_array_equal(part, whole[2:4])
        assert len(np.unique(whole, axis=0)) == 6


def test_by_number_varies_less_than_by_share():
    """Of one text whose tokens cost a nat each: by number it is L nats, always."""
    nll, keys = jnp.ones((5000, 16)), keys_of(5000)
    level = (jnp.arange(5000) + 0.5) / 5000
    hidden = losses.hidden_by_number(
        keys, losses.number_at(level, length=16), length=16
    )
    np.testing.assert_allclose(losses.bound_by_number(nll, hidden), 16, rtol=1e-6)
    hidden = losses.hidden_by_share(keys, level, length=16)
    by_share = np.asarray(losses.bound_by_share(nll, hidden, level))
    error = float(by_share.std()) / math.sqrt(5000)
    assert float(by_share.mean()) == pytest.approx(16, abs=4 * error)
    assert by_share.std() > 4


def test_seen_tokens_play_no_part_even_where_they_are_nan():
    nll = jnp.asarray([[1.0, jnp.nan, 3.0, jnp.nan]])
    hidden = jnp.asarray([[True, False, True, False]])
    assert losses.bound_by_number(nll, hidden) == pytest.approx(8.0)
    assert losses.bound_by_share(nll, hidden, jnp.asarray([0.5])) == pytest.approx(8.0)
    nothing = jnp.zeros((1, 4), bool)
    assert losses.bound_by_number(nll, nothing) == 0.0
    slope = jax.grad(lambda a: losses.bound_by_number(a, hidden).sum())(nll)
    np.testing.assert_allclose(slope, [[2.0, 0, 2.0, 0]])


def test_cross_entropy_is_scipys_and_finite_at_the_extremes(x64):
    logits = np.random.default_rng(0).normal(size=(2, 3, 4)) * 5
    tokens = np.array([[0, 3, 1], [2, 2, 0]])
    truth = -np.take_along_axis(special.log_softmax(logits, -1), tokens[..., None], -1)
    got = losses.cross_entropy(tokens, jnp.asarray(logits))
    np.testing.assert_allclose(got, truth[..., 0], rtol=1e-12)
    jitted = jax.jit(losses.cross_entropy)(tokens, logits)
    np.testing.assert_allclose(jitted, got, rtol=1e-12)
    huge = jnp.asarray([[[3e38, -3e38]]], jnp.float32)
    slope = jax.grad(lambda a: losses.cross_entropy(jnp.ones((1, 1), int), a).sum())
    assert np.isfinite(slope(huge)).all()
    assert losses.cross_entropy(tokens, jnp.asarray(logits, jnp.bfloat16)).dtype == (
        jnp.float32
    )


def test_one_sample_has_no_error_and_samples_are_of_the_own_key():
    predict = oracles.conditionals
    tokens, keys = jnp.asarray(oracles.STATES[:8]), keys_of(8)
    one = losses.any_order_bound(predict, tokens, keys, num_samples=1)
    assert np.isinf(one.standard_error).all()
    whole = losses.any_order_bound(predict, tokens, keys, num_samples=5)
    part = losses.any_order_bound(predict, tokens[3:5], keys[3:5], num_samples=5)
    np.testing.assert_allclose(part.nats, whole.nats[3:5], rtol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: losses.cross_entropy(jnp.zeros((2, 3), int), jnp.zeros((2, 4, 5))),
            "V",
        ),
        (
            lambda: losses.bound_by_number(jnp.zeros((2, 3)), jnp.zeros((2, 4), bool)),
            "same shape",
        ),
        (
            lambda: losses.bound_by_share(
                jnp.zeros((2, 3)), jnp.zeros((2, 3), bool), jnp.ones(3)
            ),
            "same shape",
        ),
        (lambda: losses.number_at(jnp.zeros(2), length=0), "must be positive"),
        (lambda: losses.hidden_by_share(keys_of(2), jnp.zeros(3), length=4), "same"),
        (
            lambda: losses.hidden_by_number(keys_of(2), jnp.zeros(3, int), length=4),
            "same",
        ),
        (
            lambda: losses.any_order_bound(
                oracles.conditionals, jnp.zeros(3, int), keys_of(3), num_samples=1
            ),
            r"must be \[B, L\]",
        ),
    ],
)
def test_what_does_not_fit_is_named(call, message, plain_errors):
    with pytest.raises(ValueError, match=message):
        call()
