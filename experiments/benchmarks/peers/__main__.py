r"""Speed of a training step in jaxgen and in its peers: one model, batch and optimizer.

    python -m pip install torch==2.13.0 torchvision==0.28.0 \
        --index-url https://download.pytorch.org/whl/cpu
    python -m pip install -e ".[peers]"
    python experiments/benchmarks/peers [CASE ...] [--rounds 20] [--devices 2] [--out FILE]

The first command is for the build without CUDA; where `torch==2.13.0+cpu` is on pip's
own index the second alone takes it. `compiled` needs g++. A ratio above 1 says how many
times faster jaxgen is; all sides are checked to have the same parameters and, over three
updates from the same noise, the same losses.

The networks of `diffusion` (an update) and `sampling` (a batch by DPM-Solver++(2M) in ten
steps) are each library's own, of the same widths: they are checked to have about as many
parameters, and the samplers to agree where an exact denoiser takes the network's place.
`mflop_forward` in the JSON is what a network's call costs for one image.

With `--devices 2` jaxgen shares the batch over two halves of the CPU, where torch has two
threads.

Every side has a process of its own and sleeps while another is timed: rounds of A B C,
A B C. Alone and in turns the figures agreed (jaxgen's 784-512-16 VAE 4.6 and 4.3 ms,
7.6 and 7.4 under load), so no side disturbs the next. `OMP_WAIT_POLICY=passive` made
torch 1.4 to 1.9 times slower, so it is not set. Where other programs are busy, torch's
threads wait for each other by spinning, and its times (and the ratios) grow without
meaning: measure on a quiet machine.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cases
import ratios

WORKER = Path(__file__).with_name("worker.py")


class Worker:
    """A side in its own process, which waits on a pipe while the others run."""

    def __init__(self, argv: list[str]):
        self._process = subprocess.Popen(
            [sys.executable, str(WORKER), *argv],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._questions: Any = self._process.stdin
        self._answers: Any = self._process.stdout
        self.told: dict[str, Any] = self._answer()

    def seconds(self) -> float:
        """Seconds of one update or batch, of as many as make a long enough timing."""
        self._questions.write(f"{self.told['updates']}\n")
        self._questions.flush()
        return self._answer()

    def close(self) -> None:
        """Ends the process."""
        self._process.communicate()

    def _answer(self) -> Any:
        line = self._answers.readline()
        if not line:
            raise SystemExit("peers: a side has stopped; its error stands above")
        return json.loads(line)


def main() -> None:
    """Runs the cases one after the other."""
    options = _options()
    results = []
    for name in options.cases:
        results.append(_run(name, options))
        sys.stdout.writelines(f"{line}\n" for line in ratios.table(results[-1:]))
        sys.stdout.flush()
    if options.out is not None:
        document = {"environment": _environment(), "results": results}
        options.out.write_text(json.dumps(document, indent=1) + "\n")


def _run(name: str, options: argparse.Namespace) -> dict[str, Any]:
    case = cases.case(name, smoke=options.smoke, devices=options.devices)
    sides = options.sides or case.sides
    with _workers(name, sides, options) as workers:
        seconds = {side: [] for side in sides}
        for _ in range(options.rounds):
            for side, worker in workers.items():
                seconds[side].append(worker.seconds())
    sizes = {"case": name, **dataclasses.asdict(case), "sides": sides}
    return ratios.summary(
        sizes, {side: worker.told for side, worker in workers.items()}, seconds
    )


@contextlib.contextmanager
def _workers(
    case: str, sides: tuple[str, ...], options: argparse.Namespace
) -> Iterator[dict[str, Worker]]:
    """Started one after the other: the first writes what the others start from."""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        workers = {}
        for side in sides:
            argv = [side, case, folder, str(options.devices)]
            workers[side] = Worker([*argv, *(["--smoke"] if options.smoke else [])])
            stack.callback(workers[side].close)
        yield workers


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="peers", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("cases", nargs="*", metavar="CASE", help=", ".join(cases.CASES))
    parser.add_argument("--rounds", type=int, default=20, help="timings of each side")
    parser.add_argument("--sides", nargs="+", help="jaxgen first; default: all")
    parser.add_argument(
        "--devices", type=int, default=1, help="as which jaxgen counts the CPU"
    )
    parser.add_argument("--out", type=Path, help="where to write the JSON")
    parser.add_argument(
        "--smoke", action="store_true", help="tiny models, untrue times"
    )
    options = parser.parse_args()
    if unknown := set(options.cases) - set(cases.CASES):
        parser.error(
            f"unknown case {min(unknown)!r} (choose from {', '.join(cases.CASES)})"
        )
    options.cases = options.cases or list(cases.CASES)
    for name in options.cases:
        known = cases.CASES[name].sides
        sides = options.sides or known
        if sides[0] != "jaxgen" or set(sides) - set(known):
            parser.error(
                f"{name}: --sides are jaxgen, then any of {', '.join(known[1:])}"
            )
    return options


def _environment() -> dict[str, Any]:
    return {
        "python": platform.python_version(),
        "machine": platform.platform(),
        "load_average": os.getloadavg(),
        "cpus": len(os.sched_getaffinity(0)),
    }


if __name__ == "__main__":
    main()
