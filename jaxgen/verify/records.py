"""What an oracle says: a number that was observed beside the number it should be."""

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

# What is run for moments is not worth optimising: see XLA's debug options.
_QUICK = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
}


class Record(NamedTuple):
    """One comparison.

    Attributes:
        name: What was observed.
        observed: The number; of an array, the one that is furthest off.
        expected: What it should be, or its bound.
        tolerance: How far off it may be.
        relation: "=", or "<=" and ">=" of a bound.
    """

    name: str
    observed: float
    expected: float
    tolerance: float
    relation: str = "="

    @property
    def error(self) -> float:
        """How far off it is; of a bound, how far on the wrong side. NaN if either is."""
        off = self.observed - self.expected
        if self.observed == self.expected:  # both infinite, perhaps
            return 0.0
        if self.relation == "=":
            return abs(off)
        over = off if self.relation == "<=" else -off
        return 0.0 if over < 0 else over

    @property
    def passed(self) -> bool:
        """Whether the error is within the tolerance; NaN never is."""
        return self.error <= self.tolerance

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it: numbers that are not finite are text."""
        values = {**self._asdict(), "error": self.error}
        for name, value in values.items():
            if isinstance(value, float) and not math.isfinite(value):
                values[name] = str(value)
        return {**values, "passed": self.passed}


Records = tuple[Record, ...]


def equal(name: str, observed: Any, expected: Any, tolerance: Any) -> Record:
    """The entry of `observed` that is furthest off, in units of its own tolerance.

    Args:
        name: What was observed.
        observed: A number or an array.
        expected: Of a shape that broadcasts with it; so has `tolerance`.
        tolerance: How far off each may be.
    """
    arrays = (np.asarray(a, np.float64) for a in (observed, expected, tolerance))
    seen, truth, within = (a.ravel() for a in np.broadcast_arrays(*arrays))
    with np.errstate(invalid="ignore", divide="ignore"):
        off = np.where(seen == truth, 0, np.abs(seen - truth) / within)
    worst = int(np.argmax(np.where(np.isnan(off), np.inf, off)))
    return Record(name, float(seen[worst]), float(truth[worst]), float(within[worst]))


def at_most(name: str, observed: Any, bound: float, tolerance: float = 0.0) -> Record:
    """That no entry of `observed` is above the bound."""
    return Record(name, float(np.max(observed)), float(bound), tolerance, "<=")


def at_least(name: str, observed: Any, bound: float, tolerance: float = 0.0) -> Record:
    """That no entry of `observed` is below the bound."""
    return Record(name, float(np.min(observed)), float(bound), tolerance, ">=")


def holds(name: str, condition: Any) -> Record:
    """What is true or not: 1 where all of the condition is."""
    return Record(name, float(np.all(condition)), 1.0, 0.0)


def compiled(function: Callable) -> Callable:
    """`jax.jit`, without the compiler's optimisations where that is a CPU."""
    quick = jax.default_backend() == "cpu"
    return jax.jit(function, compiler_options=_QUICK if quick else None)


@contextlib.contextmanager
def exactly() -> Iterator[None]:
    """Double precision, and products of matrices as exact as the machine has them."""
    with jax.enable_x64(), jax.default_matmul_precision("highest"):
        yield


def table(records: Iterable[Record]) -> str:
    """A line for each record, with a line of headings, for the terminal."""
    rows = [("", "observed", "", "expected", "error", "tolerance", "")]
    for r in records:
        numbers = (f"{r.observed:.6g}", r.relation, f"{r.expected:.6g}")
        limits = (f"{r.error:.1e}", f"{r.tolerance:.1e}")
        rows.append((r.name, *numbers, *limits, "pass" if r.passed else "FAIL"))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = (
        "  ".join(
            text.ljust(width) if i in (0, 2, 6) else text.rjust(width)
            for i, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )
    return "\n".join(lines) + "\n"


def require(records: Iterable[Record]) -> None:
    """Raises ValueError with the table of the records that did not pass, if there are any."""
    failed = [r for r in records if not r.passed]
    if failed:
        raise ValueError(f"verify: {len(failed)} did not pass\n{table(failed)}")
