"""Commands in processes of their own, as many at once as there are cores, each on one."""

import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent import futures
from pathlib import Path
from typing import Any

from jaxgen._checks import RunError, UserError
from jaxgen.train.console import say


def available() -> list[int]:
    """Numbers of the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


class Cores:
    """Threads, each bound to a core of its own, and with it the commands it starts.

    Where the system binds nothing (macOS), nothing is bound. When this context is left by
    an error, SIGINT or SIGTERM, what has not begun never does, and what runs is asked to
    end: a training run then saves its step.

    Args:
        jobs: How many; None for one a core.

    Raises:
        UserError: if there are not so many cores.
    """

    def __init__(self, jobs: int | None = None):
        there = available()
        jobs = len(there) if jobs is None else jobs
        if not 1 <= jobs <= len(there):
            raise UserError(f"--jobs must be in 1 .. {len(there)} (cores), got {jobs}")
        free: queue.SimpleQueue[int] = queue.SimpleQueue()
        for core in there:
            free.put(core)
        self._pool = futures.ThreadPoolExecutor(jobs, initializer=lambda: _bind(free))
        self._lock, self._ended = threading.Lock(), False
        self._running: set[subprocess.Popen[str]] = set()
        self._previous: Any = None

    def __enter__(self) -> "Cores":
        def end(number: int, frame: Any) -> None:
            del frame
            sys.exit(128 + number)

        self._previous = signal.signal(signal.SIGTERM, end)
        return self

    def __exit__(self, error: Any, *rest: Any) -> None:
        if error is not None:
            with self._lock:
                self._ended = True
                if self._running:
                    say(f"ending {len(self._running)} commands; the same goes on")
                for process in self._running:
                    process.terminate()
        self._pool.shutdown(cancel_futures=error is not None)
        signal.signal(signal.SIGTERM, self._previous)

    def submit(self, function: Callable[..., Any], *args: Any) -> futures.Future[Any]:
        """Calls a function in the next free thread."""
        return self._pool.submit(function, *args)

    def command(self, argv: Sequence[str], log: Path) -> str:
        """Runs a command to its end, standard error after what the log holds already.

        Returns:
            Its standard output, which is put into the log too.

        Raises:
            RunError: if it fails, with the last line of the log.
        """
        with open(log, "a") as file:
            file.write(f"$ {' '.join(argv)}\n")
            file.flush()
            with self._lock:
                if self._ended:
                    raise RunError("was not begun")
                process = subprocess.Popen(
                    argv,
                    stdout=subprocess.PIPE,
                    stderr=file,
                    text=True,
                    start_new_session=True,  # Ctrl-C is passed on, and only once
                )
                self._running.add(process)
            told, _ = process.communicate()
            with self._lock:
                self._running.remove(process)
            if not process.returncode:
                file.write(told)
        if process.returncode:
            last = log.read_text(errors="replace").splitlines()[-1]
            raise RunError(f"status {process.returncode}, {log}: {last}")
        return told


def _bind(free: queue.SimpleQueue[int]) -> None:
    """Binds this thread to the next core."""
    core = free.get()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {core})
