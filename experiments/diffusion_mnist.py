"""Diffusion on MNIST: a small U-Net that a CPU trains in minutes.

python experiments/diffusion_mnist.py --data-dir DIR [--seed 1]
jaxgen evaluate RUN --num-images 1000 --judge 2000
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
