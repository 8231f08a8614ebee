"""What is diagnosed, and what comes of it: a finding for each problem of a family."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jaxgen import data
from jaxgen.evaluate.features import Features
from jaxgen.train.session import Loaded


@dataclasses.dataclass(frozen=True, kw_only=True)
class Subject:
    """A run beside its data.

    Attributes:
        loaded: The run.
        dataset: Its data.
        test: Test examples as they are stored, `[N, ...]`, with what belongs to them.
        features: What samples and examples are compared by.
        draw: `start -> samples [M, ...]` from number `start` onwards, as they are stored.
        seed: Of all that is drawn.
        progress: Called with (samples drawn, samples in all).
    """

    loaded: Loaded
    dataset: data.Dataset
    test: dict[str, np.ndarray]
    features: Features
    draw: Callable[[int], np.ndarray]
    seed: int
    progress: Callable[[int, int], None] = lambda done, total: None

    @property
    def num(self) -> int:
        """N, and of samples as many."""
        return len(self.test["x"])

    def samples(self, num: int) -> np.ndarray:
        """The first samples, `[num, ...]`."""
        parts = [self.draw(0)]
        while (done := sum(map(len, parts))) < num:
            parts.append(self.draw(done))
        return np.concatenate(parts)[:num]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finding:
    """One problem that a family may have, and whether this run has it.

    Attributes:
        title: What might be wrong.
        figures: Numbers and lists of them by name; None where there is none.
        verdict: A sentence.
        is_clean: None where it cannot be told.
        mend: Flags against it, where it is not clean.
        missing: Why a figure is None, by its name.
    """

    title: str
    figures: Mapping[str, Any]
    verdict: str
    is_clean: bool | None
    mend: str | None = None
    missing: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """As diagnosis.json has it: what is not finite is null."""
        parts = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        figures = {name: plain(value) for name, value in self.figures.items()}
        return {**parts, "figures": figures, "missing": dict(self.missing)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Told:
    """All findings of a run by their names.

    Attributes:
        findings: The problems of its family; those that may be the cause of others first.
        made: What is shown beside data, as examples are stored: samples, and
            reconstructions where there are any.
    """

    findings: dict[str, Finding]
    made: Mapping[str, np.ndarray]


def plain(value: Any) -> Any:
    """A figure as JSON has it; a number that is not finite is None."""
    if isinstance(value, Mapping):
        return {str(name): plain(v) for name, v in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [plain(v) for v in value]
    if value is None or isinstance(value, str | bool | np.bool_):
        return bool(value) if isinstance(value, np.bool_) else value
    if isinstance(value, int | np.integer):
        return int(value)
    return float(value) if math.isfinite(value) else None


def mean_and_error(name: str, values: Any) -> dict[str, float | None]:
    """The mean of `[N]` and its standard error, under `name` and `name_se`."""
    values = np.asarray(values, np.float64)
    error = values.std(ddof=1) / math.sqrt(len(values))
    return {name: float(values.mean()), f"{name}_se": float(error)}
