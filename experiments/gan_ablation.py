"""What each part of the GAN's loss is for: pairs, R1 and R2, each left out in turn.

    python experiments/gan_ablation.py [--names relativistic-r1 ...] [--seeds 0 1]

Scikit-learn's digits stacked to three channels, equal steps, networks and weights of the
penalty; every run is judged as in gan_stacked_digits.py. Figures are kept in
experiments/results/gan_ablation.json: what is there is not trained again, so in a clone
this prints the table. A run takes 2 to 4 minutes on one core. R1 and R2 together have
0.20 and 0.19 nats, either alone up to 0.26, no penalty 1.43 and 1.31, 600 and 683 modes.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from jaxgen import cli, commands
from jaxgen._checks import UserError, unknown
from jaxgen.data import DataConfig
from jaxgen.models.gan import GANConfig
from jaxgen.train import config as configs
from jaxgen.train import health, processes, rundir

CASES = ("relativistic-r1r2", "relativistic-r1", "relativistic-r2", "relativistic-none")
CASES += ("non_saturating-r1r2", "non_saturating-r1")
LAST = 10  # lines of metrics.jsonl, over which the players' figures are averaged


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What is trained, and for how long."""

    names: tuple[str, ...] = CASES
    """Which cases, each GAME-PENALTY."""
    seeds: tuple[int, ...] = (0, 1)
    """A run each."""
    steps: int = 3000
    """Updates of each player."""
    width: int = 96
    """Channels of the networks."""
    judge: int = 25_600
    """Samples whose modes are counted."""
    out: Path = Path("runs/gan_ablation")
    """The run folders."""
    results: Path = Path(__file__).parent / "results" / "gan_ablation.json"
    """The figures."""


def fit(name: str, seed: int, options: Options) -> dict[str, Any]:
    """Trains one case, or goes on with it, and tells its figures."""
    game, penalty = name.split("-")
    model: Any = {"game": game, "penalty": penalty, "width": options.width}
    config = configs.RunConfig(
        family="gan",
        model=GANConfig(**model),
        data=DataConfig(name="stacked:digits"),
        train=dataclasses.replace(
            configs.default("gan").train, steps=options.steps, seed=seed
        ),
    )
    folder = rundir.RunFolder(options.out / f"{name}-seed-{seed}")
    asked = cli.TrainOptions(out=folder.path)
    if status := commands.train(config, asked, processes.Launch()):
        raise SystemExit(status)
    commands.evaluate(cli.EvaluateOptions(run=folder.path, judge=options.judge, num=0))
    told, lines = json.loads(folder.evaluation.read_text()), folder.read_metrics()
    figures = {key: told[key] for key in ("modes", "reverse_kl")}
    for key in ("right/pair", "loss/generator", "samples/diversity"):
        figures[key] = float(np.mean([line[key] for line in lines[-LAST:]]))
    collapses = (
        f"step {r['step']}: {r[health.NAME]}" for r in lines if health.NAME in r
    )
    return figures | {"collapse": next(collapses, None)}


def table(cases: dict[str, dict[str, Any]]) -> str:
    """The figures in Markdown."""
    rows = [
        "| game, penalty | seed | modes | reverse KL, nats | pairs told | collapse |"
    ]
    rows.append("|---|---|---|---|---|---|")
    split = {key: key.rpartition("-")[::2] for key in cases}
    for key in sorted(cases, key=lambda key: (CASES.index(split[key][0]), key)):
        told, (name, seed) = cases[key], split[key]
        rows.append(
            f"| {name.replace('-', ', ')} | {seed} | {told['modes']} "
            f"| {told['reverse_kl']:.3f} | {100 * told['right/pair']:.1f} % "
            f"| {told['collapse'] or 'none'} |"
        )
    return "\n".join(rows)


def main() -> None:
    """Trains what is missing, keeps the figures, prints the table."""
    options = tyro.cli(Options, description=(__doc__ or "").split("\n")[0])
    for name in options.names:
        if name not in CASES:
            raise UserError(unknown("case", name, CASES))
    settings = {key: getattr(options, key) for key in ("steps", "width", "judge")}
    kept = {"settings": settings, "cases": {}}
    if options.results.is_file():
        kept = json.loads(options.results.read_text())
        if kept["settings"] != settings:
            raise UserError(f"{options.results} is of {kept['settings']}: --results?")
    options.results.parent.mkdir(parents=True, exist_ok=True)
    for name in options.names:
        for seed in options.seeds:
            if (key := f"{name}-{seed}") not in kept["cases"]:
                kept["cases"][key] = fit(name, seed, options)
                kept["versions"] = rundir.environment()["versions"]
                rundir.write_text(options.results, json.dumps(kept, indent=1) + "\n")
    print(table(kept["cases"]))  # noqa: T201


if __name__ == "__main__":
    cli.guarded(main)
