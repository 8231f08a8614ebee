"""What examples are, images, rows or texts, to those who show and store them."""

import csv
import io
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxgen.columns import Column
from jaxgen.train import pictures

MAX_SHOWN = 6  # columns of a table
DOTS = 100  # an inch
POINTS, GAP = 12, 6  # pixels of a letter's height, and around texts


class Medium(NamedTuple):
    """How examples are called, stored and shown.

    Attributes:
        unit: Their name, in the plural.
        num_samples: How many are drawn for a picture.
        stored: From what a model gives to what is written, `[N, ...]`.
        picture: From stored examples to one picture `[height, width, 1 or 3]`, uint8.
        width: Of a picture of so many examples, in pixels.
        suffixes: Of the files they can be written to, the first by default.
        bits: The unit of a likelihood that does not depend on an example's size.
    """

    unit: str
    num_samples: int
    stored: Callable[[np.ndarray], np.ndarray]
    picture: Callable[[np.ndarray], np.ndarray]
    width: Callable[[int], int]
    suffixes: tuple[str, ...]
    bits: str = "bits/dim"


def of(model: Any) -> Medium:
    """The medium of a model's resolved config."""
    columns = getattr(model, "columns", None)
    if columns is None and len(model.shape) == 1:
        return Medium(
            unit="texts",
            num_samples=16,
            stored=lambda x: np.asarray(x).astype(np.uint8),
            picture=writing_of,
            width=lambda num: writing_of(np.zeros((1, 1), np.uint8)).shape[1],
            suffixes=(".txt", ".npz", ".png"),
            bits="bits/byte",
        )
    if columns is None:
        return Medium(
            unit="images",
            num_samples=64,
            stored=pictures.to_uint8,
            picture=pictures.grid,
            width=lambda num: math.ceil(math.sqrt(num)) * (model.shape[1] + 1) - 1,
            suffixes=(".png", ".npz"),
        )
    return Medium(
        unit="rows",
        num_samples=1024,
        stored=lambda x: np.asarray(x, np.float32),
        picture=lambda rows: scatter(rows, columns),
        width=lambda num: round(DOTS * _inches(len(_shown(columns)))),
        suffixes=(".csv", ".npz", ".png"),
    )


def writing_of(texts: np.ndarray, *, columns: int = 64) -> np.ndarray:
    """Texts one below the other, in lines of so many characters; a line's end is shown.

    Args:
        texts: `[N, L]` uint8, bytes of UTF-8; those that are none are shown as a mark.
        columns: Characters in a line.

    Returns:
        `[height, width, 1]` uint8.
    """
    from matplotlib import font_manager
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.truetype(font_manager.findfont("DejaVu Sans Mono"), POINTS)
    across, down = round(font.getlength("m")), round(1.3 * POINTS)
    lines = math.ceil(texts.shape[1] / columns)
    step = lines * down + GAP
    picture = Image.new("L", (across * columns + 2 * GAP, step * len(texts)), 255)
    draw = ImageDraw.Draw(picture)
    for i, row in enumerate(texts):
        shown = bytes(row).decode("utf-8", "replace").replace("\n", "\u21b5")
        shown = "".join(c if c.isprintable() else "\ufffd" for c in shown)
        for line in range(lines):
            part = shown[line * columns : (line + 1) * columns]
            draw.text((GAP, i * step + line * down), part, fill=0, font=font)
        draw.line((0, (i + 1) * step - 1, picture.width, (i + 1) * step - 1), fill=192)
    return np.asarray(picture)[..., None]


def scatter(rows: np.ndarray, columns: Sequence[Column]) -> np.ndarray:
    """Each of the first columns against each, and its histogram.

    Args:
        rows: `[N, C]`.
        columns: Their names and kinds; a positive one has a logarithmic axis.

    Returns:
        `[height, width, 3]` uint8.
    """
    from matplotlib.figure import Figure

    shown = _shown(columns)
    side = _inches(len(shown))
    figure = Figure((side, side), dpi=DOTS, layout="constrained")
    axes = figure.subplots(len(shown), len(shown), squeeze=False)
    for i, row in enumerate(shown):
        for j, column in enumerate(shown):
            axis = axes[i, j]
            if j > i:
                axis.axis("off")
                continue
            across, up = _for_axis(rows, columns, column), _for_axis(rows, columns, row)
            if i == j:
                axis.hist(across[np.isfinite(across)], bins=40, color="C0")
                axis.set_yticks([])
            else:
                axis.plot(across, up, ".", color="C0", ms=3, alpha=0.5, mew=0)
            axis.tick_params(labelsize=6)
            if i == len(shown) - 1:
                axis.set_xlabel(_label(columns[column]), fontsize=7)
            if j == 0 and i:
                axis.set_ylabel(_label(columns[row]), fontsize=7)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="rgba")
    pixels = np.frombuffer(buffer.getvalue(), np.uint8)
    return pixels.reshape(round(DOTS * side), -1, 4)[..., :3]


def file_of(
    model: Any, suffix: str, samples: np.ndarray, beside: Mapping[str, np.ndarray]
) -> bytes:
    """The content of a file of stored samples.

    Args:
        model: Its resolved config.
        suffix: One of its medium's.
        samples: `[N, ...]`.
        beside: Further numbers of each, `[N]`, by name; a picture does not show them.
    """
    if suffix == ".csv":
        names = [column.name for column in model.columns]
        table = np.column_stack([samples, *beside.values()])
        return _csv([*names, *beside], table).encode()
    if suffix == ".txt":
        texts = (bytes(row).decode("utf-8", "replace") for row in samples)
        return "".join(f"--- {i}\n{text}\n" for i, text in enumerate(texts)).encode()
    if suffix == ".npz":
        buffer = io.BytesIO()
        arrays: dict[str, Any] = {of(model).unit: samples, **beside}
        np.savez_compressed(buffer, **arrays)
        return buffer.getvalue()
    return pictures.png(of(model).picture(samples), min_side=256)


def _csv(names: Sequence[str], rows: np.ndarray) -> str:
    """Rows under a header, with as many digits as float32 has."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    writer.writerows([[f"{value:.9g}" for value in row] for row in rows])
    return text.getvalue()


def _shown(columns: Sequence[Column]) -> list[int]:
    return [i for i, c in enumerate(columns) if not c.is_context][:MAX_SHOWN]


def _inches(num: int) -> float:
    return 3.2 if num == 1 else 1.7 * num


def _for_axis(rows: np.ndarray, columns: Sequence[Column], place: int) -> np.ndarray:
    values = rows[:, place].astype(np.float64)
    if columns[place].kind == "positive":
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.log10(values)
    return values


def _label(column: Column) -> str:
    name = column.name if len(column.name) <= 20 else f"{column.name[:19]}…"
    name = name.replace("$", r"\$")
    return f"log10 {name}" if column.kind == "positive" else name
