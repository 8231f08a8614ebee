"""How a run on a task answers: figures of several answers, and a picture of some."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen import data, tasks
from jaxgen.data import peg
from jaxgen.evaluate import answers, classifier, intervals, peg_answers
from jaxgen.train import answering, assembly, pictures
from jaxgen.train.session import Loaded

NUM_QUESTIONS = 100  # of the test split at most
NEAREST = 10  # training images
ROWS, COLUMNS = 8, 6  # questions that are shown, and answers to each
CAPTION = f"what is given, {COLUMNS} answers, the mean of them, and the truth"


def evaluate(
    loaded: Loaded,
    dataset: data.Dataset,
    num: int,
    *,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Errors and diversity of `num` answers to each of 100 test examples.

    Args:
        loaded: A run on a task.
        dataset: Its data.
        num: Of the answers to each question.
        seed: Of questions' masks and of answers.
        progress: Called with (answers drawn, answers in all).

    Returns:
        `answers`: `num_questions`, `num_answers`; with value, low and high, in units of
        images in [0, 1], `best`, `of_mean`, `diversity` of `jaxgen.evaluate.answers` (of an
        inpainting over the hidden pixels), and `disagreement`: of what the model answers
        with what is seen of the truth, the greatest of all numbers, the mean over answers;
        null where nothing of it is seen. All else is of answers that were made to agree
        with it; of these `settled` is what the 256 levels leave of it. Where the possible
        answers are known also `modes`; where there are labels, of an inpainting,
        `recognised` and `num_decided` of `recognised`.
    """
    total, source = min(NUM_QUESTIONS, dataset.test.num_examples), dataset.test
    chosen = data.spread(source.num_examples, total)
    asked = answering.conditions(loaded.config.data, source, chosen, seed)
    raw = _answered(loaded, asked["condition"], num, seed, progress)
    result: dict[str, Any] = {
        "disagreement": _plain(_disagreement(loaded, raw, asked["condition"]))
    }
    found = _settled(loaded, raw, asked["condition"])
    result["settled"] = _plain(_disagreement(loaded, found, asked["condition"]))
    if dataset.name.startswith(peg.PREFIX):
        told = peg_answers.counted(dataset.name, asked["condition"], found)
        result["modes"] = _plain(told)
    hidden = None
    if loaded.config.data.task == "inpaint":
        hidden = asked["condition"][..., -1:]
        some = hidden.any(axis=(1, 2, 3))
        asked, chosen = {n: array[some] for n, array in asked.items()}, chosen[some]
        found, hidden = found[some], hidden[some]
        if dataset.num_classes and classifier.is_shipped(dataset):
            result |= recognised(dataset, asked["condition"], found, chosen)
    told = answers.errors(found, asked["x"], hidden)._asdict()
    counts = {"num_questions": len(found), "num_answers": num}
    return {"answers": {**counts, **_plain(told), **result}}


def recognised(
    dataset: data.Dataset, condition: np.ndarray, found: np.ndarray, chosen: np.ndarray
) -> dict[str, Any]:
    """How often completed images are of the true class, where what is seen decides it.

    It does where the ten training images that are nearest by the seen pixels are all of one
    class, the true one.

    Args:
        dataset: With labels and a classifier that is shipped.
        condition: Of an inpainting, `[N, H, W, C + 1]`.
        found: Answers `[N, K, H, W, C]`.
        chosen: Numbers of the test examples, `[N]`.

    Returns:
        `recognised`, the share of the answers with an interval, null where nothing is
        decided, and `num_decided` of the N.
    """
    train = dataset.train.take(np.arange(dataset.train.num_examples))
    truth = dataset.test.take(chosen)["label"]
    x = train["x"].reshape(len(train["x"]), -1).astype(np.float32) / 255
    seen, hidden = condition[..., :-1], condition[..., -1:]
    weight = np.broadcast_to(1 - hidden, seen.shape).reshape(len(seen), -1)
    squares = weight @ (x**2).T - 2 * seen.reshape(len(seen), -1) @ x.T
    nearest = train["label"][np.argpartition(squares, NEAREST, axis=1)[:, :NEAREST]]
    decided = np.all(nearest == truth[:, None], axis=1)
    told = None
    if decided.any():
        levels = pictures.to_uint8(found[decided]).reshape(-1, *found.shape[2:])
        seen_as = classifier.shipped(dataset.name).probabilities(levels).argmax(axis=1)
        right = seen_as.reshape(-1, found.shape[1]) == truth[decided, None]
        # Limits of so many questions: answers to one of them may be alike.
        told = intervals.of_count(float(right.mean(axis=1).sum()), len(right))
    return {"recognised": told and told._asdict(), "num_decided": int(decided.sum())}


def _plain(told: Any) -> Any:
    """Intervals as dicts and null for what is not finite, for JSON."""
    if isinstance(told, intervals.Interval):
        return _plain(told._asdict())
    if isinstance(told, dict):
        return {name: _plain(each) for name, each in told.items()}
    return None if isinstance(told, float) and not math.isfinite(told) else told


def picture(loaded: Loaded, source: data.Source) -> np.ndarray:
    """`[rows, 3 + COLUMNS, H, W, C]` in [0, 1]: each row one question, as `CAPTION` says."""
    rows = min(ROWS, source.num_examples)
    asked = answering.conditions(
        loaded.config.data, source, data.spread(source.num_examples, rows), 0
    )
    raw = _answered(loaded, asked["condition"], COLUMNS, 0)
    found = _settled(loaded, raw, asked["condition"])
    truth, shape = asked["x"], found.shape
    shown = _task(loaded).shown(jnp.asarray(asked["condition"]))
    given = np.broadcast_to(np.asarray(shown), truth.shape)
    mean = found.mean(axis=1)
    columns = [given[:, None], found, mean[:, None], truth[:, None]]
    return np.clip(np.concatenate(columns, axis=1), 0, 1).reshape(rows, -1, *shape[2:])


def _task(loaded: Loaded) -> tasks.Task:
    task = data.task_of(loaded.config.data, loaded.config.model.shape[-1])
    if task is None:
        raise ValueError("asked: the run has no task")
    return task


def _answered(
    loaded: Loaded,
    condition: np.ndarray,
    num: int,
    seed: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> np.ndarray:
    """`[N, num, H, W, C]` in [0, 1], as they would be stored."""
    drawn = answering.several(
        answering.to_condition(loaded.model),
        loaded.params,
        [condition],
        num,
        seed=seed,
        at_once=assembly.Sampler(loaded).num,
        progress=progress,
    )
    return pictures.to_uint8(drawn) / np.float32(255)


def _settled(loaded: Loaded, found: np.ndarray, condition: np.ndarray) -> np.ndarray:
    """The answers `[N, num, H, W, C]`, made to agree with what is seen, as stored."""
    near = jax.jit(functools.partial(tasks.settled, _task(loaded)))
    each = [near(found[:, k], condition) for k in range(found.shape[1])]
    return pictures.to_uint8(np.stack(each, axis=1)) / np.float32(255)


def _disagreement(
    loaded: Loaded, found: np.ndarray, condition: np.ndarray
) -> intervals.Interval | None:
    task = _task(loaded)
    if task.seen is None:
        return None
    num, flat = found.shape[1], found.reshape(-1, *found.shape[2:])
    far = jax.jit(lambda x, given: tasks.disagreement(task, x, given))
    off = np.asarray(far(flat, np.repeat(condition, num, axis=0))).reshape(-1, num)
    means = off.mean(axis=1)
    error = means.std(ddof=1) / np.sqrt(len(means)) if len(means) > 1 else 0.0
    return intervals.of_error(float(means.mean()), float(error), least=0.0)
