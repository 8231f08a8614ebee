"""From a session to what the loop turns: layout, batches, update, first state, samples.

Several runs that differ in their seed only are one program: their states are stacked in
front, `[K, ...]`, and their batches behind the examples, `[B, K, ...]`, so that devices
share the batch in the same way as for one run.
"""

import functools
import math
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen import data, tasks
from jaxgen._checks import UserError
from jaxgen.models.base import sample_keys
from jaxgen.train import answering, medium, parallel, update
from jaxgen.train.console import say
from jaxgen.train.session import Loaded, Session, load

INIT_NUMBERS = 2**23  # of at most 4096 images that a data-dependent init sees


class Feed(NamedTuple):
    """Where batches come from: `fetch(resident, item) -> raw batch`, inside the update.

    A small set lies on the device whole and an item is a batch's indices; of a large one
    an item is the batch itself.
    """

    resident: Any
    items: Generator[Any]
    fetch: Callable[[Any, Any], Any]


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
    source: data.Source,
    seeds: Sequence[int],
    batch_size: int,
    start: int,
    steps: int,
    rows: slice = slice(None),
) -> Feed:
    """Batches `start .. steps` of a source; batch t is a function of (seed, t) alone.

    Args:
        source: Where the examples come from.
        seeds: One for each run that is trained.
        batch_size: Of the global batch.
        start: The first step.
        steps: The step before which it ends.
        rows: The part of each global batch that is wanted.
    """
    data.check_batch_size(source, batch_size)
    if isinstance(source, data.ArraySource):
        resident = dict(source.arrays)
        indices = functools.partial(
            data.batch_indices, num_examples=source.num_examples, batch_size=batch_size
        )
        items = (
            joined([indices(s, step)[rows].astype(np.int32) for s in seeds], axis=1)
            for step in range(start, steps)
        )
        return Feed(resident, items, lambda r, i: {name: a[i] for name, a in r.items()})
    streams = [
        data.stream(
            source,
            seed=seed,
            batch_size=batch_size,
            start_step=start,
            num_steps=steps - start,
            rows=rows,
        )
        for seed in seeds
    ]
    return Feed((), _joined_streams(streams), lambda _, batch: batch)


def _joined_streams(streams: Sequence[Any]) -> Generator[Any]:
    try:
        for batches in zip(*streams, strict=True):
            whole = joined(batches, axis=1)
            # Places in the whole batch: known where the parts come together.
            yield {name: a for name, a in whole.items() if name != "index"}
    finally:
        for stream in streams:
            stream.close()


def joined(trees: Sequence[Any], *, axis: int = 0) -> Any:
    """The trees of several runs as one; that of a lone run as it is."""
    if len(trees) == 1:
        return trees[0]

    def stack(*leaves: Any) -> Any:
        on_host = isinstance(leaves[0], np.ndarray)
        return (np if on_host else jnp).stack(leaves, axis)

    return jax.tree.map(stack, *trees)


def part(tree: Any, run: int, num_runs: int) -> Any:
    """One run's tree of those that `joined` stacked in front."""
    return tree if num_runs == 1 else jax.tree.map(lambda leaf: leaf[run], tree)


def first_states(
    sessions: Sequence[Session], dataset: data.Dataset
) -> list[update.TrainState]:
    """Each run's state before the first update, on one device; they differ by seed."""
    session = sessions[0]
    num = max(1, min(4096, INIT_NUMBERS // math.prod(dataset.shape)))
    num = min(num, dataset.train.num_examples)
    chosen = data.spread(dataset.train.num_examples, num)
    raw = {n: jnp.asarray(a) for n, a in dataset.train.take(chosen).items()}

    def init(key: jax.Array, raw: Any) -> update.TrainState:
        batch = data.make_prepare(session.config.data, training=True)(raw, key)
        return update.init_state(
            session.model,
            session.optimizers,
            key,
            batch,
            num_averages=session.num_averages,
            keeps_best=session.keeps_best,
        )

    init = jax.jit(init)
    keys = [jax.random.key(each.config.train.seed) for each in sessions]
    states = [init(jax.random.fold_in(key, 2**31 - 1), raw) for key in keys]
    if session.config.train.init_from is None:
        return states
    given = load(Path(session.config.train.init_from))
    return [_started_from(given, state) for state in states]


def _started_from(given: Loaded, state: update.TrainState) -> update.TrainState:
    """The state before the first update, with the parameters of a run where they fit."""
    arrays = dict(jax.tree.leaves_with_path(given.params))
    fresh = []

    def chosen(path: Any, leaf: jax.Array) -> jax.Array:
        if path in arrays and arrays[path].shape == leaf.shape:
            return arrays[path]
        fresh.append(jax.tree_util.keystr(path))
        return leaf

    params = jax.tree_util.tree_map_with_path(chosen, state.params)
    count = len(jax.tree.leaves(params))
    if len(fresh) > count // 2:
        raise UserError(
            f"--init-from {given.run.path}: only {count - len(fresh)} of {count} arrays fit "
            f"this model; {fresh[0]} does not: the same --data and size of network?"
        )
    others = f"; afresh: {', '.join(fresh)}" if fresh else ""
    say(f"{count - len(fresh)} of {count} arrays from {given.run.path}{others}")
    best, *averages = (jax.tree.map(jnp.copy, params) for _ in (0, *state.averages))
    return state._replace(
        params=params,
        averages=tuple(averages),
        best=() if state.best == () else best,
    )


def make_advance(
    session: Session, layout: parallel.Layout, num_runs: int = 1
) -> update.Update:
    """The update of one run, or of several joined ones, on a layout; not compiled."""
    config = session.config
    advance = update.make_update(
        session.model,
        session.optimizers,
        num_steps=config.train.steps,
        ema_half_life=config.train.ema_half_life,
        ema_widths=config.train.ema_widths,
        prepare=data.make_prepare(config.data, training=True),
        num_parts=config.train.accumulate,
        axis_name=layout.axis_name,
    )
    if num_runs == 1:
        return advance

    def advance_all(state: update.TrainState, batch: Any, keys: jax.Array) -> Any:
        # Places in the batch are the same for all runs.
        axes = {name: None if name == "index" else 1 for name in batch}
        return jax.vmap(advance, (0, axes, 0))(state, batch, keys)

    return advance_all


class Sampler:
    """Draws examples from a model; example i depends on (seed, i) alone.

    Always as many at once, so that rounding does not depend on how many are wanted. On a
    task example i answers what is asked of test example i, and agrees with what is seen.

    Args:
        session: The run, or what was loaded of it.
        source: Of what is asked; by default the test split of the run's data.

    Attributes:
        num: How many at once.
    """

    def __init__(self, session: Session | Loaded, source: data.Source | None = None):
        self._model, self._medium = session.model, medium.of(session.config.model)
        self.num = self._medium.num_samples
        self._data, self._source = session.config.data, source
        self._task = None
        if self._data.task is not None:
            self._task = data.task_of(self._data, session.config.model.shape[-1])
        if self._data.task is not None and source is None:
            self._source = data.open_dataset(self._data).test
        self._draw = jax.jit(self._some)

    def __call__(self, params: Any, seed: int, start: int = 0) -> np.ndarray:
        """Examples `start .. start + num`, uint8 images or float32 rows, `[num, ...]`."""
        if self._data.task is None:
            return self.answers(params, seed, start, None)
        source: Any = self._source
        asked = np.arange(start, start + self.num) % source.num_examples
        given = answering.conditions(self._data, source, asked, seed)
        return self.answers(params, seed, start, given["condition"])

    def answers(
        self,
        params: Any,
        seed: int,
        start: int,
        condition: np.ndarray | None,
        seen: np.ndarray | None = None,
    ) -> np.ndarray:
        """The same, of given conditions `[num, H, W, K]`.

        Args:
            params: Of the model.
            seed: Of all noise.
            start: Number of the first example.
            condition: What the model is told.
            seen: With what the answers agree; by default with what the model is told.
        """
        seen = condition if seen is None else seen
        drawn = self._draw(params, jax.random.key(seed), start, condition, seen)
        return self._medium.stored(np.asarray(drawn))

    def _some(
        self,
        params: Any,
        key: jax.Array,
        start: jax.Array | int,
        condition: Any,
        seen: Any,
    ) -> jax.Array:
        key = jax.random.fold_in(key, 2**30)
        keys = sample_keys(key, start + jnp.arange(self.num))
        z = self._model.prior(keys[0], params)
        x = self._model.generate(params, z, keys[1], condition)
        return x if self._task is None else tasks.settled(self._task, x, seen)
