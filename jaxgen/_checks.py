"""The only place where messages about wrong arguments are built.

Every message has one form: *function: argument, what came, what was expected, the fix*.
"""

import dataclasses
import difflib
import math
from collections.abc import Iterable
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

FLOAT32_MAX = float(np.finfo(np.float32).max)


class UserError(Exception):
    """A mistake of the person at the command line: one clear line, exit status 2."""


class RunError(Exception):
    """A run cannot go on, by nobody's typing: one clear line, exit status 1."""


def check_same_shape(function: str, **arrays: Any) -> None:
    """Raises ValueError unless all named arrays have one shape."""
    shapes = {name: jnp.shape(array) for name, array in arrays.items()}
    if len(set(shapes.values())) > 1:
        came = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise ValueError(
            f"{function}: {' and '.join(shapes)} must have the same shape, got {came}; "
            "broadcast explicitly if that is what you mean."
        )


def check_min_rank(function: str, rank: int, **arrays: Any) -> None:
    """Raises ValueError unless every named array has at least `rank` axes."""
    for name, array in arrays.items():
        if jnp.ndim(array) < rank:
            raise ValueError(
                f"{function}: {name} must have at least {rank} axes (the first is the "
                f"batch), got shape {jnp.shape(array)}; add the missing axis."
            )


def check_axes(function: str, axes: str, **arrays: Any) -> None:
    """Raises ValueError unless every named array has the axes written as "[K, B]"."""
    rank = len(axes.strip("[]").split(","))
    for name, array in arrays.items():
        if jnp.ndim(array) != rank:
            raise ValueError(
                f"{function}: {name} must be {axes}, got shape {jnp.shape(array)}; "
                "reshape or reduce it first."
            )


def check_in(function: str, name: str, value: Any, choices: Iterable[Any]) -> None:
    """Raises ValueError, listing the choices and the nearest, unless value is one."""
    choices = list(choices)
    if value not in choices:
        raise ValueError(f"{function}: {unknown(name, value, choices)}")


def check_times(function: str, times: Any, *, increasing: bool) -> None:
    """Raises ValueError unless the times are `[N]`, N >= 1, in this order if known."""
    check_axes(function, "[N]", times=times)
    if jnp.size(times) < 1:
        raise ValueError(f"{function}: times must be [N], N at least 1, got none.")
    known = concrete(times)
    if known is not None:
        order = 1 if increasing else -1
        if not np.all(order * np.diff(known) > 0):
            word, ends = (
                ("in", "data to noise") if increasing else ("de", "noise to data")
            )
            raise ValueError(
                f"{function}: times must {word}crease, from {ends}, got "
                f"{times[0]:.4g} .. {times[-1]:.4g}; reverse them by [::-1]."
            )


def check_positive(function: str, **numbers: Any) -> None:
    """Raises ValueError unless every named number is above zero, where it is known."""
    for name, number in numbers.items():
        known = concrete(number)
        if known is not None and not known > 0:
            raise ValueError(f"{function}: {name} must be positive, got {number}.")


def check_rising(function: str, **ends: float) -> None:
    """Raises ValueError unless the two named numbers are positive, finite and rise."""
    (low_name, low), (high_name, high) = ends.items()
    check_positive(function, **{low_name: low})
    if not low < high < math.inf:
        raise ValueError(
            f"{function}: {low_name} must be below {high_name}, got {low} and {high}; "
            "they are the ends of a range."
        )


def check_finite_options(config: Any) -> None:
    """Raises UserError for a number among a dataclass's options that float32 cannot hold."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if isinstance(value, float) and not abs(value) <= FLOAT32_MAX:
            flag = field.name.replace("_", "-")
            raise UserError(f"--{flag} must be a finite number of float32, got {value}")


def check_at_least(config: Any, least: int, *names: str) -> None:
    """Raises UserError for an option of a dataclass that is below; None is not."""
    for name in names:
        value = getattr(config, name)
        if value is not None and value < least:
            flag = name.replace("_", "-")
            raise UserError(f"--{flag} must be at least {least}, got {value}")


def check_seed(seed: int) -> None:
    """Raises UserError unless a seed is one of those that all commands take."""
    if not 0 <= seed < 2**31:
        raise UserError(f"--seed must be in 0 .. 2^31 - 1, got {seed}")


def check_told(conditional: bool, num_classes: int | None, num_planes: int) -> None:  # noqa: FBT001 - as the config has it
    """Raises UserError where a model is to be told a class that is not there, or two things."""
    if conditional and not num_classes:
        raise UserError("--conditional needs data with labels; these have none")
    if conditional and num_planes:
        raise UserError(
            "--conditional tells the class, --task an image: leave one of them out"
        )


def check_class_options(config: Any) -> None:
    """Raises UserError where a model samples by classes that it does not know."""
    sampling, num = config.sampling, config.num_classes
    guidance = getattr(sampling, "guidance", None)
    is_guided = guidance not in (None, 1)
    if not config.conditional and sampling.label is not None:
        raise UserError(
            "--label is for a model that was trained with classes: --conditional"
        )
    if is_guided and not config.conditional and not config.num_planes:
        raise UserError(
            "--guidance is for a model that was trained with classes, --conditional, or "
            "on a --task"
        )
    label = sampling.label
    if num is not None and label is not None and not 0 <= label < num:
        raise UserError(f"--label must be in 0 .. {num - 1}, got {label}")


def unknown(kind: str, value: Any, choices: Iterable[Any]) -> str:
    """One line that names what came, the nearest choice and all choices."""
    names = sorted(str(choice) for choice in choices)
    near = difflib.get_close_matches(str(value), names, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"unknown {kind} {str(value)!r}{hint} (choose from {', '.join(names)})"


def concrete(x: Any) -> np.ndarray | None:
    """The values of an array, or None where they are traced and so not known yet."""
    try:
        return np.asarray(x)
    except jax.errors.TracerArrayConversionError:
        return None


def sum_per_example(x: jax.Array) -> jax.Array:
    """Sums every axis but the first: `[B, ...] -> [B]`."""
    return jnp.sum(x, axis=tuple(range(1, x.ndim)))


def to_float(*arrays: Any) -> tuple[jax.Array, ...]:
    """The arrays in float32, or float64 where they come so: losses are never bf16."""
    arrays = tuple(jnp.asarray(array) for array in arrays)
    return tuple(a.astype(jnp.promote_types(a.dtype, jnp.float32)) for a in arrays)


def example_floats(function: str, **arrays: Any) -> tuple[jax.Array, ...]:
    """`to_float` of arrays which must have one shape `[B, ...]`; or ValueError."""
    check_same_shape(function, **arrays)
    check_min_rank(function, 1, **arrays)
    return to_float(*arrays.values())
