"""Tasks with many right answers: an image is split into what is given and what is asked.

A task is a pure function image -> (condition, target). The condition is as many planes of
the target's height and width as the task has, so that every network takes it alike:

colourise    the grey image; asked is the colour one
inpaint      the pixels that are seen, and a plane that is 1 where they are hidden
enlarge      the block means, each repeated, under noise, and a plane of the noise's level
next-frame   what the data give with each frame: past frames, and the action

Images are in [0, 1]. An answer may be held against what was seen of the truth, y = A x.

References:
    Saharia et al. 2021 (Palette), arXiv:2111.05826. Ho et al. 2021 (cascades, and the
    noise of a condition, section 4.2), arXiv:2106.15282.
"""

from collections.abc import Callable
from types import MappingProxyType
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Key

from jaxgen import _checks, operators

TASKS = MappingProxyType(
    {
        "colourise": "Colour for a grey image.",
        "inpaint": "What is under a mask: the centre, a half, a box, random pixels.",
        "enlarge": "An image 2 or 4 times as large.",
        "next-frame": "Of clips: the frame after two past ones and an action.",
    }
)
MOST_NOISE = 0.2  # standard deviation in training, of what is to be enlarged
Images = Float[Array, "B H W C"]
Planes = Float[Array, "B H W K"]
Keys = Key[Array, " B"]


class Task(NamedTuple):
    """How an image is split.

    Attributes:
        split: `(x [B, H, W, C], keys [B]) -> (condition [B, H, W, K], target)`. Row i is a
            function of row i and of keys[i], by which masks and noise are drawn.
        num_planes: C -> K.
        seen: `condition -> (A, y)`: the operator of this batch, and what it saw of the
            target; None where the condition is of other images.
        shown: `condition -> [B, H, W, 1 or C]`, a picture of what is given.
    """

    split: Callable[[Array, Array], tuple[Array, Array]]
    num_planes: Callable[[int], int]
    seen: Callable[[Array], tuple[operators.Operator, Array]] | None
    shown: Callable[[Array], Array]


def colourise() -> Task:
    """Colour for a grey image; ValueError (when split) for images of another kind."""
    grey = operators.luma()

    def split(x: Images, keys: Keys) -> tuple[Planes, Images]:
        del keys
        return grey.apply(x), x

    return Task(
        split, lambda channels: 1, lambda given: (grey, given), lambda given: given
    )


def inpaint(mask: str = "boxes") -> Task:
    """What is under a mask.

    Args:
        mask: One of `jaxgen.operators.MASKS`, drawn for each example.

    Raises:
        ValueError: if there is no such mask.
    """
    _checks.check_in("inpaint", "mask", mask, operators.MASKS)

    def split(x: Images, keys: Keys) -> tuple[Planes, Images]:
        return masked(x, operators.MASKS[mask](keys, *x.shape[1:3])), x

    def seen(given: Planes) -> tuple[operators.Operator, Array]:
        return operators.mask(given[..., -1:]), given[..., :-1]

    def shown(given: Planes) -> Images:
        return jnp.where(given[..., -1:] > 0, 0.5, given[..., :-1])

    return Task(split, lambda channels: channels + 1, seen, shown)


def masked(x: Images, hidden: Float[Array, "B H W 1"]) -> Planes:
    """The condition of `inpaint`: the seen pixels, and a plane of the hidden ones."""
    return jnp.concatenate([operators.mask(hidden).apply(x), hidden], axis=-1)


def enlarge(scale: int, *, most_noise: float = 0.0) -> Task:
    """An image `scale` times as large.

    Args:
        scale: Of both sides.
        most_noise: The level of the condition's noise is drawn from 0 to this; without
            it the condition is clean.

    Raises:
        ValueError: if scale is below 1, or (when split) does not divide height and width.
    """
    small = operators.block_mean(scale)

    def split(x: Images, keys: Keys) -> tuple[Planes, Images]:
        levels, noise = jax.vmap(jax.random.split, out_axes=1)(keys)
        level = most_noise * jax.vmap(jax.random.uniform)(levels)
        return small_planes(small.apply(x), noise, level, scale=scale), x

    def seen(given: Planes) -> tuple[operators.Operator, Array]:
        return small, small.apply(given[..., :-1])

    return Task(
        split, lambda channels: channels + 1, seen, lambda given: given[..., :-1]
    )


def small_planes(
    y: Float[Array, "B h w C"], keys: Keys, level: Float[Array, " B"], *, scale: int
) -> Planes:
    """The condition of `enlarge` for small images y: under noise of this level, repeated.

    Args:
        y: In [0, 1].
        keys: Of the noise.
        level: Its standard deviation, `[B]`; it is told in units of `MOST_NOISE`.
        scale: By which y is to be enlarged.
    """
    shape = y.shape[1:]
    noise = jax.vmap(lambda key: jax.random.normal(key, shape))(keys)
    level = level[:, None, None, None]
    large = operators.block_mean(scale).pseudo_inverse(y + level * noise)
    told = jnp.broadcast_to(level / MOST_NOISE, (*large.shape[:3], 1))
    return jnp.concatenate([large, told], axis=-1)


def next_frame(num_channels: int, *, num_past: int = 2) -> Task:
    """The frame after those that are given; there is nothing left to split.

    Args:
        num_channels: C of a frame.
        num_past: How many frames the condition begins with, the oldest first; what comes
            behind them are planes of the action.

    Raises:
        TypeError: (when split) always: the data give the condition with each frame.
    """

    def split(x: Images, keys: Keys) -> tuple[Planes, Images]:
        raise TypeError(
            "next_frame: the past is no function of the frame; see the data"
        )

    def shown(given: Planes) -> Images:
        return given[..., (num_past - 1) * num_channels : num_past * num_channels]

    return Task(split, lambda channels: num_past * channels, None, shown)


def settled(task: Task, x: Images, condition: Planes) -> Images:
    """The nearest images in [0, 1] of which is seen what the condition says."""
    if task.seen is None:
        return x
    operator, y = task.seen(condition)
    return operators.consistent_within(operator, jnp.clip(x, 0.0, 1.0), y)


def disagreement(task: Task, x: Images, condition: Planes) -> Float[Array, " B"]:
    """The greatest of |A x - y| of each answer; 0 where nothing of it is seen."""
    if task.seen is None:
        return jnp.zeros(len(x))
    operator, y = task.seen(condition)
    return jnp.max(jnp.abs(operator.apply(x) - y), axis=(1, 2, 3))


def make(
    name: str, *, mask: str = "boxes", scale: int = 2, most_noise: float = 0.0
) -> Task:
    """A task of images by its name, with the options that it knows.

    Raises:
        ValueError: for an unknown name; "next-frame" is split by the data themselves.
    """
    if name == "colourise":
        return colourise()
    if name == "inpaint":
        return inpaint(mask)
    _checks.check_in("tasks.make", "name", name, ("colourise", "inpaint", "enlarge"))
    return enlarge(scale, most_noise=most_noise)
