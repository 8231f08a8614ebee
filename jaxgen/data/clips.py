"""Clips: the next frame is the image, past frames and an action are its condition.

```
condition = [frame t-1, frame t, action planes]    -> frame t+1      oldest first
advance(condition, frame t+1, planes)              -> [frame t, frame t+1, planes]
```
All in one unit: levels 0..255 as they are stored, or [0, 1] as a model sees them.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jaxgen.data.sources import Dataset, Source

PAST = 2  # frames that are given


def stacked(past: np.ndarray, actions: np.ndarray | None = None) -> np.ndarray:
    """A condition as it is stored, uint8 `[N, H, W, PAST * C + A]`.

    Args:
        past: Frames, the oldest first, uint8 `[N, PAST, H, W, C]`.
        actions: Planes of `action_planes`, `[N, H, W, A]`; None where nothing is done.
    """
    frames = [past[:, i] for i in range(PAST)]
    if actions is not None:
        frames.append(np.asarray(actions * 255, np.uint8))
    return np.concatenate(frames, axis=-1)


def num_actions(dataset: Dataset) -> int:
    """A, how many actions there are to choose from; 0 where nothing is done."""
    planes = dataset.test.take(np.arange(1))["condition"].shape[-1]
    return planes - PAST * dataset.shape[-1]


def action_planes(
    action: ArrayLike, *, num_actions: int, shape: tuple[int, ...]
) -> Array:
    """One-hot planes `[B, H, W, num_actions]`, float32 zeros and ones.

    Args:
        action: Numbers of actions, `[B]`.
        num_actions: A.
        shape: Of a frame, `(H, W, ...)`.
    """
    hot = jax.nn.one_hot(jnp.asarray(action), num_actions)
    return jnp.broadcast_to(
        hot[:, None, None], (len(hot), shape[0], shape[1], num_actions)
    )


def advance(condition: Array, frame: Array, actions: Array | None = None) -> Array:
    """The condition of the frame after `frame`: the oldest one is forgotten.

    Args:
        condition: That `frame` is the answer to, `[B, H, W, PAST * C + A]`.
        frame: `[B, H, W, C]`.
        actions: What is done next, as planes `[B, H, W, A]`; None where A is 0.

    Raises:
        ValueError: if the planes are not as many as they were.
    """
    channels = frame.shape[-1]
    parts = [condition[..., channels : PAST * channels], frame]
    if actions is not None:
        parts.append(actions)
    given = sum(part.shape[-1] for part in parts)
    if given != condition.shape[-1]:
        raise ValueError(
            f"advance: condition has {condition.shape[-1]} planes, the next one would "
            f"have {given}: {PAST} frames of {channels} channels and the actions; give "
            "the planes of the next action, and no others."
        )
    return jnp.concatenate(parts, axis=-1)


def initial(source: Source, indices: np.ndarray) -> Array:
    """Conditions to begin at, float32 `[B, H, W, PAST * C + A]` in [0, 1]."""
    return jnp.asarray(source.take(indices)["condition"], jnp.float32) / 255


def random_actions(
    seed: int, num_clips: int, num_steps: int, num_actions: int
) -> np.ndarray:
    """Actions drawn evenly, int32 `[num_steps, num_clips]`; the same in every NumPy."""
    key = np.array([seed % 2**64, 0], np.uint64)
    words = np.random.Philox(key=key).random_raw(num_steps * num_clips)
    words = words.reshape(num_clips, num_steps).T  # one clip more changes no other
    return (words % np.uint64(num_actions)).astype(np.int32)


def roll(
    answer: Callable[[Array, Array], Array],
    condition: Array,
    keys: Array,
    actions: Array | None = None,
) -> tuple[Array, Array]:
    """Frames one after the other, each given those before; to be called under jit or not.

    Args:
        answer: `(condition, keys [B]) -> frame [B, H, W, C]` in the condition's unit, [0, 1]:
            of a model `lambda c, k: model.generate(params, model.prior(k, params), k, c)`.
        condition: To begin at, with the first action, as `initial` gives it.
        keys: One a frame and clip, `[T, B]`.
        actions: `[T, B]`, what is done after each frame; None where nothing is.

    Returns:
        The frames `[T, B, H, W, C]`, and the condition after the last of them.
    """

    def step(condition: Array, inputs: tuple[Array, Array | None]):
        keys, action = inputs
        frame = answer(condition, keys)
        planes = None
        if action is not None:
            num = condition.shape[-1] - PAST * frame.shape[-1]
            planes = action_planes(action, num_actions=num, shape=frame.shape[1:])
        return advance(condition, frame, planes), frame

    last, frames = jax.lax.scan(step, condition, (keys, actions))
    return frames, last
