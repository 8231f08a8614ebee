"""`text:FILE` and `text:pydoc`: windows of a text as examples, uint8 `[L]`, byte by byte.

The first 80 % of a text are trained on, the next 10 % validate, the last 10 % test: no
byte is in two of them. Windows of the training split begin every few bytes and overlap;
those of the others are side by side, so that every byte is judged once.
"""

import math
import platform
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxgen._checks import UserError, unknown
from jaxgen.data.config import DataConfig
from jaxgen.data.sources import HOLD_OUT_SHARE, ArraySource, Dataset

PREFIX = "text:"
DEFAULT_LENGTH = 128
STRIDE = 16  # bytes between the beginnings of two training windows, at least
MAX_BYTES = 256 * 2**20  # of all training windows, where they overlap
BUNDLED = {"pydoc": "The language reference that comes with Python, about 370 kB."}


class Splits(NamedTuple):
    """The bytes of a text, uint8 `[N]` each, in their order."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


def check(config: DataConfig) -> None:
    """Raises UserError for options that no text has, or windows of no length."""
    if config.columns:
        raise UserError(
            f"--columns is for tables, {config.name} holds texts; leave it out"
        )
    if config.length is not None and config.length < 2:
        raise UserError(f"--length must be at least 2 bytes, got {config.length}")


def open_text(name: str, length: int | None) -> Dataset:
    """The windows of a text.

    Args:
        name: With its prefix.
        length: L; None for 128.

    Raises:
        UserError: if there is no such text, or it is too short.
    """
    length = DEFAULT_LENGTH if length is None else length
    parts, where, notes = read(name)
    total = sum(map(len, parts))
    if len(parts.test) < length:
        raise UserError(
            f"{where} has {total:,} bytes, expected at least {least(length):,} for windows "
            f"of {length}, since 10 % are held out as test: a longer text, or a smaller --length"
        )
    stride = max(STRIDE, math.ceil(len(parts.train) * length / MAX_BYTES))
    stride = min(stride, length)
    side_by_side = [ArraySource(windows(part, length, length)) for part in parts[1:]]
    return Dataset(
        name=where,
        train=ArraySource(windows(parts.train, length, stride)),
        test=side_by_side[1],
        shape=(length,),
        num_classes=None,
        notes=(
            *notes,
            f"{total:,} bytes: the first {len(parts.train):,} to train, "
            f"{len(parts.validation):,} to validate, the last {len(parts.test):,} to test",
        ),
        validation=side_by_side[0],
    )


def read(name: str) -> tuple[Splits, str, tuple[str, ...]]:
    """The bytes of a text, its name with an absolute path, and notes for the user.

    Raises:
        UserError: if it cannot be read.
    """
    place, notes = name.removeprefix(PREFIX), ()
    if place in BUNDLED:
        text = _pydoc()
        notes = (
            f"the language reference of Python {platform.python_version()}, without "
            "paragraphs that come again: another version's is another text",
        )
    else:
        path = Path(place).expanduser().absolute()
        if not path.is_file():
            what = "is a folder" if path.is_dir() else "is not there"
            known = unknown("text", place, [*BUNDLED, "FILE"])
            raise UserError(f"--data {name}: {path} {what}: {known}")
        try:
            text = path.read_bytes()
        except OSError as error:
            raise UserError(f"--data {name}: {path}: {error.strerror}") from error
        name = f"{PREFIX}{path}"
    whole = np.frombuffer(text, np.uint8)
    held = round(HOLD_OUT_SHARE * len(whole))
    train, validation, test = np.split(
        whole, [len(whole) - 2 * held, len(whole) - held]
    )
    return Splits(train, validation, test), name, notes


def least(length: int) -> int:
    """The bytes that a text must have for windows of this length."""
    return math.ceil((length - 0.5) / HOLD_OUT_SHARE)


def windows(text: np.ndarray, length: int, stride: int) -> np.ndarray:
    """All windows `[N, length]` of a text that begin every `stride` bytes, copied."""
    views = np.lib.stride_tricks.sliding_window_view(text, length)
    return np.ascontiguousarray(views[::stride])


def _pydoc() -> bytes:
    """The topics of `help()`, in the order of their names, each paragraph once."""
    from pydoc_data.topics import topics

    seen, kept = set(), []
    for name in sorted(topics):
        for paragraph in topics[name].split("\n\n"):
            if (bare := paragraph.strip()) not in seen:
                seen.add(bare)
                kept.append(paragraph)
    return "\n\n".join(kept).encode()
