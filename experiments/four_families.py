"""VAE, GAN, flow and diffusion on one set: the same minutes each, one protocol, one table.

    python experiments/four_families.py [--minutes 2] [--seeds 0 1 2] [--out DIR]
    python experiments/four_families.py --data mnist --data-dir DIR --minutes 20 --seeds 0

The minutes are of training on one core, without compiling and judging; as many runs go on
at once as there are cores. As many samples as there are test images, 2,000 at most, are
then compared with these by the features of a small classifier; likelihoods are of the
test split. The same command goes on where it was stopped. DIR/table.md, DIR/figure.png
and DIR/figures.json are the result: of the digits Frechet distances of 32.6 (VAE), 21.6
(GAN), 13.2 (flow) and 15.8 (diffusion), coverage of 0.68, 0.67, 0.83 and 0.84 (means of
three seeds; real images 6.5 and 0.96), of MNIST 80.9, 35.1, 18.4 and 15.5 (1.7).
"""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import tyro

from jaxgen import cli, data, models
from jaxgen._checks import RunError, UserError, unknown
from jaxgen.bench import families, families_shown
from jaxgen.train import assembly, rundir, session

# What differs from `jaxgen train FAMILY`.
TRAIN = {
    "digits": {
        "vae": "--checkpoint-every 200 --patience 20",  # small data
        "flow": "--patience 20",
    },
    "mnist": {  # but for the VAE's as in the experiments of these names
        "vae": "--patience 20",
        "gan": "--width 64",
        "flow": "--learning-rate 5e-3",
        "diffusion": "--widths 32 64",
    },
}
# The bound of a diffusion model costs a hundred evaluations of its network an image.
EVALUATE = {"mnist": {"diffusion": "--num-images 300"}}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What is compared, and for how long."""

    data: str = "digits"
    """Name of the set."""
    data_dir: str | None = None
    """Where TFDS sets lie."""
    families: tuple[str, ...] = ("vae", "gan", "flow", "diffusion")
    """Who takes part, in this order."""
    minutes: float = 2.0
    """Of training on one core, for each run."""
    steps: int | None = None
    """Updates of each run, in place of the minutes; no speed is measured then."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """A run of each family for each."""
    jobs: int | None = None
    """Runs at once; by default one a core."""
    out: Path | None = None
    """Where runs, table and figure lie; by default runs/four_families-DATA."""


def entrant(family: str, options: Options) -> families.Entrant:
    """A family with its flags."""
    if family not in models.FAMILIES:
        raise UserError(unknown("family", family, models.FAMILIES))
    flags = ["--data", options.data, "--devices", "1"]
    if options.data_dir is not None:
        flags += ["--data-dir", str(Path(options.data_dir).absolute())]
    flags += TRAIN.get(options.data, {}).get(family, "").split()
    evaluate = EVALUATE.get(options.data, {}).get(family, "").split()
    return families.Entrant(family, family, flags, evaluate)


def drawn(rows: list[families.Row], options: Options, out: Path) -> dict[str, Any]:
    """Real images, and samples of each family's first run."""
    config = data.DataConfig(name=options.data, data_dir=options.data_dir)
    test = data.open_dataset(config).test
    places = data.spread(test.num_examples, families_shown.NUM_SHOWN)
    shown = {"real images": test.take(places)["x"]}
    for row in rows:
        loaded = session.load(out / row.name / f"seed-{row.seeds[0]}")
        shown[row.name] = assembly.Sampler(loaded)(loaded.params, 0)
    return shown


def main() -> None:
    """Trains and judges what is missing, prints the table, draws the figure."""
    options = tyro.cli(Options, description=(__doc__ or "").split("\n")[0])
    out = options.out or Path("runs") / f"four_families-{options.data}"
    rows, failures = families.compete(
        [entrant(family, options) for family in options.families],
        families.Protocol(
            out=out,
            minutes=options.minutes,
            seeds=options.seeds,
            jobs=options.jobs,
            steps=options.steps,
        ),
    )
    if rows:
        kept = {"data": options.data, "minutes": options.minutes}
        kept |= {"rows": [dataclasses.asdict(row) for row in rows]}
        kept["versions"] = rundir.environment()["versions"]
        rundir.write_text(out / "figures.json", json.dumps(kept, indent=1))
        text = families_shown.table(rows)
        rundir.write_text(out / "table.md", text)
        path = out / "figure.png"
        families_shown.figure(rows, drawn(rows, options, out), path)
        sys.stdout.write(f"{text}{path}\n")
    if failures:
        raise RunError(f"{len(failures)} runs failed ({failures[0]}); the same goes on")


if __name__ == "__main__":
    cli.guarded(main)
