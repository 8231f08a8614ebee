"""Options of the diffusion family, and how those left open follow from the data."""

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
from jaxgen.nets.transformer import check_sides

Schedule = Literal["edm", "rectified_flow", "cosine", "ddpm", "ve"]
NUM_STEPS = {"ddpm": 1000, "ddim": 50, "euler": 50, "heun": 18, "stochastic": 64}
NUM_STEPS |= {"dpmpp_2m": 20, "mean_flow": 1}
SMALLEST = 8  # pixels a side
IMAGE_NETS = ("unet", "transformer")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """How a trained model is sampled and judged; may be chosen anew at any time."""

    sampler: Literal[
        "auto", "dpmpp_2m", "heun", "euler", "ddim", "ddpm", "stochastic", "mean_flow"
    ] = "auto"
    """From noise to data; auto is dpmpp_2m, and mean_flow after --one-step."""
    num_steps: int | None = None
    """Steps of the sampler (heun and stochastic take two evaluations a step); by default
    1000 for ddpm, 50 for ddim and euler, 18 for heun, 64 for stochastic, 20 for dpmpp_2m, 1
    for mean_flow."""
    path: Schedule | None = None
    """The noise schedule along which it samples; by default the one of training."""
    eta: float = 0.0
    """Share of fresh noise in ddim: 0 is deterministic, 1 is ddpm."""
    churn: float = 20.0
    """Noise that the stochastic sampler adds and takes away again (S_churn of EDM)."""
    guidance: float = 1.0
    """Classifier-free guidance w: u + w (c - u); 0 ignores the class, 1 is the model."""
    temperature: float = 1.0
    """Standard deviation of the latent: below 1 samples are more alike. Samplers that add
    noise on the way heed it less."""
    label: int | None = None
    """The class of the samples; by default each sample draws its own."""
    likelihood: Literal["vlb", "ode"] = "vlb"
    """Log-likelihood by the variational bound, or by the probability-flow ODE."""
    ode_steps: int = 32
    """Runge-Kutta steps of the ODE, of the likelihood and of encodings."""
    probes: int = 1
    """Random vectors an image that estimate the divergence along the ODE."""

    def __post_init__(self):
        check_finite_options(self)
        check_at_least(self, 1, "num_steps", "ode_steps", "probes")
        if self.ode_steps % 2:
            raise UserError(
                f"--ode-steps must be even, for its error estimate, got {self.ode_steps}"
            )
        if not 0 <= self.eta <= 1:
            raise UserError(f"--eta must be in [0, 1], got {self.eta}")
        check_at_least(self, 0, "churn", "guidance", "temperature")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiffusionConfig:
    """Options of the diffusion family; None leaves the choice to the data."""

    net: Literal["unet", "transformer", "mlp"] | None = None
    """Convolutions at several resolutions (the default of images), attention between
    patches, or dense layers (for tables)."""
    widths: tuple[int, ...] | None = None
    """Channels of the U-Net's levels, the image being halved between them."""
    blocks: int = 2
    """Residual blocks of the U-Net a level, down and up; and of the dense layers."""
    attention_side: int = 8
    """Levels of the U-Net at most this high have attention."""
    width: int = 256
    """Channels of the transformer, or of the dense layers."""
    depth: int = 8
    """Layers of the transformer."""
    patch: int | None = None
    """Side of the squares of pixels that become one position; by default 1 up to 16
    pixels, 2 above (transformer: 2 and 4)."""
    noise_schedule: Schedule = "edm"
    """alpha(t) and sigma(t) of x_t = alpha x_0 + sigma eps."""
    predicts: Literal["edm", "x0", "eps", "v", "velocity"] = "edm"
    """What the network's output stands for."""
    weighting: Literal["edm", "simple", "min_snr", "sigmoid", "vlb"] = "edm"
    """Weight of the squared error at each noise level."""
    noise_levels: Literal[
        "log_normal", "log_uniform", "uniform", "logit_normal", "most"
    ] = "log_normal"
    """Levels met in training: sigma / alpha log-normal, or log-uniform from 0.002 to 80 (for
    likelihoods), or t uniform or logit-normal; or the most noise alone, which makes it the
    deterministic network, whose only answer on a --task is the mean of the right ones."""
    noise_mean: float = -0.4
    """Mean of log(sigma / alpha), or of the logit of t; EDM has -1.2, for photographs."""
    noise_std: float = 1.2
    """Standard deviation of the same."""
    conditional: bool = False
    """Tell the network the class, where the data have labels."""
    label_dropout: float = 0.1
    """Share of the examples whose class is not told, for guidance and likelihoods."""
    one_step: bool = False
    """Train the average velocity (improved MeanFlow), to sample in one step; best with
    --init-from the run folder of a trained model."""
    equal_share: float = 0.5
    """Share of the examples whose interval is empty, in --one-step."""
    compute: Literal["float32", "bfloat16"] = "float32"
    """Precision inside the network; parameters, losses and optimizer are float32."""
    remat: bool = False
    """Save memory: compute each block of the network again for its gradient."""
    sampling: Sampling = Sampling()
    num_classes: Annotated[int | None, tyro.conf.Suppress] = None
    shape: Annotated[tuple[int, ...] | None, tyro.conf.Suppress] = None
    columns: Annotated[tuple[Column, ...] | None, tyro.conf.Suppress] = None
    num_planes: Annotated[int, tyro.conf.Suppress] = 0

    def __post_init__(self):
        check_finite_options(self)
        widths = (self.width,) if self.widths is None else self.widths
        if min((*widths, self.width), default=0) < 4 or not widths:
            raise UserError(f"--widths and --width must be at least 4, got {widths}")
        check_at_least(self, 1, "blocks", "depth", "patch")
        if self.net == "transformer" and self.depth % 2:
            raise UserError(f"--depth must be even, for the skips, got {self.depth}")
        if self.noise_std <= 0:
            raise UserError(f"--noise-std must be positive, got {self.noise_std}")
        if not 0 < self.label_dropout < 1:
            raise UserError(
                f"--label-dropout is a share in (0, 1), got {self.label_dropout}"
            )
        if not 0 <= self.equal_share <= 1:
            raise UserError(f"--equal-share is in [0, 1], got {self.equal_share}")
        if self.weighting in ("vlb", "sigmoid") and self.noise_levels != "log_uniform":
            raise UserError(
                f"--weighting {self.weighting} is for --noise-levels log_uniform"
            )
        self._check_prediction()
        self._check_sampling()

    def _check_prediction(self) -> None:
        """Pure noise says nothing of x_0 to a network that predicts the noise."""
        if self.predicts != "eps":
            return
        paths = {self.noise_schedule, self.sampling.path}
        if self.one_step or paths & {"cosine", "rectified_flow"}:
            raise UserError(
                "--predicts eps cannot start from pure noise, as cosine, rectified_flow "
                "and --one-step do: v or edm can, or the ddpm schedule"
            )

    def _check_sampling(self) -> None:
        check_class_options(self)
        sampling = self.sampling
        if sampling.sampler == "mean_flow" and not self.one_step:
            raise UserError("--sampler mean_flow needs a model trained with --one-step")
        by_mean_flow = self.one_step and sampling.sampler in ("auto", "mean_flow")
        if by_mean_flow and sampling.guidance != 1:
            raise UserError("--guidance is not for the sampler mean_flow")


def resolve(
    config: DiffusionConfig,
    shape: tuple[int, ...],
    transform: str | None,
    num_classes: int | None = None,
    columns: tuple[Column, ...] | None = None,
    num_planes: int = 0,
) -> tuple[DiffusionConfig, str]:
    """Fills what was left to the data, and refuses what does not fit together."""
    is_table = columns is not None
    nets, what = (("mlp",), "tables") if is_table else (IMAGE_NETS, "images")
    net = config.net or nets[0]
    if net not in nets:
        raise UserError(f"--net {net} is not for {what}: {', '.join(nets)}")
    if any(column.is_context for column in columns or ()):
        raise UserError("a diffusion is told no context columns: a flow is")
    check_told(config.conditional, num_classes, num_planes)
    fitting = "none" if is_table else "dequantise"
    transform = fitting if transform is None else transform
    if transform != fitting:
        raise UserError(
            f"diffusion models a density of continuous data: --transform {fitting}, not "
            f"{transform}"
        )
    resolved = dataclasses.replace(
        config,
        net=net,
        num_classes=num_classes if config.conditional else None,
        shape=tuple(shape),
        columns=columns,
        num_planes=num_planes,
    )
    return (resolved if is_table else _of_images(resolved, shape)), transform


def _of_images(config: DiffusionConfig, shape: tuple[int, ...]) -> DiffusionConfig:
    """With the sizes of the network that fit images of this shape."""
    if min(shape[:2]) < SMALLEST:
        raise UserError(
            f"images of {shape[0]}x{shape[1]} pixels: diffusion takes {SMALLEST}x{SMALLEST} "
            "and more (--image-size)"
        )
    side = max(shape[:2])
    widths = (32, 64) if side <= 16 else (64, 128) if side <= 40 else (64, 128, 256)
    small = 1 if side <= 16 else 2
    patch = config.patch or (small if config.net == "unet" else 2 * small)
    if config.net == "transformer":
        try:
            check_sides(shape[0], shape[1], patch)
        except ValueError as error:
            raise UserError(f"--patch, --image-size: {error}") from error
    elif patch > min(shape[:2]) // 4:
        raise UserError(
            f"--patch must be at most {min(shape[:2]) // 4} for these images, got {patch}"
        )
    return dataclasses.replace(config, widths=config.widths or widths, patch=patch)
