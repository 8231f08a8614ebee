"""What each command does, once its arguments are parsed."""

import dataclasses
import io
import json
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen import data
from jaxgen._checks import UserError
from jaxgen.evaluate import likelihood, report
from jaxgen.train import config as configs
from jaxgen.train import loop, pictures, rundir, session, update
from jaxgen.train.console import say

RUNS = Path("runs")
SAMPLE_BATCH = 64  # always the same, so that image i does not depend on --num
QUICK_SAMPLES = 16  # effort of the likelihood that ends a training run


def train(config: configs.RunConfig, options: Any) -> int:
    """Trains or continues a run, judges it, writes its report; returns the exit status."""
    dataset = data.open_dataset(config.data)
    data.check_batch_size(dataset.train, config.train.batch_size)
    bound = session.bind(session.resolve(config, dataset))
    if options.dry_run:
        _dry_run(bound)
        return 0
    run = rundir.RunFolder(options.out or rundir.find_or_name(RUNS, bound.config))
    for note in dataset.notes:
        say(note)
    if not run.exists():
        run.create(bound.config)
    with run.locked():
        _check_continues(run, bound)
        say(_headline(bound, dataset))
        outcome = loop.train(bound, dataset, run, tensorboard=options.tensorboard)
        if outcome.signal is not None:
            say(
                f"stopped by signal {outcome.signal} at step {outcome.step:,}; checkpoint"
            )
            say("saved: the same command continues")
            return _end(run, 128 + outcome.signal)
        if outcome.step_count == 0 and run.report.is_file():
            say(
                f"this run has finished its {outcome.step:,} steps: --steps for a longer "
                "one, another --seed or --out for a new one"
            )
            return _end(run, 0)
        _judge(session.load(run.path), dataset)
    return _end(run, 0)


def sample(options: Any) -> int:
    """Draws images from a run; returns the exit status."""
    if options.num < 1:
        raise UserError(f"--num must be at least 1, got {options.num}")
    rundir.RunFolder(options.run).read_config()
    out = options.out or options.run / "sample.png"
    if out.suffix not in (".png", ".npz"):
        raise UserError(f"--out must end in .png or .npz, got {out}")
    if not out.parent.is_dir():
        raise UserError(f"--out: no such folder: {out.parent}")
    loaded = session.load(options.run)
    for note in loaded.notes:
        say(note)
    generate = jax.jit(loaded.model.generate)
    parts = []
    for start in range(0, options.num, SAMPLE_BATCH):
        keys = loop.sample_keys(options.seed, start, SAMPLE_BATCH)
        x = generate(loaded.params, loaded.model.prior(keys), keys)
        parts.append(pictures.to_uint8(np.asarray(x)))
    images = np.concatenate(parts)[: options.num]
    if out.suffix == ".npz":
        buffer = io.BytesIO()
        np.savez_compressed(buffer, images=images)
        rundir.write_bytes(out, buffer.getvalue())
    else:
        rundir.write_bytes(out, pictures.png(pictures.grid(images), min_side=256))
    sys.stdout.write(f"{out}\n")
    return 0


def evaluate(options: Any) -> int:
    """Judges a run on the whole test split; returns the exit status."""
    if options.num_samples < 1:
        raise UserError(f"--num-samples must be at least 1, got {options.num_samples}")
    loaded = session.load(options.run)
    config = loaded.config.data
    if options.data_dir is not None:
        config = dataclasses.replace(config, data_dir=options.data_dir)
    dataset = data.open_dataset(config)
    for note in (*loaded.notes, *dataset.notes):
        say(note)
    result = _judge(loaded, dataset, num_samples=options.num_samples, seed=options.seed)
    if options.json:
        sys.stdout.write(json.dumps(result) + "\n")
    else:
        for name, value in result.items():
            text = f"{value:.4f}" if isinstance(value, float) else str(value)
            sys.stdout.write(f"{name:<20} {text}\n")
    return 0


def _judge(
    loaded: session.Loaded,
    dataset: data.Dataset,
    *,
    num_samples: int = QUICK_SAMPLES,
    seed: int = 0,
) -> dict[str, Any]:
    """Evaluates, writes evaluation.json and the report."""
    result: dict[str, Any] = {}
    if loaded.model.log_likelihood is not None:
        result = likelihood.evaluate_likelihood(
            loaded,
            dataset.test,
            num_samples=num_samples,
            seed=seed,
            progress=_progress(),
        )
        say(
            f"test: {result['nll_nats']:.3f} +- {result['nll_nats_se']:.3f} nats, "
            f"{result['bits_per_dim']:.4f} bits/dim ({result['nll_nats_kind']}, "
            f"{result['num_examples']:,} examples, {num_samples} samples each)"
        )
    rundir.write_text(loaded.run.evaluation, json.dumps(result, indent=1) + "\n")
    report.write_report(loaded, dataset)
    return result


def _check_continues(run: rundir.RunFolder, bound: session.Session) -> None:
    """Refuses another architecture or data order; tells and stores what may change."""
    changes = configs.differences(run.read_config(), bound.config)
    refused = [name for name in changes if not configs.may_change(name)]
    if refused:
        shown = "; ".join(f"{n}: {changes[n][0]} -> {changes[n][1]}" for n in refused)
        raise UserError(
            f"{run.path} holds a run with another config ({shown}): give another --out"
        )
    for name, (old, new) in changes.items():
        say(f"changed since the run began: {name}: {old} -> {new}")
    if changes:
        run.write_config(bound.config)
    run.write_environment()


def _headline(bound: session.Session, dataset: data.Dataset) -> str:
    config = bound.config
    count = session.num_parameters(session.abstract_state(bound).params)
    shape = "x".join(map(str, dataset.shape))
    return (
        f"{config.family} on {config.data.name}: {dataset.train.num_examples:,} training "
        f"images {shape}, {count:,} parameters, batch {config.train.batch_size}, "
        f"{config.train.steps:,} steps"
    )


def _dry_run(bound: session.Session) -> None:
    """Prints the resolved config, the parameter count and the shapes of one step."""
    config = bound.config
    state = session.abstract_state(bound)
    shape = (config.train.batch_size, *config.model.shape)
    batch = {"x": jax.ShapeDtypeStruct(shape, jnp.float32)}
    advance = update.make_update(
        bound.model, bound.optimizers, num_steps=config.train.steps
    )
    _, metrics = jax.eval_shape(advance, state, batch, jax.random.key(0))
    shapes = {"batch.x": shape}
    shapes |= {
        f"params{jax.tree_util.keystr(path)}": leaf.shape
        for path, leaf in jax.tree.leaves_with_path(state.params)
    }
    shapes |= {f"metrics.{name}": value.shape for name, value in metrics.items()}
    sys.stdout.write(json.dumps(configs.to_dict(config), indent=1) + "\n")
    sys.stdout.write(f"parameters: {session.num_parameters(state.params):,}\n")
    for name, shape in shapes.items():
        sys.stdout.write(f"{name:<56} {list(shape)}\n")


def _progress() -> Any:
    """A callback for long evaluations: a line every ten seconds at most."""
    import time

    last = began = time.monotonic()

    def tell(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last > 10.0:
            last = now
            say(
                f"evaluated {done:,}/{total:,}, {(now - began) / done * (total - done):.0f} s left"
            )

    return tell


def _end(run: rundir.RunFolder, status: int) -> int:
    if run.report.is_file():
        say(f"report: {run.report}")
    sys.stdout.write(f"run: {run.path}\n")
    return status
