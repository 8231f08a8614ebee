"""What a training run leaves behind: metrics, sample grids, TensorBoard, the meter."""

import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from jaxgen._checks import RunError
from jaxgen.train import console, medium, pictures, processes, rundir

REMEDY = (
    "Nothing of it was saved: with a lower --learning-rate or with --clip-norm the run "
    "goes on from its last checkpoint"
)


class NonFiniteError(RunError):
    """A loss or gradient that is not a number; says the step, the term, the parameter."""


class Writer:
    """metrics.jsonl, samples, TensorBoard and the meter; reads the device in batches.

    Args:
        run: The folder.
        config: Of the run.
        paths: Names of each player's parameters, as `paths_of` gives them.
        start: The step training starts from.
        compile_s: Seconds of compilation, told in the first record.
        place: `(which, of how many)` runs of a program it is; the first has the meter.
        tensorboard: Whether to mirror to it.

    Attributes:
        record: The line that was read last.
    """

    def __init__(
        self,
        run: Any,
        config: Any,
        paths: dict[str, list[str]],
        start: int,
        compile_s: float,
        *,
        place: tuple[int, int] = (0, 1),
        tensorboard: bool,
    ):
        self._run, self._config, self._place = run, config.train, place
        self._medium = medium.of(config.model)
        self._writes = processes.is_first()
        self._paths = paths
        records = run.read_metrics()
        self._train_s = records[-1].get("train_s", 0.0) if records else 0.0
        self._compile_s = compile_s
        self._pending: list[tuple[int, int, Any]] = []
        self.record: dict[str, Any] = {"step": start}
        self._is_written = True
        is_shown = self._writes and place[0] == 0
        self._meter = console.Meter(config.train.steps, start) if is_shown else None
        mirrors = self._writes and tensorboard
        self._board = _tensorboard(run, start) if mirrors else None
        self._since = time.perf_counter()

    def add(self, done: int, count: int, metrics: Any) -> None:
        """Takes `metrics [num_steps, ...]` of the `count` updates after step `done`."""
        self._pending.append((done, count, metrics))

    def read(self) -> None:
        """Waits for the device, checks every step, makes one line of them all."""
        if not self._pending:
            return
        fetched, self._pending = jax.device_get(self._pending), []
        pending = [
            (done + i + 1, {n: self._own(value[i]) for n, value in metrics.items()})
            for done, count, metrics in fetched
            for i in range(count)
        ]
        seconds = time.perf_counter() - self._since
        self._train_s += seconds
        for step, metrics in pending:
            _check_finite(step, metrics, self._paths)
        if not self._writes:
            return
        terms = {
            name: float(np.mean([np.linalg.norm(m[name]) for _, m in pending]))
            if name.startswith("gradient_norms/")
            else float(np.mean([m[name] for _, m in pending], dtype=np.float64))
            for name in pending[0][1]
        }
        losses = [value for name, value in terms.items() if name.startswith("loss/")]
        self._is_written = False
        self.record = {
            "step": pending[-1][0],
            "loss": sum(losses),
            **{
                name.replace("gradient_norms/", "gradient_norm/"): v
                for name, v in terms.items()
            },
            "examples_per_s": len(pending) / seconds * self._config.batch_size,
            "train_s": self._train_s,
        }
        if self._compile_s:
            self.record["compile_s"], self._compile_s = self._compile_s, 0.0

    def write(self, more: Mapping[str, float | str | None]) -> None:
        """Writes the line that was read, and in it more; None for NaN."""
        if self._is_written:
            return
        record, self._is_written = {**self.record, **more}, True
        step = record["step"]
        self._run.append_metrics(record)
        if self._board is not None:
            for name, value in record.items():
                if isinstance(value, int | float):
                    self._board.add_scalar(name, value, step)
        if self._meter is not None:
            rate = record["examples_per_s"]
            self._meter.show(step, record["loss"], rate, rate / self._config.batch_size)

    def samples(self, step: int, samples: np.ndarray) -> None:
        """Writes the picture of the fixed latents' samples."""
        picture = self._medium.picture(samples)
        path = self._run.samples / f"step_{step:08d}.png"
        rundir.write_bytes(path, pictures.png(picture, min_side=256))
        if self._board is not None:
            self._board.add_image("samples", picture, step, dataformats="HWC")

    def restart_clock(self) -> None:
        """From now on it is training time again."""
        self._since = time.perf_counter()

    def _own(self, value: np.ndarray) -> np.ndarray:
        which, of = self._place
        return value if of == 1 else value[which]

    def close(self) -> None:
        """Leaves the terminal and TensorBoard's files as they should be."""
        if self._meter is not None:
            self._meter.close()
        if self._board is not None:
            self._board.close()


def paths_of(params: Any) -> dict[str, list[str]]:
    """The names of each player's leaves, in the order of its gradient norms."""
    return {
        name: [jax.tree_util.keystr(p) for p, _ in jax.tree.leaves_with_path(tree)]
        for name, tree in params.items()
    }


def _check_finite(
    step: int, metrics: dict[str, Any], paths: dict[str, list[str]]
) -> None:
    """Raises NonFiniteError for the first metric that is not finite."""
    bad = [name for name, value in metrics.items() if not np.all(np.isfinite(value))]
    if not bad:
        return
    terms = [n for n in bad if not n.startswith(("loss/", "gradient_norms/"))]
    losses = [n for n in bad if n.startswith("loss/")]
    leaves = [
        f"{player}{path}"
        for player, names in paths.items()
        for path, norm in zip(names, metrics[f"gradient_norms/{player}"], strict=True)
        if not np.isfinite(norm)
    ]
    what = (terms or losses or ["the gradient"])[0]
    value = metrics.get(what, np.nan)
    where = (
        f"gradient of {leaves[0]} and {len(leaves) - 1} more"
        if leaves
        else "no gradient"
    )
    raise NonFiniteError(
        f"step {step}: {what} is {float(np.ravel(value)[0])}; not finite: {where}. "
        f"{REMEDY}"
    )


def _tensorboard(run: rundir.RunFolder, start: int) -> Any:
    from tensorboardX import SummaryWriter  # an extra

    return SummaryWriter(str(run.path / "tensorboard"), purge_step=start + 1)
