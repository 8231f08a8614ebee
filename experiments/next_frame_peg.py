"""A ball meets a peg and goes one of two or four ways: are they all there, as often as true?

    python experiments/next_frame_peg.py [--data peg:4] [--num-answers 50]

The next frame is asked, given the two before. Each way has a known probability (0.3 and 0.7;
0.1 to 0.4), so that the answers of a model can be counted: how many are none of the possible
frames, and the share of each way. The deterministic network answers with the blur of them.
The figure also has fifty frames, each asked given those that were answered before.
"""

from jaxgen import cli
from jaxgen.bench import questions

OPTIONS = questions.Options(data="peg:2", num_answers=50)
TASK = ("--task", "next-frame")
FLAGS = {
    "diffusion": "diffusion --widths 16 32 --steps 4000",
    "flow": "flow --bins 16 --steps 2500 --learning-rate 1e-2",
    "gan": "gan --width 32 --gamma 0.003 --steps 24000",
    "deterministic": "diffusion --widths 16 32 --steps 2000 --noise-levels most",
}


def main() -> None:
    """A row and a picture for each."""
    questions.main(__doc__, OPTIONS, TASK, FLAGS)


if __name__ == "__main__":
    cli.guarded(main)
