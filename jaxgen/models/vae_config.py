"""Options of the VAE, and how those left open follow from the data."""

import dataclasses
from typing import Annotated, Any, Literal

import tyro

from jaxgen._checks import UserError, check_at_least, check_finite_options

TRANSFORM_OF = {
    "bernoulli": "binarise",
    "gaussian": "dequantise",
    "logistic_mixture": "levels",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class VAEConfig:
    """Options of the VAE; None leaves the choice to the data."""

    latent_dim: int = 16
    """Size of z."""
    net: Literal["mlp", "conv"] | None = None
    """Dense layers, or residual convolutions; by default dense up to 1024 numbers an image."""
    hidden: tuple[int, ...] = (256, 256)
    """Widths of the dense layers, encoder and decoder alike."""
    activation: Literal["tanh", "silu", "relu"] = "silu"
    """Nonlinearity of the dense layers."""
    width: int = 32
    """Channels of the first convolutional level; doubled at each level."""
    levels: int = 3
    """Convolutional levels; the image is halved between them."""
    blocks: int = 1
    """Residual blocks a level."""
    likelihood: Literal["bernoulli", "gaussian", "logistic_mixture"] | None = None
    """p(x given z): binary, continuous, or 256 levels; by default what fits --transform."""
    mixture: int = 5
    """Components of the logistic mixture."""
    sigma: Literal["learned", "optimal", "fixed"] | None = None
    """Scale of the Gaussian: trained, --sigma-value, or the batch's root mean square error,
    the default where the KL is analytic."""
    sigma_value: float = 0.1
    """Scale where it is fixed, and where a trained one starts."""
    beta: float = 1.0
    """Weight of the KL term; 1 is the evidence lower bound."""
    beta_warmup: float = 0.0
    """Fraction of the run in which beta rises from 0."""
    free_bits: float = 0.0
    """Nats of KL that each latent variable has for free."""
    num_importance: int = 1
    """Samples K of the importance weighted bound in training; 1 is the ELBO."""
    gradient: Literal["analytic", "dreg", "plain"] | None = None
    """analytic KL (K = 1 only, its default); importance weights, the encoder's gradient
    doubly reparameterised (default above 1; at 1 "sticking the landing") or plain."""
    compute: Literal["float32", "bfloat16"] = "float32"
    """Precision inside the networks; parameters, losses and optimizer are float32."""
    remat: bool = False
    """Save memory: compute each block of the networks again for its gradient."""
    shape: Annotated[tuple[int, int, int] | None, tyro.conf.Suppress] = None

    def __post_init__(self):
        check_finite_options(self)
        if any(width < 1 for width in self.hidden):
            raise UserError(f"--hidden must be widths of at least 1, got {self.hidden}")
        if self.levels > 8:
            raise UserError(f"--levels must be at most 8, got {self.levels}")
        check_at_least(
            self,
            1,
            "latent_dim",
            "width",
            "levels",
            "blocks",
            "mixture",
            "num_importance",
        )
        if self.sigma_value <= 0 or self.beta < 0 or self.free_bits < 0:
            raise UserError(
                "--sigma-value must be positive, --beta and --free-bits >= 0"
            )
        if not 0 <= self.beta_warmup <= 1:
            raise UserError(
                f"--beta-warmup is a fraction in [0, 1], got {self.beta_warmup}"
            )
        if self.gradient == "analytic" and self.num_importance > 1:
            raise UserError("--gradient analytic is for --num-importance 1: use dreg")
        weighted = self.beta != 1 or self.beta_warmup > 0 or self.free_bits > 0
        if _gradient(self) != "analytic" and weighted:
            raise UserError(
                "importance weights (--num-importance above 1, --gradient dreg or plain) "
                "have no separate KL term: leave --beta at 1 and --beta-warmup and "
                "--free-bits at 0"
            )


def resolve(
    config: VAEConfig,
    shape: tuple[int, int, int],
    transform: str | None,
    num_classes: int | None = None,
    columns: Any = None,
) -> tuple[VAEConfig, str]:
    """Fills what was left to the data, and refuses what does not fit together."""
    del num_classes, columns
    likelihood = config.likelihood
    if likelihood is None:
        fitting = {
            "binarise": "bernoulli",
            "static": "bernoulli",
            "dequantise": "gaussian",
        }
        likelihood = fitting.get(transform or "", "logistic_mixture")
    transform = TRANSFORM_OF[likelihood] if transform is None else transform
    wanted = {TRANSFORM_OF[likelihood]} | (
        {"static"} if likelihood == "bernoulli" else set()
    )
    if transform not in wanted:
        raise UserError(
            f"--likelihood {likelihood} is a distribution over data made by --transform "
            f"{' or '.join(sorted(wanted))}, not {transform}"
        )
    analytic = _gradient(config) == "analytic"
    if config.sigma == "optimal" and likelihood == "gaussian" and not analytic:
        raise UserError(
            "--sigma optimal needs the analytic KL (--num-importance 1): use learned"
        )
    sigma = config.sigma or ("optimal" if analytic else "learned")
    small = shape[0] * shape[1] * shape[2] <= 1024
    net = config.net or ("mlp" if small else "conv")
    resolved = dataclasses.replace(
        config,
        likelihood=likelihood,
        net=net,
        sigma=sigma,
        gradient=_gradient(config),
        shape=shape,
    )
    return resolved, transform


def _gradient(config: VAEConfig) -> str:
    return config.gradient or ("analytic" if config.num_importance == 1 else "dreg")
