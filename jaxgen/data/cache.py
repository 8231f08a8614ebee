"""Decoded sets under $JAXGEN_CACHE or ~/.cache/jaxgen; delete it at will.

What takes long to make of them lies here too.

One entry is one uncompressed .npz file: written to a temporary file and renamed, read
without pickle, each array guarded by its CRC-32. A damaged entry counts as absent. No
fault of the cache ever stops a run.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

# Part of every key: raise it whenever decoding gives other pixels than before.
FORMAT = 2


def cache_directory() -> Path:
    """$JAXGEN_CACHE, else ~/.cache/jaxgen; it need not exist."""
    named = os.environ.get("JAXGEN_CACHE", "")
    return Path(named) if named else Path("~/.cache/jaxgen").expanduser()


def make_key(**parts: Any) -> str:
    """A name for an entry that changes with any of the JSON-serialisable parts."""
    text = json.dumps({"format": FORMAT, **parts}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:40]


def listing(directory: Path) -> list[tuple[str, int, int]]:
    """Name, size and modification time (ns) of every file directly in a directory."""
    with os.scandir(directory) as entries:
        files = [(entry.name, entry.stat()) for entry in entries if entry.is_file()]
    return sorted((name, stat.st_size, stat.st_mtime_ns) for name, stat in files)


def load(key: str) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
    """The arrays and the metadata of an entry, or None where absent or damaged."""
    try:
        with _path(key).open("rb") as file, np.load(file, allow_pickle=False) as entry:
            arrays = {name: entry[name] for name in entry.files}
        meta = json.loads(arrays.pop("meta").tobytes())
        shapes = {name: [str(a.dtype), *a.shape] for name, a in arrays.items()}
        return (arrays, meta["user"]) if shapes == meta["shapes"] else None
    except Exception:  # whatever is wrong with an entry, the answer is to rebuild it
        return None


def store(
    key: str,
    arrays: Mapping[str, np.ndarray],
    meta: Mapping[str, Any],
    *,
    what: str = "decoded set",
) -> str | None:
    """Writes an entry; returns a note for the user where that was not possible."""
    temporary = None
    try:
        path = _path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        shapes = {name: [str(a.dtype), *a.shape] for name, a in arrays.items()}
        text = json.dumps({"user": dict(meta), "shapes": shapes}).encode()
        with tempfile.NamedTemporaryFile(
            dir=path.parent, prefix=".new-", suffix=".npz", delete=False
        ) as file:
            temporary = file.name
            everything: dict[str, Any] = {"meta": np.frombuffer(text, np.uint8)}
            np.savez(file, **{**everything, **arrays})
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # RuntimeError: no home directory
        if temporary is not None and os.path.exists(temporary):
            os.unlink(temporary)
        return (
            f"{what} not cached, so it is made again next time: {error}; "
            "set JAXGEN_CACHE to a writable directory with room"
        )
    return None


def _path(key: str) -> Path:
    return cache_directory() / f"{key}.npz"
