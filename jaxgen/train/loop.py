"""The training loop: dispatch, and wait only at log intervals and at the end."""

import contextlib
import functools
import itertools
import math
import os
import signal
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen import data
from jaxgen.models.base import Model, sample_keys
from jaxgen.train import (
    checkpoint,
    console,
    parallel,
    pictures,
    rundir,
    update,
    writing,
)
from jaxgen.train.session import Session, abstract_state

NUM_SAMPLES = 64  # images in a sample grid
INIT_NUMBERS = 2**23  # of at most 4096 images that a data-dependent init sees


class Outcome(NamedTuple):
    """How training ended: the step reached, the steps that took, the signal or None."""

    step: int
    step_count: int
    signal: int | None


class Feed(NamedTuple):
    """Where batches come from: `fetch(resident, item) -> raw batch`, inside the update.

    A small set lies on the device whole and an item is a batch's indices; of a large one
    an item is the batch itself.
    """

    resident: Any
    items: Generator[Any]
    fetch: Callable[[Any, Any], Any]


def train(
    session: Session,
    dataset: data.Dataset,
    run: rundir.RunFolder,
    *,
    tensorboard: bool = False,
) -> Outcome:
    """Trains to the end of the run, from its newest valid checkpoint if it has one.

    Args:
        session: Resolved config, model and optimizers.
        dataset: The data the config names.
        run: An existing run folder, locked by the caller.
        tensorboard: Mirror scalars and sample grids to `run/tensorboard`.

    Raises:
        NonFiniteError: when a loss, gradient or parameter is not finite; the last
            checkpoint stays.
        RunError: when a file cannot be written (CheckpointError for a checkpoint).
    """
    with contextlib.closing(checkpoint.Checkpoints(run.checkpoints)) as checkpoints:
        state = _initial_state(session, dataset, checkpoints)
        start = int(state.step)
        run.keep_metrics_until(start)
        if start >= session.config.train.steps:
            return Outcome(start, 0, None)
        return _train_from(
            state, session, dataset, run, checkpoints, tensorboard=tensorboard
        )


def _train_from(
    state: update.TrainState,
    session: Session,
    dataset: data.Dataset,
    run: rundir.RunFolder,
    checkpoints: checkpoint.Checkpoints,
    *,
    tensorboard: bool,
) -> Outcome:
    config, start = session.config.train, int(state.step)
    layout = make_layout(config)
    feed = make_feed(dataset.train, config.seed, config.batch_size, start, config.steps)
    key = jax.random.key(config.seed)
    first = next(feed.items)
    state, resident = layout.place(state), layout.place_resident(feed.resident)
    began = time.perf_counter()
    program = layout.compile(
        make_advance(session, layout),
        feed.fetch,
        (state, resident, first, key),
        config.steps_per_dispatch,
    )
    compile_s = time.perf_counter() - began
    where = f" for {layout.num_devices} devices" if layout.num_devices > 1 else ""
    console.say(f"compiled in {compile_s:.1f} s{where}")
    writer = writing.Writer(
        run,
        config,
        writing.paths_of(state.params),
        start,
        compile_s,
        tensorboard=tensorboard,
    )
    draw = Sampler(session.model, config.seed)
    done = start
    with (
        _signals() as caught,
        contextlib.closing(writer),
        contextlib.closing(feed.items) as items,
    ):
        if start == 0:
            _write_reals(dataset, session, run)
            writer.samples(0, draw(layout.view(state.ema)))
        items = itertools.chain([first], items)
        while True:
            count = min(program.num_steps, _next_event(config, done) - done)
            batches = layout.place_items(
                list(itertools.islice(items, count)), program.num_steps
            )
            state, metrics = program.run(state, resident, batches, np.int32(count), key)
            if layout.is_eager:
                jax.block_until_ready(metrics)
            writer.add(done, count, metrics)
            done += count
            last = done == config.steps or bool(caught)
            if last or done % config.every("checkpoint") == 0:
                writer.flush()
                checkpoints.save(done, _finite_copy(done, layout.view(state)))
            elif done % config.every("log") == 0:
                writer.flush()
            if done % config.every("sample") == 0 or done == config.steps:
                writer.flush()
                writer.samples(done, draw(layout.view(state.ema)))
            if last:
                break
        checkpoints.wait()
    return Outcome(done, done - start, caught[0] if caught else None)


def _next_event(config: Any, done: int) -> int:
    """The next step after `done` at which the host has something to do."""
    intervals = [config.every(name) for name in ("log", "sample", "checkpoint")]
    return min(config.steps, *(done - done % n + n for n in intervals))


def make_layout(config: Any, devices: Sequence[Any] | None = None) -> parallel.Layout:
    """Where a run of this training config lies, on this machine or on given devices."""
    return parallel.Layout(
        config.parallel,
        config.devices,
        batch_size=config.batch_size,
        num_parts=config.accumulate,
        devices=devices,
    )


def make_feed(
    source: data.Source, seed: int, batch_size: int, start: int, steps: int
) -> Feed:
    """Batches `start .. steps` of a source; batch t is a function of (seed, t) alone."""
    data.check_batch_size(source, batch_size)
    if isinstance(source, data.ArraySource):
        resident = dict(source.arrays)
        indices = functools.partial(
            data.batch_indices, num_examples=source.num_examples, batch_size=batch_size
        )
        items = (indices(seed, step).astype(np.int32) for step in range(start, steps))
        return Feed(resident, items, lambda r, i: {name: a[i] for name, a in r.items()})
    batches = data.stream(
        source,
        seed=seed,
        batch_size=batch_size,
        start_step=start,
        num_steps=steps - start,
    )
    return Feed((), batches, lambda _, batch: batch)


class Sampler:
    """Draws images from a model; image i depends on (seed, i) alone.

    Always `NUM_SAMPLES` at once, so that rounding does not depend on how many.
    """

    def __init__(self, model: Model, seed: int):
        self._model, self._seed = model, seed
        self._draw = jax.jit(self._some)

    def __call__(self, params: Any, start: int = 0) -> np.ndarray:
        """uint8 images `start .. start + NUM_SAMPLES`, `[NUM_SAMPLES, H, W, C]`."""
        return pictures.to_uint8(np.asarray(self._draw(params, start)))

    def _some(self, params: Any, start: jax.Array | int) -> jax.Array:
        key = jax.random.fold_in(jax.random.key(self._seed), 2**30)
        keys = sample_keys(key, start + jnp.arange(NUM_SAMPLES))
        return self._model.generate(params, self._model.prior(keys[0]), keys[1])


def _initial_state(
    session: Session, dataset: data.Dataset, checkpoints: checkpoint.Checkpoints
) -> update.TrainState:
    target = checkpoint.abstract(abstract_state(session))
    state, notes = checkpoints.restore_latest(target)
    for note in notes:
        console.say(note)
    if state is not None:
        console.say(f"continuing from step {int(state.step):,}")
        return state
    if notes:
        console.say("no valid checkpoint is left: starting again from step 0")
    return first_state(session, dataset)


def first_state(session: Session, dataset: data.Dataset) -> update.TrainState:
    """The state before the first update, on one device."""
    config = session.config
    key = jax.random.key(config.train.seed)
    num = max(1, min(4096, INIT_NUMBERS // math.prod(dataset.shape)))
    num = min(num, dataset.train.num_examples)
    raw = {n: jnp.asarray(a) for n, a in dataset.train.take(np.arange(num)).items()}

    def init(key: jax.Array, raw: Any) -> update.TrainState:
        batch = data.prepare(raw, key, transform=config.data.transform)
        return update.init_state(session.model, session.optimizers, key, batch)

    return jax.jit(init)(jax.random.fold_in(key, 2**31 - 1), raw)


def make_advance(session: Session, layout: parallel.Layout) -> update.Update:
    """The update of a run on a layout, not compiled."""
    config = session.config
    return update.make_update(
        session.model,
        session.optimizers,
        num_steps=config.train.steps,
        ema_half_life=config.train.ema_half_life,
        prepare=functools.partial(data.prepare, transform=config.data.transform),
        num_parts=config.train.accumulate,
        axis_name=layout.axis_name,
    )


@jax.jit
def _copied(state: update.TrainState) -> tuple[update.TrainState, list[jax.Array]]:
    finite = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(state.params)]
    return jax.tree.map(jnp.copy, state), finite


def _finite_copy(step: int, state: update.TrainState) -> update.TrainState:
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


def _write_reals(
    dataset: data.Dataset, session: Session, run: rundir.RunFolder
) -> None:
    num = min(NUM_SAMPLES, dataset.train.num_examples)
    raw = dataset.train.take(data.spread(dataset.train.num_examples, num))["x"]
    batch = {"x": jnp.asarray(raw)}
    transform = session.config.data.transform
    x = data.prepare(
        batch, jax.random.key(session.config.train.seed), transform=transform
    )["x"]
    picture = pictures.grid(pictures.to_uint8(np.asarray(x)))
    rundir.write_bytes(run.samples / "reals.png", pictures.png(picture, min_side=256))


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """Collects SIGTERM and SIGINT; the second one ends the process at once."""
    caught: list[int] = []

    def handle(number: int, frame: Any) -> None:
        del frame
        if caught:
            os._exit(128 + number)
        caught.append(number)

    previous = {n: signal.signal(n, handle) for n in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield caught
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
