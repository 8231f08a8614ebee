"""Diffusion on MNIST: a small U-Net that a CPU trains in minutes.

    python experiments/diffusion_mnist.py --data-dir DIR [--devices 2] [--seed 1]
    jaxgen evaluate RUN --judge 2000

On 2 CPU cores it takes 24 minutes, less with `--devices 2`. Of 2,000 samples a
classifier is confident on 81.2 % (one seed; standard error 0.9), of real digits on 98.3 %.

For bits/dim, and to sample in one to four steps, it goes on from that run:

    ... --init-from RUN --steps 1200 --learning-rate 2e-3 --noise-levels log_uniform
    ... --init-from RUN --steps 1900 --learning-rate 2e-3 --one-step
        with --noise-mean 0.4 --noise-std 1.6

1.90 by the bound, 1.62 by the ODE; 79.6 % confident in four steps, 24.3 % in one.
"""

from jaxgen.cli import experiment
from jaxgen.data import DataConfig
from jaxgen.models.diffusion import DiffusionConfig
from jaxgen.train.config import TrainConfig

MODEL = DiffusionConfig(widths=(32, 64))
DATA = DataConfig(name="mnist")
TRAIN = TrainConfig(
    steps=6000,
    batch_size=64,
    optimizer="muon",
    learning_rate=4e-3,
    schedule="linear",
    ema_widths=(0.05, 0.1),
)


def main() -> None:
    """`jaxgen train diffusion` with these defaults; every flag of it is taken."""
    experiment("diffusion", model=MODEL, data=DATA, train=TRAIN)


if __name__ == "__main__":
    main()
