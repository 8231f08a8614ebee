"""Averages of the parameters that a run stores for an average of another width later.

RUN/averages/<step>.npz holds, in float32 or what the parameters have, each average of
`--ema-widths` as arrays named WIDTH/PLAYER/...; `numpy.load` reads it. The newest
checkpoint holds those of its own step.
"""

import io
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxgen import averaging
from jaxgen._checks import RunError, UserError
from jaxgen.train import rundir

MAX_FILES = 40
MAX_ERROR = 0.1  # of the profile of a reconstruction that is still given
UNREADABLE = (
    OSError, ValueError, KeyError, EOFError, RuntimeError, OverflowError,
    zipfile.BadZipFile, zlib.error,
)  # fmt: skip


def write(
    folder: Path, step: int, widths: Sequence[float], averages: Any, *, every: int
) -> None:
    """Stores the averages of a step, and thins what is there to `MAX_FILES` files.

    Args:
        folder: Where they lie; made where it is missing.
        step: The updates done.
        widths: Of the averages.
        averages: One tree for each width.
        every: Steps between two calls, but for the last.

    Raises:
        RunError: if they cannot be written.
    """
    arrays: dict[str, Any] = {
        f"{width}/{name}": np.asarray(leaf)
        for width, tree in zip(widths, averages, strict=True)
        for name, leaf in zip(_names(tree), jax.tree.leaves(tree), strict=True)
    }
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise RunError(f"cannot make {folder}: {error.strerror}") from error
    rundir.write_bytes(folder / f"{step}.npz", buffer.getvalue())
    there = stored(folder)
    for other in set(there) - set(thinned(there, every)):
        (folder / f"{other}.npz").unlink(missing_ok=True)


def stored(folder: Path) -> list[int]:
    """The steps of which there is a file, rising."""
    names = [path.stem for path in folder.glob("*.npz")]
    return sorted(int(name) for name in names if name.isascii() and name.isdigit())


def thinned(steps: Sequence[int], every: int) -> list[int]:
    """At most `MAX_FILES` of the rising steps, evenly spread over the run.

    They are the newest and the multiples of `every` * 2^k, with the smallest k that
    leaves so few. With k = 0 the steps of another interval, which the run had before,
    stay too where there is room.
    """
    spacing = every
    while (steps[-1] - 1) // spacing >= MAX_FILES:
        spacing *= 2
    if spacing == every and len(steps) <= MAX_FILES:
        return list(steps)
    return [step for step in steps if step % spacing == 0 or step == steps[-1]]


def drop_after(folder: Path, step: int) -> None:
    """Removes what a run had stored after the step from which it goes on."""
    for other in stored(folder):
        if other > step:
            (folder / f"{other}.npz").unlink()


def rebuild(
    folder: Path,
    step: int,
    widths: Sequence[float],
    averages: Any,
    width: float,
) -> tuple[Any, list[str]]:
    """The average of another width after `step`, mixed from what the run has stored.

    Args:
        folder: Of the stored averages.
        step: Of the checkpoint.
        widths: Of the averages that the run keeps.
        averages: Those of the checkpoint, one tree for each width.
        width: The one that is wanted.

    Returns:
        The parameters, and notes: one on each damaged file, which is left out, and one
        on how near the reconstruction comes.

    Raises:
        UserError: if the run keeps none, or those stored are too few or too far away.
    """
    if not 0 < width < averaging.MAX_WIDTH:
        raise UserError(
            f"--ema-width must be in (0, {averaging.MAX_WIDTH}), got {width}"
        )
    if not widths:
        raise UserError(
            "--ema-width: this run has stored no averages: it was trained without "
            "--ema-widths"
        )
    files, notes = [], []
    for other in (s for s in stored(folder) if s < step):
        path = folder / f"{other}.npz"
        fault = find_fault(path, widths, averages[0])
        if fault is None:
            files.append((other, path))
        else:
            notes.append(f"{path} is left out: {fault}")
    known = [(s, w) for s, _ in files for w in widths] + [(step, w) for w in widths]
    mixture = averaging.posthoc(known, step, width)
    parts = np.reshape(mixture.weights, (-1, len(widths)))
    count = f"{len(parts)} moments of {len(widths)} averages"
    if mixture.error > MAX_ERROR:
        raise UserError(
            f"--ema-width {width}: {count} at {', '.join(map(str, widths))} come no "
            f"nearer to it than {mixture.error:.0%}; a width nearer to those"
            + "".join(f"; {note}" for note in notes)
        )
    notes.append(
        f"average of width {width} at step {step:,}: rebuilt from {count}, to "
        f"{100 * mixture.error:.2g} % of its profile"
    )
    total = _mixed(parts[-1], [jax.tree.leaves(tree) for tree in averages])
    for (_, path), weights in zip(files, parts[:-1], strict=True):
        with np.load(path, allow_pickle=False) as file:
            leaves = [[file[f"{w}/{n}"] for n in _names(averages[0])] for w in widths]
            total = [a + b for a, b in zip(total, _mixed(weights, leaves), strict=True)]
    like, form = jax.tree.flatten(averages[0])
    cast = [a.astype(b.dtype) for a, b in zip(total, like, strict=True)]
    return jax.tree.unflatten(form, cast), notes


def find_fault(path: Path, widths: Sequence[float], like: Any) -> str | None:
    """What is wrong with a file of averages of the form of `like`, or None."""
    shapes = dict(zip(_names(like), jax.tree.leaves(like), strict=True))
    try:
        with zipfile.ZipFile(path) as archive:
            if damaged := archive.testzip():
                return f"{damaged} is damaged"
        with np.load(path, allow_pickle=False) as file:
            wrong = [
                name
                for width in widths
                for name, leaf in shapes.items()
                if file[f"{width}/{name}"].shape != leaf.shape
            ]
    except UNREADABLE as error:
        return f"it cannot be read ({(str(error) or repr(error)).splitlines()[0]})"
    return f"{wrong[0]} has another shape" if wrong else None


def _names(tree: Any) -> list[str]:
    return [
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, _ in jax.tree.leaves_with_path(tree)
    ]


def _mixed(weights: np.ndarray, averages: Sequence[Sequence[Any]]) -> list[np.ndarray]:
    """The weighted sum of several lists of arrays, in float64."""
    return [
        np.tensordot(weights, np.stack(leaves).astype(np.float64), 1)
        for leaves in zip(*averages, strict=True)
    ]
