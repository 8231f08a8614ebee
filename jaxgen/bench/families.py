"""The families on equal terms: the same data, the same minutes, one protocol, one table.

The minutes are of training on one core. How many updates fit into them is measured once
for each entrant and kept, in time of the processor: a busy machine changes how long it all
takes, and no result. Every part is a command in a process of its own, bound to a
core of its own where the system can do that: `jaxgen bench`, `train`, `evaluate`. What
has been done is not done again.
"""

import dataclasses
import json
import math
import sys
from collections.abc import Mapping, Sequence
from concurrent import futures
from pathlib import Path
from typing import Any, NamedTuple

from jaxgen._checks import RunError, UserError
from jaxgen.bench import pinned
from jaxgen.train import rundir, session
from jaxgen.train.console import say

FIGURES = ("frechet", "precision", "recall", "density", "coverage")  # of the quality
REPEATS = 3  # of the timing of an update


class Entrant(NamedTuple):
    """A model as it takes part.

    Attributes:
        name: Of its folder and its row.
        family: Of the model.
        train: Flags of `jaxgen train`, but for seed, steps and folder.
        evaluate: Flags of `jaxgen evaluate`.
        share: Of the minutes.
    """

    name: str
    family: str
    train: Sequence[str]
    evaluate: Sequence[str] = ()
    share: float = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Protocol:
    """What all have in common.

    Attributes:
        out: Where runs, logs and what is kept of them lie.
        minutes: Of training on one core for each run, without compiling and judging.
        seeds: A run of each entrant for each.
        jobs: Runs at once; None for as many as there are cores.
        steps: Updates of each run in place of the minutes; no speed is measured then.
    """

    out: Path
    minutes: float
    seeds: Sequence[int]
    jobs: int | None = None
    steps: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """An entrant's figures; where it is a list, one value a run.

    Attributes:
        name: Of the entrant.
        seeds: Of the runs.
        num_parameters: Of all its networks.
        steps: Updates that were done.
        best: Of them, the update whose parameters are judged, where that is not the last.
        examples_per_s: In training on one core; None where it was not measured.
        samples_per_s: On one core, 64 at once, after compiling.
        bits_per_dim: None where there is no likelihood.
        kind: Of the likelihood.
        quality: {name of a distance: values}.
        floor: {name: what real images have in the samples' place}.
    """

    name: str
    seeds: list[int]
    num_parameters: int
    steps: list[int]
    best: list[int] | None
    examples_per_s: float | None
    samples_per_s: float
    bits_per_dim: list[float] | None
    kind: str | None
    quality: dict[str, list[float]]
    floor: dict[str, float]


def compete(
    entrants: Sequence[Entrant], protocol: Protocol
) -> tuple[list[Row], list[str]]:
    """Trains and judges all, or goes on with it.

    Returns:
        A row of each entrant of which a run is finished, and a line of each that failed.

    Raises:
        UserError: if the folder holds runs of another protocol.
        RunError: if a speed cannot be measured.
    """
    if len(set(protocol.seeds)) < len(protocol.seeds) or not protocol.seeds:
        raise UserError(f"--seeds must be different numbers, got {protocol.seeds}")
    if not protocol.minutes > 0:
        raise UserError(f"--minutes must be positive, got {protocol.minutes}")
    places = [(e, protocol.out / e.name) for e in entrants]
    for entrant, folder in places:
        _check(folder / "steps.json", asked(entrant, protocol))
    with pinned.Cores(protocol.jobs) as cores:
        for entrant, folder in places:
            cores.submit(_plan, cores, entrant, folder, protocol).result()
        tasks = {
            cores.submit(
                _run, cores, entrant, folder, seed
            ): f"{entrant.name}, seed {seed}"
            for entrant, folder in places
            for seed in protocol.seeds
        }
        failures = []
        for task in futures.as_completed(tasks):
            if isinstance(error := task.exception(), RunError):
                failures.append(f"{tasks[task]}: {error}")
                say(failures[-1])
            elif error is not None:
                raise error
        rows = []
        for entrant, folder in places:
            seeds = [s for s in protocol.seeds if is_judged(_place(folder, s))]
            if seeds:
                first = _place(folder, seeds[0])
                cores.submit(_time, cores, first, folder / "drawing.json").result()
                rows.append(make_row(entrant.name, folder, seeds))
    return rows, failures


def asked(entrant: Entrant, protocol: Protocol) -> dict[str, Any]:
    """What runs of an entrant in one folder have in common."""
    minutes = entrant.share * protocol.minutes if protocol.steps is None else None
    length = {"steps": protocol.steps, "minutes": minutes}
    return length | {"train": list(entrant.train), "evaluate": list(entrant.evaluate)}


def steps_within(seconds: float, ms_per_step: float) -> int:
    """How many updates fit, to two digits and never more; at least one."""
    steps = max(1, math.floor(1e3 * seconds / ms_per_step))
    digit = 10 ** max(0, len(str(steps)) - 2)
    return steps // digit * digit


def is_judged(run: Path) -> bool:
    """Whether a run is finished, and its samples are judged."""
    return "quality" in read_json(run / "evaluation.json")


def make_row(name: str, folder: Path, seeds: Sequence[int]) -> Row:
    """An entrant's figures, from its folder."""
    runs = [_place(folder, seed) for seed in seeds]
    judged = [read_json(run / "evaluation.json") for run in runs]
    bits = [each["bits_per_dim"] for each in judged]
    best = [each["best_step"] for each in judged if "best_step" in each]
    bound = session.bind(rundir.RunFolder(runs[0]).read_config())
    quality = [each["quality"] for each in judged]
    return Row(
        name=name,
        seeds=list(seeds),
        num_parameters=session.num_parameters(session.abstract_state(bound).params),
        steps=[each["step"] for each in judged],
        best=best if len(best) == len(judged) else None,
        examples_per_s=read_json(folder / "steps.json")["examples_per_s"],
        samples_per_s=read_json(folder / "drawing.json")["samples_per_s"],
        bits_per_dim=None if None in bits else bits,
        kind=judged[0].get("bits_per_dim_kind"),
        quality={n: [each[n]["value"] for each in quality] for n in FIGURES},
        floor={n: quality[0][n]["floor"] for n in FIGURES},
    )


def _check(path: Path, wanted: Mapping[str, Any]) -> None:
    """Refuses a folder whose runs were asked for otherwise."""
    kept = read_json(path).get("asked", wanted)
    for name in {**kept, **wanted}:
        old, new = kept.get(name), wanted.get(name)
        if old != new:
            raise UserError(
                f"{path.parent} is of {name} {_shown(old)}, not {_shown(new)}: another "
                "--out?"
            )


def _shown(value: Any) -> str:
    return " ".join(value) if isinstance(value, list) else str(value)


def _plan(
    cores: pinned.Cores, entrant: Entrant, folder: Path, protocol: Protocol
) -> None:
    """Measures how many updates fit, and keeps that."""
    if (folder / "steps.json").is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    kept: dict[str, Any] = {"asked": asked(entrant, protocol)}
    kept |= {"steps": protocol.steps, "examples_per_s": None}
    if protocol.steps is None:
        argv = ["bench", entrant.family, *entrant.train, "--repeats", str(REPEATS)]
        told = json.loads(jaxgen_command(cores, folder / "bench.log", *argv, "--json"))
        ms = told["cpu_ms_per_step"]  # of one core, whoever else uses it
        kept["steps"] = steps_within(60.0 * entrant.share * protocol.minutes, ms)
        kept["examples_per_s"] = 1e3 * told["batch_size"] / ms
    say(f"{entrant.name}: {kept['steps']:,} updates a run")
    rundir.write_text(folder / "steps.json", json.dumps(kept, indent=1) + "\n")


def _run(cores: pinned.Cores, entrant: Entrant, folder: Path, seed: int) -> None:
    """Trains and judges one run, or what is left of it."""
    run = _place(folder, seed)
    if is_judged(run):
        return
    say(f"{entrant.name}, seed {seed}: {run.with_suffix('.log')}")
    steps = str(read_json(folder / "steps.json")["steps"])
    where = ["--seed", str(seed), "--steps", steps, "--out", str(run)]
    log = run.with_suffix(".log")
    jaxgen_command(cores, log, "train", entrant.family, *entrant.train, *where)
    jaxgen_command(cores, log, "evaluate", str(run), *entrant.evaluate)
    judged = read_json(run / "evaluation.json")
    if "quality" not in judged:
        raise RunError("its samples were not judged: are there 20 test images?")
    words = [f"{name} {judged['quality'][name]['value']:.3g}" for name in FIGURES]
    if judged["bits_per_dim"] is not None:
        words.append(f"{judged['bits_per_dim']:.3f} bits/dim")
    say(f"{entrant.name}, seed {seed}: {', '.join(words)}")


def _time(cores: pinned.Cores, run: Path, path: Path) -> None:
    """Measures how fast a run draws, and keeps that."""
    if not path.is_file():
        argv = [sys.executable, "-m", "jaxgen.bench.drawing", str(run)]
        told = cores.command(argv, path.with_suffix(".log"))
        rundir.write_text(path, told.splitlines()[-1] + "\n")


def jaxgen_command(cores: pinned.Cores, log: Path, *argv: str) -> str:
    """What a command of jaxgen prints, in a process of its own."""
    return cores.command([sys.executable, "-m", "jaxgen", *argv], log)


def _place(folder: Path, seed: int) -> Path:
    return folder / f"seed-{seed}"


def read_json(path: Path) -> dict[str, Any]:
    """Of a file; {} where there is none."""
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise RunError(f"{path} cannot be read: {error}") from error
