"""The families: a closed registry of names."""

from collections.abc import Callable
from typing import Any, NamedTuple

from jaxgen.models import vae
from jaxgen.models.base import (
    Aux,
    Batch,
    LogLikelihood,
    Model,
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
        config_class: Its frozen dataclass of options.
        resolve: `(config, shape, transform) -> (config, transform)`: fills what was
            left to the data, so that the stored config alone rebuilds the model.
        make: `resolved config -> Model`.
    """

    summary: str
    config_class: type
    resolve: Callable[..., tuple[Any, str]]
    make: Callable[[Any], Model]


FAMILIES = {
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
    "Family",
    "LogLikelihood",
    "Model",
    "Player",
    "example_keys",
    "indexed_keys",
    "normal_prior",
    "sample_keys",
    "vae",
]
