"""Work over many items in a few threads, a bounded number of items at a time."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def num_threads() -> int:
    """How many threads decode images: the cores, at least 2 and at most 8."""
    return min(8, max(2, os.cpu_count() or 1))


def map_threads(
    work: Callable[[Item], Result], items: Sequence[Item], *, in_flight: int = 1024
) -> Iterator[Result]:
    """Yields `work(item)` in order; at most `in_flight` results wait in memory."""
    with ThreadPoolExecutor(num_threads(), thread_name_prefix="jaxgen-data") as pool:
        for start in range(0, len(items), in_flight):
            yield from pool.map(work, items[start : start + in_flight])
