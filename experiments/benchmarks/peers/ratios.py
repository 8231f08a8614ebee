"""What is made of the seconds: pure arithmetic, no jax and no torch."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

TOLERANCE = 1e-4  # of the first loss, relative
LATER_TOLERANCE = 1e-3  # of the losses after an update


def summary(
    case: Mapping[str, Any],
    sides: Mapping[str, Mapping[str, Any]],
    seconds: Mapping[str, Sequence[float]],
) -> dict[str, Any]:
    """One entry of the results.

    Args:
        case: The case's sizes, as they are written.
        sides: What each side said of itself: `num_parameters`, `losses`, `settings`.
        seconds: Of one update, per side, one number a round; round i of all sides was
            run one after the other. The first side is jaxgen.

    Returns:
        `ms_per_step` (medians per side), and per other side `ratios`: `median`, the
        ratio of the medians, its seconds over jaxgen's (above 1, jaxgen is faster), and
        `p10` and `p90` of the rounds' own ratios, and `fastest`, the ratio of the
        fastest timings, which other programs disturbed least.

    Raises:
        ValueError: if the sides are not one model: other parameters, or other losses.
    """
    first = next(iter(sides))
    check_equal(sides)
    ours = np.asarray(seconds[first])
    ratios = {}
    for side in list(sides)[1:]:
        theirs = np.asarray(seconds[side])
        p10, p90 = np.percentile(theirs / ours, [10, 90])
        ratios[side] = {
            "median": float(np.median(theirs) / np.median(ours)),
            "p10": float(p10),
            "p90": float(p90),
            "fastest": float(theirs.min() / ours.min()),
        }
    return {
        **case,
        "num_parameters": sides[first]["num_parameters"],
        "rounds": len(ours),
        "ms_per_step": {s: 1e3 * float(np.median(seconds[s])) for s in sides},
        "ratios": ratios,
        "losses": {s: list(told["losses"]) for s, told in sides.items()},
        "settings": {s: told["settings"] for s, told in sides.items()},
    }


def check_equal(sides: Mapping[str, Mapping[str, Any]]) -> None:
    """Raises ValueError unless all sides have one number of parameters and one loss."""
    first, *others = sides
    for side in others:
        for key in ("num_parameters", "losses"):
            ours, theirs = sides[first][key], sides[side][key]
            if key == "losses":
                near = np.isclose(theirs, ours, rtol=LATER_TOLERANCE, atol=0)
                near[0] = np.isclose(theirs[0], ours[0], rtol=TOLERANCE, atol=0)
                equal = near.all()
            else:
                equal = ours == theirs
            if not equal:
                raise ValueError(
                    f"{key}: {side} has {theirs}, {first} {ours}: not the same model"
                )


def table(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """The results as lines of text."""
    head = ("case", "side", "parameters", "ms/step", "ratio", "p10", "p90", "fastest")
    rows: list[tuple[str, ...]] = [head]
    for result in results:
        for side, ms in result["ms_per_step"].items():
            ratio = result["ratios"].get(side, {})
            told = [f"{value:.2f}" for value in ratio.values()]
            size = f"{result['num_parameters']:,}"
            rows.append((result["case"], side, size, f"{ms:.3f}", *told))
    widths = [max(len(r[i]) for r in rows if i < len(r)) for i in range(len(head))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False))
        for row in rows
    ]
