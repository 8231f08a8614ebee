"""What all sides of a comparison agree on: sizes, optimizer, and what is checked."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from flow_cases import FLOW_CASES, FlowCase

LEARNING_RATE, BETAS = 1e-3, (0.9, 0.99)
CHECKED_UPDATES = 3  # whose losses are compared, from equal parameters and noise
SAMPLING_STEPS = 10
GAN_BLOCKS = 2  # residual ones a stage


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """One model, one batch, and who trains it.

    Attributes:
        net: Dense or convolutional VAE (Bernoulli, one sample, analytic KL), a bare
            U-Net with mean squared loss, each library's own diffusion U-Net, or a GAN
            of residual networks or DCGAN (relativistic game, R1 and R2): an update is
            one of both players.
        widths: Of the dense layers; of the first convolutional level; of each level.
        image_size: To which scikit-learn's digits are resized.
        channels: Of the images.
        batch_size: Examples an update.
        latent_dim: Size of z.
        sides: Who takes part, jaxgen first; ddp is denoising-diffusion-pytorch.
        task: What is timed: an update, or a batch sampled by DPM-Solver++(2M).
        attention_side: Levels of a diffusion U-Net at most this high have attention.
        parameters_apart: How far the sides' numbers of parameters may differ, as a
            share of jaxgen's.
        steps_per_dispatch: Of jaxgen's updates; 0 chooses.
        devices: As which jaxgen counts the CPU and shares the batch over.
    """

    net: Literal["mlp", "conv", "unet", "diffusion", "residual", "dcgan"]
    widths: tuple[int, ...]
    image_size: int
    channels: int = 1
    batch_size: int = 128
    latent_dim: int = 16
    sides: tuple[str, ...] = ("jaxgen", "eager", "compiled")
    task: Literal["train", "sample"] = "train"
    attention_side: int = 8
    parameters_apart: float = 0.0
    steps_per_dispatch: int = 0
    devices: int = 1

    @property
    def transform(self) -> Literal["levels", "static", "dequantise"]:
        """How uint8 becomes numbers, in the step; ddp and diffusers take levels."""
        if self.net == "diffusion":
            return "dequantise"
        return "static" if self.net in ("mlp", "conv") else "levels"

    def module(self, side: str) -> str:
        """Where the side's code stands."""
        kind = {"diffusion": "diffusion", "residual": "gan", "dcgan": "gan"}
        return f"{'jax' if side == 'jaxgen' else 'torch'}_{kind.get(self.net, 'side')}"


CASES: dict[str, Case | FlowCase] = {
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
    "diffusion": Case(
        net="diffusion",
        widths=(32, 64, 128),
        image_size=32,
        batch_size=32,
        sides=("jaxgen", "ddp", "ddp-compiled", "diffusers", "diffusers-compiled"),
        parameters_apart=0.11,
        steps_per_dispatch=2,
    ),
    "sampling": Case(
        net="diffusion",
        task="sample",
        widths=(32, 64, 128),
        image_size=32,
        batch_size=32,
        sides=("jaxgen", "diffusers", "diffusers-compiled"),
        parameters_apart=0.11,
    ),
    "gan-residual": Case(
        net="residual",
        widths=(32,),
        image_size=32,
        channels=3,
        batch_size=64,
        latent_dim=64,
        steps_per_dispatch=8,
    ),
    "gan-dcgan": Case(
        net="dcgan",
        widths=(32,),
        image_size=32,
        channels=3,
        batch_size=64,
        latent_dim=64,
        steps_per_dispatch=8,
    ),
    **FLOW_CASES,
}


def case(name: str, *, smoke: bool, devices: int = 1) -> Case | FlowCase:
    """A case by its name; at smoke size, seconds rather than minutes."""
    full = dataclasses.replace(CASES[name], devices=devices)
    if not smoke:
        return full
    if isinstance(full, FlowCase):
        return full.small()
    if full.net == "diffusion":  # the numbers of parameters are compared
        return dataclasses.replace(full, batch_size=2)
    widths = tuple(8 for _ in full.widths)
    size = (
        16 if full.net in ("residual", "dcgan") else 8
    )  # two stages and more of a GAN
    return dataclasses.replace(full, widths=widths, image_size=size, batch_size=8)


def noise() -> np.ndarray:
    """What the samplers are compared from, `[64, 1]`, at the noisiest level."""
    return np.random.default_rng(0).normal(size=(64, 1)).astype(np.float32)


def posterior_mean(tanh: Callable[[Any], Any], x: Any, alpha: Any, sigma: Any) -> Any:
    """The exact estimate of x_0 of the mixture (N(-1, 1/16) + N(1, 1/16)) / 2.

    Args:
        tanh: The array library's.
        x: Noisy, any shape.
        alpha: Of the noise level, one number.
        sigma: As well.
    """
    total = (0.25 * alpha) ** 2 + sigma**2
    side = tanh(alpha * x / total)
    return (sigma**2 * side + 0.25**2 * alpha * x) / total
