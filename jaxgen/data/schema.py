"""What the columns of a table are: as the user says, else as the values look."""

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np

from jaxgen._checks import UserError, unknown
from jaxgen.columns import BOUNDED_MARGIN, Column, ColumnKind
from jaxgen.data.table_files import Table, option

Role = Literal["model", "context", "weight", "skip"]

_KINDS: tuple[ColumnKind, ...] = get_args(ColumnKind)
_CHOICES = (*_KINDS, "context", "weight", "skip")
# In this order: radians are degrees too.
_TURNS = ((0.0, math.tau), (-math.pi, math.pi), (0.0, 360.0), (-180.0, 180.0))
# Whole words where they are short: "triangle" and "delphi" are none.
_ANGLE_NAMES = re.compile(
    r"azimuth|longitude|direction|bearing|heading"
    r"|(?<![^\W_])(angle|phi|psi|theta|lon|lng|dir|phase|rotation|yaw)(?![^\W\d_])",
    re.IGNORECASE,
)
_POSITIVE_RATIO = 50.0  # of the largest value to the smallest
_POSITIVE_SKEWNESS = 2.0
_NEAR_END = 0.01  # of the range
# What float32, of 24 bits, can hold: relative to the values, and of the values.
_FINEST_STEP = 2.0**-23
_LEAST_SPREAD = 1e-5
_SIZES = (1e-30, 1e30)


class Wish(NamedTuple):
    """What the user says of one column; None is left to the values.

    Attributes:
        role: What it is for.
        kind: Of its values.
        bounds: Of a bounded column or an angle.
        step: Of rounded values.
    """

    role: Role = "model"
    kind: ColumnKind | None = None
    bounds: tuple[float, float] | None = None
    step: float | None = None


def parse_columns(texts: Sequence[str], names: Sequence[str]) -> dict[str, Wish]:
    """`NAME=KIND` of `--columns` for the columns of a table.

    Raises:
        UserError: for an unknown column or kind, naming the nearest, or wrong numbers.
    """
    wishes: dict[str, Wish] = {}
    for text in texts:
        name, equals, value = text.rpartition("=")
        if not equals:
            raise UserError(f"--columns {text}: expected NAME=KIND, such as age=real")
        if name not in names:
            raise UserError(f"--columns {text}: {unknown('column', name, names)}")
        if name in wishes:
            raise UserError(f"--columns {text}: said twice of {name!r}; say it once")
        wishes[name] = _parse_wish(text, value)
    weights = [name for name, wish in wishes.items() if wish.role == "weight"]
    if len(weights) > 1:
        raise UserError(
            f"--columns: {' and '.join(map(repr, weights))} are weights, expected one "
            "column at most; multiply them, or skip the others"
        )
    return wishes


def _parse_wish(text: str, value: str) -> Wish:
    first, *rest = value.split(",")
    if first in ("weight", "skip") and not rest:
        return Wish("skip" if first == "skip" else "weight")
    role: Role = "model"
    if first == "context":
        role = "context"
        if not rest:
            return Wish(role)
        first, *rest = rest
    kind, *ends = first.split(":")
    if kind not in _KINDS:
        choices = _KINDS if role == "context" else _CHOICES
        raise UserError(f"--columns {text}: {unknown('kind', kind, choices)}")
    step = None
    if rest:
        word, _, number = rest[0].partition(":")
        if word != "step" or len(rest) > 1:
            raise UserError(
                f"--columns {text}: expected only step:S after the kind, as in "
                f"{kind},step:1"
            )
        step = _number(text, number)
        if step < 0:
            raise UserError(
                f"--columns {text}: step must not be negative, got {step:g}"
            )
    return Wish(role, kind, _parse_bounds(text, kind, ends), step)


def _parse_bounds(
    text: str, kind: ColumnKind, ends: Sequence[str]
) -> tuple[float, float] | None:
    takes = {"bounded": (2,), "angle": (0, 2)}.get(kind, (0,))
    if len(ends) not in takes:
        raise UserError(
            f"--columns {text}: expected "
            + (f"{kind}:LOW:HIGH" if 2 in takes else f"{kind} without bounds")
        )
    if not ends:
        return None
    low, high = (_number(text, end) for end in ends)
    if low >= high:
        raise UserError(
            f"--columns {text}: low must be below high, got {low:g} and {high:g}"
        )
    return low, high


def _number(text: str, word: str) -> float:
    try:
        number = float(word)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise UserError(f"--columns {text}: {word!r} is no finite number")
    return number


def make_column(
    table: Table, name: str, values: np.ndarray, wish: Wish
) -> tuple[Column, np.ndarray]:
    """Kind, bounds and step of a column by its values; mean and deviation come later.

    Args:
        table: Where it comes from, to name the line of a wrong value.
        name: Its header.
        values: Finite and not all the same, float64 `[N]`.
        wish: What the user says of it.

    Returns:
        The column, and its values; those of an angle are brought into its turn.

    Raises:
        UserError: where a value is not of the kind that the user says.
    """

    def refuse(wrong: np.ndarray, reason: str) -> None:
        if wrong.any():
            row = int(np.argmax(wrong))
            raise table.fault(name, f"{values[row]:.9g} {reason}", row)

    _check_size(table, name, values)
    step = find_step(values) if wish.step is None else wish.step
    kind, bounds = wish.kind, wish.bounds
    if kind is None:
        kind, bounds = guess_kind(name, values, step)
    if kind == "positive":
        least = "no value below 0" if step else "values above 0 (1.2e-38 at least)"
        wrong = values < (0 if step else np.finfo(np.float32).tiny)
        refuse(
            wrong,
            f"in a positive column, expected {least}; remove such rows, or "
            f"say that it is real: {option(name, 'real')}",
        )
    if kind == "angle" and bounds is None:
        bounds = turn_of(values)
        if bounds is None:
            raise table.fault(
                name,
                "its values lie in no turn of 2 pi or 360 from 0 or minus the half; "
                f"say which: {option(name, 'angle:LOW:HIGH')}",
            )
    low, high = (0.0, 1.0) if bounds is None else bounds
    if bounds is not None:
        refuse(
            (values < low) | (values > high),
            f"is outside {low:g}..{high:g}; correct it, or give other bounds",
        )
    if kind == "angle":
        if wish.bounds is None:
            low, high = begin_where_rare(values, low, high - low, step)
        values = low + np.mod(values - low, high - low)
    if wish.step:
        if step < _FINEST_STEP * np.abs(values).max():
            raise table.fault(
                name,
                f"float32 cannot hold steps of {step:g} at its values; give step:0",
            )
        refuse(
            ~_are_multiples(values, step, 1e-7),
            f"is no multiple of step {step:g}; correct it, or give another step",
        )
    is_context = wish.role == "context"
    column = Column(
        name=name, kind=kind, is_context=is_context, low=low, high=high, step=step
    )
    return column, values


def _check_size(table: Table, name: str, values: np.ndarray) -> None:
    """Raises UserError where the values of a column lose their meaning in float32."""
    size = np.abs(values).max()
    if not _SIZES[0] <= size <= _SIZES[1]:
        raise table.fault(
            name,
            f"its values reach {size:.3g}, expected {_SIZES[0]:g} to {_SIZES[1]:g}; "
            "give them in another unit",
        )
    middle = values.mean()
    if values.std() < _LEAST_SPREAD * abs(middle):
        raise table.fault(
            name,
            f"its values differ by {values.std():.2g} around {middle:.9g}, too little "
            f"for float32; subtract {middle:.3g} from them first",
        )


def guess_kind(
    name: str, values: np.ndarray, step: float
) -> tuple[ColumnKind, tuple[float, float] | None]:
    """Kind and bounds of a column as its values look; real wherever there is doubt."""
    least, largest = values.min(), values.max()
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name)
    if _ANGLE_NAMES.search(words):
        for low, high in _TURNS:
            inside = low <= least and largest <= high
            if inside and largest - least > (high - low) / 2:
                return "angle", None
    for high in (1.0, 100.0):
        near = _NEAR_END * high
        if 0 <= least <= near and high - near <= largest <= high:
            return "bounded", (0.0, high)
    if least > 0 or (step > 0 and least == 0):
        skewness, of_log = _skewness(values), _skewness(np.log(values + step / 2))
        is_wide = least > 0 and largest > _POSITIVE_RATIO * least
        # A normal column that comes near 0 is wide too, but its logarithm is lopsided.
        if (is_wide or skewness > _POSITIVE_SKEWNESS) and abs(of_log) < skewness:
            return "positive", None
    return "real", None


def find_step(values: np.ndarray) -> float:
    """The distance of rounded values, 1, 2 or 5 times a power of ten; else 0.

    Only where at most half of the values differ from each other: few ties may be chance.
    """
    distinct = np.unique(values)
    largest = np.abs(distinct).max()
    if 2 * len(distinct) > len(values) or largest == 0:
        return 0.0
    for exponent in range(math.floor(math.log10(largest)), -400, -1):
        for digit in (5, 2, 1):
            step = float(f"{digit}e{exponent}")
            if step < _FINEST_STEP * largest:
                return 0.0
            if _are_multiples(distinct, step, 1e-12).all():
                return step
    return 0.0


def turn_of(values: np.ndarray) -> tuple[float, float] | None:
    """The smallest common turn that holds all the values, as low and high."""
    least, largest = values.min(), values.max()
    inside = (turn for turn in _TURNS if turn[0] <= least and largest <= turn[1])
    return next(inside, None)


def begin_where_rare(
    values: np.ndarray, low: float, turn: float, step: float
) -> tuple[float, float]:
    """The turn, begun in the widest gap where the values are rarest.

    The rarest place is where 1/36 of the values take the most room. A turn that is no
    multiple of the step stays, or values brought around it were no multiples either.
    """
    if step and not _are_multiples(np.array([turn]), step, 1e-12).all():
        return low, low + turn
    around = np.sort(np.mod(values - low, turn))
    num = len(around)
    some = max(1, num // 36)
    twice = np.concatenate([around, around[: some + 1] + turn])
    first = int(np.argmax(twice[some : some + num] - twice[:num]))
    room = twice[first : first + some + 1]
    gap = int(np.argmax(np.diff(room)))
    begin = room[gap + 1] if step else (room[gap] + room[gap + 1]) / 2
    begin = float(begin) - (turn if begin > turn / 2 else 0.0)
    return low + begin, low + begin + turn


def standardise(column: Column, values: np.ndarray, weight: np.ndarray) -> Column:
    """The column with mean and deviation of these values on the line, float64 `[N]`."""
    if column.kind == "angle":
        return column
    line = on_the_line(column, values)
    mean = float(np.average(line, weights=weight))
    deviation = math.sqrt(np.average(np.square(line - mean), weights=weight))
    return dataclasses.replace(column, mean=mean, deviation=deviation)


def on_the_line(column: Column, values: np.ndarray) -> np.ndarray:
    """The kind's map of a column that is no angle, at the middle of each step."""
    middle = values + column.step / 2
    if column.kind == "positive":
        return np.log(middle)
    if column.kind == "bounded":
        share = (middle - column.low) / (column.high + column.step - column.low)
        share = BOUNDED_MARGIN + (1 - 2 * BOUNDED_MARGIN) * share
        return np.log(share) - np.log1p(-share)
    return middle


def _are_multiples(values: np.ndarray, step: float, tolerance: float) -> np.ndarray:
    counts = values / step
    return np.abs(counts - np.rint(counts)) < tolerance * (1 + np.abs(counts))


def _skewness(values: np.ndarray) -> float:
    centred = (values - values.mean()) / values.std()
    return float(np.mean(centred**3))
