"""What both sides of a comparison agree on: sizes, optimizer, and the check of losses."""

import dataclasses
from typing import Literal

LEARNING_RATE, BETAS = 1e-3, (0.9, 0.99)
CHECKED_UPDATES = 3  # whose losses are compared, from equal parameters and noise


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """One model, one batch, and who trains it.

    Attributes:
        net: Dense or convolutional VAE (Bernoulli, one sample, analytic KL), or a bare
            U-Net with mean squared loss.
        widths: Of the dense layers; of the first convolutional level; of each level.
        image_size: To which scikit-learn's digits are resized.
        channels: Of the images.
        batch_size: Examples an update.
        latent_dim: Size of z.
        sides: Who takes part, jaxgen first.
    """

    net: Literal["mlp", "conv", "unet"]
    widths: tuple[int, ...]
    image_size: int
    channels: int = 1
    batch_size: int = 128
    latent_dim: int = 16
    sides: tuple[str, ...] = ("jaxgen", "eager", "compiled")

    @property
    def transform(self) -> Literal["levels", "static"]:
        """How uint8 becomes numbers, in the step on both sides."""
        return "levels" if self.net == "unet" else "static"


CASES = {
    "mlp": Case(
        net="mlp",
        widths=(512,),
        image_size=28,
        sides=("jaxgen", "eager", "compiled", "pythae"),
    ),
    "digits": Case(
        net="mlp",
        widths=(256, 256),
        image_size=8,
        sides=("jaxgen", "eager", "compiled", "pythae"),
    ),
    "conv": Case(net="conv", widths=(32,), image_size=32, channels=3),
    "unet": Case(
        net="unet", widths=(32, 64, 128, 192), image_size=32, channels=3, batch_size=64
    ),
}


def case(name: str, *, smoke: bool) -> Case:
    """A case by its name; at smoke size, seconds rather than minutes."""
    full = CASES[name]
    if not smoke:
        return full
    return dataclasses.replace(
        full, widths=tuple(8 for _ in full.widths), image_size=8, batch_size=8
    )
