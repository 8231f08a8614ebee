"""Options of the GAN family, and how those left open follow from the data."""

import dataclasses
from typing import Annotated, Literal

import tyro

from jaxgen._checks import (
    UserError,
    check_at_least,
    check_class_options,
    check_finite_options,
    check_told,
)
from jaxgen.columns import Column

IMAGE_NETS = ("residual", "dcgan")
GAMMA, GRADIENT_GAMMA, TABLE_GAMMA = 0.03, 10.0, 0.01


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """What is drawn from a trained GAN; may be chosen anew at any time."""

    label: int | None = None
    """The class of the samples; by default each sample draws its own."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class GANConfig:
    """Options of the GAN family; None leaves the choice to the data."""

    net: Literal["residual", "dcgan", "dense"] | None = None
    """Images: residual (R3GAN's, without normalisation) or dcgan (strided convolutions);
    tables: dense."""
    latent_dim: int | None = None
    """Size of z; by default 64, and the number of columns for tables."""
    width: int | None = None
    """Channels of the largest stage; by default 96, 32 for dcgan, 48 for tables."""
    blocks: int | None = None
    """Residual blocks a stage; by default 2, and 5 for tables."""
    patch: int | None = None
    """Side of the squares of pixels that become one in the residual networks; by default
    2 up to 16 pixels, 4 above."""
    game: Literal[
        "relativistic",
        "non_saturating",
        "minimax",
        "least_squares",
        "hinge",
        "wasserstein",
    ] = "relativistic"
    """What the two players pay."""
    penalty: Literal["r1r2", "r1", "r2", "estimated", "gradient", "none"] = "r1r2"
    """Of the discriminator's slope: at data and samples (R1 and R2), one of them, both
    estimated without a second derivative, or WGAN-GP's between them."""
    gamma: float | None = None
    """Weight of the penalty. Of R1 and R2 for each number of an example, whose range is
    [-1, 1]: by default 0.03 (published, for runs a hundred times as long: 0.00002 to
    0.0008), and 0.01 for tables. Of the gradient penalty as it is: 10."""
    gamma_decay: float | None = None
    """By what gamma is multiplied in the course of the run, along a cosine; by default
    0.1, and 0.01 for tables."""
    critic_steps: int = 1
    """Updates of the discriminator for each of the generator, of the same data but fresh
    samples."""
    augment: float = 0.0
    """Probability of each change (color, translation, cutout) to what the discriminator
    sees, at most: it rises along a cosine over the first half of the run. For small data
    sets: 0.1 to 0.5."""
    adaptive: bool = False
    """Let that probability follow how well data are told from samples instead."""
    conditional: bool = False
    """Tell both networks the class, where the data have labels."""
    compute: Literal["float32", "bfloat16"] = "float32"
    """Precision inside the networks; logits, penalties and optimizers are float32."""
    sampling: Sampling = Sampling()
    num_classes: Annotated[int | None, tyro.conf.Suppress] = None
    shape: Annotated[tuple[int, ...] | None, tyro.conf.Suppress] = None
    columns: Annotated[tuple[Column, ...] | None, tyro.conf.Suppress] = None
    num_planes: Annotated[int, tyro.conf.Suppress] = 0

    def __post_init__(self):
        check_finite_options(self)
        check_at_least(self, 1, "latent_dim", "blocks", "patch", "critic_steps")
        check_at_least(self, 4, "width")
        for name in ("gamma", "gamma_decay"):
            value = getattr(self, name)
            if value is not None and value < 0:
                flag = name.replace("_", "-")
                raise UserError(f"--{flag} must not be negative, got {value}")
        if not 0 <= self.augment <= 1:
            raise UserError(f"--augment is a probability in [0, 1], got {self.augment}")
        if self.adaptive and not self.augment:
            raise UserError(
                "--adaptive needs the largest probability it may choose: --augment 0.8"
            )
        check_class_options(self)


def resolve(
    config: GANConfig,
    shape: tuple[int, ...],
    transform: str | None,
    num_classes: int | None = None,
    columns: tuple[Column, ...] | None = None,
    num_planes: int = 0,
) -> tuple[GANConfig, str]:
    """Fills what was left to the data, and refuses what does not fit together."""
    is_table = columns is not None
    nets, what = (("dense",), "tables") if is_table else (IMAGE_NETS, "images")
    net = config.net or nets[0]
    if net not in nets:
        raise UserError(f"--net {net} is not for {what}: {', '.join(nets)}")
    if is_table and (config.conditional or config.augment):
        raise UserError("--conditional and --augment are for images")
    if any(column.is_context for column in columns or ()):
        raise UserError("a GAN is told no context columns: a flow is")
    check_told(config.conditional, num_classes, num_planes)
    if num_planes and (net != "residual" or config.augment):
        raise UserError(
            "a GAN on a --task has --net residual and no --augment: changes of an image "
            "would have to be those of what is given with it"
        )
    fitting = "none" if is_table else "levels"
    transform = fitting if transform is None else transform
    if transform != fitting:
        raise UserError(f"a GAN of {what} takes --transform {fitting}, not {transform}")
    gamma, decay = (TABLE_GAMMA, 0.01) if is_table else (GAMMA, 0.1)
    if config.penalty == "gradient":
        gamma = GRADIENT_GAMMA
    small = is_table or max(shape[:2]) <= 16
    width = 48 if is_table else 32 if net == "dcgan" else 96
    resolved = dataclasses.replace(
        config,
        net=net,
        latent_dim=config.latent_dim or (len(columns or ()) or 64),
        width=config.width or width,
        blocks=config.blocks or (5 if is_table else 2),
        patch=config.patch or (2 if small else 4),
        gamma=gamma if config.gamma is None else config.gamma,
        gamma_decay=decay if config.gamma_decay is None else config.gamma_decay,
        num_classes=num_classes if config.conditional else None,
        shape=tuple(shape),
        columns=columns,
        num_planes=num_planes,
    )
    return resolved, transform
