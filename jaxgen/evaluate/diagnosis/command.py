"""`jaxgen diagnose`: its options, and what it prints and writes."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Annotated, Any

import tyro

from jaxgen import data
from jaxgen._checks import UserError
from jaxgen.evaluate import diagnosis, judgement, quality, report
from jaxgen.evaluate.diagnosis import page, picture
from jaxgen.train import rundir


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiagnoseOptions:
    """Looks for the problems of a run's family; writes RUN/diagnosis.json and the report.

    Each has its figures, a verdict in a sentence, and flags that mend it. `jaxgen diagnose
    RUN --help` also shows what this run's model lets one choose anew.
    """

    run: Annotated[Path, tyro.conf.Positional]
    """The run folder."""
    num: int = 2000
    """Test examples that are looked at, and as many samples; at most the test split."""
    features: str = "auto"
    """What samples are compared by: auto, classifier, random, pixels, pca, ngrams (of texts);
    or mnist, digits, photos, shipped."""
    seed: int = 0
    """Fixes all that is drawn."""
    data_dir: str | None = None
    """Where the data lie now, if not where they lay in training."""
    ema_width: float | None = None
    """Look at the average of this width, rebuilt from what --ema-widths has stored."""
    json: bool = False
    """Print one JSON object to standard output, all else to standard error."""


def diagnose(options: DiagnoseOptions, sampling: Any = None) -> int:
    """Diagnoses a run, tells and writes it; returns the exit status.

    Args:
        options: Of the command.
        sampling: The model's options under this name, chosen anew.
    """
    if options.num < quality.LEAST:
        raise UserError(f"--num must be at least {quality.LEAST}, got {options.num}")
    loaded, dataset = judgement.opened(options, sampling)
    found = diagnosis.diagnose(
        loaded,
        dataset,
        num=options.num,
        by=options.features,
        seed=options.seed,
        progress=judgement.progress(),
    )
    if options.json:
        sys.stdout.write(json.dumps(found.result, allow_nan=False) + "\n")
    else:
        sys.stdout.write(page.text(found.result))
    sys.stdout.flush()
    # The picture first: the file is what says that a run is diagnosed.
    if found.picture is not None:
        rundir.write_bytes(loaded.run.path / picture.NAME, found.picture)
    text = json.dumps(found.result, indent=1, allow_nan=False) + "\n"
    rundir.write_text(loaded.run.diagnosis, text)
    # The page is of the data as they were trained on.
    dataset = data.with_validation(dataset, loaded.config.train.patience)
    report.write_report(loaded, dataset)
    return 0
