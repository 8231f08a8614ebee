"""`import jaxgen.losses` costs what jax costs."""

import subprocess
import sys

import pytest

FRAMEWORKS = ("flax", "orbax", "grain", "tensorflow_datasets", "tensorflow")
OTHERS = ("sklearn", "matplotlib", "PIL", "tyro", "rich", "chex", "array_record")


@pytest.mark.parametrize(
    "module",
    [
        "jaxgen.losses",
        "jaxgen.likelihoods",
        "jaxgen.annealing",
        "jaxgen.probability_flow",
        "jaxgen.samplers",
        "jaxgen.schedules",
        "jaxgen.augmentation",
        "jaxgen.averaging",
        "jaxgen.mixtures",
        "jaxgen.operators",
        "jaxgen.verify",
        "jaxgen",
    ],
)
def test_layer_0_loads_no_framework(module):
    code = (
        f"import sys, {module}; "
        f"found = [m for m in {FRAMEWORKS + OTHERS} if m in sys.modules]; "
        "print(*found)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ""


def test_jaxgen_loads_its_parts_when_they_are_asked_for():
    import jaxgen

    assert jaxgen.models.FAMILIES
    assert "losses" in dir(jaxgen)
    with pytest.raises(AttributeError, match="no attribute 'trainers'"):
        _ = jaxgen.trainers
