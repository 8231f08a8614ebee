"""The hidden half of a digit: many right answers, and the blur of a deterministic network.

    python experiments/inpaint_mnist.py [--data-dir DIR] [--names diffusion vae ...]

Four families are told the left half of each digit and answer with whole ones; so does the
diffusion's network trained at the most noise alone, which can but answer the mean. Of 100
test digits and 10 answers to each the table has, over the hidden half: the error of the best
answer and of the answers' mean, the distance of two answers, and how often a classifier sees
the true digit where ten neighbours agree on it. The same command goes on where it stopped.
"""

from jaxgen import cli
from jaxgen.bench import questions

OPTIONS = questions.Options(data="mnist")
TASK = ("--task", "inpaint", "--mask", "half")
FLAGS = {
    "diffusion": "diffusion --widths 32 64 --steps 4000 --noise-mean 0.4 --temperature 0.6",
    "vae": "vae --likelihood gaussian --steps 10000",
    "gan": "gan --width 32 --steps 1500",
    "flow": "flow --steps 1500 --learning-rate 5e-3",
    "deterministic": "diffusion --widths 32 64 --steps 4000 --noise-levels most",
}


def main() -> None:
    """A row and a picture for each."""
    questions.main(__doc__, OPTIONS, TASK, FLAGS)


if __name__ == "__main__":
    cli.guarded(main)
