"""Flows of tables whose density is known, in 2 to 64 dimensions: the distance in nats.

    python experiments/flow_tabular.py [--dims 8 64] [--nets coupling] [--steps 2000]

Chains of Gaussians (correlation 0.9), chains of parabolas, and Neal's funnel; data are
drawn anew for every step. For tables of your own: `jaxgen train flow --data table:F.csv`,
or scikit-learn's: table:wine, table:iris, table:breast_cancer, table:diabetes.
"""

import dataclasses
from typing import Literal

import tyro

from jaxgen import cli, targets
from jaxgen._checks import UserError, unknown
from jaxgen.evaluate import known


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(known.Options):
    """What is trained, and for how long."""

    names: tuple[str, ...] = tuple(targets.CHAINS)
    """Which densities."""
    dims: tuple[int, ...] = (2, 8, 32, 64)
    """Of how many dimensions."""
    nets: tuple[Literal["autoregressive", "coupling"], ...] = (
        "autoregressive",
        "coupling",
    )
    """Which flows."""
    steps: int = 1500
    """Updates."""
    bins: int = 8
    """Bins of its splines."""


def main() -> None:
    """Trains all and prints a table."""
    options = tyro.cli(Options, description=(__doc__ or "").split("\n")[0])
    print(f"{'':34} {'entropy':>9} {'NLL':>9}  distance to the truth, nats")  # noqa: T201
    for name in options.names:
        if name not in targets.CHAINS:
            raise UserError(unknown("density", name, targets.CHAINS))
        for dim in options.dims:
            target = targets.CHAINS[name](dim)
            for net in options.nets:
                config, params, seconds = known.fit(target, options, net=net)
                told = known.distance(target, config, params)
                print(  # noqa: T201
                    f"{name:16} {dim:2} {net:14} {told['entropy']:9.3f} "
                    f"{told['nll']:9.3f}  {told['distance']:8.4f} +- "
                    f"{told['distance_se']:.4f} {seconds:8.1f} s",
                    flush=True,
                )


if __name__ == "__main__":
    cli.guarded(main)
