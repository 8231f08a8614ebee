"""VAE of Burda et al. 2015 (one stochastic layer, 50 latents) on MNIST.

    python experiments/vae_mnist.py --data-dir DIR [--seed 1]
    python experiments/vae_mnist.py --data-dir DIR --num-importance 5 --steps 250000
    jaxgen evaluate RUN --num-samples 5000

Dynamic binarisation, all 60,000 training images, no validation set, the averaged
parameters of the last step. Test NLL by importance sampling with K = 5000, all 10,000
test images, on 2 CPU cores that did other work at the same time:

    K = 1: 86.68 and 86.56 nats (seeds 0, 1), 17 minutes of training each
    K = 5: 85.27 nats (seed 0), 59 minutes of training

Burda et al. report 86.76 and 85.54 for this network (their table 1).
"""

from jaxgen.cli import experiment
from jaxgen.data import DataConfig
from jaxgen.models.vae import VAEConfig
from jaxgen.train.config import TrainConfig

MODEL = VAEConfig(
    latent_dim=50,
    net="mlp",
    hidden=(200, 200),
    activation="tanh",
    likelihood="bernoulli",
    gradient="dreg",
)
DATA = DataConfig(name="mnist", transform="binarise")
TRAIN = TrainConfig(
    steps=150_000,
    batch_size=200,
    learning_rate=4e-3,
    warmup=0.002,
    beta2=0.999,
    weight_decay=1e-4,
    ema_half_life=0.002,
)


def main() -> None:
    """`jaxgen train vae` with these defaults; every flag of it is taken."""
    experiment("vae", model=MODEL, data=DATA, train=TRAIN)


if __name__ == "__main__":
    main()
