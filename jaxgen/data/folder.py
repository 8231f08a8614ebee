"""`folder:PATH`: every picture below a directory, of whatever size and mode."""

import os
from pathlib import Path
from typing import Any

import numpy as np

from jaxgen._checks import UserError
from jaxgen.data import blocks, cache
from jaxgen.data.images import decode_image
from jaxgen.data.sources import (
    ArraySource,
    Dataset,
    Source,
    check_indices,
    hold_out,
)

DEFAULT_SIZE = 32
DEFAULT_CHANNELS = 3
SUFFIXES = (
    ".png .jpg .jpeg .bmp .gif .webp .tif .tiff .ppm .pgm .pbm".split()  # noqa: SIM905
)
_NAMES_LISTED = 20


class FolderSource:
    """Files decoded on demand: for folders too large to keep decoded in memory."""

    def __init__(self, root: Path, names: list[str], *, size: int, channels: int):
        self._root = root
        self._names = names
        self._options = {"size": size, "channels": channels, "orient": True}
        self.num_examples: int = len(names)
        self.shape: tuple[int, int, int] = (size, size, channels)

    def take(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Decodes the files at `indices`."""
        numbers = check_indices(indices, self.num_examples)
        x = np.empty((len(numbers), *self.shape), np.uint8)
        for row, number in enumerate(numbers):
            path = self._root / self._names[number]
            try:
                x[row] = decode_image(path, **self._options)
            except Exception as error:
                raise UserError(
                    f"folder: {path} could be read when the run started and now "
                    f"cannot ({_reason(error)}); put it back and resume."
                ) from error
        return {"x": x}


def find_images(path: str) -> tuple[Path, list[tuple[str, int, int]], list[str]]:
    """Lists the pictures below a directory, links to directories not followed.

    Returns:
        The directory; relative name, size and time (ns) of each file, sorted; and the
        sub-folders that may not be entered.
    """
    if not path:
        raise UserError("folder: no path given, expected a directory: folder:PATH.")
    root = Path(path).expanduser().absolute()
    if not root.is_dir():
        raise UserError(
            f"folder: {root} {'is a file' if root.exists() else 'does not exist'}, "
            "expected a directory of images; give folder:PATH of one."
        )
    try:
        os.listdir(root)
    except PermissionError as error:
        raise UserError(
            f"folder: no permission to read {root}, expected a directory you may list; "
            "change its permissions or choose another."
        ) from error
    closed: list[str] = []
    files = []
    for parent, folders, names in os.walk(
        root, onerror=lambda error: closed.append(f"{error.filename}/")
    ):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in names:
            if name.startswith(".") or not name.lower().endswith(tuple(SUFFIXES)):
                continue
            file = Path(parent, name)
            stat = file.stat() if file.exists() else file.lstat()  # a dead link
            relative = file.relative_to(root).as_posix()
            files.append((relative, stat.st_size, stat.st_mtime_ns))
    if not files:
        raise UserError(
            f"folder: {root} holds no image, expected files that end in "
            f"{' '.join(SUFFIXES)}; give another directory or convert the files."
        )
    return root, sorted(files), closed


def read_folder(
    root: Path,
    files: list[tuple[str, int, int]],
    closed: list[str],
    *,
    size: int,
    channels: int,
    max_decoded_bytes: int,
) -> Dataset:
    """Decodes every file once; keeps the pixels where `max_decoded_bytes` allows."""
    names = [name for name, _, _ in files]
    options: dict[str, Any] = {"size": size, "channels": channels, "orient": True}
    whole = len(names) * size * size * channels <= max_decoded_bytes
    x = np.empty((len(names) if whole else 0, size, size, channels), np.uint8)

    def read(number: int) -> str:
        try:
            pixels = decode_image(root / names[number], **options)
        except Exception as error:  # whatever Pillow says of a broken file
            return _reason(error)
        if whole:
            x[number] = pixels
        return ""

    # A large folder is not kept decoded, but which of its files can be read is.
    key = cache.make_key(kind="folder check", root=str(root), files=files)
    hit = None if whole else cache.load(key)
    if hit is None:
        faults = list(blocks.map_threads(read, range(len(names))))
        unreadable = {n: f for n, f in zip(names, faults, strict=True) if f}
        if not whole:
            cache.store(key, {}, {"unreadable": unreadable})
    else:
        unreadable = hit[1]["unreadable"]
    notes = _notes(len(names), unreadable, closed, size)
    if len(unreadable) == len(names):
        raise UserError(
            f"folder: none of the {len(names)} images in {root} can be read "
            f"({_listed(unreadable)}); convert them to PNG or JPEG."
        )
    good = [name for name in names if name not in unreadable]
    source: Source
    if whole:
        keep = [name not in unreadable for name in names]
        source = ArraySource(x[keep] if unreadable else x)
    else:
        source = FolderSource(root, good, size=size, channels=channels)
    train, test, held_out = hold_out(source, where=f"folder: {root}")
    return Dataset(
        name=f"folder:{root}",
        train=train,
        test=test,
        shape=source.shape,
        num_classes=None,
        notes=(*notes, held_out),
    )


def _notes(
    num: int, unreadable: dict[str, str], closed: list[str], size: int
) -> list[str]:
    notes = [f"images cropped to the centre square and resized to {size}x{size}"]
    if unreadable:
        notes.append(
            f"{len(unreadable)} of {num} files unreadable and left out: "
            f"{_listed(unreadable)}"
        )
    if closed:
        notes.append(f"{len(closed)} sub-folders without permission: {closed[0]} ...")
    return notes


def _listed(unreadable: dict[str, str]) -> str:
    shown = [f"{n} ({f})" for n, f in list(unreadable.items())[:_NAMES_LISTED]]
    more = len(unreadable) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")


def _reason(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:120]
