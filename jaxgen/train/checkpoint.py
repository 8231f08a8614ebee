"""Checkpoints that are verified before they are trusted.

Orbax writes the arrays (in the background, into a temporary folder renamed at the end);
we add `manifest.json`, the SHA-256 of every file, written last. A folder without a
manifest that fits it byte for byte is not a checkpoint: Orbax alone restores silently
wrong weights after one flipped byte.
"""

import hashlib
import json
import os
import shutil
import threading
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from jaxgen._checks import RunError
from jaxgen.train import processes

MANIFEST = "manifest.json"
UNFINISHED = f"no {MANIFEST}: it was not written to the end"


class CheckpointError(RunError):
    """A checkpoint could not be written, or none could be read."""


class Checkpoints:
    """The checkpoints of one run, `<directory>/<step>/`.

    Args:
        directory: Where they lie; made when the first is written.
        keep: How many of the newest stay.
    """

    def __init__(self, directory: Path, *, keep: int = 2):
        self._directory = directory.absolute()
        self._keep = keep
        # Folders are made at once: a background failure to make them would be noticed
        # by Orbax only after its own time-out of many minutes.
        # Each run's own barriers, or those of runs that are saved at once mix.
        self._orbax = ocp.StandardCheckpointer(
            async_options=ocp.options.AsyncOptions(
                timeout_secs=120, create_directories_asynchronously=False
            ),
            multiprocessing_options=ocp.options.MultiprocessingOptions(
                barrier_sync_key_prefix=hashlib.sha256(
                    str(directory).encode()
                ).hexdigest()[:16]
            ),
        )
        self._sealer: threading.Thread | None = None
        self._error: Exception | None = None

    def save(self, step: int, state: Any) -> None:
        """Starts writing `state`; returns once it may be donated to the next update.

        Raises:
            CheckpointError: if this or the previous write failed.
        """
        self.wait()
        path = self._directory / str(step)
        try:
            if processes.is_first():
                if path.exists():  # left by an interrupted write, or damaged
                    shutil.rmtree(path)
                self._directory.mkdir(parents=True, exist_ok=True)
            self._orbax.save(path, _stored(state))
        except Exception as error:
            raise CheckpointError(_why(path, error)) from error
        self._sealer = threading.Thread(target=self._seal, args=(path,))
        self._sealer.start()

    def wait(self) -> None:
        """Returns when everything saved so far is on disk and sealed."""
        if self._sealer is not None:
            self._sealer.join()
            self._sealer = None
        if self._error is not None:
            error, self._error = self._error, None
            raise CheckpointError(str(error)) from error

    def close(self) -> None:
        """Lets a write in progress end, whatever becomes of it; for the way out."""
        if self._sealer is not None:
            self._sealer.join()

    def _seal(self, path: Path) -> None:
        try:
            self._orbax.wait_until_finished()
            if not processes.is_first():
                return
            write_manifest(path)
            for step in steps(self._directory)[self._keep :]:
                shutil.rmtree(self._directory / str(step), ignore_errors=True)
        except Exception as error:
            self._error = CheckpointError(_why(path, error))

    def newest(self, *, at_most: int | None = None) -> tuple[int | None, list[str]]:
        """The newest valid step, and a line for each newer one that was passed over.

        What was not written to the end is removed; a damaged folder is renamed
        `<step>.damaged`, so that it is met only once. Only one process may ask.

        Args:
            at_most: The latest step that is wanted; None for any.

        Raises:
            CheckpointError: if a folder cannot be read.
        """
        for leftover in self._directory.glob("*orbax-checkpoint-tmp*"):
            shutil.rmtree(leftover, ignore_errors=True)
        valid, faults = newest_valid(self._directory, at_most=at_most)
        for path, fault in faults.items():
            if fault == UNFINISHED:
                shutil.rmtree(path)
            else:
                _set_aside(path)
        return None if valid is None else int(valid.name), _notes(faults)

    def drop_after(self, step: int) -> int:
        """Removes what was saved after a step; the newest that is left, or 0.

        Only one process may ask, after all have waited.
        """
        found = steps(self._directory)
        for saved in found:
            if saved > step:
                shutil.rmtree(self._directory / str(saved))
        return max((saved for saved in found if saved <= step), default=0)

    def read(self, step: int, abstract_state: Any) -> Any:
        """The state of a step that `newest` has named; every process reads its part.

        Raises:
            CheckpointError: if it holds another model.
        """
        return _read(self._orbax, self._directory / str(step), abstract_state)


def restore(directory: Path, abstract_state: Any) -> tuple[Any, list[str]]:
    """The newest valid state and notes, as `Checkpoints.newest`; changes nothing on disk.

    Raises:
        CheckpointError: also if no checkpoint is valid.
    """
    directory = directory.absolute()
    faults: dict[Path, str] = {}

    def find() -> str:
        valid, newer = newest_valid(directory)
        faults.update(newer)
        if valid is None:
            reasons = "".join(f"; {note}" for note in _notes(faults))
            raise CheckpointError(f"no valid checkpoint under {directory}{reasons}")
        return valid.name

    path = directory / processes.from_first(find)
    return _read(ocp.StandardCheckpointer(), path, abstract_state), _notes(faults)


def newest_valid(
    directory: Path, *, at_most: int | None = None
) -> tuple[Path | None, dict[Path, str]]:
    """The newest folder without a fault, and the faults of the newer ones."""
    faults = {}
    for step in steps(directory):
        path = directory / str(step)
        if at_most is not None and step > at_most:
            continue
        fault = find_fault(path)
        if fault is None:
            return path, faults
        faults[path] = fault
    return None, faults


def steps(directory: Path) -> list[int]:
    """Steps that have a folder, newest first; none says it is valid."""
    if not directory.is_dir():
        return []
    names = (p.name for p in directory.iterdir())
    return sorted((int(n) for n in names if n.isascii() and n.isdigit()), reverse=True)


def write_manifest(path: Path) -> None:
    """Writes the digests of every file under `path`, and of themselves, last."""
    body = json.dumps(_digests(path), indent=1, sort_keys=True)
    text = f"{hashlib.sha256(body.encode()).hexdigest()}\n{body}"
    temporary = path / f".{MANIFEST}"
    with open(temporary, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path / MANIFEST)


def find_fault(path: Path) -> str | None:
    """What is wrong with a checkpoint folder, in a few words, or None if it is valid."""
    try:
        digest, _, body = (path / MANIFEST).read_bytes().partition(b"\n")
        if hashlib.sha256(body).hexdigest().encode() != digest:
            return f"{MANIFEST} is damaged"
        expected, found = json.loads(body), _digests(path)
    except FileNotFoundError:
        return UNFINISHED
    except OSError as error:  # says nothing about the checkpoint itself
        raise CheckpointError(f"cannot read checkpoint {path}: {error}") from error
    for name in sorted(expected.keys() | found.keys()):
        if name not in found:
            return f"{name} is missing"
        if name not in expected:
            return f"{name} does not belong"
        if expected[name] != found[name]:
            return f"{name} is damaged"
    return None


def abstract(tree: Any) -> Any:
    """Shapes and dtypes of a tree, to be restored onto the first device here."""
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree
    )


def _digests(path: Path) -> dict[str, str]:
    files = (p for p in path.rglob("*") if p.is_file())
    return {
        str(p.relative_to(path)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in files
        if p.name not in (MANIFEST, f".{MANIFEST}")
    }


def _stored(state: Any) -> Any:
    """Without an empty `best`: so a state was stored before there was this field."""
    if getattr(state, "best", None) != ():
        return state
    return {name: v for name, v in state._asdict().items() if name != "best"}


def _read(checkpointer: Any, path: Path, abstract_state: Any) -> Any:
    stored = _stored(abstract_state)
    try:
        read = checkpointer.restore(path, stored)
        return read if stored is abstract_state else abstract_state._replace(**read)
    except ValueError as error:
        raise CheckpointError(
            f"checkpoint {path} does not fit the model of config.json: was that changed, "
            "or is it of an earlier jaxgen?"
        ) from error


def _notes(faults: dict[Path, str]) -> list[str]:
    return [
        f"checkpoint {path.name} is not valid ({fault}); looking for an older"
        for path, fault in faults.items()
    ]


def _set_aside(path: Path) -> None:
    target = path.with_name(f"{path.name}.damaged")
    shutil.rmtree(target, ignore_errors=True)
    os.replace(path, target)


def _why(path: Path, error: Exception) -> str:
    """Orbax nests the cause behind colons; the last part is the operating system's."""
    lines = str(error).strip().splitlines() or [repr(error)]
    cause = lines[0].split(" [os_error_code")[0].split(": ")[-1]
    return f"cannot write checkpoint {path}: {cause}"
