"""Oracles of masked diffusion: all masks and all orders of three tokens, counted out."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxgen.losses import masked as losses
from jaxgen.samplers import masked as samplers
from jaxgen.verify.records import Record, Records, at_least, compiled, equal, holds

NUM_VALUES, LENGTH = 3, 3
STATES = np.array(list(itertools.product(range(NUM_VALUES), repeat=LENGTH)))
JOINT = np.random.default_rng(11).dirichlet(np.full(len(STATES), 0.4))  # of STATES
MASKS = np.array(list(itertools.product([False, True], repeat=LENGTH)))
TOLERANCE = 1e-9
NUM_SAMPLES, DEVIATIONS = 20_000, 5.0


def conditionals(tokens: Array, hidden: Array) -> Array:
    """Log p(x_i = v | what is seen) under `JOINT`, `[B, L, V]`, up to a constant."""
    states, joint = jnp.asarray(STATES), jnp.asarray(JOINT)
    agrees = (tokens[:, None] == states[None]) | hidden[:, None]  # [B, states, L]
    weight = jnp.where(jnp.all(agrees, axis=-1), joint[None], 0)
    is_value = jax.nn.one_hot(states, NUM_VALUES, dtype=weight.dtype)
    return jnp.log(jnp.einsum("bs,siv->biv", weight, is_value))


def flattened(tokens: Array, hidden: Array) -> Array:
    """Wrong ones: of no joint distribution at all."""
    return 0.5 * jnp.maximum(conditionals(tokens, hidden), -20.0)


def bounds() -> Records:
    """The mean over all masks is -log p(x), or of wrong conditionals that over orders."""
    truth = -np.log(JOINT)
    exact, wrong = _over_masks(conditionals), _over_masks(flattened)
    orders = _over_orders(flattened)
    told = compiled(
        lambda keys: losses.any_order_bound(
            flattened, STATES, keys, num_samples=3 * LENGTH
        )
    )
    keys = jax.random.split(jax.random.key(0), 2000 * len(STATES))
    sampled = jax.vmap(told)(keys.reshape(2000, -1))
    mean = np.asarray(sampled.nats).mean(axis=0)
    spread = np.asarray(sampled.nats).std(axis=0)
    error = spread / math.sqrt(2000)
    squares = np.square(np.asarray(sampled.standard_error)).mean(axis=0)
    said = np.sqrt(squares) / np.maximum(spread, 1e-9)
    return (
        equal("by number, over all masks: -log p(x)", exact[0], truth, TOLERANCE),
        equal("by share, over all masks: -log p(x)", exact[1], truth, TOLERANCE),
        equal("by number: the mean over all orders", wrong[0], orders, TOLERANCE),
        equal("by share: the mean over all orders", wrong[1], orders, TOLERANCE),
        at_least("wrong conditionals cost nats", JOINT @ (wrong[0] - truth), 1e-3),
        equal("its samples have that mean", mean, orders, DEVIATIONS * error + 1e-9),
        at_least("and are no further off than they say, 5 % apart", said, 0.95),
    )


def samples() -> Records:
    """Told one by one samples are the joint's; at once, the product of its marginals."""
    marginals = np.stack(
        [[JOINT[STATES[:, i] == v].sum() for v in range(3)] for i in range(LENGTH)]
    )
    apart = np.prod(marginals[np.arange(LENGTH), STATES], axis=1)
    given = np.array([1, 0, 0])
    agrees = STATES[:, 0] == given[0]
    known = np.where(agrees, JOINT, 0) / JOINT[agrees].sum()
    nothing, last = np.ones(LENGTH, bool), np.array([False, True, True])
    filled, seen = _counted(given, last, 2, "random")
    return (
        *_alike("one by one, in a random order", *_drawn(nothing, 3), JOINT),
        *_alike("from the left", *_drawn(nothing, 3, "left_to_right"), JOINT),
        *_alike("with more steps than tokens", *_drawn(nothing, 7), JOINT),
        *_alike("all at once", *_drawn(nothing, 1), apart),
        *_alike("with the first token given", filled, known),
        holds("what is given is kept", seen),
    )


def _over_masks(predict: losses.Predict) -> tuple[np.ndarray, np.ndarray]:
    """The expectation of both estimators for every state, `[states]` each."""
    number, share = np.zeros(len(STATES)), np.zeros(len(STATES))
    nodes, weights = np.polynomial.legendre.leggauss(LENGTH)  # exact: a polynomial in t
    told = compiled(
        lambda nll, hidden, t: (
            losses.bound_by_number(nll, hidden),
            losses.bound_by_share(nll, hidden, t),
        )
    )
    for mask, nll in zip(MASKS, _nll(predict, MASKS), strict=True):
        hidden, n = np.broadcast_to(mask, STATES.shape), int(mask.sum())
        for t, weight in zip((nodes + 1) / 2, weights / 2, strict=True):
            values = told(nll, hidden, np.full(len(STATES), t))
            if n:
                number += weight * np.asarray(values[0]) / LENGTH / math.comb(LENGTH, n)
            share += weight * t**n * (1 - t) ** (LENGTH - n) * np.asarray(values[1])
    return number, share


def _over_orders(predict: losses.Predict) -> np.ndarray:
    """-log p of every state, told one by one: the mean over all orders."""
    orders = list(itertools.permutations(range(LENGTH)))
    total, nll = np.zeros(len(STATES)), _nll(predict, MASKS)
    for order in orders:
        for step, place in enumerate(order):
            mask = np.isin(np.arange(LENGTH), order[step:])
            (which,) = np.flatnonzero((mask == MASKS).all(axis=1))
            total += nll[which][:, place]
    return total / len(orders)


def _nll(predict: losses.Predict, masks: np.ndarray) -> np.ndarray:
    """-log p of every token of every state by each mask, `[masks, states, L]`."""
    told = compiled(lambda x, h: losses.cross_entropy(x, predict(x, h)))
    hidden = np.repeat(masks, len(STATES), axis=0)
    nll = told(jnp.asarray(np.tile(STATES, (len(masks), 1))), jnp.asarray(hidden))
    return np.asarray(nll).reshape(len(masks), *STATES.shape)


def _drawn(
    hidden: np.ndarray, num_steps: int, order: samplers.Order = "random"
) -> tuple[np.ndarray]:
    return _counted(np.zeros(LENGTH, int), hidden, num_steps, order)[:1]


def _counted(
    given: np.ndarray, hidden: np.ndarray, num_steps: int, order: samplers.Order
) -> tuple[np.ndarray, np.ndarray]:
    """The share of every state among samples, and whether seen tokens are the given."""
    keys = jax.random.split(jax.random.key(7), NUM_SAMPLES)
    many = (NUM_SAMPLES, 1)
    told = compiled(
        lambda tokens, hidden, keys: samplers.revealed(
            conditionals, tokens, hidden, keys, num_steps=num_steps, order=order
        )
    )
    x = np.asarray(told(np.tile(given, many), np.tile(hidden, many), keys))
    number = x @ NUM_VALUES ** np.arange(LENGTH - 1, -1, -1)
    share = np.bincount(number, minlength=len(STATES)) / NUM_SAMPLES
    return share, (x == given) | hidden


def _alike(name: str, share: np.ndarray, truth: np.ndarray) -> tuple[Record]:
    error = np.sqrt(truth * (1 - truth) / NUM_SAMPLES)
    return (equal(f"samples {name}", share, truth, DEVIATIONS * error + 1e-12),)


ORACLES = (bounds, samples)
