"""The columns of a table: what their values may be, and the map to the whole line."""

import dataclasses
from typing import Literal

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
