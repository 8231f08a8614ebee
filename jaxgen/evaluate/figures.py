"""Curves as figures of a page: SVG inside HTML."""

import io
import textwrap
from typing import Any

import numpy as np

from jaxgen.evaluate import formats

COLOURS = ("#1d5fb4", "#c2410c", "#15803d", "#7e22ce")

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
    """The axes as SVG, for a light page; the style of a dark one inverts it."""
    import matplotlib as mpl  # half a second: only a report needs it
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

    grey, rule = "#4a4e54", "#d8d8d2"
    style: Any = {"svg.fonttype": "none", "svg.hashsalt": "jaxgen", "font.size": 9}
    greys = ("axes.labelcolor", "text.color", "xtick.color", "ytick.color")
    style |= dict.fromkeys(greys, grey) | {"text.parse_math": False}
    style |= {"axes.edgecolor": rule, "grid.color": rule, "axes.grid": True}
    style |= {"axes.spines.top": False, "axes.spines.right": False}
    with mpl.rc_context(style):
        figure = Figure(figsize=(3.7, 2.2), layout="constrained")
        axes = figure.subplots()
        for number, (name, (steps, values)) in enumerate(lines.items()):
            colour, marker = COLOURS[number % len(COLOURS)], "o" * (len(steps) == 1)
            axes.plot(steps, values, color=colour, lw=1.4, marker=marker, label=name)
        if len(lines) > 1:
            figure.legend(loc="outside lower center", ncols=3, frameon=False)
        axes.set(ylim=limits, xlabel=xlabel, ylabel=unit)
        title = textwrap.fill(title, 40)
        axes.set_title(title, loc="left", fontsize=10, fontweight="bold")
        if log:
            axes.set_xscale("log")
            axes.xaxis.set_minor_formatter(NullFormatter())
        else:
            axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,.10g}"))
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return buffer.getvalue()
