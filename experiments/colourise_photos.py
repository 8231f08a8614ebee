"""Colour for grey photographs: several answers, and the average of a deterministic network.

    python experiments/colourise_photos.py [--names diffusion vae ...]

Patches of two photographs that come with scikit-learn, 32x32, the other one held out in
part. Four families are told the grey patch; so is the diffusion's network trained at the
most noise alone, which can but answer the mean. `inpaint_mnist.py` says what the table has.
"""

from jaxgen import cli
from jaxgen.bench import questions

OPTIONS = questions.Options(data="photos")
TASK = ("--task", "colourise")
FLAGS = {
    "diffusion": "diffusion --widths 32 64 --steps 1500",
    "vae": "vae --likelihood gaussian --steps 3000",
    "gan": "gan --width 32 --steps 1500",
    "flow": "flow --steps 1500",
    "deterministic": "diffusion --widths 32 64 --steps 1500 --noise-levels most",
}


def main() -> None:
    """A row and a picture for each."""
    questions.main(__doc__, OPTIONS, TASK, FLAGS)


if __name__ == "__main__":
    cli.guarded(main)
