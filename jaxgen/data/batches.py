"""Which examples make up batch t: a pure function of (seed, step).

So a resumed run, a run on other devices and K steps per dispatch all see the same
batches, and no loader has a state to save.
"""

import functools
import threading
from collections.abc import Callable, Generator, Iterator

import numpy as np

from jaxgen._checks import check_positive
from jaxgen.data import blocks
from jaxgen.data.sources import ArraySource, Source, fixed_order

_lock = threading.Lock()


def batch_indices(
    seed: int, step: int, *, num_examples: int, batch_size: int
) -> np.ndarray:
    """The examples of batch `step`; every example once per epoch, then anew.

    Epochs follow each other without a gap: place i of batch t is position
    p = t * batch_size + i of the endless sequence of epochs, and its example is
    permutation(seed, p // N)[p % N]. No batch is short, and none is dropped.

    Args:
        seed: Any integer.
        step: Batch number, from 0.
        num_examples: N.
        batch_size: B; may exceed N.

    Returns:
        `[B]` integers in 0..N-1.
    """
    check_positive("batch_indices", num_examples=num_examples, batch_size=batch_size)
    if step < 0:
        raise ValueError(f"batch_indices: step must not be negative, got {step}.")
    epoch, place = divmod(step * batch_size, num_examples)
    parts, missing = [], batch_size
    while missing:
        part = _permutation(seed, epoch, num_examples)[place : place + missing]
        parts.append(part)
        epoch, place, missing = epoch + 1, 0, missing - len(part)
    return np.concatenate(parts)


def stream(
    source: Source,
    *,
    seed: int,
    batch_size: int,
    start_step: int = 0,
    num_steps: int,
    rows: slice | None = None,
    num_threads: int | None = None,
    num_prefetched: int = 8,
) -> Generator[dict[str, np.ndarray]]:
    """Batches `start_step`, ..., `start_step + num_steps - 1`, read ahead in threads.

    Close the iterator (or exhaust it) to end its threads.

    Args:
        source: Where the examples come from.
        seed: As for `batch_indices`.
        batch_size: Size of the global batch.
        start_step: The first step.
        num_steps: How many batches.
        rows: The part of each global batch that this process needs, e.g.
            `slice(0, 64)`; each batch then also has `"index"`, int32, the places of its
            examples in the global batch. None for the whole batch.
        num_threads: Threads that read and decode; None for one where the source is in
            memory, else one a core, 2 to 8. The batches do not depend on it.
        num_prefetched: Batches read ahead: with the one in use, all that is in memory.
    """
    check_positive("stream", batch_size=batch_size, num_prefetched=num_prefetched)
    if num_threads is None:
        num_threads = 1 if isinstance(source, ArraySource) else blocks.num_threads()
    return _stream(
        _Steps(source, seed, batch_size, start_step, num_steps, rows),
        num_threads,
        max(num_prefetched, num_threads),
    )


def eval_batches(
    source: Source, batch_size: int, *, chosen: np.ndarray | None = None
) -> Iterator[dict[str, np.ndarray]]:
    """Every example exactly once and in order; the last batch is filled up.

    Args:
        source: Where the examples come from.
        batch_size: B.
        chosen: The numbers of the examples that are wanted; None for all.

    Yields:
        What `source.take` gives, with `"mask"`, float32 `[B]`, 1 for an example and 0
        for filling (a repetition of the last example), and `"index"`, int32 `[B]`, the
        number of each example in the source: noise drawn from it by `prepare` depends
        on the example and not on the batch size.
    """
    check_positive("eval_batches", batch_size=batch_size)
    chosen = np.arange(source.num_examples) if chosen is None else chosen
    for start in range(0, len(chosen), batch_size):
        place = np.arange(start, start + batch_size)
        index = chosen[np.minimum(place, len(chosen) - 1)]
        mask = (place < len(chosen)).astype(np.float32)
        yield {**source.take(index), "mask": mask, "index": index.astype(np.int32)}


class _Steps:
    """Random access to batches: what grain reads ahead of."""

    def __init__(
        self,
        source: Source,
        seed: int,
        batch_size: int,
        start_step: int,
        num_steps: int,
        rows: slice | None,
    ):
        self._source = source
        self._seed = seed
        self._batch_size = batch_size
        self._start_step = start_step
        self._num_steps = num_steps
        self._rows = rows

    def __len__(self) -> int:
        return self._num_steps

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        indices = batch_indices(
            self._seed,
            self._start_step + index,
            num_examples=self._source.num_examples,
            batch_size=self._batch_size,
        )
        if self._rows is None:
            return self._source.take(indices)
        place = np.arange(self._batch_size, dtype=np.int32)[self._rows]
        return {**self._source.take(indices[self._rows]), "index": place}


def _stream(
    steps: _Steps, num_threads: int, num_prefetched: int
) -> Generator[dict[str, np.ndarray]]:
    import grain

    options = grain.ReadOptions(
        num_threads=num_threads, prefetch_buffer_size=num_prefetched
    )
    batches = iter(grain.MapDataset.source(steps).to_iter_dataset(options))
    try:
        yield from batches
    finally:
        batches.close()


def _permutation(seed: int, epoch: int, num_examples: int) -> np.ndarray:
    with _lock:  # several reading threads ask for the same new epoch at once
        return _orders_of(seed)(epoch, num_examples)


@functools.cache
def _orders_of(seed: int) -> Callable[[int, int], np.ndarray]:
    """Of each seed that is trained, an epoch's order and the next one's are kept."""
    return functools.lru_cache(maxsize=2)(functools.partial(fixed_order, seed))
