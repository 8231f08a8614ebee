"""A competition of the families as a table of Markdown and as a picture."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxgen.bench.families import FIGURES, Row
from jaxgen.train import pictures

NUM_SHOWN = 36  # samples of each family
BLUE, PALE, RED, GREY = "#1d5fb4", "#9dbfe6", "#c2410c", "#4a4e54"


def table(rows: Sequence[Row]) -> str:
    """The rows, and what real images have; mean and deviation over the runs."""
    names = ["family", "runs", "parameters", "updates", *FIGURES, "bits/dim"]
    names += ["trains, images/s", "draws, images/s"]
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    for row in rows:
        bits = "none"
        if row.bits_per_dim is not None:
            bits = f"{spread(row.bits_per_dim)} ({row.kind})"
        trains = row.examples_per_s
        cells = [row.name, len(row.seeds), f"{row.num_parameters:,}"]
        best = "" if row.best is None else f", best {np.mean(row.best):,.0f}"
        cells += [f"{np.mean(row.steps):,.0f}{best}"]
        cells += [spread(row.quality[name]) for name in FIGURES]
        cells += [bits, "" if trains is None else rounded(trains)]
        lines.append(_line([*cells, rounded(row.samples_per_s)]))
    floor = [f"{rows[0].floor[name]:.3g}" for name in FIGURES]
    lines.append(_line(["real images", "", "", "", *floor, "", "", ""]))
    return "\n".join(lines) + "\n"


def spread(values: Sequence[float]) -> str:
    """Mean and, where there are several, standard deviation: `3.21 ± 0.04`."""
    mean = f"{np.mean(values):.3g}"
    return mean if len(values) < 2 else f"{mean} ± {np.std(values, ddof=1):.2g}"


def rounded(rate: float) -> str:
    """A rate to two digits: `0.34`, `7.1`, `1,200`."""
    places = 1 - math.floor(math.log10(rate))
    return f"{round(rate, places):,.{max(0, places)}f}"


def figure(rows: Sequence[Row], samples: Mapping[str, np.ndarray], path: Path) -> None:
    """Draws samples above, quality and speed below.

    Args:
        rows: The entrants; bits/dim are drawn where some have them.
        samples: {title of a panel: uint8 images `[N, H, W, C]`}.
        path: Of the PNG.
    """
    from matplotlib.figure import Figure

    width = max(2.4 * len(samples), 10)
    heights = (width / len(samples) + 0.4, 3.1)
    drawn = Figure((width, sum(heights)), dpi=150, layout="constrained")
    parts: Any = drawn.subfigures(2, 1, height_ratios=heights)
    axes = parts[0].subplots(1, len(samples), squeeze=False)[0]
    for axis, (title, images) in zip(axes, samples.items(), strict=True):
        shown = pictures.grid(images[:NUM_SHOWN])
        axis.imshow(shown, cmap="grey", interpolation="nearest")
        axis.set_title(title, fontsize=13)
        axis.axis("off")
    likely = [row for row in rows if row.bits_per_dim is not None]
    axes = parts[1].subplots(1, 4 if likely else 3)
    _bars(axes[0], rows, lambda row: row.quality["frechet"])
    axes[0].set_title("Frechet distance: lower is better", fontsize=10)
    _bars(axes[1], rows, lambda row: row.quality["coverage"])
    axes[1].set_title("coverage: higher is better", fontsize=10)
    for axis, name in zip(axes, ("frechet", "coverage"), strict=False):
        axis.axhline(rows[0].floor[name], color=GREY, ls=":", label="real images")
        axis.legend(fontsize=8, frameon=False, loc="upper right")
    if likely:
        _bars(axes[2], likely, lambda row: row.bits_per_dim)
        axes[2].set_title("bits/dim: lower is better", fontsize=10)
    _speeds(axes[-1], rows)
    drawn.savefig(path, pad_inches=0.1, bbox_inches="tight")


def _bars(axis: Any, rows: Sequence[Row], values: Callable[[Row], Any]) -> None:
    """A bar of the mean with its number, and where there are several runs a dot each."""
    each = [values(row) for row in rows]
    means = [np.mean(some) for some in each]
    bars = axis.bar(range(len(rows)), means, color=BLUE, width=0.6)
    for place, some in enumerate(each):
        if len(some) > 1:
            axis.plot([place] * len(some), some, ".", color=RED)
    axis.bar_label(bars, [f"{mean:.3g}" for mean in means], fontsize=8, padding=5)
    axis.margins(y=0.25)
    _finish(axis, [row.name for row in rows])


def _speeds(axis: Any, rows: Sequence[Row]) -> None:
    """Images a second on a scale of powers of ten, in training and drawn."""
    places = np.arange(len(rows))
    trained = [r.examples_per_s for r in rows if r.examples_per_s is not None]
    if len(trained) == len(rows):
        bars = axis.bar(places - 0.2, trained, color=PALE, width=0.4, label="trains")
        told = [_short(rate) for rate in trained]
        axis.bar_label(bars, told, fontsize=7, padding=2)
    rates = [row.samples_per_s for row in rows]
    bars = axis.bar(places + 0.2, rates, color=BLUE, width=0.4, label="draws")
    axis.bar_label(bars, [_short(rate) for rate in rates], fontsize=7, padding=2)
    axis.set_yscale("log")
    axis.margins(y=0.2)
    axis.legend(fontsize=8, frameon=False, loc="upper right")
    axis.set_title("images a second, one core", fontsize=10)
    names = [f"{row.name}\n{row.num_parameters / 1e6:.2f} M" for row in rows]
    _finish(axis, names)


def _finish(axis: Any, names: Sequence[str]) -> None:
    axis.set_xticks(range(len(names)), names)
    axis.tick_params(labelsize=9)
    axis.spines[["top", "right"]].set_visible(False)


def _short(rate: float) -> str:
    """A rate to two digits, thousands as k: `7.1`, `1.2k`, `35k`."""
    return rounded(rate) if rate < 1000 else f"{rounded(rate / 1000)}k"


def _line(cells: Sequence[Any]) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"
