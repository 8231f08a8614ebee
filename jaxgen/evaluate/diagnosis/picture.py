"""diagnosis.png: where images vary too little, and at which frequencies."""

import io
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxgen.evaluate import features
from jaxgen.evaluate.diagnosis import variance
from jaxgen.evaluate.diagnosis.records import Subject

NAME = "diagnosis.png"
DOTS = 100  # an inch


def draw(subject: Subject, made: Mapping[str, np.ndarray]) -> bytes | None:
    """Maps of the data's deviation and of ratios of variance, and spectra, as PNG.

    Args:
        subject: The run beside its data.
        made: By name, samples or reconstructions, as they are stored.

    Returns:
        The picture; None of rows of a table, and of texts.
    """
    if subject.dataset.kind != "images":
        return None
    values, shape = features.pixels().apply, (-1, *subject.dataset.shape)
    x = values(subject.test["x"]).reshape(shape)
    return _figure(x, {n: values(a).reshape(shape) for n, a in made.items()})


def _figure(x: np.ndarray, made: dict[str, np.ndarray]) -> bytes:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({"font.size": 8}):
        num = len(made) + 2
        figure = Figure((3.1 * num, 2.9), dpi=DOTS, layout="constrained")
        axes = figure.subplots(1, num)
        _map(figure, axes[0], "deviation of data", x.std(axis=0), 0.5, "viridis")
        for axis, (name, images) in zip(axes[1:], made.items(), strict=False):
            ratio = variance.by_number(x, images)
            _map(figure, axis, f"variance of {name} / data", ratio, 2.0, "RdBu")
        shown = axes[-1]
        for name, images in {"data": x, **made}.items():
            told = variance.spectrum(images)
            kept = (told.frequency > 0) & (told.power > 0)
            shown.plot(told.frequency[kept], told.power[kept], label=name, lw=1.3)
        shown.set(xlabel="cycles a pixel", title="variance by frequency", yscale="log")
        shown.legend(frameon=False)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _map(
    figure: Any, axis: Any, title: str, image: np.ndarray, most: float, colours: str
) -> None:
    """A map over the image, the mean of its channels; grey where data never vary."""
    known = np.isfinite(image)
    counts = known.sum(axis=2)
    sums = np.where(known, image, 0.0).sum(axis=2)
    mean = np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
    axis.set_facecolor("0.6")
    shown = axis.imshow(mean, vmin=0.0, vmax=most, cmap=colours)
    figure.colorbar(shown, ax=axis, shrink=0.8)
    axis.set(title=title, xticks=[], yticks=[])
