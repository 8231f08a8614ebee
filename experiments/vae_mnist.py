"""VAE of Burda et al. 2015 (one stochastic layer, 50 latents) on MNIST."""

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
