"""Ctrl-C and `kill`, outside the training loop (which saves first)."""

import os
import signal
from types import FrameType


def end_quietly() -> None:
    """From now on SIGINT and SIGTERM end the process with one line and 130 or 143.

    At once, not by an exception: nothing is written in place, so nothing is lost, and
    JAX crashes in the tear-down of an interpreter that was interrupted in a compilation.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _end)


def _end(number: int, frame: FrameType | None) -> None:
    del frame
    word = "interrupted" if number == signal.SIGINT else "terminated"
    os.write(2, f"jaxgen: {word}\n".encode())  # sys.stderr may be in mid-write
    os._exit(128 + number)
