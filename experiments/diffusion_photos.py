"""Diffusion on 32x32 colour patches of scikit-learn's two photographs.

    python experiments/diffusion_photos.py [--seed 1]

Textures of a flower and a temple's roof, to see colour at work without a download. Few
patches that overlap: a model that is trained for long knows them by heart.
"""

from jaxgen.cli import experiment
from jaxgen.data import DataConfig
from jaxgen.models.diffusion import DiffusionConfig
from jaxgen.train.config import TrainConfig

MODEL = DiffusionConfig(widths=(32, 64, 128), noise_mean=-1.2)
DATA = DataConfig(name="photos")
TRAIN = TrainConfig(
    steps=2000,
    batch_size=32,
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
