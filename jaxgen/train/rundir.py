"""A run is a folder: everything a later command needs, and nothing else.

config.json          rebuilds the model, the data and the training
environment.json     what it ran on
metrics.jsonl        one JSON object a line, the truth that other trackers mirror
averages/<step>.npz  where --ema-widths keeps averages for other widths later
samples/step_*.png   the same latents at every step; reals.png beside
checkpoints/<step>/  verified before they are trusted
evaluation.json, diagnosis.json, diagnosis.png, report.html
"""

import contextlib
import fcntl
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from jaxgen._checks import RunError, UserError
from jaxgen.train import config as configs

PACKAGES = (
    "jaxgen", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "grain",
    "tensorflow-datasets", "array_record", "scikit-learn", "pillow", "pyarrow",
)  # fmt: skip


_GRID = re.compile(r"step_(\d+)\.png")


class RunFolder:
    """Paths and files of one run."""

    def __init__(self, path: Path):
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.samples = path / "samples"
        self.averages = path / "averages"
        self.metrics = path / "metrics.jsonl"
        self.report = path / "report.html"
        self.evaluation = path / "evaluation.json"
        self.diagnosis = path / "diagnosis.json"
        self._config = path / "config.json"

    def exists(self) -> bool:
        """Whether a run's config is there."""
        return self._config.is_file()

    def read_config(self) -> configs.RunConfig:
        """The stored config.

        Raises:
            UserError: if this is not a run folder, or its config is not readable.
        """
        if not self.path.is_dir():
            raise UserError(f"no such run folder: {self.path}")
        if not self.exists():
            raise UserError(f"{self.path} is not a run folder: it has no config.json")
        try:
            values = json.loads(self._config.read_text())
        except (ValueError, OSError) as error:
            raise UserError(f"{self._config} cannot be read: {error}") from error
        if not isinstance(values, dict):
            raise UserError(f"{self._config} is not the config of a jaxgen run")
        try:
            return configs.from_dict(values)
        except UserError as error:
            raise UserError(f"{self._config}: {error}") from error

    def claim(self) -> None:
        """Makes the folder, or checks that it is a run's or empty.

        Raises:
            UserError: if the place holds something else or may not be written.
        """
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"--out {self.path} is a file, not a folder")
        if self.exists():
            self.read_config()  # another program's config.json is none of ours
        # What a run leaves that was killed before its config was written.
        ours = ("lock", "environment.json", "data.json", "samples")
        try:
            there = list(self.path.iterdir()) if self.path.is_dir() else []
            foreign = [
                p for p in there if p.name not in ours and not p.name.startswith(".")
            ]
            foreign += list(self.samples.iterdir()) if self.samples.is_dir() else []
            if foreign and not self.exists():
                raise UserError(
                    f"--out {self.path} holds files but no config.json of a jaxgen run; "
                    "give a new or empty folder"
                )
            self.samples.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"--out {self.path} cannot be made: {error.strerror}"
            ) from error

    def create(self, config: configs.RunConfig) -> None:
        """Writes environment and config into a claimed folder."""
        self.write_environment()
        self.write_config(config)  # last: a folder with a config is a run

    def write_config(self, config: configs.RunConfig) -> None:
        """Replaces the stored config."""
        write_text(self._config, json.dumps(configs.to_dict(config), indent=1) + "\n")

    def check_data(self, identity: dict[str, Any]) -> str | None:
        """How the data differ from those the run was begun with; stores them at first."""
        path = self.path / "data.json"
        if not path.is_file():
            if not self.checkpoints.is_dir():
                write_text(path, json.dumps(identity, indent=1) + "\n")
            return None
        try:
            stored = json.loads(path.read_text())
        except ValueError:
            return f"{path} cannot be read"
        changed = [k for k in identity if identity[k] != stored.get(k)]
        if not changed:
            return None
        return "the data are not those the run was begun with: " + "; ".join(
            f"{key} {stored.get(key)} -> {identity[key]}" for key in changed
        )

    def write_environment(self) -> None:
        """Records machine, versions and command."""
        text = json.dumps(environment(), indent=1)
        write_text(self.path / "environment.json", text + "\n")

    def read_metrics(self) -> list[dict[str, Any]]:
        """All whole lines of metrics.jsonl."""
        if not self.metrics.is_file():
            return []
        records = []
        for line in self.metrics.read_text(errors="replace").splitlines():
            with contextlib.suppress(ValueError):
                record = json.loads(line)
                if isinstance(record, dict) and isinstance(record.get("step"), int):
                    records.append(record)
        return records

    def grids(self) -> list[tuple[int, Path]]:
        """Pictures of samples with their steps, the newest last."""
        found = ((_GRID.fullmatch(p.name), p) for p in self.samples.glob("*"))
        return sorted((int(match[1]), path) for match, path in found if match)

    def append_metrics(self, record: dict[str, Any]) -> None:
        """Adds one line.

        Raises:
            RunError: if it cannot be written, on a full disk say.
        """
        try:
            with open(self.metrics, "a") as file:
                file.write(json.dumps(record, allow_nan=False) + "\n")
        except OSError as error:
            raise RunError(f"cannot write {self.metrics}: {error.strerror}") from error

    def keep_metrics_until(self, step: int) -> None:
        """Drops the lines after `step`, which a continued run writes again."""
        if self.metrics.is_file():
            kept = [r for r in self.read_metrics() if r["step"] <= step]
            write_text(self.metrics, "".join(json.dumps(r) + "\n" for r in kept))

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps a second process from training into the same folder."""
        with open(self.path / "lock", "a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(f"another process is training in {self.path}") from None
            yield


def find_or_claim(root: Path, config: configs.RunConfig) -> Path:
    """The newest run under `root` with this very config, or a new, numbered folder."""
    folders = sorted(root.iterdir(), reverse=True) if root.is_dir() else []
    folders = [p for p in folders if p.name.split("-")[0].isdecimal()]
    for path in folders:
        with contextlib.suppress(UserError):
            if not configs.differences(RunFolder(path).read_config(), config):
                return path
    name = Path(config.data.name.removeprefix("folder:")).name or "folder"
    if config.data.name.startswith("table:"):
        name = Path(config.data.name.removeprefix("table:")).stem
    name = "".join(c if c.isalnum() or c in "-_" else "-" for c in name)[:40]
    number = max((int(p.name.split("-")[0]) for p in folders), default=-1) + 1
    while True:  # another process may take the same number at the same moment
        path = root / f"{number:05d}-{config.family}-{name}"
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            number += 1
        except OSError as error:
            raise UserError(f"{path} cannot be made: {error.strerror}") from error
        else:
            return path


def environment() -> dict[str, Any]:
    """Versions, machine, device and command of this process."""
    versions = {}
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return {
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        "devices": [d.device_kind for d in jax.devices()],
        "backend": jax.default_backend(),
        "versions": versions,
        "git": _git(),
    }


def write_bytes(path: Path, data: bytes) -> None:
    """Writes a file whole or not at all.

    Raises:
        RunError: if it cannot be written; what stood there before still does.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise RunError(f"cannot write {path}: {error.strerror}") from error


def write_text(path: Path, text: str) -> None:
    """Writes a text file whole or not at all."""
    write_bytes(path, text.encode())


def _git() -> str | None:
    """Commit of the source tree, with "+" where it has local changes."""

    def git(*args: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *args]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return None
