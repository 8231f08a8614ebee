"""Options of the VAE, and how those left open follow from the data."""

import dataclasses
import math
from typing import Annotated, Any, Literal

import tyro

from jaxgen._checks import UserError, check_at_least, check_finite_options
from jaxgen.columns import Column

TRANSFORM_OF = {
    "bernoulli": "binarise",
    "gaussian": "dequantise",
    "logistic_mixture": "levels",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """Where the latents of samples come from; for `sample` and `evaluate`."""

    ex_post: Literal["none", "gaussian", "gmm"] = "none"
    """Draw z from a Gaussian, or from --components of them, that is fitted to the encoded
    training data, in place of P(z)."""
    components: int = 10
    """Gaussians of --ex-post gmm."""
    prior_run: str | None = None
    """Draw z from another run, one that was trained on --data latents:RUN."""
    renormalise: bool = False
    """Spread what --ex-post or --prior-run draws as the encoded training data are."""

    def __post_init__(self):
        check_at_least(self, 1, "components")
        num = (self.prior_run is not None) + (self.ex_post != "none")
        if num > 1:
            raise UserError("--prior-run and --ex-post: z is drawn from one of them")
        if self.renormalise and not num:
            raise UserError("--renormalise goes with --ex-post or --prior-run")


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
    sigma: Literal["learned", "optimal", "fixed", "computed"] | None = None
    """Scale of the Gaussian: trained; the batch's root mean square error (the default for
    one sample); --sigma-value; or the root of a running mean square error (Asperti)."""
    sigma_value: float | None = None
    """Scale where it is fixed, and where a trained or computed one starts; by default
    --geco, else 0.1, and 1 for tables, whose columns have variance 1 inside."""
    geco: float | None = None
    """Instead of a weight of the KL: make it as small as a root mean square error of this
    allows (GECO), for the Gaussian likelihood."""
    geco_rate: float = 0.01
    """How fast its multiplier grows, an update."""
    beta: float = 1.0
    """Weight of the KL term; 1 is the evidence lower bound."""
    beta_warmup: float = 0.0
    """Fraction of the run in which beta rises from 0."""
    free_bits: float = 0.0
    """Nats of KL that each latent variable has for free."""
    prior: Literal["normal", "vamp"] = "normal"
    """P(z): N(0, I), or the mean of Q(z given u) over learned pseudo-inputs u (VampPrior)."""
    num_pseudo: int = 500
    """Pseudo-inputs of the VampPrior; they start as training examples."""
    autoencoder: bool = False
    """Leave out noise and KL: a plain autoencoder, whose latent space cannot be sampled and
    which has no likelihood; a baseline, and something for ex-post priors to mend."""
    num_importance: int = 1
    """Samples K of the importance weighted bound in training; 1 is the ELBO."""
    gradient: Literal["analytic", "dreg", "plain"] | None = None
    """analytic KL (K = 1 only, its default; of a VampPrior one draw of it); importance
    weights, the encoder's gradient doubly reparameterised (default above 1; at 1 "sticking
    the landing") or plain."""
    compute: Literal["float32", "bfloat16"] = "float32"
    """Precision inside the networks; parameters, losses and optimizer are float32."""
    remat: bool = False
    """Save memory: compute each block of the networks again for its gradient."""
    sampling: Sampling = Sampling()
    shape: Annotated[tuple[int, ...] | None, tyro.conf.Suppress] = None
    columns: Annotated[tuple[Column, ...] | None, tyro.conf.Suppress] = None
    num_planes: Annotated[int, tyro.conf.Suppress] = 0

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
            "num_pseudo",
        )
        wrong = self.sigma_value is not None and self.sigma_value <= 0
        if wrong or self.beta < 0 or self.free_bits < 0:
            raise UserError(
                "--sigma-value must be positive, --beta and --free-bits >= 0"
            )
        if self.geco_rate <= 0 or (self.geco is not None and self.geco <= 0):
            raise UserError("--geco and --geco-rate must be positive")
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
        self._check_policies()

    def _check_policies(self) -> None:
        """Of the KL there is one price, and none of an autoencoder."""
        weighted = self.beta != 1 or self.beta_warmup > 0
        if self.geco is not None and (weighted or _gradient(self) != "analytic"):
            raise UserError(
                "--geco finds the weight of the KL itself: leave --beta, --beta-warmup, "
                "--num-importance and --gradient alone"
            )
        if self.geco is not None and self.sigma not in (None, "computed"):
            raise UserError(
                f"--geco goes with --sigma computed, not --sigma {self.sigma}"
            )
        if self.prior == "vamp" and self.free_bits > 0:
            raise UserError(
                "--free-bits needs a KL for each latent variable, which --prior vamp has "
                "not"
            )
        if not self.autoencoder:
            return
        if weighted or self.free_bits or self.geco is not None or self.prior == "vamp":
            raise UserError(
                "--autoencoder has no KL: leave out --beta, --beta-warmup, --free-bits, "
                "--geco and --prior"
            )
        if _gradient(self) != "analytic":
            raise UserError(
                "--autoencoder has no importance weights: leave out --num-importance and "
                "--gradient"
            )


def resolve(
    config: VAEConfig,
    shape: tuple[int, ...],
    transform: str | None,
    num_classes: int | None = None,
    columns: tuple[Column, ...] | None = None,
    num_planes: int = 0,
) -> tuple[VAEConfig, str]:
    """Fills what was left to the data, and refuses what does not fit together."""
    del num_classes
    if config.sampling != Sampling():
        raise UserError(
            "--ex-post, --prior-run and --renormalise are for a trained model: give them "
            "to jaxgen sample and jaxgen evaluate"
        )
    likelihood, transform = _likelihood(config.likelihood, transform, columns)
    analytic = _gradient(config) == "analytic"
    follows = config.sigma in ("optimal", "computed")
    if follows and likelihood == "gaussian" and not analytic:
        raise UserError(
            f"--sigma {config.sigma} needs the analytic KL (--num-importance 1): use "
            "learned"
        )
    if config.geco is not None and likelihood != "gaussian":
        raise UserError(
            f"--geco bounds a squared error: --likelihood gaussian, not {likelihood}"
        )
    by_itself = "optimal" if analytic else "learned"
    sigma = config.sigma or (by_itself if config.geco is None else "computed")
    if num_planes and config.prior == "vamp":
        raise UserError(
            "--prior vamp is not for a --task, which has a prior of its own"
        )
    small = columns is not None or math.prod(shape) <= 1024
    net = config.net or ("mlp" if small else "conv")
    if columns is not None and net != "mlp":
        raise UserError(f"--net {net} is not for tables: mlp is")
    resolved = dataclasses.replace(
        config,
        likelihood=likelihood,
        net=net,
        sigma=sigma,
        sigma_value=config.sigma_value or config.geco or (1.0 if columns else 0.1),
        gradient=_gradient(config),
        shape=tuple(shape),
        columns=columns,
        num_planes=num_planes,
    )
    return resolved, transform


def _likelihood(
    likelihood: str | None,
    transform: str | None,
    columns: tuple[Column, ...] | None,
) -> tuple[Any, str]:
    """The distribution and the transform that go together, where one says the other."""
    if columns is not None:
        if any(column.is_context for column in columns):
            raise UserError("a VAE is told no context columns: a flow is")
        if likelihood not in (None, "gaussian") or transform not in (None, "none"):
            raise UserError(
                "a VAE of tables takes --likelihood gaussian and --transform none"
            )
        return "gaussian", "none"
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
    return likelihood, transform


def _gradient(config: VAEConfig) -> str:
    return config.gradient or ("analytic" if config.num_importance == 1 else "dreg")
