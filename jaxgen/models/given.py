"""What a network is told of each example: its class, planes beside it, or nothing.

A family's resolved config says which: `num_classes`, or `num_planes` (K) of a task's
condition. Planes are told with one more, of ones; of nothing all are zero. Among classes
`num_classes` is nothing.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxgen.models.base import Batch


def told(config: Any, condition: Array | None) -> Array | None:
    """A condition as a network is told it: classes `[B]`, or planes `[B, H, W, K + 1]`.

    Planes go from [0, 1] to [-1, 1].
    """
    if condition is None or not config.num_planes:
        return condition
    ones = jnp.ones((*condition.shape[:-1], 1), condition.dtype)
    return jnp.concatenate([2 * condition - 1, ones], axis=-1)


def of_batch(config: Any, batch: Batch) -> Array | None:
    """What a batch's examples are told."""
    if config.num_planes:
        return told(config, batch["condition"])
    return batch["label"].astype(jnp.int32) if config.num_classes else None


def dropped(config: Any, batch: Batch, keys: Array) -> Array | None:
    """What a batch's examples are told, some of them nothing: `config.label_dropout`.

    So the network learns both, for guidance.
    """
    whole = of_batch(config, batch)
    if whole is None:
        return None
    kept = jax.vmap(jax.random.uniform)(keys) >= config.label_dropout
    nothing = jnp.zeros_like(whole) if config.num_planes else config.num_classes
    return jnp.where(kept.reshape(-1, *(1 for _ in whole.shape[1:])), whole, nothing)


def chosen(config: Any, condition: Array | None, keys: Array) -> Array | None:
    """What samples are told: the condition; else the class of --label, or a drawn one."""
    if condition is not None or config.num_classes is None:
        return told(config, condition)
    if config.sampling.label is not None:
        return jnp.full(keys.shape, config.sampling.label)
    num = config.num_classes
    return jax.vmap(lambda key: jax.random.randint(key, (), 0, num))(keys)
