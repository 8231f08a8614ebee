"""Frames of a game under random play: the next one, given two and the action, for fifty frames.

    pip install -e ".[games]"
    python experiments/next_frame_minatar.py [--data minatar:asterix]

MinAtar's games by gymnax, 10x10 cells whose colours are what they hold. What the figure shows
first are single questions, then fifty frames of random actions, each asked given those that
were answered before; the deterministic network's fade where chance has a say.
"""

from jaxgen import cli
from jaxgen.bench import questions

OPTIONS = questions.Options(data="minatar:breakout")
TASK = ("--task", "next-frame")
FLAGS = {
    "diffusion": "diffusion --widths 16 32 --steps 2000",
    "deterministic": "diffusion --widths 16 32 --steps 2000 --noise-levels most",
}


def main() -> None:
    """A row and a picture for each."""
    questions.main(__doc__, OPTIONS, TASK, FLAGS)


if __name__ == "__main__":
    cli.guarded(main)
