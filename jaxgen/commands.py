"""What each command does, once its arguments are parsed."""

import contextlib
import dataclasses
import importlib.util
import json
import math
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxgen import data
from jaxgen._checks import RunError, UserError, check_seed
from jaxgen.bench import plan as planning
from jaxgen.bench import throughput
from jaxgen.evaluate import judgement, likelihood, quality, tables
from jaxgen.train import (
    assembly,
    cascade,
    checkpoint,
    expost,
    health,
    latents,
    loop,
    medium,
    parallel,
    processes,
    rundir,
    session,
    stopping,
    update,
)
from jaxgen.train import config as configs
from jaxgen.train.console import say
from jaxgen.train.keeping import Run

RUNS = Path("runs")


def train(config: configs.RunConfig, options: Any, launch: processes.Launch) -> int:
    """Trains or continues runs, judges them, writes reports; returns the exit status."""
    if options.tensorboard and importlib.util.find_spec("tensorboardX") is None:
        raise UserError(
            '--tensorboard needs: python -m pip install -e ".[tensorboard]"'
        )
    if options.num_seeds < 1:
        raise UserError(f"--num-seeds must be at least 1, got {options.num_seeds}")
    check_seed(config.train.seed + options.num_seeds - 1)
    processes.start(launch)
    parallel.count_cpu_as(config.train.devices)
    latents.ensure(config.data)
    opened = data.open_dataset(config.data)
    resolved = session.resolve(config, opened)
    dataset = data.with_validation(opened, resolved.train.patience)
    for note in dataset.notes:
        say(note)
    data.check_batch_size(dataset.train, resolved.train.batch_size)
    bound = [
        session.bind(_with_seed(resolved, config.train.seed + i))
        for i in range(options.num_seeds)
    ]
    health.check(bound[0], len(bound), dataset)
    assembly.make_layout(config.train)  # before anything is written
    if options.dry_run:
        if processes.is_first():
            _dry_run(bound[0], dataset)
        return 0
    with contextlib.ExitStack() as stack:
        paths = json.loads(
            processes.from_first(
                lambda: json.dumps(_prepare(stack, bound, opened, options.out))
            )
        )
        folders = [rundir.RunFolder(Path(path)) for path in paths]
        for folder in folders:
            if not folder.exists():
                raise RunError(f"{folder.path} is not seen by all processes: --out?")
        say(_headline(bound, dataset))
        runs = [Run(*pair) for pair in zip(bound, folders, strict=True)]
        outcome = loop.train(runs, dataset, tensorboard=options.tensorboard)
        if outcome.signal is not None:
            name = signal.Signals(outcome.signal).name
            say(f"{name}: saved step {outcome.step:,}; the same command continues")
            return _end(folders, 128 + outcome.signal)
        for folder in folders:
            early = stopping.told(folder.read_metrics(), resolved.train)
            if outcome.step_count == 0 and judgement.is_judged(folder, outcome.step):
                how = f"has finished its {outcome.step:,} steps: --steps"
                if early is not None:
                    how = f"has finished: {early}: a larger --patience"
                say(
                    f"{folder.path} {how} for a longer run, another --seed or --out for a "
                    "new one"
                )
            else:
                if early is not None:
                    say(early if len(folders) == 1 else f"{folder.path}: {early}")
                judged = session.load(folder.path)
                num_images = min(judgement.QUICK_IMAGES, dataset.test.num_examples)
                result = judgement.judge(judged, dataset, num_images=num_images)
                if processes.is_first():
                    judgement.write(judged, dataset, result)
    return _end(folders, 0)


def _with_seed(config: configs.RunConfig, seed: int) -> configs.RunConfig:
    return dataclasses.replace(
        config, train=dataclasses.replace(config.train, seed=seed)
    )


def _prepare(
    stack: contextlib.ExitStack,
    bound: Sequence[session.Session],
    dataset: data.Dataset,
    out: Path | None,
) -> list[str]:
    """Run folders for all seeds, locked until the stack ends, new or to be continued.

    Nothing of a run is written before all of them are found in order.
    """
    if out is not None and len(bound) > 1 and rundir.RunFolder(out).exists():
        raise UserError(f"--num-seeds: --out {out} is one run: give another folder")
    runs, changes = [], []
    for each in bound:
        seed = each.config.train.seed
        if out is None:
            path = rundir.find_or_claim(RUNS, each.config)
        else:
            path = out if len(bound) == 1 else out / f"seed-{seed}"
        run = rundir.RunFolder(path)
        run.claim()
        stack.enter_context(run.locked())
        runs.append(run)
        changes.append(_changes(run, each, dataset) if run.exists() else None)
        given = each.config.train.init_from
        if given is not None and changes[-1] is None:
            session.load(Path(given))  # to be refused before anything is written
    for run, each, changed in zip(runs, bound, changes, strict=True):
        if changed is None:
            run.create(each.config)
            run.check_data(session.data_identity(dataset))
            continue
        for name, (old, new) in changed.items():
            say(f"changed since the run began: {name}: {old} -> {new}")
        if changed:
            run.write_config(each.config)
        run.write_environment()
    return [str(run.path) for run in runs]


def sample(options: Any, sampling: Any = None) -> int:
    """Draws images or rows from a run; returns the exit status.

    Args:
        options: Of the command.
        sampling: The model's options under this name, chosen anew.
    """
    if options.num < 1:
        raise UserError(f"--num must be at least 1, got {options.num}")
    check_seed(options.seed)
    last = options.run if options.then is None else options.then
    shown = medium.of(rundir.RunFolder(last).read_config().model)
    out = options.out or options.run / f"sample{shown.suffixes[0]}"
    if out.suffix not in shown.suffixes:
        endings = " or ".join(shown.suffixes)
        raise UserError(f"--out must end in {endings} for {shown.unit}, got {out}")
    if not out.parent.is_dir():
        raise UserError(f"--out: no such folder: {out.parent}")
    loaded = expost.load(options.run, sampling, ema_width=options.ema_width)
    if options.log_prob:
        _check_log_prob(loaded, out)
    for note in loaded.notes:
        say(note)
    if options.then is None:
        draw = assembly.Sampler(loaded)
    else:
        base, loaded = loaded, expost.load(options.then)
        draw = cascade.Cascade(base, loaded, level=options.noise)
    starts = range(0, options.num, draw.num)
    samples = [draw(loaded.params, options.seed, start) for start in starts]
    samples = np.concatenate(samples)[: options.num]
    beside = {}
    if options.log_prob:
        beside["log_prob"] = likelihood.log_prob(loaded, samples, seed=options.seed)
    content = medium.file_of(loaded.config.model, out.suffix, samples, beside)
    rundir.write_bytes(out, content)
    sys.stdout.write(f"{out}\n")
    return 0


def _check_log_prob(loaded: session.Loaded, out: Path) -> None:
    columns = getattr(loaded.config.model, "columns", None)
    if columns is None or loaded.model.log_likelihood is None:
        raise UserError("--log-prob is for rows of a table, and models with a density")
    if out.suffix == ".png":
        raise UserError(f"--log-prob: --out must end in .csv or .npz, got {out}")
    if out.suffix == ".csv" and "log_prob" in [column.name for column in columns]:
        raise UserError("--log-prob: the table has a column of this name: --out F.npz")


def bench(config: configs.RunConfig, options: Any) -> int:
    """Measures training speed and tells it; returns the exit status."""
    if options.repeats < 1:
        raise UserError(f"--repeats must be at least 1, got {options.repeats}")
    parallel.count_cpu_as(config.train.devices)
    result = throughput.measure(
        config, repeats=options.repeats, profile=options.profile
    )
    if not processes.is_first():
        return 0
    say(
        f"{result['family']} on {result['data']}: {result['examples_per_s']:,.0f} "
        f"images/s, {result['ms_per_step']:.3f} ms a step "
        f"({result['ms_per_step_p10']:.3f} .. {result['ms_per_step_p90']:.3f}), "
        f"{100 * result['peak_fraction']:.0f} % of {result['peak_flops_per_s']:.2g} FLOP/s"
    )
    if options.json:
        known = {
            name: None if isinstance(value, float) and math.isnan(value) else value
            for name, value in result.items()
        }
        sys.stdout.write(json.dumps(known, allow_nan=False) + "\n")
    else:
        _print_table(result)
    return 0


def plan(config: configs.RunConfig, options: Any) -> int:
    """Tells what a run would need elsewhere; returns the exit status.

    Raises:
        RunError: if it does not fit, after telling what would.
    """
    told = planning.ask(config, options.target, search=options.search)
    result = {"target": options.target, **told}
    for note in result["notes"]:
        say(note)
    if options.json:
        sys.stdout.write(json.dumps(result, allow_nan=False) + "\n")
    else:
        _print_table(result)
    sys.stdout.flush()
    if not result["fits"]:
        largest = result["largest_batch_per_device"]
        raise RunError(
            f"{result['batch_per_device']:,} examples a device need "
            f"{result['bytes_needed'] / 2**30:.2f} GiB of {options.target}'s "
            f"{result['bytes_usable'] / 2**30:.2f} GiB"
            + ("" if largest is None else f"; {largest:,} fit")
            + (f" ({result['compiler']})" if result["compiler"] else "")
        )
    return 0


def evaluate(options: Any, sampling: Any = None) -> int:
    """Judges a run on the test split; returns the exit status.

    Args:
        options: Of the command.
        sampling: The model's options under this name, chosen anew.
    """
    if options.num_samples < 1:
        raise UserError(f"--num-samples must be at least 1, got {options.num_samples}")
    for flag in ("ais", "judge", "answers"):
        if (value := getattr(options, flag)) < 0:
            raise UserError(f"--{flag} must be 0 (none) or more, got {value}")
    if options.num != 0 and options.num < quality.LEAST:
        raise UserError(
            f"--num must be 0 (none) or at least {quality.LEAST}, got {options.num}"
        )
    loaded, dataset = judgement.opened(options, sampling)
    result = judgement.judge_wholly(loaded, dataset, options)
    if options.json:
        sys.stdout.write(json.dumps(result, allow_nan=False) + "\n")
    else:
        _print_table(result)
        sys.stdout.write(tables.text(result))
    sys.stdout.flush()
    # Last: the figures are already told. The page is of the data as they were trained on.
    dataset = data.with_validation(dataset, loaded.config.train.patience)
    judgement.write(loaded, dataset, result)
    return 0


def _print_table(result: dict[str, Any]) -> None:
    width = max(map(len, result))
    for name, value in result.items():
        if not isinstance(value, dict):
            sys.stdout.write(f"{name:<{width}}  {_cell(value)}\n")


def _cell(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_cell, value))
    return f"{value:,.4f}" if isinstance(value, float) else str(value)


def _shortened(value: Any, most: int = 150) -> str:
    shown = str(value)
    return shown if len(shown) <= most else shown[: most - 3] + "..."


def _changes(
    run: rundir.RunFolder, bound: session.Session, dataset: data.Dataset
) -> dict[str, tuple[Any, Any]]:
    """How the config of a run to be continued differs; what may not change is refused."""
    changes = configs.differences(run.read_config(), bound.config)
    refused = [n for n, change in changes.items() if not configs.may_change(n, *change)]
    if refused:
        told = {n: [_shortened(value) for value in changes[n]] for n in refused}
        shown = "; ".join(f"{n}: {old} -> {new}" for n, (old, new) in told.items())
        raise UserError(
            f"{run.path} holds a run with another config ({shown}): give another --out"
        )
    other = run.check_data(session.data_identity(dataset))
    if other:
        raise UserError(f"{run.path}: {other}: give another --out")
    reached = max(checkpoint.steps(run.checkpoints), default=0)
    if bound.config.train.steps < reached:
        raise UserError(
            f"{run.path} has already {reached:,} steps, more than --steps "
            f"{bound.config.train.steps:,}"
        )
    return changes


def _headline(bound: Sequence[session.Session], dataset: data.Dataset) -> str:
    config = bound[0].config
    count = session.num_parameters(session.abstract_state(bound[0]).params)
    shape = "x".join(map(str, dataset.shape))
    seeds = f", {len(bound)} seeds" if len(bound) > 1 else ""
    together = f", {processes.count()} processes" if processes.count() > 1 else ""
    return (
        f"{config.family} on {config.data.name}: {dataset.train.num_examples:,} "
        f"{medium.of(config.model).unit} {shape}, {count:,} parameters, "
        f"{config.train.steps:,} steps of "
        f"{config.train.batch_size}{seeds}{together}"
    )


def _dry_run(bound: session.Session, dataset: data.Dataset) -> None:
    """Prints the resolved config, the parameter count and the shapes of one step."""
    config = bound.config
    state = session.abstract_state(bound)
    key, prepare = jax.random.key(0), data.make_prepare(config.data, training=True)
    raw = {
        name: jax.ShapeDtypeStruct((config.train.batch_size, *a.shape[1:]), a.dtype)
        for name, a in dataset.train.take(np.arange(1)).items()
    }
    batch = jax.eval_shape(prepare, raw, key)
    advance = update.make_update(
        bound.model, bound.optimizers, num_steps=config.train.steps
    )
    _, metrics = jax.eval_shape(advance, state, batch, key)
    shapes = {
        f"batch.{n}": batch[n].shape for n in ("x", "condition") if n in batch
    } | {
        f"params{jax.tree_util.keystr(path)}": leaf.shape
        for path, leaf in jax.tree.leaves_with_path(state.params)
    }
    shapes |= {f"metrics.{name}": value.shape for name, value in metrics.items()}
    sys.stdout.write(json.dumps(configs.to_dict(config), indent=1) + "\n")
    sys.stdout.write(f"parameters: {session.num_parameters(state.params):,}\n")
    for name, shape in shapes.items():
        sys.stdout.write(f"{name:<56} {list(shape)}\n")


def _end(runs: Sequence[rundir.RunFolder], status: int) -> int:
    if processes.is_first():
        for run in runs:
            if run.report.is_file():
                say(f"report: {run.report}")
            sys.stdout.write(f"run: {run.path}\n")
    return status
