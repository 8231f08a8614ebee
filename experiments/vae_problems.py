"""The four problems of a VAE, each before and after what mends it: a figure a problem.

    python experiments/vae_problems.py [--names balance collapse prior variance]
    python experiments/vae_problems.py --data mnist --data-dir DIR --steps 6000

Balance of likelihood and KL, collapse of latent variables, mismatch of Q(z) and P(z), and
lost variance, by the figures of `jaxgen diagnose`. Every case is a run of `jaxgen train`,
and some draw z from a prior that is fitted afterwards, be it another run. OUT/PROBLEM.png
and OUT/table.md are the result; the same command goes on where it was stopped.
"""

import dataclasses
import sys
from pathlib import Path
from typing import Any

import tyro

from jaxgen import cli, commands, models
from jaxgen._checks import UserError, unknown
from jaxgen.bench import problems
from jaxgen.bench.problems import Case
from jaxgen.data import DataConfig
from jaxgen.train import config as configs
from jaxgen.train import processes

SQUARES = {"sigma": "fixed", "sigma_value": 1.0}  # the plain squared error
FIRST = {"sigma": "computed"}  # what other priors are fitted to
PLAIN = {**FIRST, "autoencoder": True}
ROWS = {"latent_dim": 16}  # of a second VAE
CASES: dict[str, tuple[Case, ...]] = {
    "balance": (
        Case("sigma 1, the squared error", SQUARES),
        Case("sigma 0.01", {"sigma": "fixed", "sigma_value": 0.01}),
        Case("sigma computed", FIRST),
        Case("sigma optimal", {"sigma": "optimal"}),
        Case("sigma learned", {"sigma": "learned"}),
        Case("GECO, tolerance 0.12", {"geco": 0.12}),
    ),
    "collapse": (
        Case("beta 20", {**FIRST, "beta": 20.0}),
        Case("beta 20, free bits 0.5", {**FIRST, "beta": 20.0, "free_bits": 0.5}),
        Case("beta 1", FIRST),
        Case("beta 1 after warm-up", {**FIRST, "beta_warmup": 0.3}),
    ),
    "prior": (
        Case("N(0, I)", FIRST),
        Case("one Gaussian, ex post", FIRST, {"ex_post": "gaussian"}),
        Case("ten Gaussians, ex post", FIRST, {"ex_post": "gmm"}),
        Case("a second VAE (two-stage)", FIRST, second=("vae", ROWS)),
        Case("a flow", FIRST, second=("flow", {})),
        Case("a diffusion model", FIRST, second=("diffusion", {})),
        Case("VampPrior", {**FIRST, "prior": "vamp"}),
        Case("autoencoder", PLAIN),
        Case("autoencoder, ten Gaussians", PLAIN, {"ex_post": "gmm"}),
    ),
    "variance": (
        Case("sigma 1, the squared error", SQUARES),
        Case("sigma 0.3", {"sigma": "fixed", "sigma_value": 0.3}),
        Case("sigma computed", FIRST),
        Case("sigma computed, 32 latents", {**FIRST, "latent_dim": 32}),
    ),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What is trained, and for how long."""

    names: tuple[str, ...] = tuple(CASES)
    """Which problems."""
    data: str = "digits"
    """Name of a set of images."""
    data_dir: str | None = None
    """Where TFDS sets lie."""
    steps: int = 2000
    """Updates of each run; of one whose samples are another's z, too."""
    num: int = 2000
    """Test images that each is judged by, or as many as there are."""
    seed: int = 0
    """Of every run."""
    out: Path = Path("runs/vae_problems")
    """Where runs, table and figures lie."""


def main() -> None:
    """Trains and diagnoses every case; prints the tables, draws the figures."""
    options = tyro.cli(Options, description=(__doc__ or "").split("\n")[0])
    for name in options.names:
        if name not in CASES:
            raise UserError(unknown("--names", name, list(CASES)))
    data = DataConfig(
        name=options.data, data_dir=options.data_dir, transform="dequantise"
    )

    def train(family: str, model: Any, data: DataConfig, folder: Path) -> None:
        plan = configs.default(family).train
        plan = dataclasses.replace(plan, steps=options.steps, seed=options.seed)
        cls = models.FAMILIES[family].config_class
        config = configs.RunConfig(
            family=family, model=cls(**model), data=data, train=plan
        )
        asked = cli.TrainOptions(out=folder)
        if status := commands.train(config, asked, processes.Launch()):
            raise SystemExit(status)

    texts = []
    for name in options.names:
        seen = []
        for case in CASES[name]:
            folder, sampling = problems.fit(case, data, options.out, train)
            seen.append(problems.look(case.label, folder, sampling, options.num))
        problems.draw(name, seen, options.out / f"{name}.png")
        texts.append(problems.table(name, seen))
    (options.out / "table.md").write_text("\n".join(texts))
    sys.stdout.write("\n".join(texts) + f"figures: {options.out}\n")


if __name__ == "__main__":
    cli.guarded(main)
