"""What is given of an image, and what is asked: `jaxgen.tasks` as a run's data have them.

`make_prepare` is what every consumer of a run's batches calls: bytes to numbers, then the
split, so that `batch["condition"]` is there wherever the config names a task.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen import tasks
from jaxgen._checks import UserError
from jaxgen.data.config import DataConfig
from jaxgen.data.sources import Dataset
from jaxgen.data.transforms import prepare

STREAM = 2**31 - 3  # of a batch's key: masks and noise of conditions
SCALES = (2, 4)
Prepare = Callable[[Mapping[str, Any], jax.Array], dict[str, Any]]


def resolved(config: DataConfig) -> DataConfig:
    """With the mask and the scale that the task takes where none is said.

    Raises:
        UserError: for a mask or a scale without its task.
    """
    for flag, task in (("mask", "inpaint"), ("scale", "enlarge")):
        if getattr(config, flag) is not None and config.task != task:
            raise UserError(f"--{flag} is for --task {task}")
    if config.task == "inpaint" and config.mask is None:
        return dataclasses.replace(config, mask="boxes")
    if config.task == "enlarge" and config.scale is None:
        return dataclasses.replace(config, scale=2)
    return config


def without_task(config: DataConfig, **changes: Any) -> DataConfig:
    """The same images, with nothing given of them."""
    return dataclasses.replace(config, task=None, mask=None, scale=None, **changes)


def task_of(
    config: DataConfig, num_channels: int, *, training: bool = False
) -> tasks.Task | None:
    """The task of a config, or None.

    Args:
        config: As it was said, or resolved.
        num_channels: Of an image.
        training: Whether conditions are under noise, where the task knows such.
    """
    config = resolved(config)
    if config.task is None:
        return None
    if config.task == "next-frame":
        return tasks.next_frame(num_channels)
    return tasks.make(
        config.task,
        mask=config.mask or "boxes",
        scale=config.scale or 2,
        most_noise=tasks.MOST_NOISE if training else 0.0,
    )


def with_task(dataset: Dataset, config: DataConfig) -> Dataset:
    """The set with the number of planes that its task gives with each image.

    Raises:
        UserError: if the task is none of such data.
    """
    config = resolved(config)
    if config.task is None:
        return dataset
    if dataset.kind != "images":
        raise UserError(
            f"--task {config.task} is for images; {dataset.name} holds {dataset.kind}"
        )
    check_task(config.task, dataset.shape, config.scale, dataset.name)
    if config.task == "next-frame":
        given = dataset.train.take(np.zeros(1, np.int64)).get("condition")
        if given is None:
            raise UserError(
                f"--task next-frame is for clips; {dataset.name} holds single images: "
                "inpaint and enlarge fit"
            )
        return dataset._replace(num_planes=given.shape[-1])
    channels = dataset.shape[-1]
    task: Any = task_of(config, channels)
    return dataset._replace(num_planes=task.num_planes(channels))


def check_task(
    name: str, shape: tuple[int, ...], scale: int | None, where: str
) -> None:
    """Raises UserError, naming what fits, where a task is none of images of this shape."""
    height, width, channels = shape
    size = f"{height}x{width}"
    if name == "colourise" and channels != 3:
        raise UserError(
            f"--task colourise is for colour images; those of {where} are grey "
            f"({size}x{channels}): inpaint and enlarge fit"
        )
    if name == "enlarge" and scale and (height % scale or width % scale):
        fits = [str(s) for s in SCALES if height % s == width % s == 0]
        raise UserError(
            f"--scale {scale} does not divide the images of {where}, {size}; "
            + (f"--scale {' or '.join(fits)} does" if fits else "no other does")
        )


def make_prepare(config: DataConfig, *, training: bool = False) -> Prepare:
    """`(raw batch, key) -> batch` of a run: `prepare`, and what its task gives.

    Condition i is a function of the image, the key and `index[i]` alone, as its noise is.
    Without a task the batch has no condition, whatever the data give.

    Args:
        config: Of the run, resolved.
        training: Whether what is to be enlarged is under noise.

    Returns:
        A pure function, to be called inside the update; `condition` is float32 `[B, H,
        W, K]`, in [0, 1] but for noise.
    """

    def prepared(batch: Mapping[str, Any], key: jax.Array) -> dict[str, Any]:
        made = prepare(batch, key, transform=config.transform)
        given = made.pop("condition", None)
        x = made["x"]
        task = task_of(config, x.shape[-1], training=training)
        if task is None:
            return made
        if config.task == "next-frame":
            return {**made, "condition": jnp.asarray(given, jnp.float32) / 255}
        index = jnp.asarray(made["index"]) if "index" in made else jnp.arange(len(x))
        own = jax.random.fold_in(key, STREAM)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(own, index)
        made["condition"], made["x"] = task.split(x, keys)
        return made

    return prepared
