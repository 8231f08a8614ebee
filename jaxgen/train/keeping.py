"""What the host does for a run while it trains: checkpoints, metrics, sample grids."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen import data
from jaxgen.train import (
    assembly,
    checkpoint,
    parallel,
    pictures,
    processes,
    rundir,
    update,
    writing,
)
from jaxgen.train.session import Session


class Run(NamedTuple):
    """What is trained, and where it is kept."""

    session: Session
    folder: rundir.RunFolder


class Keeper:
    """Keeps one of the runs that a program trains.

    All processes call it alike, since they share the state; the first one writes.

    Args:
        run: The run.
        place: `(which, of how many)` it is in the program.
        layout: Where their state lies.
        checkpoints: Of this run.
        writer: Of its metrics and grids.
    """

    def __init__(
        self,
        run: Run,
        place: tuple[int, int],
        layout: parallel.Layout,
        checkpoints: checkpoint.Checkpoints,
        writer: writing.Writer,
    ):
        self._run, self._place, self._layout = run, place, layout
        self._checkpoints, self._writer = checkpoints, writer
        self._config = run.session.config.train
        self._draw = assembly.Sampler(run.session.model, self._config.seed)

    def begin(self, state: Any, dataset: data.Dataset) -> None:
        """Before the first update: real images, and samples of initial parameters."""
        if processes.is_first():
            write_reals(dataset, self._run)
        self._sample(0, self._own(state))

    def add(self, done: int, count: int, metrics: Any) -> None:
        """Takes the metrics of the `count` updates after step `done`, unread."""
        self._writer.add(done, count, metrics)

    def tend(self, done: int, state: Any, *, last: bool) -> None:
        """Does what is due after step `done`."""
        saves = last or done % self._config.every("checkpoint") == 0
        samples = done == self._config.steps or done % self._config.every("sample") == 0
        try:
            if saves or samples or done % self._config.every("log") == 0:
                self._writer.flush()
            if saves:
                self._checkpoints.save(done, finite_copy(done, self._own(state)))
        except writing.NonFiniteError as error:
            if self._place[1] == 1:
                raise
            which = self._run.folder.path
            raise writing.NonFiniteError(f"{which}: {error}") from error
        if samples:
            self._sample(done, self._own(state))

    def close(self) -> None:
        """Leaves the terminal and TensorBoard's files as they should be."""
        self._writer.close()

    def _own(self, state: Any) -> update.TrainState:
        return assembly.part(self._layout.view(state), *self._place)

    def _sample(self, done: int, own: update.TrainState) -> None:
        params = self._layout.whole(own.ema)
        if processes.is_first():
            self._writer.samples(done, self._draw(params))


@jax.jit
def _copied(state: update.TrainState) -> tuple[update.TrainState, list[jax.Array]]:
    finite = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(state.params)]
    return jax.tree.map(jnp.copy, state), finite


def finite_copy(step: int, state: update.TrainState) -> update.TrainState:
    """A copy to be saved while the state itself is donated to the next update.

    Raises:
        NonFiniteError: if a parameter is not finite; such a state is never saved.
    """
    copy, finite = _copied(state)
    paths = [
        jax.tree_util.keystr(p) for p, _ in jax.tree.leaves_with_path(state.params)
    ]
    bad = [path for path, good in zip(paths, finite, strict=True) if not good]
    if bad:
        raise writing.NonFiniteError(
            f"step {step}: the update made {bad[0]} and {len(bad) - 1} more parameters "
            f"not finite. {writing.REMEDY}"
        )
    return copy


def write_reals(dataset: data.Dataset, run: Run) -> None:
    """Writes a grid of training images, as the model sees them, to `reals.png`."""
    num = min(assembly.NUM_SAMPLES, dataset.train.num_examples)
    raw = dataset.train.take(data.spread(dataset.train.num_examples, num))["x"]
    config = run.session.config
    x = data.prepare(
        {"x": jnp.asarray(raw)},
        jax.random.key(config.train.seed),
        transform=config.data.transform,
    )["x"]
    picture = pictures.grid(pictures.to_uint8(np.asarray(x)))
    path = run.folder.samples / "reals.png"
    rundir.write_bytes(path, pictures.png(picture, min_side=256))
