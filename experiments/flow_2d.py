"""Flows of toy densities in the plane, and how far each is from the truth in nats.

    python experiments/flow_2d.py [--names moons spirals] [--steps 2000] [--out FILE.png]

The distance is E_p[log p - log q] on 100,000 fresh draws, with its standard error: 0 is
the truth. One figure shows data, density, samples, and a grid of the latent carried over.
"""

import dataclasses
from pathlib import Path

import tyro
from matplotlib.figure import Figure

from jaxgen import cli, targets
from jaxgen._checks import UserError, unknown
from jaxgen.evaluate import known


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(known.Options):
    """What is trained, and how."""

    names: tuple[str, ...] = tuple(targets.TOYS)
    """Which densities."""
    out: Path = Path("flow_2d.png")
    """The figure."""


def main() -> None:
    """Trains all, prints a table, draws the figure."""
    options = tyro.cli(Options, description=(__doc__ or "").split("\n")[0])
    for name in options.names:
        if name not in targets.TOYS:
            raise UserError(unknown("density", name, targets.TOYS))
    rows = len(options.names)
    figure = Figure((8, 2 * rows + 0.3), dpi=110, layout="constrained")
    axes = figure.subplots(rows, 4, squeeze=False)
    print(f"{'':16} {'entropy':>8} {'NLL':>8}  distance to the truth, nats   seconds")  # noqa: T201
    for row, name in zip(axes, options.names, strict=True):
        target = targets.TOYS[name]()
        config, params, seconds = known.fit(target, options)
        told = known.distance(target, config, params)
        print(  # noqa: T201
            f"{name:16} {told['entropy']:8.4f} {told['nll']:8.4f}  "
            f"{told['distance']:8.4f} +- {told['distance_se']:.4f} {seconds:18.1f}",
            flush=True,
        )
        known.draw(row, name, target, config, params)
    for axis, title in zip(
        axes[0], ("data", "density", "samples", "latent grid"), strict=True
    ):
        axis.set_title(title)
    figure.savefig(options.out)
    print(options.out)  # noqa: T201


if __name__ == "__main__":
    cli.guarded(main)
