"""Several answers to each of some questions, by one compiled program.

Answer k to question i depends on (seed, i, k) only, not on how many there are of either.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen import data, tasks
from jaxgen.models.base import Model, indexed_keys

AT_ONCE = 8  # answers, whatever their number: one program, and no other rounding


def several(
    answer: Callable[..., jax.Array],
    params: Any,
    questions: Sequence[np.ndarray],
    num: int,
    *,
    seed: int,
    at_once: int = AT_ONCE,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> np.ndarray:
    """`num` answers to every question, `[N, num, ...]`.

    Args:
        answer: `(params, keys [B], *questions [B, ...]) -> [B, ...]`, pure; keys are one
            for each answer.
        params: Of the model.
        questions: Arrays `[N, ...]`, row i of each belonging to question i.
        num: Of the answers to each.
        seed: Of all noise.
        at_once: B; results are the same to rounding.
        progress: Called with (answers found, answers in all).
    """

    @jax.jit
    def some(params: Any, key: jax.Array, at: jax.Array, *rows: jax.Array) -> jax.Array:
        keys = jax.vmap(jax.random.fold_in)(indexed_keys(key, at[0]), at[1])
        return answer(params, keys, *rows)

    key, total = jax.random.key(seed), len(questions[0]) * num
    found = []
    for start in range(0, total, at_once):
        place = np.minimum(np.arange(start, start + at_once), total - 1)
        at = np.stack(np.divmod(place, num)).astype(np.int32)
        rows = [question[at[0]] for question in questions]
        found.append(np.asarray(some(params, key, at, *rows)))
        progress(min(start + at_once, total), total)
    whole = np.concatenate(found)[:total]
    return whole.reshape(-1, num, *whole.shape[1:])


def to_condition(
    model: Model, task: tasks.Task | None = None
) -> Callable[..., jax.Array]:
    """What a model of a task answers, for `several`; questions are conditions alone.

    Args:
        model: As trained.
        task: With what its conditions say the answers are then made to agree; None to
            leave them as they are.
    """

    def answer(params: Any, keys: jax.Array, condition: jax.Array) -> jax.Array:
        prior, generate = jax.vmap(jax.random.split, out_axes=1)(keys)
        x = model.generate(params, model.prior(prior, params), generate, condition)
        return x if task is None else tasks.settled(task, x, condition)

    return answer


def conditions(
    config: data.DataConfig, source: data.Source, chosen: np.ndarray, seed: int
) -> dict[str, np.ndarray]:
    """Of examples of a split what is asked and what is true.

    Args:
        config: Of the run's data, resolved, with a task.
        source: The split.
        chosen: Numbers of the examples, `[N]`.
        seed: Of masks; those of example i depend on (seed, i) alone.

    Returns:
        `x` and `condition`, float32 `[N, H, W, ...]`.
    """
    raw = {name: jnp.asarray(a) for name, a in source.take(chosen).items()}
    raw["index"] = jnp.asarray(chosen, jnp.int32)
    prepared = jax.jit(data.make_prepare(config))(raw, jax.random.key(seed))
    return {name: np.asarray(prepared[name]) for name in ("x", "condition")}
