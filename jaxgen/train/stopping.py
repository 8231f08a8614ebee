"""When to stop early, from the validation losses that metrics.jsonl holds."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

NAME = "validation_loss"  # in metrics.jsonl; null where it is not finite

History = list[tuple[int, float]]  # step and validation loss; inf is never better


def history(
    records: Iterable[Mapping[str, Any]], *, until: float = math.inf
) -> History:
    """The validation losses of the lines of metrics.jsonl, up to a step."""
    return [
        (r["step"], math.inf if r[NAME] is None else float(r[NAME]))
        for r in records
        if NAME in r and r["step"] <= until
    ]


def best(losses: Sequence[tuple[int, float]]) -> tuple[int, float]:
    """Step and value of the first lowest loss; `(0, inf)` before there is any."""
    return min([(0, math.inf), *losses], key=lambda pair: pair[1])


def is_over(losses: Sequence[tuple[int, float]], patience: int | None) -> bool:
    """Whether the newest `patience` losses have not been better; 0 and None are never."""
    if not patience:
        return False
    step, _ = best(losses)
    return sum(at > step for at, _ in losses) >= patience


def told(records: Iterable[Mapping[str, Any]], train: Any) -> str | None:
    """What to tell of a run with this config of training, if it has stopped early."""
    losses = history(records)
    if not is_over(losses, train.patience) or losses[-1][0] >= train.steps:
        return None
    return (
        f"stopped early at step {losses[-1][0]:,}: no better validation loss since step "
        f"{best(losses)[0]:,}, whose parameters are used"
    )
