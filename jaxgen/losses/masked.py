"""Losses of masked diffusion: tokens are hidden one by one until nothing is seen.

The process that absorbs tokens into a mask has at time t, from 0 (data) to 1 (nothing is
seen), hidden each token with probability t. A model that tells the hidden tokens from
those that are seen bounds the likelihood, in continuous time:

    -log p(x) <= E_t (1 / t) E_hidden sum_(i hidden) -log p(x_i | seen),  t uniform in (0, 1].

The number n of hidden tokens is binomial then, and the integral over t gives every n the
same weight. So there are two estimators of the one bound, "by share" t, and "by number",
which varies less, as n and not only its mean is known:

    -log p(x) <= E_n (L / n) E_(n hidden) sum_(i hidden) -log p(x_i | seen),  n uniform in 1..L.

It is the mean of -log p(x) over all orders in which tokens may be told one by one: with
conditionals that are those of one joint distribution it is -log p(x) itself.

References:
    Austin et al. 2021 (absorbing state), arXiv:2107.03006. Sahoo et al. 2024,
    arXiv:2406.07524, and Shi et al. 2024, arXiv:2406.04329 (continuous time). Ou et al.
    2024, arXiv:2406.03736, and Hoogeboom et al. 2021, arXiv:2110.02037 (any order).
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Int, Key

from jaxgen import _checks

Tokens = Int[ArrayLike, "B L"]
Hidden = Bool[ArrayLike, "B L"]
PerToken = Float[ArrayLike, "B L"]
PerExample = Float[ArrayLike, " B"]
Nats = Float[Array, " B"]
Predict = Callable[[Array, Array], Array]


class Bound(NamedTuple):
    """An estimate of an upper bound of -log p(x), each field `[B]` nats.

    Attributes:
        nats: The mean of the samples.
        standard_error: Of that mean, from the spread of the samples as if they were
            independent: too large, as they are stratified. Inf for one sample.
    """

    nats: Nats
    standard_error: Nats


def hidden_by_share(
    keys: Key[Array, " B"], share: PerExample, *, length: int
) -> Bool[Array, "B L"]:
    """Which tokens are hidden where each is with probability `share`, by itself.

    Args:
        keys: One per example, `[B]`.
        share: t of the process, `[B]` in [0, 1].
        length: L.

    Returns:
        `[B, L]`; that of an example depends on its own key and share alone.

    Raises:
        ValueError: if shapes differ or length is not positive.
    """
    _checks.check_positive("hidden_by_share", length=length)
    _checks.check_same_shape("hidden_by_share", keys=keys, share=share)
    (share,) = _checks.to_float(share)
    return jax.vmap(lambda key, t: jax.random.uniform(key, (length,), t.dtype) < t)(
        keys, share
    )


def hidden_by_number(
    keys: Key[Array, " B"], number: Int[ArrayLike, " B"], *, length: int
) -> Bool[Array, "B L"]:
    """Which tokens are hidden where `number` of them are, every set as likely.

    Args:
        keys: One per example, `[B]`.
        number: n, `[B]` in 0..L.
        length: L.

    Returns:
        `[B, L]` with `number` true in each row.

    Raises:
        ValueError: if shapes differ or length is not positive.
    """
    _checks.check_positive("hidden_by_number", length=length)
    _checks.check_same_shape("hidden_by_number", keys=keys, number=number)

    def one(key: Array, num: Array) -> Array:
        return jax.random.permutation(key, length) < num

    return jax.vmap(one)(keys, jnp.asarray(number))


def number_at(level: PerExample, *, length: int) -> Int[Array, " B"]:
    """The number of hidden tokens, 1..L, from levels in [0, 1): uniform if they are.

    Raises:
        ValueError: if length is not positive.
    """
    _checks.check_positive("number_at", length=length)
    (level,) = _checks.to_float(level)
    return 1 + jnp.clip(jnp.floor(level * length), 0, length - 1).astype(jnp.int32)


def cross_entropy(
    tokens: Tokens, logits: Float[ArrayLike, "B L V"]
) -> Float[Array, "B L"]:
    """-log p of each token, nats, from unnormalised log probabilities.

    Raises:
        ValueError: if `logits` are not one row for each token.
    """
    if jnp.ndim(logits) != 3 or jnp.shape(logits)[:2] != jnp.shape(tokens):
        raise ValueError(
            f"cross_entropy: logits must be [B, L, V] for tokens [B, L], got "
            f"{jnp.shape(logits)} and {jnp.shape(tokens)}; tokens are whole numbers, not "
            "one-hot."
        )
    (logits,) = _checks.to_float(logits)
    chosen = jnp.asarray(tokens)[..., None]
    return -jnp.take_along_axis(jax.nn.log_softmax(logits, -1), chosen, -1)[..., 0]


def bound_by_share(nll: PerToken, hidden: Hidden, share: PerExample) -> Nats:
    """One sample of the bound of -log p(x), of tokens hidden with probability `share`.

    Its mean over shares that are uniform in (0, 1] is the bound. Small shares have heavy
    weights: the variance is infinite, if only just.

    Args:
        nll: -log p of each token given those that are seen, `[B, L]` nats; where a token
            is not hidden it plays no part.
        hidden: As `hidden_by_share` draws it, `[B, L]`.
        share: t, `[B]`, above 0.

    Returns:
        `[B]` nats, summed over the hidden tokens and divided by t.

    Raises:
        ValueError: if shapes do not fit.

    References:
        Sahoo et al. 2024, equation 11, arXiv:2406.07524; Shi et al. 2024, proposition 1,
        arXiv:2406.04329.
    """
    total = _over_hidden("bound_by_share", nll, hidden)
    _checks.check_same_shape("bound_by_share", total=total, share=share)
    return total / jnp.asarray(share, total.dtype)


def bound_by_number(nll: PerToken, hidden: Hidden) -> Nats:
    """One sample of the bound of -log p(x), of tokens of which a number n is hidden.

    Its mean over n that are uniform in 1..L is the bound.

    Args:
        nll: As in `bound_by_share`.
        hidden: As `hidden_by_number` draws it, `[B, L]`; n is counted.

    Returns:
        `[B]` nats, L times the mean over the hidden tokens; 0 where none is hidden.

    Raises:
        ValueError: if shapes differ.

    References:
        Ou et al. 2024, equation 3.7, arXiv:2406.03736; Hoogeboom et al. 2021, equation
        4, arXiv:2110.02037.
    """
    total = _over_hidden("bound_by_number", nll, hidden)
    number = jnp.maximum(jnp.sum(jnp.asarray(hidden), axis=1), 1)
    return total * (jnp.shape(hidden)[1] / number.astype(total.dtype))


def any_order_bound(
    predict: Predict, tokens: Tokens, keys: Key[Array, " B"], *, num_samples: int
) -> Bound:
    """The bound of -log p(x) by number, from samples whose numbers are stratified.

    Args:
        predict: `(tokens [B, L], hidden [B, L]) -> logits [B, L, V]`, which must not look
            at hidden tokens; called `num_samples` times, one after another.
        tokens: Data, `[B, L]`.
        keys: One per example, `[B]`.
        num_samples: Samples per example, n being spread over as many strata of 1..L.

    Returns:
        `Bound`, `[B]` nats each.

    Raises:
        ValueError: if a shape or a number is wrong.
    """
    name = "any_order_bound"
    _checks.check_axes(name, "[B, L]", tokens=tokens)
    _checks.check_axes(name, "[B]", keys=keys)
    _checks.check_positive(name, num_samples=num_samples)
    tokens = jnp.asarray(tokens)
    length = tokens.shape[1]

    def sample(number: Array) -> Array:
        own = jax.vmap(jax.random.fold_in, (0, None))(keys, number)
        place, which = jax.vmap(jax.random.split, out_axes=1)(own)
        within = jax.vmap(lambda key: jax.random.uniform(key, dtype=float))(place)
        num = number_at((number + within) / num_samples, length=length)
        hidden = hidden_by_number(which, num, length=length)
        nll = cross_entropy(tokens, predict(tokens, hidden))
        return bound_by_number(nll, hidden)

    samples = jax.lax.map(sample, jnp.arange(num_samples))
    error = jnp.full_like(samples[0], jnp.inf)
    if num_samples > 1:
        error = jnp.std(samples, axis=0, ddof=1) / math.sqrt(num_samples)
    return Bound(jnp.mean(samples, axis=0), error)


def _over_hidden(name: str, nll: ArrayLike, hidden: ArrayLike) -> Array:
    """The sum over hidden tokens, `[B]`; what stands at the others, even NaN, is out."""
    _checks.check_axes(name, "[B, L]", nll=nll)
    _checks.check_same_shape(name, nll=nll, hidden=hidden)
    (nll,) = _checks.to_float(nll)
    return jnp.sum(jnp.where(hidden, nll, 0), axis=1)
