"""Sampling of masked diffusion: hidden tokens are told, some at every step.

    tokens = masked.revealed(predict, tokens, hidden, keys, num_steps=64)

All that is asked of a model is `predict(tokens [B, L], hidden [B, L]) -> logits
[B, L, V]`, which must not look at hidden tokens. With as many steps as there are hidden
tokens they are told one by one, and samples are those of the model's own joint in that
order; with fewer steps those of one step are drawn independently of each other. Tokens
that are seen never change, so filling in what is hidden of a text is the same call.

References:
    Austin et al. 2021, arXiv:2107.03006; Shi et al. 2024, section 4.2, arXiv:2406.04329;
    Hoogeboom et al. 2021 (several at once), arXiv:2110.02037.
"""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Bool, Int, Key

from jaxgen import _checks

Order = Literal["random", "left_to_right"]
Predict = Callable[[Array, Array], Array]


def revealed(
    predict: Predict,
    tokens: Int[ArrayLike, "B L"],
    hidden: Bool[ArrayLike, "B L"],
    keys: Key[Array, " B"],
    *,
    num_steps: int,
    temperature: float = 1.0,
    order: Order = "random",
) -> Int[Array, "B L"]:
    """The tokens with all that is hidden drawn from the model.

    Of n hidden tokens floor(n (K - k) / K) are still hidden after step k of K.

    Args:
        predict: `(tokens [B, L], hidden [B, L]) -> logits [B, L, V]`; called `num_steps`
            times, one after another.
        tokens: What is seen, `[B, L]`; what stands at hidden ones plays no part.
        hidden: Which are to be drawn, `[B, L]`; different numbers of each example may be.
        keys: One per example, `[B]`.
        num_steps: K.
        temperature: Logits are divided by it; 0 takes the likeliest token.
        order: In which tokens are told: a random one of each example, or from the left.

    Returns:
        `[B, L]` int32, the same as `tokens` where nothing was hidden.

    Raises:
        ValueError: if a shape, a number or the order is wrong.
    """
    name = "revealed"
    _checks.check_axes(name, "[B, L]", tokens=tokens)
    _checks.check_same_shape(name, tokens=tokens, hidden=hidden)
    _checks.check_axes(name, "[B]", keys=keys)
    _checks.check_positive(name, num_steps=num_steps)
    _checks.check_in(name, "order", order, ("random", "left_to_right"))
    if temperature < 0:
        raise ValueError(f"{name}: temperature must be 0 or more, got {temperature}.")
    tokens, hidden = jnp.asarray(tokens, jnp.int32), jnp.asarray(hidden)
    split = jax.vmap(jax.random.split, out_axes=1)
    places, draws = split(keys)
    turn = _turns(places, hidden, order)
    number = jnp.sum(hidden, axis=1)
    # Each token is told once, so that one noise of each is enough, whatever the steps.
    form = jax.eval_shape(predict, tokens, hidden)
    dtype = jnp.promote_types(form.dtype, jnp.float32)
    noise = jax.vmap(lambda key: jax.random.gumbel(key, form.shape[1:], dtype))(draws)

    def step(carry: tuple[Array, Array], k: Array) -> tuple[tuple[Array, Array], None]:
        tokens, hidden = carry
        (logits,) = _checks.to_float(predict(tokens, hidden))
        drawn = _drawn(noise, logits, temperature)
        told = number - (number * (num_steps - 1 - k)) // num_steps
        now = hidden & (turn < told[:, None])
        return (jnp.where(now, drawn, tokens), hidden & ~now), None

    (tokens, _), _ = jax.lax.scan(step, (tokens, hidden), jnp.arange(num_steps))
    return tokens


def _turns(keys: Array, hidden: Array, order: Order) -> Array:
    """The place of each hidden token among those of its example, `[B, L]`, from 0."""
    if order == "left_to_right":
        return jnp.cumsum(hidden, axis=1) - 1
    length = hidden.shape[1]
    among_all = jax.vmap(lambda key: jax.random.permutation(key, length))(keys)
    # The ranks of the hidden ones among themselves: seen tokens come after all of them.
    ranked = jnp.where(hidden, among_all, length)
    return jnp.argsort(jnp.argsort(ranked, axis=1), axis=1)


def _drawn(noise: Array, logits: Array, temperature: float) -> Array:
    """The largest of logits and Gumbel noise: a draw of the softmax."""
    if temperature > 0:
        logits = logits / temperature + noise
    return jnp.argmax(logits, axis=-1).astype(jnp.int32)
