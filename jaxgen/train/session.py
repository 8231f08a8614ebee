"""From a config, or a run folder, to a model with its parameters."""

import dataclasses
import functools
import hashlib
import math
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen import models
from jaxgen._checks import UserError
from jaxgen.data import Dataset, conditions, spread
from jaxgen.models.base import Model
from jaxgen.train import checkpoint, parallel, snapshots, stopping, update
from jaxgen.train.config import RunConfig, make_optimizer
from jaxgen.train.rundir import RunFolder

TABLE_PATIENCE = 10  # checkpoint intervals


class Session(NamedTuple):
    """A resolved config bound to its model and optimizers."""

    config: RunConfig
    model: Model
    optimizers: dict[str, Any]

    @property
    def num_averages(self) -> int:
        """How many averages of the parameters the training state holds."""
        return max(1, len(self.config.train.ema_widths))

    @property
    def keeps_best(self) -> bool:
        """Whether the training state holds the best parameters so far."""
        return bool(self.config.train.patience)


class Loaded(NamedTuple):
    """A trained run: everything a later command needs, from its folder alone."""

    run: RunFolder
    config: RunConfig
    model: Model
    params: Any  # an average of the parameters
    step: int  # the updates done
    notes: list[str]
    best_step: int | None = None  # whose average it is, where that was the best


def resolve(config: RunConfig, dataset: Dataset) -> RunConfig:
    """Fills what the config left to the data."""
    family = models.FAMILIES[config.family]
    if dataset.kind not in family.examples:
        other = [n for n, f in models.FAMILIES.items() if dataset.kind in f.examples]
        raise UserError(
            f"{config.family} models {' and '.join(family.examples)}, {dataset.name} holds "
            f"{dataset.kind}: jaxgen train {' or '.join(other)}, or other --data"
        )
    model, transform = family.resolve(
        config.model,
        dataset.shape,
        config.data.transform,
        dataset.num_classes,
        dataset.columns,
        dataset.num_planes,
    )
    data = dataclasses.replace(conditions.resolved(config.data), transform=transform)
    if data.data_dir is not None:  # later commands may be given from another folder
        data = dataclasses.replace(data, data_dir=_absolute(data.data_dir))
    if data.name.startswith("folder:"):
        folder = _absolute(data.name.removeprefix("folder:"))
        height, _, channels = dataset.shape
        data = dataclasses.replace(
            data, name=f"folder:{folder}", image_size=height, channels=channels
        )
    if dataset.kind == "texts":  # its absolute path, and the length of its windows
        data = dataclasses.replace(data, name=dataset.name, length=dataset.shape[0])
    train = config.train
    if dataset.columns is not None:
        data = dataclasses.replace(data, name=dataset.name)  # with its absolute path
        # A table may have fewer rows than the usual batch.
        size = min(train.batch_size, dataset.train.num_examples)
        train = dataclasses.replace(train, batch_size=size)
    if train.init_from is not None:
        train = dataclasses.replace(train, init_from=_absolute(train.init_from))
    if train.patience is None:
        patience = 0 if dataset.columns is None else TABLE_PATIENCE
        train = dataclasses.replace(train, patience=patience)
    return dataclasses.replace(config, model=model, data=data, train=train)


def _absolute(path: str) -> str:
    return str(Path(path).expanduser().absolute())


def data_identity(dataset: Dataset) -> dict[str, Any]:
    """Sizes, and a digest to tell other data by: of 64 images a split, or all rows."""
    digest = hashlib.sha256()
    for source in (dataset.train, dataset.test, dataset.validation):
        if source is None:
            continue
        num = 64 if dataset.columns is None else source.num_examples
        examples = source.take(spread(source.num_examples, num))
        for name in ("x", "weight", "condition"):
            if name in examples:
                digest.update(np.ascontiguousarray(examples[name]).tobytes())
    return {
        "shape": list(dataset.shape),
        "num_train": dataset.train.num_examples,
        "num_test": dataset.test.num_examples,
        "digest": digest.hexdigest()[:16],
    }


def bind(config: RunConfig) -> Session:
    """Model and optimizers of a resolved config.

    Raises:
        UserError: if its training does not fit the model.
    """
    model = models.FAMILIES[config.family].make(config.model)
    if config.train.patience and len(model.players) > 1:
        raise UserError(
            f"--patience: {config.family} has several players, and no loss tells when it "
            "is best; give --patience 0"
        )
    pmapped = parallel.AXIS if config.train.parallel == "pmap" else None
    try:
        update.check_splittable(model, config.train.accumulate, pmapped)
    except ValueError as error:
        raise UserError(str(error)) from error
    least = max(player.least_examples for player in model.players)
    if config.train.batch_size < least:
        raise UserError(
            f"--batch-size {config.train.batch_size}: {config.family} learns nothing from "
            f"fewer than {least} examples an update"
        )
    optimizers = {player.name: make_optimizer(config.train) for player in model.players}
    return Session(config, model, optimizers)


def abstract_state(session: Session) -> update.TrainState:
    """Shapes and dtypes of the training state, nothing computed."""
    batch = {"x": jax.ShapeDtypeStruct((1, *session.config.model.shape), jnp.float32)}
    init = functools.partial(
        update.init_state,
        session.model,
        session.optimizers,
        num_averages=session.num_averages,
        keeps_best=session.keeps_best,
    )
    return jax.eval_shape(init, jax.random.key(0), batch)


def refuse_task(config: RunConfig, what: str) -> None:
    """Raises UserError for a run on a task: `what` is of images alone."""
    if config.data.task is not None:
        raise UserError(f"{what} is not for a run on --task {config.data.task}")


def num_parameters(tree: Any) -> int:
    """How many numbers a tree holds."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def load(path: Path, sampling: Any = None, *, ema_width: float | None = None) -> Loaded:
    """Reads a run folder.

    Args:
        path: The folder.
        sampling: What the model's config has under this name, chosen anew.
        ema_width: Of the average to use, rebuilt from those that the run has stored;
            None for the first that it keeps.

    Raises:
        UserError: if it is none, holds no valid checkpoint yet, or has not stored what
            that average needs.
    """
    run = RunFolder(path)
    config = run.read_config()
    if sampling is not None:
        model = dataclasses.replace(config.model, sampling=sampling)
        config = dataclasses.replace(config, model=model)
    session = bind(config)
    target = checkpoint.abstract(abstract_state(session))
    try:
        state, notes = checkpoint.restore(run.checkpoints, target)
    except checkpoint.CheckpointError as error:
        raise UserError(str(error)) from error
    step, params, best_step = int(state.step), state.chosen, None
    if notes:
        notes = [*notes, f"using step {step:,}"]
    if session.keeps_best and ema_width is None:
        best_step, _ = stopping.best(stopping.history(run.read_metrics(), until=step))
        notes = [
            *notes,
            f"the parameters of step {best_step:,}: the best validation loss",
        ]
    if ema_width is not None:
        params, more = snapshots.rebuild(
            run.averages,
            step,
            session.config.train.ema_widths,
            state.averages,
            ema_width,
        )
        notes = [*notes, *more]
    return Loaded(run, session.config, session.model, params, step, notes, best_step)
