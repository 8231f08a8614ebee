"""How a process ends: Ctrl-C and `kill` outside the training loop, and a failure."""

import contextlib
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType


def end_quietly() -> None:
    """From now on SIGINT and SIGTERM end the process with one line and 130 or 143.

    At once, not by an exception: nothing is written in place, so nothing is lost, and
    JAX crashes in the tear-down of an interpreter that was interrupted in a compilation.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _end)


def fail_at_once(command: Callable[[], None]) -> None:
    """Runs a command; where it exits with a status that is not 0, the process ends there.

    Libraries begin threads when they are imported; an interpreter that is torn down a
    moment later now and then aborts with status 134 and words of its own.
    """
    try:
        command()
    except SystemExit as stop:
        if not stop.code:
            raise
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(stop.code if isinstance(stop.code, int) else 1)


def _end(number: int, frame: FrameType | None) -> None:
    del frame
    word = "interrupted" if number == signal.SIGINT else "terminated"
    os.write(2, f"jaxgen: {word}\n".encode())  # sys.stderr may be in mid-write
    os._exit(128 + number)
