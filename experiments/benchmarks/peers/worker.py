"""One side in a process of its own: idle until told to time so many updates.

    python worker.py SIDE CASE FOLDER DEVICES [--smoke]

Writes one line of JSON about itself; then reads a number of updates a line and writes
the seconds that one of them took, until its input ends.
"""

import importlib
import json
import math
import os
import sys
import time
from pathlib import Path
from typing import Any, TextIO

import cases

MIN_SECONDS = 0.3  # of one timing


def main() -> None:
    name, case_name, folder, devices, *smoke = sys.argv[1:]
    # What libraries print goes to the screen, not into the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    case = cases.case(case_name, smoke=bool(smoke), devices=int(devices))
    module = importlib.import_module(case.module(name))
    side = module.Side(case, name, Path(folder))
    told = {"num_parameters": side.num_parameters, "settings": side.settings}
    told |= side.checked
    updates = _long_enough(side, 0.0 if smoke else MIN_SECONDS)
    _write(answers, {**told, "updates": updates})
    for line in sys.stdin:
        _write(answers, _seconds(side, int(line)))


def _write(answers: TextIO, answer: Any) -> None:
    answers.write(json.dumps(answer) + "\n")
    answers.flush()


def _seconds(side: Any, updates: int) -> float:
    began = time.perf_counter()
    side.advance(updates)
    return (time.perf_counter() - began) / updates


def _long_enough(side: Any, seconds: float) -> int:
    """How many updates take that long; all is warm then."""
    _seconds(side, 2 * side.quantum)
    one = min(_seconds(side, 2 * side.quantum) for _ in range(2))
    return side.quantum * max(1, math.ceil(seconds / one / side.quantum))


if __name__ == "__main__":
    main()
