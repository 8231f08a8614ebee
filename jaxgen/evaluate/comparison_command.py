"""`jaxgen compare`: its options, and what it prints and writes."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Annotated

import tyro

from jaxgen.evaluate import comparison, comparison_page


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompareOptions:
    """Compares runs by their evaluation.json, metric by metric, and says which is better.

    Runs of one config that differ in their seed are a group. A difference is claimed where
    it stands out from the spread between training seeds (Welch's t-test, corrected for the
    number of metrics); otherwise it says "no difference shown".
    """

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()
    """Run folders, each with its evaluation.json."""
    html: Path | None = None
    """Write a page with figures and samples to this file too."""
    seed_variation: float = 0.02
    """Spread between the seeds of a group of one run that is assumed, of the value."""
    json: bool = False
    """Print one JSON object to standard output."""


def compare(options: CompareOptions) -> int:
    """Compares runs and tells how; returns the exit status.

    Raises:
        UserError: if they cannot be compared, or the page not be written.
    """
    if options.html is not None:
        comparison_page.check_path(options.html)
    result = comparison.compare(options.runs, variation=options.seed_variation)
    if options.html is not None:
        comparison_page.write_page(result, options.html)
    if options.json:
        lines = [json.dumps(comparison_page.as_json(result), allow_nan=False)]
    else:
        lines = comparison_page.lines(result)
    sys.stdout.writelines(f"{line}\n" for line in lines)
    return 0
