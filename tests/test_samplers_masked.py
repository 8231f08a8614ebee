"""The sampler of masked diffusion, step by step.

That samples have the joint distribution is an oracle: test_verify.py.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.samplers import masked as samplers
from jaxgen.verify import masked as oracles


def keys_of(num, seed=0):
    return jax.random.split(jax.random.key(seed), num)


def counting(length, num_steps, hidden, order="random"):
    """How many tokens each step tells, and in which places: what `predict` sees."""
    seen = []

    def predict(tokens, now):
        jax.debug.callback(lambda a: seen.append(np.asarray(a)), now, ordered=True)
        return jnp.zeros((*tokens.shape, 4))

    tokens = jnp.full(hidden.shape, 9)
    out = samplers.revealed(
        predict,
        tokens,
        jnp.asarray(hidden),
        keys_of(len(hidden)),
        num_steps=num_steps,
        order=order,
    )
    jax.effects_barrier()
    return np.stack(seen), np.asarray(out)


def test_every_step_tells_its_share_and_the_last_one_the_rest():
    hidden = np.zeros((3, 12), bool)
    hidden[0], hidden[1, ::2], hidden[2, 5] = True, True, True
    seen, out = counting(12, 5, hidden)
    left = seen.sum(axis=2)
    expected = [[n * (5 - k) // 5 for n in (12, 6, 1)] for k in range(5)]
    np.testing.assert_array_equal(left, expected)
    assert (out[hidden] < 4).all()
    np.testing.assert_array_equal(out[~hidden], 9)


def test_from_the_left_the_next_token_is_told():
    hidden = np.ones((1, 6), bool)
    hidden[0, :2] = False
    seen, out = counting(6, 4, hidden, "left_to_right")
    np.testing.assert_array_equal(out[:, :2], 9)
    np.testing.assert_array_equal(
        seen[:, 0], [[i >= 2 + k for i in range(6)] for k in range(4)]
    )


def test_random_orders_differ_between_examples():
    seen, _ = counting(16, 16, np.ones((4, 16), bool))
    first = np.argmin(seen[1], axis=1)
    assert len(set(first)) > 1
    assert (seen[0].sum(1) - seen[1].sum(1) == 1).all()


def test_no_temperature_takes_the_likeliest_and_a_low_one_draws_it_more_often():
    logits = jnp.log(jnp.asarray([0.3, 0.5, 0.2]))
    predict = lambda x, h: jnp.broadcast_to(logits, (*x.shape, 3))

    def share(temperature):
        x = samplers.revealed(
            predict,
            jnp.zeros((500, 8), int),
            jnp.ones((500, 8), bool),
            keys_of(500),
            num_steps=2,
            temperature=temperature,
        )
        return float(np.mean(np.asarray(x) == 1))

    assert share(0.0) == 1.0
    assert share(1.0) == pytest.approx(0.5, abs=0.04)
    assert share(0.5) == pytest.approx(0.25 / 0.38, abs=0.04)


def test_a_sample_depends_on_its_own_key_alone():
    def drawn(keys):
        size = len(keys)
        return samplers.revealed(
            oracles.conditionals,
            jnp.zeros((size, 3), int),
            jnp.ones((size, 3), bool),
            keys,
            num_steps=3,
        )

    whole = drawn(keys_of(40))
    np.testing.assert_array_equal(drawn(keys_of(40)[7:9]), whole[7:9])
    assert len(np.unique(whole, axis=0)) > 3
    np.testing.assert_array_equal(jax.jit(drawn)(keys_of(40)), whole)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_steps": 0}, "num_steps must be positive"),
        ({"temperature": -1.0}, "temperature must be 0 or more"),
        ({"order": "middle"}, "unknown order 'middle'"),
        ({"hidden": jnp.ones((2, 4), bool)}, "same shape"),
        ({"tokens": jnp.zeros(3, int)}, r"must be \[B, L\]"),
    ],
)
def test_what_does_not_fit_is_named(change, message, plain_errors):
    arguments = {
        "tokens": jnp.zeros((2, 3), int),
        "hidden": jnp.ones((2, 3), bool),
        "keys": keys_of(2),
        "num_steps": 3,
        **change,
    }
    with pytest.raises(ValueError, match=message):
        samplers.revealed(oracles.conditionals, **arguments)
