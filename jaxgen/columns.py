"""The columns of a table: what their values may be, and the map to the whole line."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxgen import bijectors
from jaxgen.bijectors import Bijector

ColumnKind = Literal["real", "positive", "bounded", "angle"]

# A bounded value, as a fraction of its range, is shrunk to m + (1 - 2 m) of it before
# the logit, so that the ends themselves have a place on the line.
BOUNDED_MARGIN = 1e-4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Column:
    """One column that a model sees; plain values that go into config.json and back.

    Attributes:
        name: Its header.
        kind: real; positive (above 0); bounded (in [low, high]); or an angle (in
            [low, high), whose ends are one point).
        is_context: Whether it is given rather than modelled.
        low: Lower end of a bounded column, or where the turn of an angle begins.
        high: The other end.
        step: Distance between the values of a rounded column, which are multiples of it
            (1 for counts); 0 where values are continuous. Uniform noise of this width is
            added to it, as to the levels of an image.
        mean: Over the training rows, after the kind's map to the line.
        deviation: Standard deviation of the same.
    """

    name: str
    kind: ColumnKind = "real"
    is_context: bool = False
    low: float = 0.0
    high: float = 1.0
    step: float = 0.0
    mean: float = 0.0
    deviation: float = 1.0


def to_line(columns: Sequence[Column]) -> Bijector:
    """From values in data units to about mean 0 and variance 1 on the whole line.

    The log-determinant holds all of it, so that a density stays one in data units. An
    angle comes to the line by the normal's quantiles, cut where its turn begins.
    """
    parts = [(i, _of_kind(column)) for i, column in enumerate(columns)]

    def through(way: str) -> Callable[[Array], tuple[Array, Array]]:
        def moved(x: Array) -> tuple[Array, Array]:
            done = [
                getattr(chain, way)(params, x[:, i : i + 1])
                for i, (chain, params) in parts
            ]
            log_det = sum((log_det for _, log_det in done), bijectors.no_change(x))
            return jnp.concatenate([value for value, _ in done], axis=1), log_det

        return moved

    return bijectors.without_params(through("to_latent"), through("to_data"))


def _of_kind(column: Column) -> tuple[Bijector, tuple]:
    if column.kind == "angle":
        middle = (column.low + column.high) / 2
        parts = (
            bijectors.rescale(1.0, -middle),
            bijectors.circular((column.high - column.low) / 2),
        )
    else:
        high = column.high + column.step
        line = {
            "real": bijectors.rescale(1.0),
            "positive": bijectors.exponential(),
            "bounded": bijectors.logit(column.low, high, margin=BOUNDED_MARGIN),
        }[column.kind]
        scale = bijectors.rescale(1 / column.deviation, -column.mean / column.deviation)
        parts = (line, scale)
    return bijectors.chain(*parts), tuple(() for _ in parts)


def features(columns: Sequence[Column], x: Array) -> Array:
    """What a network is told of values `[B, K]`: as `to_line`, angles as a circle's points."""
    told = []
    for i, column in enumerate(columns):
        one = x[:, i : i + 1]
        if column.kind == "angle":
            turn = 2 * jnp.pi * (one - column.low) / (column.high - column.low)
            told += [jnp.cos(turn), jnp.sin(turn)]
        else:
            told.append(to_line([column]).to_latent((), one + column.step / 2)[0])
    return jnp.concatenate(told, axis=1)


def misfit(column: Column, value: float) -> str | None:
    """What a column's values are, where this can be none of them; else None."""
    if not math.isfinite(value):
        return "a finite number"
    if column.kind == "positive" and not value + column.step / 2 > 0:
        return "above 0"
    if column.kind == "bounded" and not column.low <= value <= column.high:
        return f"in {column.low:g}..{column.high:g}"
    return None


def spread(columns: Sequence[Column], x: Array, keys: Array) -> Array:
    """Rounded values `[B, K]` spread evenly over their steps, `x + step u`, by each key."""
    steps = np.array([column.step for column in columns], np.float32)
    if not steps.any():
        return x
    u = jax.vmap(lambda key: jax.random.uniform(key, x.shape[1:]))(keys)
    return x + steps[None] * u


def rounded(columns: Sequence[Column], x: Array) -> Array:
    """The inverse of `spread`, and bounded values within their bounds."""
    done = []
    for i, column in enumerate(columns):
        one = x[:, i]
        if column.step:
            one = column.step * jnp.floor(one / column.step)
        if column.kind == "bounded":
            one = jnp.clip(one, column.low, column.high)
        done.append(one)
    return jnp.stack(done, axis=1)
