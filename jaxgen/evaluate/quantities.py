"""What a run's evaluation.json says, one by one: value, error, how it was measured."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from jaxgen._checks import UserError
from jaxgen.evaluate import formats
from jaxgen.train import config as configs
from jaxgen.train.rundir import RunFolder

Better = Literal["lower", "higher"]
IMAGES = {"binarise": "binarised afresh", "static": "binarised once"}
HALF_WIDTH = 1.96  # standard errors of a 95 % confidence interval


class Known(NamedTuple):
    """A figure at the top of evaluation.json.

    Attributes:
        better: Which way.
        alike: Other entries that say how it was measured.
        floor: The entry that has what real data get, if any.
    """

    better: Better
    alike: tuple[str, ...]
    floor: str | None = None


LIKELIHOOD = ("num_examples", "num_samples")
KNOWN = {
    "bits_per_dim": Known("lower", ("bits_per_dim_kind", *LIKELIHOOD)),
    "nll_nats": Known("lower", ("nll_nats_kind", *LIKELIHOOD)),
    "ais_bits_per_dim": Known(
        "lower",
        ("ais_bits_per_dim_kind", "ais_temperatures", "ais_chains", "ais_images"),
    ),
    "bayes_accuracy": Known("higher", ("num_examples",)),
    "confident_share": Known(
        "higher", ("num_judged", "classifier_accuracy"), "real_confident_share"
    ),
    "modes": Known("higher", ("num_judged",)),
    "reverse_kl": Known("lower", ("num_judged",), "reverse_kl_floor"),
}


class Quantity(NamedTuple):
    """One figure of one run.

    Attributes:
        value: It.
        error: Its resampling error, or None.
        better: Which way.
        alike: How it was measured; values compare where all of these are the same.
        floor: What real data get, or None.
        ceiling: What corrupted data get, or None.
        has_zero: Whether a share of it means something.
    """

    value: float
    error: float | None
    better: Better
    alike: Mapping[str, Any]
    floor: float | None = None
    ceiling: float | None = None
    has_zero: bool = True


class Run(NamedTuple):
    """What a comparison takes from a run folder."""

    folder: RunFolder
    config: configs.RunConfig
    data: Mapping[str, Any]
    evaluation: Mapping[str, Any]
    quantities: Mapping[str, Quantity]


def read(path: Path) -> Run:
    """A run folder with its evaluation.

    Raises:
        UserError: if it is no run folder, is not evaluated, or a file is damaged.
    """
    folder = RunFolder(path)
    config = folder.read_config()
    mend = f"jaxgen evaluate {path}"
    if not folder.evaluation.is_file():
        raise UserError(f"{path} has no evaluation.json: {mend}")
    evaluation = _object(folder.evaluation, f"{mend} makes it anew")
    identity = path / "data.json"
    if not identity.is_file():
        raise UserError(f"{path} has no data.json, which tells its data from others")
    data = _object(identity, "train the run anew")
    try:
        quantities = dict(_quantities(config, evaluation))
    except ValueError as error:
        raise UserError(
            f"{folder.evaluation} is damaged: {error}: {mend} makes it anew"
        ) from error
    return Run(folder, config, data, evaluation, quantities)


def _object(path: Path, mend: str) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): {mend}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} holds no JSON object: {mend}")
    return values


def _quantities(
    config: configs.RunConfig, evaluation: Mapping[str, Any]
) -> Iterator[tuple[str, Quantity]]:
    """All figures that are there; one that is null is not.

    Raises:
        ValueError: if one is neither a number nor null.
    """
    for name, known in KNOWN.items():
        value, error = (_number(evaluation, n) for n in (name, f"{name}_se"))
        if value is None or (name == "nll_nats" and "bits_per_dim" in evaluation):
            continue  # the same likelihood in another unit
        alike = {each: evaluation.get(each) for each in known.alike}
        if alike.get(f"{name}_kind") == "exact":
            del alike["num_samples"]  # which it does not depend on
        if f"{name}_kind" in alike:
            alike["images"] = IMAGES.get(str(config.data.transform), "in 256 levels")
        floor = None if known.floor is None else _number(evaluation, known.floor)
        # Nats of other data than images may be of any sign.
        has_zero = name != "nll_nats"
        yield name, Quantity(value, error, known.better, alike, floor, None, has_zero)
    measured = evaluation.get("quality", {})
    for name in ("quality", "sampling"):
        if not isinstance(evaluation.get(name, {}), dict):
            raise ValueError(f"{name} is no object")
    for name, entry in measured.items():
        if not isinstance(entry, dict) or entry.get("better") not in (
            "lower",
            "higher",
        ):
            raise ValueError(f"quality.{name} does not say which way is better")
        bounds = ("value", "low", "high", "floor", "ceiling")
        value, low, high, floor, ceiling = (_number(entry, n, name) for n in bounds)
        if value is None:
            continue
        error = None
        if low is not None and high is not None:
            error = (high - low) / (2 * HALF_WIDTH)
        alike = ("features", "features_sha256", "preprocessing", "num_real", "num_fake")
        alike = {each: entry.get(each) for each in alike}
        yield name, Quantity(value, error, entry["better"], alike, floor, ceiling)


def _number(values: Mapping[str, Any], name: str, inside: str = "") -> float | None:
    value = values.get(name)
    if value is None or formats.is_number(value):
        return value
    where = f"quality.{inside}.{name}" if inside else name
    raise ValueError(f"{where} is {value!r}, not a number")
