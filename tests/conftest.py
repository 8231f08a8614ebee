"""Test-wide settings: 8 virtual CPU devices, no silent broadcasting, real MNIST if near."""

import os

# Before jax is imported: a thread pool of at least twice the devices, or queued
# collectives can starve each other on a small machine.
os.environ.setdefault("NPROC", "16")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Where compiled programs are kept, each worker has a folder of its own: jax writes an
# entry in place, and another process could read half of it.
if kept := os.environ.get("JAX_COMPILATION_CACHE_DIR"):
    worker = os.environ.get("PYTEST_XDIST_WORKER", "main")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = os.path.join(kept, worker)

from pathlib import Path

import jax
import jaxtyping
import pytest
import unoptimised

jax.config.update("jax_num_cpu_devices", 8)
# A test compiles for seconds what it runs for moments. XLA reads the flags once, here, so
# what a test starts as a process of its own is as optimised as a user's.
if "XLA_FLAGS" not in os.environ:
    os.environ["XLA_FLAGS"] = unoptimised.FLAGS
    jax.devices()
    del os.environ["XLA_FLAGS"]
    if kept:
        os.environ["JAX_COMPILATION_CACHE_DIR"] += "-optimised"
jax.config.update("jax_numpy_rank_promotion", "raise")
# Shapes of layer 0 are checked at run time, in the tests only.
jaxtyping.install_import_hook(
    [
        f"jaxgen.{m}"
        for m in (
            "losses",
            "likelihoods",
            "estimators",
            "annealing",
            "augmentation",
            "averaging",
            "bijectors",
            "mixtures",
            "operators",
            "probability_flow",
            "samplers",
            "schedules",
            "tasks",
        )
    ],
    "beartype.beartype",
)


LONGEST = [
    "test_posterior",
    "test_kill",
    "test_processes",
    "test_readme",
    "test_experiments",
]


def pytest_collection_modifyitems(items):
    """Files of minutes begin first: at the end one of them would keep one core alone."""
    items.sort(key=lambda item: item.path.stem not in LONGEST)


@pytest.fixture(scope="session")
def mnist_dir() -> Path | None:
    """The directory of the real MNIST, or None: tests then use digits and say so."""
    places = [os.environ.get("JAXGEN_TFDS", ""), "../shared/tfds"]
    for place in filter(None, places):
        path = Path(__file__).parent.parent / place
        if (path / "mnist").is_dir():
            return path.resolve()
    return None


@pytest.fixture
def fresh_cache(tmp_path, monkeypatch) -> Path:
    """An empty cache of decoded sets for one test."""
    monkeypatch.setenv("JAXGEN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def sets(tmp_path_factory) -> dict[str, Path]:
    """One tiny set in each file format: format -> directory of the version."""
    from make_large_set import FORMATS, write_tiny_set

    root = tmp_path_factory.mktemp("sets")
    return {f: write_tiny_set(root / f, file_format=f) for f in FORMATS}


@pytest.fixture
def x64():
    """Double precision for one test."""
    with jax.enable_x64():
        yield


@pytest.fixture
def plain_errors():
    """Our own messages: in the test run beartype would speak first."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
