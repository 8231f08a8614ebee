"""Diffusion on CIFAR-10 at the size of EDM's DDPM++ network: for accelerators.

    python experiments/diffusion_cifar10.py --data-dir DIR
    jaxgen plan experiments/diffusion_cifar10.py --data photos --target v5e:2x4

No machine of this project can train it: it was checked by --dry-run and by a smoke run
with narrow levels, never trained; its plan takes more than ten minutes on two cores.
Size, batch, rate, noise levels and the 200 million images are those of Karras et al. 2022
(arXiv:2206.00364, table 7, 55.7 million parameters; FID 1.97 without classes); their
augmentation and dropout are not here.
"""

from jaxgen.cli import experiment
from jaxgen.data import DataConfig
from jaxgen.models.diffusion import DiffusionConfig, Sampling
from jaxgen.train.config import TrainConfig

MODEL = DiffusionConfig(
    widths=(256, 256, 256),
    blocks=4,
    patch=1,
    attention_side=16,
    noise_mean=-1.2,
    compute="bfloat16",
    sampling=Sampling(sampler="heun", num_steps=18),
)
DATA = DataConfig(name="cifar10")
TRAIN = TrainConfig(
    steps=390_625,
    batch_size=512,
    learning_rate=1e-3,
    schedule="constant",
    warmup=0.05,
    beta2=0.999,
    weight_decay=0.0,
    ema_widths=(0.05, 0.1),
)


def main() -> None:
    """`jaxgen train diffusion` with these defaults; every flag of it is taken."""
    experiment("diffusion", model=MODEL, data=DATA, train=TRAIN)


if __name__ == "__main__":
    main()
