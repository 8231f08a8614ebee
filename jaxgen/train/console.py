"""What a person sees: a progress bar on a terminal, plain lines elsewhere."""

import math
import sys
import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn
from rich.text import Text

from jaxgen.train import processes

PLAIN_SECONDS = 10.0  # between two plain lines


def say(message: str) -> None:
    """One line to standard error; standard output is for results."""
    if not processes.is_first():
        return
    sys.stderr.write(f"{message}\n")
    sys.stderr.flush()


class _Eta(ProgressColumn):
    def render(self, task: Any) -> Text:
        return Text(duration(task.fields["eta"]), style="cyan")


class Meter:
    """Shows the progress of a run from `start` to `steps`."""

    def __init__(self, steps: int, start: int):
        self._steps = steps
        self._last = 0.0
        self._bar: Progress | None = None
        if sys.stderr.isatty():
            self._bar = Progress(
                TextColumn("step {task.completed:,.0f}/{task.total:,.0f}"),
                BarColumn(bar_width=None),
                TextColumn("loss {task.fields[loss]:.3f}"),
                TextColumn("{task.fields[rate]:,.0f} examples/s"),
                TextColumn("ETA"),
                _Eta(),
                console=Console(stderr=True),
                expand=True,
            )
            self._task = self._bar.add_task(
                "", total=steps, completed=start, loss=math.nan, rate=0.0, eta=math.nan
            )
            self._bar.start()

    def show(
        self, step: int, loss: float, examples_per_s: float, steps_per_s: float
    ) -> None:
        """Tells of the interval that ended at `step`."""
        eta = (self._steps - step) / steps_per_s if steps_per_s else math.nan
        if self._bar is not None:
            self._bar.update(
                self._task, completed=step, loss=loss, rate=examples_per_s, eta=eta
            )
        elif time.monotonic() - self._last > PLAIN_SECONDS or step == self._steps:
            self._last = time.monotonic()
            say(
                f"step {step:,}/{self._steps:,}  loss {loss:.3f}  "
                f"{examples_per_s:,.0f} examples/s  ETA {duration(eta)}"
            )

    def close(self) -> None:
        """Leaves the terminal as it was."""
        if self._bar is not None:
            self._bar.stop()


def duration(seconds: float) -> str:
    """`h:mm:ss`, or `-` where it is not known."""
    if not math.isfinite(seconds):
        return "-"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
