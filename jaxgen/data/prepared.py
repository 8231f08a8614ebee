"""Finds a prepared TFDS set on disk, and says exactly what to do where there is none.

Only dataset_info.json is read here, as plain JSON; tensorflow_datasets is imported for
one error message.
"""

import difflib
import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from jaxgen._checks import UserError

_INFO = "dataset_info.json"
_NAME = re.compile(r"(\w[\w.-]*)(?:/([\w.+-]+))?(?::([\w.]+))?")


class Prepared(NamedTuple):
    """One prepared version of one set."""

    name: str
    config: str
    version: str
    path: Path

    @property
    def full_name(self) -> str:
        """As TFDS writes it: name, name/config."""
        return f"{self.name}/{self.config}" if self.config else self.name


def find_prepared(
    name: str, data_dir: str | None, *, builtins: Iterable[str]
) -> tuple[Prepared, list[str]]:
    """The newest prepared version of a set.

    Args:
        name: A TFDS name: `mnist`, `name/config`, `name/config:version`.
        data_dir: A TFDS root (DIR/mnist/3.0.1), the directory of one set (DIR/3.0.1),
            the directory of one version, or None for $TFDS_DATA_DIR, else
            ~/tensorflow_datasets.
        builtins: Names offered beside the TFDS ones when the name is unknown.

    Returns:
        What was found, and notes on choices made.

    Raises:
        UserError: where nothing fits, with the fix.
    """
    match = _NAME.fullmatch(name)
    root = _root(data_dir)
    if match is None:
        raise _unknown(name, root, [], builtins)
    base, config, version = match.groups()
    if root.is_file() or (data_dir is not None and not root.exists()):
        raise UserError(
            f"--data-dir {root} {'is a file' if root.is_file() else 'does not exist'}, "
            f"expected a directory with prepared TFDS sets (DIR/{base}/VERSION); check "
            "the path, or leave --data-dir out for ~/tensorflow_datasets."
        )
    there, broken = _list_prepared(root, base)
    found = [
        one
        for one in there
        if one.name == base
        and config in (None, one.config)
        and version in (None, one.version)
    ]
    if not found and broken is not None:
        raise broken
    if not found:
        raise _not_found(name, base, root, there, builtins)
    newest = max(found, key=lambda one: (_version_order(one.version), one.config))
    others = sorted({one.full_name for one in found} - {newest.full_name})
    notes = []
    if others:
        notes.append(f"took config {newest.full_name}; also there: {', '.join(others)}")
    return newest, notes


def _root(data_dir: str | None) -> Path:
    if data_dir is None:
        data_dir = os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")
    return Path(data_dir).expanduser().absolute()


def _list_prepared(root: Path, name: str) -> tuple[list[Prepared], UserError | None]:
    """All prepared sets below `root`, and what to say of the first unreadable one."""
    if not root.exists():
        return [], None
    try:
        for directory in (root, root / name):
            if directory.is_dir():
                os.listdir(directory)  # Path.glob hides a lack of permission
    except PermissionError as error:
        raise UserError(
            f"--data-dir: no permission to read {error.filename}, expected a directory "
            "you may list; change its permissions or choose another."
        ) from error
    depths = (_INFO, f"*/{_INFO}", f"*/*/{_INFO}", f"*/*/*/{_INFO}")
    infos = [path for depth in depths for path in sorted(root.glob(depth))]
    there: list[Prepared] = []
    broken: UserError | None = None
    for path in infos:
        if "incomplete" in path.parent.name:  # TFDS was stopped while preparing it
            continue
        try:
            there.append(_read_info(path))
        except UserError as error:
            broken = error if broken is None else broken
    return there, broken


def _read_info(path: Path) -> Prepared:
    try:
        info = json.loads(path.read_bytes())
        name, version = str(info["name"]), str(info["version"])
        return Prepared(name, str(info.get("configName", "")), version, path.parent)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"prepared set: {path} cannot be read ({type(error).__name__}: {error}), "
            "expected the JSON that TFDS writes; copy or prepare the set again."
        ) from error


def _version_order(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version))


def _not_found(
    name: str,
    base: str,
    root: Path,
    there: list[Prepared],
    builtins: Iterable[str],
) -> UserError:
    if base not in _tfds_names() and base not in {one.name for one in there}:
        return _unknown(name, root, there, builtins)
    python = "tf-env/bin/python"
    set_name = name.partition(":")[0]
    return UserError(
        f"data set {name!r}: not prepared in {root} ({_there(there)}), expected "
        f"{root}/{base}/VERSION; TensorFlow is needed once, in another environment: "
        f"python -m venv tf-env && tf-env/bin/pip install tensorflow-cpu "
        f"tensorflow-datasets importlib_resources && {python} -c "
        f"\"import tensorflow_datasets as tfds; tfds.builder('{set_name}', "
        f"data_dir='{root}', file_format='array_record').download_and_prepare()\""
    )


def _unknown(
    name: str, root: Path, there: list[Prepared], builtins: Iterable[str]
) -> UserError:
    own = [*builtins, *sorted({one.full_name for one in there})]
    close = difflib.get_close_matches(name, [*own, *_tfds_names()], n=1, cutoff=0.5)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return UserError(
        f"data set: unknown name {name!r}{hint} (choose from {', '.join(own)}, "
        f"folder:PATH, or a TFDS set of {root}, {_there(there)})"
    )


def _there(there: list[Prepared]) -> str:
    names = sorted({f"{one.full_name}:{one.version}" for one in there})
    shown = ", ".join(names[:10]) + (" ..." if len(names) > 10 else "")
    return f"which holds {shown}" if names else "which holds no prepared set"


def _tfds_names() -> list[str]:
    import tensorflow_datasets as tfds

    return tfds.list_builders(with_community_datasets=False)
