"""Closed-form oracles of layer 0, to run where it is used: `jaxgen verify`.

Each oracle is a function that returns `Record`s: a number that was observed, what it
should be, how far it may be off. All of a family:

    records = verify.run("vae")
    print(verify.table(records))

and of what is yours, in the same form:

    print(verify.table(verify.schedule(my_schedule)))
    print(verify.table(verify.bijector(my_bijector, (3,))))
    print(verify.table(verify.gan_loss(my_loss)))
    print(verify.table(verify.sampler(my_sampler, order=2)))
    verify.require(verify.schedule(my_schedule))    # raises ValueError, for a test
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import jax

from jaxgen import _checks
from jaxgen.verify import diffusion, flow, gan, masked, vae
from jaxgen.verify.diffusion import schedule
from jaxgen.verify.flow import bijector
from jaxgen.verify.gan import Optimum, gan_loss
from jaxgen.verify.records import Record, Records, exactly, require, table
from jaxgen.verify.solvers import sampler

__all__ = [
    "ORACLES",
    "Optimum",
    "Record",
    "bijector",
    "gan_loss",
    "require",
    "run",
    "sampler",
    "schedule",
    "table",
]

ORACLES: Mapping[str, tuple[Callable[[], Records], ...]] = MappingProxyType(
    {
        "vae": vae.ORACLES,
        "gan": gan.ORACLES,
        "flow": flow.ORACLES,
        "diffusion": diffusion.ORACLES,
        "masked": masked.ORACLES,
    }
)


def run(family: str) -> Records:
    """All oracles of a family, in float64; seconds.

    Raises:
        ValueError: if there is no such family.
    """
    _checks.check_in("verify.run", "family", family, ORACLES)
    jax.clear_caches()  # of single precision: JAX keeps arrays of NumPy as it saw them
    with exactly():
        return tuple(record for oracle in ORACLES[family] for record in oracle())
