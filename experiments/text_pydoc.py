"""Masked diffusion of Python's language reference, beside what else tells a text.

    python experiments/text_pydoc.py [--steps 5000] [--text text:FILE] [--out FOLDER]
    jaxgen infill FOLDER/any --text "for i in _____:"

One network in two orders, the same update, data and number of parameters: any order (masked
diffusion, a bound) and causal (exact); and gzip, and counts of runs of five bytes. Judged are
the parameters that were best on the validation split. All but gzip are told nothing of what
came before a window of 128 bytes. A byte is a character, but for a few. The same command goes
on where it was stopped.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any, Literal

import tyro

from jaxgen import cli, commands
from jaxgen.data import DataConfig
from jaxgen.models.masked import MaskedConfig
from jaxgen.train import config as configs
from jaxgen.train import processes, rundir, session

HEADING = "| | bits a character | how | parameters |\n|---|---|---|---|"
BASELINES = {
    "gzip -9": ("gzip_bits_per_byte", "the test text alone"),
    "gzip -9, after the training text": (
        "gzip_after_train_bits_per_byte",
        "what it adds; it looks back 32 kB",
    ),
    "5-gram, Witten-Bell": ("five_gram_bits_per_byte", "in windows, exact"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What is trained, and for how long."""

    text: str = "text:pydoc"
    """Which text."""
    orders: tuple[Literal["any", "causal"], ...] = ("causal", "any")
    """A run each."""
    steps: int = 5000
    """Updates."""
    batch_size: int = 32
    """Windows an update."""
    weight_decay: float = 0.5
    """A large one: the text is short, and comes by more than 60 times."""
    patience: int = 4
    """Checkpoint intervals, 20 a run, without a better loss on the validation split that end
    it."""
    width: int = 128
    """Channels of the transformer."""
    depth: int = 4
    """Layers of it."""
    length: int = 128
    """Bytes of a window."""
    num_samples: int = 100
    """Samples of the bound, a window."""
    out: Path = Path("runs/text_pydoc")
    """The run folders."""


def fit(order: Literal["any", "causal"], options: Options) -> dict[str, Any]:
    """Trains one order, or goes on with it, and tells its figures."""
    config = configs.RunConfig(
        family="masked",
        model=MaskedConfig(order=order, width=options.width, depth=options.depth),
        data=DataConfig(name=options.text, length=options.length),
        train=dataclasses.replace(
            configs.default("masked").train,
            steps=options.steps,
            batch_size=options.batch_size,
            weight_decay=options.weight_decay,
            patience=options.patience,
        ),
    )
    folder = rundir.RunFolder(options.out / order)
    asked = cli.TrainOptions(out=folder.path)
    if status := commands.train(config, asked, processes.Launch()):
        raise SystemExit(status)
    judged = cli.EvaluateOptions(
        run=folder.path, num=0, num_samples=options.num_samples
    )
    commands.evaluate(judged)
    count = session.num_parameters(session.load(folder.path).params)
    return json.loads(folder.evaluation.read_text()) | {"num_parameters": count}


def row(name: str, told: dict[str, Any], key: str, how: str, count: str = "") -> str:
    """A line of the table, with the error over windows where there is one."""
    error = told.get(f"{key}_se")
    value = f"{told[key]:.3f}" + (f" ± {error:.3f}" if error else "")
    return f"| {name} | {value} | {how} | {count} |"


def main() -> None:
    """Trains what is missing and prints the table."""
    options = tyro.cli(Options, description=(__doc__ or "").split("\n")[0])
    options.out.mkdir(parents=True, exist_ok=True)
    told = {order: fit(order, options) for order in options.orders}
    first = told[options.orders[0]]
    lines = [row(name, first, key, how) for name, (key, how) in BASELINES.items()]
    for order, result in told.items():
        how = result["bits_per_dim_kind"]
        count = f"{result['num_parameters']:,}"
        lines.append(row(f"{order} order", result, "bits_per_dim", how, count))
    print("\n".join([HEADING, *lines]))  # noqa: T201


if __name__ == "__main__":
    cli.guarded(main)
