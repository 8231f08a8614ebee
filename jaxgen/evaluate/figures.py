"""Curves as figures of a page: SVG inside HTML."""

import io
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxgen.evaluate import formats

COLOURS = ("#1d5fb4", "#c2410c", "#15803d", "#7e22ce")

WIDE = 30.0  # the ratio of values from which on their axis is logarithmic

Lines = dict[str, tuple[np.ndarray, np.ndarray]]  # {name: (positions, values)}


def figure(
    title: str, unit: str, lines: Lines, *, xlabel: str = "step", log: bool = False
) -> str:
    """Lines over steps, or over another positive number, as an HTML figure.

    Args:
        title: What is shown.
        unit: Of the values.
        lines: `{name: (positions, values)}`; a name is shown where there are several.
        xlabel: What the positions are.
        log: Whether their axis is logarithmic.
    """
    everything = np.concatenate([values for _, values in lines.values()])
    low, high = _limits(everything)
    outside = int(np.sum((everything < low) | (everything > high)))
    named = lines.items() if len(lines) > 1 else [("", *lines.values())]
    ends = [
        f"{name} {formats.short(values[-1])}".strip() for name, (_, values) in named
    ]
    last = float(max(positions[-1] for positions, _ in lines.values()))
    where = f"{last:,.0f}" if last.is_integer() else f"{last:,.4g}"
    text = f"{title}: {', '.join(ends)} at {xlabel} {where}."
    if outside:
        text += f" Outside the range shown: {outside} of {len(everything)} points."
    text = formats.text(text)
    source = formats.uri(
        "svg+xml", _plot(title, unit, lines, (low, high), xlabel, log=log)
    )
    image = f'<img alt="{text}" src="{source}">'
    return f"<figure>{image}<figcaption>{text}</figcaption></figure>"


def dots(
    title: str,
    groups: Mapping[str, Sequence[tuple[float, float | None]]],
    marks: Mapping[str, float],
) -> bytes:
    """Values of groups side by side, each with its mean, as SVG.

    Args:
        title: What is shown.
        groups: The values of each and their standard errors, which are drawn.
        marks: Level lines under their names.
    """
    from matplotlib.ticker import NullFormatter

    values = [value for pairs in groups.values() for value, _ in pairs]
    values += marks.values()
    wide = min(values) > 0 and max(values) > WIDE * min(values)

    def draw(figure: Any, axes: Any) -> None:
        del figure
        for place, pairs in enumerate(groups.values()):
            colour = COLOURS[place % len(COLOURS)]
            for i, (value, error) in enumerate(pairs):
                at = place + 0.3 * ((i + 0.5) / len(pairs) - 0.5)
                axes.errorbar(at, value, error, fmt="o", color=colour, ms=4, lw=1)
            mean = np.mean([value for value, _ in pairs])
            axes.hlines(mean, place - 0.3, place + 0.3, color=colour, lw=1.6)
        for name, level in marks.items():
            axes.axhline(level, color="#4a4e54", lw=1, ls="--")
            axes.annotate(
                name, (1, level), xycoords=("axes fraction", "data"), ha="right",
                va="bottom", fontsize=8,
            )  # fmt: skip
        axes.set_xticks(range(len(groups)), list(groups))
        axes.set_xlim(-0.6, len(groups) - 0.4)
        if wide:
            axes.set_yscale("log")
            axes.yaxis.set_minor_formatter(NullFormatter())
        axes.yaxis.set_major_formatter(_figures())

    return _drawn(title, draw)


def _limits(values: np.ndarray) -> tuple[float, float]:
    """A range that a few huge values, such as the first, do not stretch.

    What lies further from the 5 % and 95 % quantiles than these from each other is cut.
    """
    low, high = float(values.min()), float(values.max())
    if len(values) > 3:  # then neither quantile is the extreme value itself
        first = float(np.quantile(values, 0.05, method="higher"))
        last = float(np.quantile(values, 0.95, method="lower"))
        spread = last - first or abs(last)
        low, high = max(low, first - spread), min(high, last + spread)
    margin = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    return low - margin, high + margin


def _plot(
    title: str,
    unit: str,
    lines: Lines,
    limits: tuple[float, float],
    xlabel: str,
    *,
    log: bool,
) -> bytes:
    from matplotlib.ticker import MaxNLocator, NullFormatter

    def draw(figure: Any, axes: Any) -> None:
        for number, (name, (steps, values)) in enumerate(lines.items()):
            colour, marker = COLOURS[number % len(COLOURS)], "o" * (len(steps) == 1)
            axes.plot(steps, values, color=colour, lw=1.4, marker=marker, label=name)
        if len(lines) > 1:
            figure.legend(loc="outside lower center", ncols=3, frameon=False)
        axes.set(ylim=limits, xlabel=xlabel, ylabel=unit)
        if log:
            axes.set_xscale("log")
            axes.xaxis.set_minor_formatter(NullFormatter())
        else:
            axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        axes.xaxis.set_major_formatter(_figures())
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        axes.yaxis.set_major_formatter(_figures())

    return _drawn(title, draw)


def _figures() -> Any:
    from matplotlib.ticker import FuncFormatter

    return FuncFormatter(lambda value, _: f"{value:,.10g}")


def _drawn(title: str, draw: Callable[[Any, Any], None]) -> bytes:
    """Axes as SVG, for a light page; the style of a dark one inverts it."""
    import matplotlib as mpl  # half a second: only a page needs it
    from matplotlib.figure import Figure

    grey, rule = "#4a4e54", "#d8d8d2"
    style: Any = {"svg.fonttype": "none", "svg.hashsalt": "jaxgen", "font.size": 9}
    greys = ("axes.labelcolor", "text.color", "xtick.color", "ytick.color")
    style |= dict.fromkeys(greys, grey) | {"text.parse_math": False}
    style |= {"axes.edgecolor": rule, "grid.color": rule, "axes.grid": True}
    style |= {"axes.spines.top": False, "axes.spines.right": False}
    with mpl.rc_context(style):
        figure = Figure(figsize=(3.7, 2.2), layout="constrained")
        axes = figure.subplots()
        draw(figure, axes)
        title = textwrap.fill(title, 40)
        axes.set_title(title, loc="left", fontsize=10, fontweight="bold")
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return buffer.getvalue()
