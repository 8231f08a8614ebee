"""jaxgen: VAE, GAN, normalizing flow and diffusion in JAX.

`jaxgen.losses`, `jaxgen.likelihoods` and `jaxgen.estimators` need only jax and optax;
everything else is loaded when it is first asked for.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_MODULES = (
    "annealing",
    "augmentation",
    "averaging",
    "bench",
    "bijectors",
    "data",
    "estimators",
    "evaluate",
    "likelihoods",
    "losses",
    "mixtures",
    "models",
    "nets",
    "operators",
    "probability_flow",
    "samplers",
    "schedules",
    "tasks",
    "train",
    "verify",
)


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"jaxgen.{name}")
    raise AttributeError(f"module 'jaxgen' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*_MODULES, "__version__"])
