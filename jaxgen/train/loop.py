"""The training loop: dispatch, and wait only at log intervals and at the end."""

import contextlib
import functools
import math
import os
import signal
import time
from collections.abc import Callable, Generator, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen import data
from jaxgen._checks import RunError
from jaxgen.models.base import Model, sample_keys
from jaxgen.train import checkpoint, console, pictures, rundir, update
from jaxgen.train.session import Session, abstract_state

NUM_SAMPLES = 64  # images in a sample grid
INIT_NUMBERS = 2**23  # of at most 4096 images that a data-dependent init sees
REMEDY = (
    "Nothing of it was saved: with a lower --learning-rate or with --clip-norm the run "
    "goes on from its last checkpoint"
)


class NonFiniteError(RunError):
    """A loss or gradient that is not a number; says the step, the term, the parameter."""


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
    feed = make_feed(dataset.train, config.seed, config.batch_size, start, config.steps)
    item = next(feed.items)
    step_fn, compile_s = _compile(session, state, feed, item)
    writer = _Writer(run, config, state, compile_s, tensorboard=tensorboard)
    draw = Sampler(session.model, config.seed)
    key = jax.random.key(config.seed)
    done = start
    with (
        _signals() as caught,
        contextlib.closing(writer),
        contextlib.closing(feed.items) as items,
    ):
        if start == 0:
            _write_reals(dataset, session, run)
            writer.samples(0, draw(state.ema))
        for done in range(start + 1, config.steps + 1):
            state, metrics = step_fn(state, feed.resident, item, key)
            writer.add(done, metrics)
            last = done == config.steps or bool(caught)
            if last or done % config.every("checkpoint") == 0:
                writer.flush()
                checkpoints.save(done, _finite_copy(done, state))
            elif done % config.every("log") == 0:
                writer.flush()
            if done % config.every("sample") == 0 or done == config.steps:
                writer.flush()
                writer.samples(done, draw(state.ema))
            if last:
                break
            item = next(items)
        checkpoints.wait()
    return Outcome(done, done - start, caught[0] if caught else None)


def make_feed(
    source: data.Source, seed: int, batch_size: int, start: int, steps: int
) -> Feed:
    """Batches `start .. steps` of a source; batch t is a function of (seed, t) alone."""
    data.check_batch_size(source, batch_size)
    if isinstance(source, data.ArraySource):
        resident = {name: jnp.asarray(a) for name, a in source.arrays.items()}
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
    config = session.config
    key = jax.random.key(config.train.seed)
    num = max(1, min(4096, INIT_NUMBERS // math.prod(dataset.shape)))
    num = min(num, dataset.train.num_examples)
    raw = {n: jnp.asarray(a) for n, a in dataset.train.take(np.arange(num)).items()}

    def init(key: jax.Array, raw: Any) -> update.TrainState:
        batch = data.prepare(raw, key, transform=config.data.transform)
        return update.init_state(session.model, session.optimizers, key, batch)

    return jax.jit(init)(jax.random.fold_in(key, 2**31 - 1), raw)


def _compile(
    session: Session, state: update.TrainState, feed: Feed, item: Any
) -> tuple[Callable[..., Any], float]:
    """The whole step as one compiled program, and the seconds that took."""
    config = session.config
    advance = update.make_update(
        session.model,
        session.optimizers,
        num_steps=config.train.steps,
        ema_half_life=config.train.ema_half_life,
        prepare=functools.partial(data.prepare, transform=config.data.transform),
    )

    def step(state: Any, resident: Any, item: Any, key: jax.Array) -> Any:
        return advance(state, feed.fetch(resident, item), key)

    began = time.perf_counter()
    key = jax.random.key(config.train.seed)
    lowered = jax.jit(step, donate_argnums=0).lower(state, feed.resident, item, key)
    compiled = lowered.compile()
    seconds = time.perf_counter() - began
    console.say(f"compiled in {seconds:.1f} s")
    return compiled, seconds


class _Writer:
    """metrics.jsonl, samples, TensorBoard and the meter; reads the device in batches."""

    def __init__(
        self, run: Any, config: Any, state: Any, compile_s: float, *, tensorboard: bool
    ):
        self._run, self._config = run, config
        self._paths = {
            name: [jax.tree_util.keystr(p) for p, _ in jax.tree.leaves_with_path(tree)]
            for name, tree in state.params.items()
        }
        start = int(state.step)
        records = run.read_metrics()
        self._train_s = records[-1].get("train_s", 0.0) if records else 0.0
        self._compile_s = compile_s
        self._pending: list[tuple[int, Any]] = []
        self._meter = console.Meter(config.steps, start)
        self._board = _tensorboard(run, start) if tensorboard else None
        self._since = time.perf_counter()

    def add(self, step: int, metrics: Any) -> None:
        self._pending.append((step, metrics))

    def flush(self) -> None:
        """Waits for the device, checks every step, writes one line for them all."""
        if not self._pending:
            return
        pending, self._pending = jax.device_get(self._pending), []
        seconds = time.perf_counter() - self._since
        self._train_s += seconds
        for step, metrics in pending:
            _check_finite(step, metrics, self._paths)
        steps_per_s = len(pending) / seconds
        step = pending[-1][0]
        terms = {
            name: float(np.mean([np.linalg.norm(m[name]) for _, m in pending]))
            if name.startswith("gradient_norms/")
            else float(np.mean([m[name] for _, m in pending], dtype=np.float64))
            for name in pending[0][1]
        }
        losses = [value for name, value in terms.items() if name.startswith("loss/")]
        record = {
            "step": step,
            "loss": sum(losses),
            **{
                name.replace("gradient_norms/", "gradient_norm/"): v
                for name, v in terms.items()
            },
            "images_per_s": steps_per_s * self._config.batch_size,
            "train_s": self._train_s,
        }
        if self._compile_s:
            record["compile_s"], self._compile_s = self._compile_s, 0.0
        self._run.append_metrics(record)
        if self._board is not None:
            for name, value in record.items():
                self._board.add_scalar(name, value, step)
        self._meter.show(step, record["loss"], record["images_per_s"], steps_per_s)
        self._since = time.perf_counter()

    def samples(self, step: int, images: np.ndarray) -> None:
        """Writes the grid of the fixed latents; its time is not training time."""
        picture = pictures.grid(images)
        path = self._run.samples / f"step_{step:08d}.png"
        rundir.write_bytes(path, pictures.png(picture, min_side=256))
        if self._board is not None:
            self._board.add_image("samples", picture, step, dataformats="HWC")
        self._since = time.perf_counter()

    def close(self) -> None:
        self._meter.close()
        if self._board is not None:
            self._board.close()


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
        raise NonFiniteError(
            f"step {step}: the update made {bad[0]} and {len(bad) - 1} more parameters "
            f"not finite. {REMEDY}"
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


def _tensorboard(run: rundir.RunFolder, start: int) -> Any:
    from tensorboardX import SummaryWriter  # an extra

    return SummaryWriter(str(run.path / "tensorboard"), purge_step=start + 1)


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
