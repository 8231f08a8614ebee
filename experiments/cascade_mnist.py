"""Start small, then enlarge: two diffusion networks in the time of one.

    python experiments/cascade_mnist.py [--data-dir DIR] [--minutes 20]

One network draws digits of 28 x 28. In the same minutes of one core two others are trained,
half of them each: one draws digits of 14 x 14, the other makes any such image twice as large
(with conditioning augmentation: in training it sees small images under noise, and is told how
much). Chained they are judged as the single one is, by 2,000 samples (--out DIR keeps runs,
table.md, figure.png and figures.json). The same command goes on where it stopped.
"""

from jaxgen import cli
from jaxgen.bench import enlarged


def main() -> None:
    """A row of each side, and a picture."""
    enlarged.main(__doc__)


if __name__ == "__main__":
    cli.guarded(main)
