"""GANs of 8 Gaussians on a ring and 25 on a grid: are all of them found, and hit?

    python experiments/gan_ring.py [--names ring grid] [--seeds 0 1 2 3 4] [--out FILE.png]

A sample is good within three standard deviations of a Gaussian's centre; of a perfect
sampler 98.9 % are. One figure shows data and samples.
"""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import tyro
from matplotlib.figure import Figure

from jaxgen import cli, targets
from jaxgen._checks import UserError, unknown
from jaxgen.evaluate import known, modes
from jaxgen.models import gan
from jaxgen.train import config as configs

SETS = {"ring": (targets.ring_centres(8, radius=1.0), 0.02)}
SETS["grid"] = (targets.grid_centres(5, spacing=2.0), 0.05)
NUM_SAMPLES = 10_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What is trained, and how."""

    names: tuple[str, ...] = tuple(SETS)
    """Which sets."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """A run each."""
    steps: int = 8500
    """Updates of each player."""
    batch_size: int = 192
    """Fresh examples an update."""
    learning_rate: float = 5e-3
    """Peak learning rate."""
    out: Path = Path("gan_ring.png")
    """The figure."""
    model: tyro.conf.OmitArgPrefixes[gan.GANConfig] = gan.GANConfig()


def fit(name: str, seed: int, options: Options) -> tuple[np.ndarray, float]:
    """Samples of the averaged generator, and the seconds that training took."""
    target = targets.gaussians(*SETS[name])
    columns = known.columns(target)
    config, _ = gan.resolve(options.model, (target.dim,), None, None, columns)
    train = dataclasses.replace(
        configs.default("gan").train,
        steps=options.steps,
        learning_rate=options.learning_rate,
    )
    model = gan.make_gan(config)
    params, seconds = known.train_on_fresh(
        model, train, target, batch_size=options.batch_size, seed=seed
    )
    keys = jax.random.split(jax.random.key(seed + 1), NUM_SAMPLES)
    return np.asarray(model.generate(params, model.prior(keys), keys)), seconds


def main() -> None:
    """Trains all, prints a table, draws the figure."""
    options = tyro.cli(Options, description=(__doc__ or "").split("\n")[0])
    for name in options.names:
        if name not in SETS:
            raise UserError(unknown("set", name, SETS))
    figure = Figure((2 * len(options.seeds), 2 * len(options.names)), dpi=110)
    axes = figure.subplots(len(options.names), len(options.seeds), squeeze=False)
    print("set   seed  modes  within 3 sigma  reverse KL (floor)  seconds")  # noqa: T201
    for row, name in zip(axes, options.names, strict=True):
        for axis, seed in zip(row, options.seeds, strict=True):
            samples, seconds = fit(name, seed, options)
            told = modes.near_centres(samples, *SETS[name])
            print(  # noqa: T201
                f"{name:5} {seed:4} {told['modes']:3} of {len(SETS[name][0])} "
                f"{100 * told['good_share']:10.1f} %  {told['reverse_kl']:9.4f} "
                f"({told['reverse_kl_floor']:.4f}) {seconds:11.1f}",
                flush=True,
            )
            axis.plot(*samples[:2000].T, ".", ms=1, color="#1d5fb4", mew=0)
            axis.plot(*SETS[name][0].T, "+", ms=4, color="#c2410c", mew=0.6)
            axis.set(title=f"{name}, seed {seed}", xticks=[], yticks=[], aspect=1)
    figure.savefig(options.out)
    print(options.out)  # noqa: T201


if __name__ == "__main__":
    cli.guarded(main)
