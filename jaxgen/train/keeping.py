"""What the host does for a run while it trains: checkpoints, metrics, sample grids."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen import data
from jaxgen.train import (
    assembly,
    checkpoint,
    health,
    medium,
    parallel,
    pictures,
    processes,
    rundir,
    snapshots,
    update,
    validation,
    writing,
)
from jaxgen.train.session import Session, abstract_state


class Run(NamedTuple):
    """What is trained, and where it is kept."""

    session: Session
    folder: rundir.RunFolder


class Keepers:
    """Keep the runs that one program trains.

    All processes call them alike, since they share the state; the first one writes.

    Args:
        runs: In the order in which their states are joined.
        layout: Where the joined state lies.
        checkpoints: Of each run.
        validator: Of early stopping, or None.
        watch: Of collapses, or None.
        start: The step training starts from.
        compile_s: Seconds of compilation, for the metrics.
        tensorboard: Whether to mirror to it.
    """

    def __init__(
        self,
        runs: Sequence[Run],
        layout: parallel.Layout,
        checkpoints: Sequence[checkpoint.Checkpoints],
        validator: validation.Validator | None,
        watch: health.Watch | None,
        start: int,
        compile_s: float,
        *,
        tensorboard: bool,
    ):
        self._runs, self._layout, self._checkpoints = runs, layout, checkpoints
        self._config, self._validator = runs[0].session.config.train, validator
        self._watch, self._told = watch, set[int]()
        self._draw = assembly.Sampler(runs[0].session)
        paths = writing.paths_of(abstract_state(runs[0].session).params)
        self._writers = [
            writing.Writer(
                run.folder,
                run.session.config,
                paths,
                start,
                compile_s,
                place=(i, len(runs)),
                tensorboard=tensorboard,
            )
            for i, run in enumerate(runs)
        ]

    def begin(self, state: Any, dataset: data.Dataset) -> None:
        """Before the first update: real images, and samples of initial parameters."""
        if processes.is_first():
            for run in self._runs:
                write_reals(dataset, run)
        self._sample(0, state)
        self._restart_clocks()

    def add(self, done: int, count: int, metrics: Any) -> None:
        """Takes the metrics of the `count` updates after step `done`, unread."""
        for writer in self._writers:
            writer.add(done, count, metrics)

    def tend(
        self, done: int, state: Any, *, last: bool
    ) -> tuple[Any, bool, health.Collapse | None]:
        """Does what is due after step `done`; checked before it is saved.

        Returns:
            The state, perhaps with new best parameters; whether to stop early; and a
            collapse that is not only to be told, of which nothing was saved.
        """
        saves = last or done % self._config.every("checkpoint") == 0
        samples = done == self._config.steps or done % self._config.every("sample") == 0
        if not (saves or samples or done % self._config.every("log") == 0):
            return state, False, None
        for i, run in enumerate(self._runs):
            with _named(run, among=len(self._runs)):
                self._writers[i].read()
        told, over = [{} for _ in self._runs], False
        if self._validator is not None and self._is_even(done):
            state, told = self._validator.judge(done, state)
            over = self._validator.is_over
        collapsed = self._looked_after(done, state, told)
        for writer, more in zip(self._writers, told, strict=True):
            writer.write(more)
        if collapsed is not None:
            return state, False, collapsed
        if saves:
            for i, run in enumerate(self._runs):
                with _named(run, among=len(self._runs)):
                    copy = finite_copy(done, self._own(i, state))
                self._store(done, run, copy)
                self._checkpoints[i].save(done, copy)
        if samples or over:
            self._sample(done, state)
        self._restart_clocks()
        return state, over, None

    def close(self) -> None:
        """Leaves the terminal and TensorBoard's files as they should be."""
        for writer in self._writers:
            writer.close()

    def _looked_after(
        self, done: int, state: Any, told: list[dict[str, Any]]
    ) -> health.Collapse | None:
        """Adds the figures of each run's samples; a collapse that ends this training."""
        if self._watch is None or done % self._config.every("log"):
            return None
        collapsed = None
        for i, run in enumerate(self._runs):
            params = self._layout.whole(self._own(i, state).params)
            if processes.is_first():
                samples = self._draw(params, run.session.config.train.seed)
                told[i] |= self._watch.look(samples)
            record = self._writers[i].record | told[i] | {"step": done}
            found = self._watch.collapse(i, record)
            if found is None:
                continue
            told[i][health.NAME] = found.evidence
            if self._config.on_collapse != "tell":
                collapsed = found
            elif i not in self._told:
                self._told.add(i)
                several = len(self._runs) > 1
                health.tell(found, f"{run.folder.path}: " if several else "")
        return collapsed

    def _is_even(self, done: int) -> bool:
        """Whether it is a step of the run's own, not one where a signal stopped it."""
        every = self._config.every("checkpoint")
        return done % every == 0 or done == self._config.steps

    def _own(self, i: int, state: Any) -> update.TrainState:
        return assembly.part(self._layout.view(state), i, len(self._runs))

    def _store(self, done: int, run: Run, state: update.TrainState) -> None:
        """Averages for a reconstruction."""
        if not self._config.ema_widths or not self._is_even(done):
            return
        every = self._config.every("checkpoint")
        averages = self._layout.whole(state.averages)
        if processes.is_first():
            widths = self._config.ema_widths
            snapshots.write(run.folder.averages, done, widths, averages, every=every)

    def _sample(self, done: int, state: Any) -> None:
        for i, run in enumerate(self._runs):
            params = self._layout.whole(self._own(i, state).ema)
            if processes.is_first():
                images = self._draw(params, run.session.config.train.seed)
                self._writers[i].samples(done, images)

    def _restart_clocks(self) -> None:
        for writer in self._writers:  # what was done here is not training time
            writer.restart_clock()


@contextlib.contextmanager
def _named(run: Run, *, among: int) -> Iterator[None]:
    """Says which of several runs is not finite."""
    try:
        yield
    except writing.NonFiniteError as error:
        if among == 1:
            raise
        raise writing.NonFiniteError(f"{run.folder.path}: {error}") from error


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
    """Writes a picture of training examples, as the model sees them, to `reals.png`."""
    shown = medium.of(run.session.config.model)
    num = min(shown.num_samples, dataset.train.num_examples)
    raw = dataset.train.take(data.spread(dataset.train.num_examples, num))["x"]
    config = run.session.config
    x = data.prepare(
        {"x": jnp.asarray(raw)},
        jax.random.key(config.train.seed),
        transform=config.data.transform,
    )["x"]
    picture = shown.picture(shown.stored(np.asarray(x)))
    path = run.folder.samples / "reals.png"
    rundir.write_bytes(path, pictures.png(picture, min_side=256))
