"""One network of large images, and in the same minutes two: of small ones, which is enlarged.

Each is trained and judged by commands in processes of their own, as the families are.
"""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from jaxgen import data
from jaxgen._checks import RunError, UserError
from jaxgen.bench import families, families_shown
from jaxgen.train import assembly, cascade, rundir, session

SCALE = 2
ROWS = 6  # of samples in the figure, and columns


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What is drawn, and for how long each side is trained."""

    data: str = "mnist"
    """Name of the set."""
    data_dir: str | None = None
    """Where TFDS sets lie."""
    size: int = 28
    """Side of the images."""
    family: str = "diffusion"
    """Of all networks."""
    flags: str = "--widths 32 64 --num-steps 18"
    """Of `jaxgen train FAMILY`, for all networks."""
    noise: float = 0.0
    """Put on the small images before they are enlarged."""
    minutes: float = 20.0
    """Of training on one core, for the single network and for the two together."""
    steps: int | None = None
    """Updates of each network, in place of the minutes; no speed is measured then."""
    seed: int = 0
    """Of all runs."""
    jobs: int | None = None
    """Runs at once; by default one a core."""
    out: Path | None = None
    """Where runs, table and figure lie; by default runs/cascade-DATA."""


def entrants(options: Options, out: Path) -> dict[str, families.Entrant]:
    """The single network, and the two of the cascade; the last is judged behind the first."""
    shared = ["--data", options.data, "--devices", "1", *options.flags.split()]
    if options.data_dir is not None:
        shared += ["--data-dir", str(Path(options.data_dir).absolute())]
    large = [*shared, "--image-size", str(options.size)]
    small = [*shared, "--image-size", str(options.size // SCALE)]
    behind = ["--base", str(place(out, "small", options))]
    behind += ["--noise", str(options.noise)]
    told = {
        "single": (large, ["--num-images", "8"], 1.0),
        "small": (small, ["--num-images", "8"], 0.5),
        "cascade": (
            [*large, "--task", "enlarge", "--scale", str(SCALE)],
            [*behind, "--answers", "2", "--num-images", "8"],
            0.5,
        ),
    }
    return {
        name: families.Entrant(name, options.family, train, evaluate, share)
        for name, (train, evaluate, share) in told.items()
    }


def place(out: Path, name: str, options: Options) -> Path:
    """The folder of a run."""
    return (out / name / f"seed-{options.seed}").absolute()


def compete(options: Options, out: Path) -> list[families.Row]:
    """Trains and judges what is missing: a row of the single network, and of the cascade."""
    protocol = families.Protocol(
        out=out,
        minutes=options.minutes,
        seeds=(options.seed,),
        jobs=options.jobs,
        steps=options.steps,
    )
    all_of = entrants(options, out)
    rows, failures = families.compete([all_of["single"], all_of["small"]], protocol)
    if not failures:  # judged by samples of the small network
        last, failures = families.compete([all_of["cascade"]], protocol)
        rows += last
    if failures:
        raise RunError(f"{failures[0]}; the same command goes on")
    single, small, top = rows
    both = 1 / (1 / small.samples_per_s + 1 / top.samples_per_s)
    # The bound of the second network is one of large images given small ones: none is told.
    chained = dataclasses.replace(
        top,
        bits_per_dim=None,
        num_parameters=small.num_parameters + top.num_parameters,
        samples_per_s=both,
        examples_per_s=None,
    )
    return [dataclasses.replace(single, bits_per_dim=None), chained]


def drawn(options: Options, out: Path) -> dict[str, np.ndarray]:
    """Real images, small samples, what they become, and samples of the single network."""
    single, small, top = (
        session.load(place(out, name, options))
        for name in ("single", "small", "cascade")
    )
    test = data.open_dataset(single.config.data).test
    shown = {"real images": test.take(data.spread(test.num_examples, ROWS**2))["x"]}
    shown["single"] = assembly.Sampler(single)(single.params, options.seed)
    shown["small"] = assembly.Sampler(small)(small.params, options.seed)
    chained = cascade.Cascade(small, top, level=options.noise)
    return {**shown, "small, enlarged": chained(top.params, options.seed)}


def consistency(images: dict[str, np.ndarray]) -> dict[str, float]:
    """How far block means of enlarged images are from the small ones, in levels of 256."""
    large, small = images["small, enlarged"], images["small"]
    sides = small.shape[1], SCALE, small.shape[2], SCALE
    means = large.reshape(len(large), *sides, -1).mean(axis=(2, 4))
    off = np.abs(means - small)
    return {"mean": float(off.mean()), "most": float(off.max())}


def main(told: str | None) -> None:
    """Trains and judges what is missing, prints the table, draws the figure.

    Args:
        told: The docstring of the experiment.
    """
    options = tyro.cli(Options, description=(told or "").split("\n")[0])
    if options.size % SCALE:
        raise UserError(f"--size must be a multiple of {SCALE}, got {options.size}")
    out = options.out or Path("runs") / f"cascade-{options.data}"
    rows = compete(options, out)
    images = drawn(options, out)
    off = consistency(images)
    kept: dict[str, Any] = {
        **dataclasses.asdict(options),
        "out": None,
        "data_dir": None,
    }
    kept["rows"] = [dataclasses.asdict(row) for row in rows]
    kept["consistency_levels"] = off
    kept["versions"] = rundir.environment()["versions"]
    rundir.write_text(out / "figures.json", json.dumps(kept, indent=1) + "\n")
    text = families_shown.table(rows)
    text += (
        f"\nEnlarged images averaged down are {off['mean']:.2f} levels of 256 from the "
    )
    text += f"small ones, {off['most']:.2f} at most.\n"
    rundir.write_text(out / "table.md", text)
    families_shown.figure(rows, images, out / "figure.png")
    sys.stdout.write(f"{text}{out / 'figure.png'}\n")
