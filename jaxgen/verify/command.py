"""`jaxgen verify`: the oracles' table, or JSON, and an exit status."""

import json
import sys
import time
from collections.abc import Sequence

import jax

from jaxgen import verify as oracles
from jaxgen._checks import UserError, unknown


def verify(families: Sequence[str], *, as_json: bool) -> int:
    """Runs the oracles of the families, of all where there are none; 1 if one fails.

    Raises:
        UserError: if a family is unknown.
    """
    for family in families:
        if family not in oracles.ORACLES:
            raise UserError(unknown("family", family, oracles.ORACLES))
    told, out, start = {}, sys.stderr if as_json else sys.stdout, time.perf_counter()
    for family in families or oracles.ORACLES:
        told[family] = oracles.run(family)
        out.write(f"{family}\n{oracles.table(told[family])}\n")
        out.flush()
    records = [record for found in told.values() for record in found]
    failed = [record for record in records if not record.passed]
    device, seconds = jax.devices()[0].device_kind, time.perf_counter() - start
    out.write(
        f"{len(records) - len(failed)} of {len(records)} passed, in float64, on {device} "
        f"with jax {jax.__version__}, in {seconds:.0f} s\n"
    )
    if as_json:
        families_told = {f: [r.to_dict() for r in told[f]] for f in told}
        result = {"passed": not failed, "jax": jax.__version__, "device": device}
        sys.stdout.write(json.dumps({**result, "families": families_told}) + "\n")
    return int(bool(failed))
