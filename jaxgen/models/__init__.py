"""The families: a closed registry of names."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from jaxgen.models import diffusion, flow, gan, masked, vae
from jaxgen.models.base import (
    Aux,
    Batch,
    Curve,
    LogLikelihood,
    Model,
    Observation,
    Player,
    example_keys,
    indexed_keys,
    normal_prior,
    sample_keys,
)


class Family(NamedTuple):
    """One family of models.

    Attributes:
        summary: One line for `jaxgen list`.
        config_class: Its frozen dataclass of options. Its field `sampling`, where there
            is one, is a dataclass of what may be chosen anew for a trained model.
        resolve: `(config, shape, transform, num_classes, columns, num_planes) ->
            (config, transform)`: fills what was left to the data, so that the stored
            config alone rebuilds the model. `num_classes` is None where the data have no
            labels, `columns` where they are no table; `num_planes` a task gives.
        make: `resolved config -> Model`.
        training: Where its defaults of training differ from those of `TrainConfig`.
        examples: What it models, as `jaxgen.data.Dataset.kind` calls it.
        data: Where its defaults of data differ from those of `DataConfig`.
    """

    summary: str
    config_class: type
    resolve: Callable[..., tuple[Any, str]]
    make: Callable[[Any], Model]
    training: Mapping[str, Any] = MappingProxyType({})
    examples: tuple[str, ...] = ("images", "rows")
    data: Mapping[str, Any] = MappingProxyType({})


FAMILIES = {
    "diffusion": Family(
        "denoising diffusion: noise undone in many steps by one network told its level",
        diffusion.DiffusionConfig,
        diffusion.resolve,
        diffusion.make_diffusion,
        MappingProxyType(
            {
                "batch_size": 64,
                "steps": 800,
                "optimizer": "muon",
                "learning_rate": 4e-3,
                "schedule": "linear",
                "ema_widths": (0.05, 0.1),
            }
        ),
    ),
    "flow": Family(
        "normalizing flow: an invertible chain of exact likelihood, of images and tables",
        flow.FlowConfig,
        flow.resolve,
        flow.make_flow,
        MappingProxyType(
            {
                "batch_size": 64,
                "optimizer": "muon",
                "schedule": "linear",
                "clip_norm": 1.0,
            }
        ),
    ),
    "gan": Family(
        "generative adversarial network: generator against discriminator, alternately",
        gan.GANConfig,
        gan.resolve,
        gan.make_gan,
        MappingProxyType(
            {
                "steps": 2000,
                "batch_size": 64,
                "learning_rate": 1e-3,
                "beta1": 0.0,
                "beta2_start": 0.9,
                "weight_decay": 0.0,
                "ema_half_life": 0.02,
                "patience": 0,  # no loss of two players tells when a model is best
            }
        ),
    ),
    "masked": Family(
        "masked diffusion of text: hidden bytes told in any order; or causally, to compare",
        masked.MaskedConfig,
        masked.resolve,
        masked.make_masked,
        MappingProxyType(
            {
                "batch_size": 64,
                "optimizer": "muon",
                "learning_rate": 4e-3,
                "schedule": "linear",
                "clip_norm": 1.0,
            }
        ),
        examples=("texts",),
        data=MappingProxyType({"name": "text:pydoc"}),
    ),
    "vae": Family(
        "variational autoencoder: compressive latent, trained by a lower bound",
        vae.VAEConfig,
        vae.resolve,
        vae.make_vae,
    ),
}

__all__ = [
    "FAMILIES",
    "Aux",
    "Batch",
    "Curve",
    "Family",
    "LogLikelihood",
    "Model",
    "Observation",
    "Player",
    "diffusion",
    "example_keys",
    "flow",
    "gan",
    "indexed_keys",
    "masked",
    "normal_prior",
    "sample_keys",
    "vae",
]
