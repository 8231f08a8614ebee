"""What is made of the seconds: pure arithmetic, no jax and no torch."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

TOLERANCE = 1e-4  # of the first loss and of densities, relative; of samples, absolute
LATER_TOLERANCE = 1e-3  # of the losses after an update

Densities = Sequence[Sequence[float]]  # log p(x) of some x as told, and numerically


def summary(
    case: Mapping[str, Any],
    sides: Mapping[str, Mapping[str, Any]],
    seconds: Mapping[str, Sequence[float]],
) -> dict[str, Any]:
    """One entry of the results.

    Args:
        case: The case's sizes, as they are written.
        sides: What each side said of itself: `num_parameters`, `settings`, and what is
            compared, `losses` or `samples` of one sampler.
        seconds: Of one update or sampled batch, per side, one number a round; round i
            of all sides was run one after the other. The first side is jaxgen.

    Returns:
        `ms_per_step` (medians per side), `examples_per_s`, `num_parameters`, and per other
        side `ratios`: `median`, the ratio of the medians, its seconds over jaxgen's
        (above 1, jaxgen is faster), and `p10` and `p90` of the rounds' own ratios, and
        `fastest`, the ratio of the fastest timings, which other programs disturbed
        least.

    Raises:
        ValueError: if the sides are not one model: numbers of parameters further apart
            than the case allows, other losses, or other samples.
    """
    first = next(iter(sides))
    check_equal(sides, parameters_apart=case["parameters_apart"])
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
    medians = {side: float(np.median(seconds[side])) for side in sides}
    return {
        **case,
        "num_parameters": {s: told["num_parameters"] for s, told in sides.items()},
        "rounds": len(ours),
        "ms_per_step": {s: 1e3 * median for s, median in medians.items()},
        "examples_per_s": {s: case["batch_size"] / m for s, m in medians.items()},
        "ratios": ratios,
        "settings": {s: told["settings"] for s, told in sides.items()},
        **{
            key: {s: list(told[key]) for s, told in sides.items()}
            for key in _CHECKS
            if key in sides[first]
        },
    }


def check_equal(
    sides: Mapping[str, Mapping[str, Any]], *, parameters_apart: float = 0.0
) -> None:
    """Raises ValueError unless all sides are one model, as far as they told of it."""
    first, *others = sides
    checks = {
        "num_parameters": lambda a, b: abs(a - b) <= parameters_apart * b,
        **{key: check for key, check in _CHECKS.items() if key in sides[first]},
    }
    for side in others:
        for key, equal in checks.items():
            ours, theirs = sides[first][key], sides[side][key]
            if not equal(theirs, ours):
                raise ValueError(
                    f"{key}: {side} has {theirs}, {first} {ours}: not the same model"
                )


def _equal_losses(theirs: Sequence[float], ours: Sequence[float]) -> bool:
    near = np.isclose(theirs, ours, rtol=LATER_TOLERANCE, atol=0)
    near[0] = np.isclose(theirs[0], ours[0], rtol=TOLERANCE, atol=0)
    return bool(near.all())


def _equal_samples(theirs: Sequence[float], ours: Sequence[float]) -> bool:
    return np.allclose(theirs, ours, rtol=0, atol=TOLERANCE)


def _own_densities(theirs: Densities, ours: Densities) -> bool:
    """Each side's own, as the libraries' transforms of a value differ."""
    return all(np.allclose(*pair, rtol=TOLERANCE, atol=1e-3) for pair in (theirs, ours))


_CHECKS = {
    "losses": _equal_losses,
    "samples": _equal_samples,
    "densities": _own_densities,
}


def table(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """The results as lines of text."""
    head = ("case", "side", "parameters", "ms/step", "images/s")
    head += ("ratio", "p10", "p90", "fastest")
    rows: list[tuple[str, ...]] = [head]
    for result in results:
        for side, ms in result["ms_per_step"].items():
            ratio = result["ratios"].get(side, {})
            told = [f"{value:.2f}" for value in ratio.values()]
            size = f"{result['num_parameters'][side]:,}"
            speed = f"{ms:.3f}", f"{result['examples_per_s'][side]:,.1f}"
            rows.append((result["case"], side, size, *speed, *told))
    widths = [max(len(r[i]) for r in rows if i < len(r)) for i in range(len(head))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False))
        for row in rows
    ]
