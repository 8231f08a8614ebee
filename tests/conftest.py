"""Test-wide settings: 8 virtual CPU devices, no silent broadcasting, real MNIST if near."""

import os

# Before jax is imported: a thread pool of at least twice the devices, or queued
# collectives can starve each other on a small machine.
os.environ.setdefault("NPROC", "16")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

from pathlib import Path

import jax
import jaxtyping
import pytest

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
# Shapes of layer 0 are checked at run time, in the tests only.
jaxtyping.install_import_hook(
    [f"jaxgen.{m}" for m in ("losses", "likelihoods", "estimators", "annealing")],
    "beartype.beartype",
)


@pytest.fixture(scope="session")
def mnist_dir() -> Path | None:
    """The directory of the real MNIST, or None: tests then use digits and say so."""
    places = [os.environ.get("JAXGEN_TFDS", ""), "../shared/tfds"]
    for place in filter(None, places):
        path = Path(__file__).parent.parent / place
        if (path / "mnist").is_dir():
            return path.resolve()
    return None
