"""The training loop: dispatch, and wait only at log intervals and at the end."""

import contextlib
import functools
import itertools
import json
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxgen import _signals, data
from jaxgen._checks import UserError
from jaxgen.train import (
    assembly,
    checkpoint,
    console,
    health,
    parallel,
    processes,
    snapshots,
    stopping,
    update,
    validation,
)
from jaxgen.train.keeping import Keepers, Run
from jaxgen.train.session import abstract_state


class Outcome(NamedTuple):
    """How training ended: the step reached, the steps that took, the signal or None.

    Whether it stopped early is told by `stopping.is_over` of the run's metrics. A collapse
    is one that the run has to go back from.
    """

    step: int
    step_count: int
    signal: int | None
    collapse: health.Collapse | None = None


def train(
    runs: Sequence[Run], dataset: data.Dataset, *, tensorboard: bool = False
) -> Outcome:
    """Trains to the end of the runs, from their newest valid checkpoints if they have any.

    Args:
        runs: Existing run folders, locked by the caller, with their resolved configs.
            Several differ in their seed only; one program trains them all, and each has
            the numbers that it would have alone, to rounding.
        dataset: The data the configs name; where they stop early and it has no validation
            split, one is held out.
        tensorboard: Mirror scalars and sample grids to `tensorboard/` of each run.

    Raises:
        NonFiniteError: when a loss, gradient or parameter is not finite; the last
            checkpoint stays.
        RunError: when a file cannot be written (CheckpointError for a checkpoint), or
            the training has collapsed and is to stop (CollapseError).
    """
    config = runs[0].session.config.train
    dataset = data.with_validation(dataset, config.patience)
    keep = health.num_checkpoints(runs[0].session)
    with contextlib.ExitStack() as stack:
        checkpoints = [
            stack.enter_context(
                contextlib.closing(
                    checkpoint.Checkpoints(run.folder.checkpoints, keep=keep)
                )
            )
            for run in runs
        ]
        while True:
            outcome = _train_once(runs, dataset, checkpoints, tensorboard=tensorboard)
            for each in checkpoints:
                each.wait()
            if outcome.collapse is None:
                return outcome
            step = health.go_back(runs[0], checkpoints[0], outcome.collapse)
            if outcome.signal is not None:
                return outcome._replace(step=step)


def _train_once(
    runs: Sequence[Run],
    dataset: data.Dataset,
    checkpoints: Sequence[checkpoint.Checkpoints],
    *,
    tensorboard: bool,
) -> Outcome:
    """To the end, a signal, or a collapse."""
    runs, config = health.cooled(runs), runs[0].session.config.train
    start, histories = json.loads(
        processes.from_first(lambda: json.dumps(_begin(runs, checkpoints)))
    )
    over = all(stopping.is_over(history, config.patience) for history in histories)
    if over or start >= config.steps:
        return Outcome(start, 0, None)
    layout, validator = assembly.make_layout(config), None
    if config.patience and dataset.validation is not None:
        validator = validation.Validator(
            runs[0].session, layout, dataset.validation, histories
        )
    make_keepers = functools.partial(
        Keepers,
        runs,
        layout,
        checkpoints,
        validator,
        health.watch(runs, dataset),
        tensorboard=tensorboard,
    )
    return _train_from(start, runs, dataset, checkpoints, layout, make_keepers)


def _begin(
    runs: Sequence[Run], checkpoints: Sequence[checkpoint.Checkpoints]
) -> tuple[int, list[stopping.History]]:
    """The newest step of which every run has a valid checkpoint, and their losses to it.

    Step 0 if there is none.
    """
    at_most, found, noted = None, [-1, 0], False
    while len(set(found)) > 1:
        found = []
        for saved in checkpoints:
            step, notes = saved.newest(at_most=at_most)
            for note in notes:
                console.say(note)
            noted |= bool(notes)
            found.append(0 if step is None else step)
        if at_most is None:
            _check_together(runs, found)
        at_most = min(found)
    start = found[0]
    for run in runs:
        run.folder.keep_metrics_until(start)
        snapshots.drop_after(run.folder.averages, start)
    if start:
        console.say(f"continuing from step {start:,}")
    elif noted:
        console.say("no valid checkpoint is left: starting again from step 0")
    return start, [stopping.history(run.folder.read_metrics()) for run in runs]


def _check_together(runs: Sequence[Run], steps: Sequence[int]) -> None:
    """Raises UserError where going on together would throw trained steps away."""
    interval = runs[0].session.config.train.every("checkpoint")
    if max(steps) - min(steps) > interval:
        reached = ", ".join(
            f"{run.folder.path} {step:,}" for run, step in zip(runs, steps, strict=True)
        )
        raise UserError(
            f"--num-seeds: these runs are not at the same step ({reached}); continue "
            "them one by one, or give another --out"
        )


def _train_from(
    start: int,
    runs: Sequence[Run],
    dataset: data.Dataset,
    checkpoints: Sequence[checkpoint.Checkpoints],
    layout: parallel.Layout,
    make_keepers: Callable[[int, float], Keepers],
) -> Outcome:
    session, config = runs[0].session, runs[0].session.config.train
    seeds = [run.session.config.train.seed for run in runs]
    feed = assembly.make_feed(
        dataset.train, seeds, config.batch_size, start, config.steps, layout.rows
    )
    key = assembly.joined([jax.random.key(seed) for seed in seeds])
    first = next(feed.items)
    state = layout.place(_state_at(start, runs, dataset, checkpoints, layout))
    resident = layout.place_resident(feed.resident)
    began = time.perf_counter()
    program = layout.compile(
        assembly.make_advance(session, layout, len(runs)),
        feed.fetch,
        (state, resident, first, key),
        config.steps_per_dispatch,
    )
    compile_s = time.perf_counter() - began
    where = f" for {layout.num_devices} devices" if layout.num_devices > 1 else ""
    console.say(f"compiled in {compile_s:.1f} s{where}")
    done, stopped, collapse = start, None, None
    with _stop_asked() as stop_asked, contextlib.ExitStack() as stack:
        stack.callback(feed.items.close)
        keepers = make_keepers(start, compile_s)
        stack.callback(keepers.close)
        if start == 0:
            keepers.begin(state, dataset)
        items = itertools.chain([first], feed.items)
        for dispatch in itertools.count():
            count = min(program.num_steps, _next_event(config, done) - done)
            batches = layout.place_items(
                list(itertools.islice(items, count)), program.num_steps
            )
            state, metrics = program.run(state, resident, batches, np.int32(count), key)
            if layout.is_eager:
                jax.block_until_ready(metrics)
            stopped = stop_asked(dispatch)
            last = done + count == config.steps or stopped is not None
            keepers.add(done, count, metrics)
            done += count
            state, over, collapse = keepers.tend(done, state, last=last)
            if last or over or collapse is not None:
                break
    return Outcome(done, done - start, stopped, collapse)


def _state_at(
    start: int,
    runs: Sequence[Run],
    dataset: data.Dataset,
    checkpoints: Sequence[checkpoint.Checkpoints],
    layout: parallel.Layout,
) -> update.TrainState:
    """The joined states of all runs at a step that all have saved, or at the start."""
    if start == 0:
        states = assembly.first_states([run.session for run in runs], dataset)
    else:
        target = layout.stored(abstract_state(runs[0].session))
        states = [saved.read(start, target) for saved in checkpoints]
    return assembly.joined(states)


def _next_event(config: Any, done: int) -> int:
    """The next step after `done` at which the host has something to do."""
    intervals = [config.every(name) for name in ("log", "sample", "checkpoint")]
    return min(config.steps, *(done - done % n + n for n in intervals))


@contextlib.contextmanager
def _stop_asked() -> Iterator[Callable[[int], int | None]]:
    """A function of the dispatch's number: the signal to stop at it, or None.

    In one process SIGTERM and SIGINT are collected; the second ends it at once. Of
    several, each is told of a SIGTERM to any, and all stop at the same dispatch.
    """
    if processes.count() > 1:
        reached = multihost_utils.reached_preemption_sync_point
        yield lambda dispatch: signal.SIGTERM if reached(dispatch) else None
        _signals.end_quietly()  # again: JAX has taken SIGTERM for itself
        return
    caught: list[int] = []

    def handle(number: int, frame: Any) -> None:
        del frame
        if caught:
            os._exit(128 + number)
        caught.append(number)

    previous = {n: signal.signal(n, handle) for n in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda dispatch: caught[0] if caught else None
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
