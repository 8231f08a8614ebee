"""A GAN of CIFAR-10 by R3GAN's recipe and at its size: for accelerators.

    python experiments/gan_cifar10.py --data-dir DIR
    jaxgen plan experiments/gan_cifar10.py --data photos --no-conditional --target v5e:2x4

No machine of this project can train it: it was checked by --dry-run and by a smoke run
with a narrow network, never trained. Classes, gamma from 0.05 to a tenth of it summed over
the numbers of an image, augmentation of up to 0.55, beta2 from 0.9 to 0.99, batch and the
5 million images of half-life are those of Huang et al. 2025 (arXiv:2501.05441). Their
grouped convolutions of 768 channels are whole ones of 288 to 1152 here, and schedules end
with the run of 250 million images, not after 20.
"""

from jaxgen.cli import experiment
from jaxgen.data import DataConfig
from jaxgen.models.gan import GANConfig
from jaxgen.train.config import TrainConfig

MODEL = GANConfig(
    width=288,
    blocks=2,
    patch=1,
    conditional=True,
    augment=0.55,
    gamma=0.05 / (32 * 32 * 3),
    gamma_decay=0.1,
    compute="bfloat16",
)
DATA = DataConfig(name="cifar10")
TRAIN = TrainConfig(
    steps=488_281,
    batch_size=512,
    learning_rate=2e-4,
    beta1=0.0,
    beta2_start=0.9,
    weight_decay=0.0,
    ema_half_life=0.02,
)


def main() -> None:
    """`jaxgen train gan` with these defaults; every flag of it is taken."""
    experiment("gan", model=MODEL, data=DATA, train=TRAIN)


if __name__ == "__main__":
    main()
