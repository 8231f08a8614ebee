"""Samples against test examples by every distance, each with what tells how good it is.

A distance alone says nothing. Beside each stand its 95 % interval; the floor, which is
what as many training examples have instead of samples; the ceiling, which is what those
have under heavy noise; the number of examples, since most are biased by it; and the
features it is a distance between.
"""

import dataclasses
import hashlib
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxgen import data
from jaxgen._checks import RunError, UserError
from jaxgen.evaluate import distances, intervals, memorisation, two_sample
from jaxgen.evaluate.features import Features
from jaxgen.evaluate.intervals import Interval
from jaxgen.train.console import say

NOISE = 0.5  # of the range of a pixel, or deviations of a feature of a row
LEAST = 20  # examples, without which no figure means anything
NUMBERS = 2**26  # features of training examples in memory, at most
BETTER = {
    "frechet": "lower",
    "kernel": "lower",
    "rbf_mmd": "lower",
    "sliced_wasserstein": "lower",
    "precision": "higher",
    "recall": "higher",
    "density": "higher",
    "coverage": "higher",
    "c2st": "lower",
    "vendi": "higher",
}
SAME = ("features", "features_sha256", "preprocessing", "data", "num_real", "num_fake")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compared:
    """Features of what is compared, `[N, D]` each.

    Attributes:
        real: Of test examples.
        fake: Of samples, as many.
        floor: Of training examples, as many.
        ceiling: Of the same under noise.
        train: Of training examples, all that there is room for.
        places: Which those are, `[T]`.
    """

    real: np.ndarray
    fake: np.ndarray
    floor: np.ndarray
    ceiling: np.ndarray
    train: np.ndarray
    places: np.ndarray


class Measured(NamedTuple):
    """Figures by their names, and the p-value of the two-sample test."""

    figures: dict[str, Interval]
    p_value: float


def evaluate(
    features: Features,
    dataset: data.Dataset,
    draw: Callable[[int], np.ndarray],
    num: int,
    *,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """All figures of a model's samples.

    Counts are equal on both sides, `num` or as many as there are: precision, recall,
    density and coverage mean little otherwise.

    Args:
        features: What examples are compared by.
        dataset: The training split gives the floor, the ceiling and what might have been
            copied; the test split is compared with. Rows with weights are drawn by them.
        draw: `start -> samples [N, ...]` from number `start` onwards, as examples are
            stored.
        num: How many.
        seed: Of directions, halves and noise.
        progress: Called with (samples drawn, samples in all).

    Returns:
        `quality` and `memorisation`, as evaluation.json has them; nothing where there are
        fewer than 20 examples, which is told.

    Raises:
        RunError: if a feature is NaN or infinite.
    """
    num = min(num, dataset.test.num_examples, dataset.train.num_examples)
    if num < LEAST:
        say(
            f"the quality of samples is not measured: it needs at least {LEAST} test and "
            f"training examples, there are {num}"
        )
        return {}
    parts, done = [], 0
    while done < num:
        parts.append(draw(done))
        done += len(parts[-1])
        progress(min(done, num), num)
    samples = np.concatenate(parts)[:num]
    test = taken(dataset.test, num, seed)["x"]
    compared = _compared(features, dataset, samples, test, seed)
    dims = compared.real.shape[1]
    if num <= dims:
        say(f"{features.id}: {distances.few_samples(num, dims)}")
    common = {
        "num_real": num,
        "num_fake": num,
        "features": features.id,
        "features_sha256": features.sha256,
        "preprocessing": features.preprocessing,
        "data": hashlib.sha256(np.ascontiguousarray(test).tobytes()).hexdigest(),
    }
    copying = memorisation.judge_copying(compared.real, compared.fake, compared.train)
    for pair in copying["nearest_pairs"]:
        pair["train"] = int(compared.places[pair["train"]])
    return {
        "quality": figures(compared, common, seed=seed),
        "memorisation": copying | common | {"num_train": len(compared.train)},
    }


def figures(
    compared: Compared, common: Mapping[str, Any], *, seed: int = 0
) -> dict[str, Any]:
    """Every figure with its interval, floor and ceiling; `common` is put into each."""
    told = measure(compared.real, compared.fake, seed=seed)
    floor, ceiling = (
        measure(compared.real, other, seed=seed, errors=False).figures
        for other in (compared.floor, compared.ceiling)
    )
    entries = {}
    for name, better in BETTER.items():
        limits = {n: _or_none(v) for n, v in told.figures[name]._asdict().items()}
        entries[name] = limits | dict(common)
        entries[name]["floor"] = _or_none(floor[name].value)
        entries[name]["ceiling"] = _or_none(ceiling[name].value)
        entries[name]["better"] = better
    entries["c2st"]["p_value"] = told.p_value
    return entries


def measure(
    real: np.ndarray, fake: np.ndarray, *, seed: int = 0, errors: bool = True
) -> Measured:
    """Every figure of `fake` `[N, D]` against `real` `[N, D]`.

    Limits are the jackknife's for the Frechet and sliced distances and the Vendi score,
    of the kernels' own standard error, and of shares given the other set's
    neighbourhoods.

    Args:
        real: Features of test examples.
        fake: Of samples.
        seed: Of directions and halves.
        errors: Whether the jackknife is done; its limits are the value itself if not.
    """

    def jackknifed(function: Callable[..., float], *x: np.ndarray, least: float) -> Any:
        if errors:
            return intervals.jackknife(function, *x, least=least, seed=seed)
        return Interval(*[function(*x)] * 3)

    def sliced(a: np.ndarray, b: np.ndarray) -> float:
        return distances.sliced_wasserstein(a, b, seed=seed)

    told: dict[str, Interval] = {
        "frechet": jackknifed(distances.frechet, real, fake, least=0.0),
        "kernel": intervals.of_error(*distances.kernel_distance(real, fake)),
        "rbf_mmd": intervals.of_error(*distances.rbf_mmd(real, fake)),
        "sliced_wasserstein": jackknifed(sliced, real, fake, least=0.0),
    }
    terms = distances.manifold_terms(real, fake)
    for name in ("precision", "recall", "coverage"):
        told[name] = intervals.of_share(getattr(terms, name))
    error = terms.density.std() / math.sqrt(len(fake))
    told["density"] = intervals.of_error(float(terms.density.mean()), error, least=0.0)
    accuracy, p_value = two_sample.c2st(real, fake, seed=seed)
    num_tried = 2 * (len(real) - len(real) // 2)
    told["c2st"] = intervals.of_count(round(accuracy * num_tried), num_tried)
    told["vendi"] = jackknifed(two_sample.vendi_score, fake, least=1.0)
    return Measured(told, p_value)


def check_comparable(
    name: str, first: Mapping[str, Any], second: Mapping[str, Any]
) -> None:
    """Refuses two entries of `quality` whose values do not measure the same.

    Raises:
        UserError: if features, preprocessing, test data or counts differ.
    """
    for key in SAME:
        a, b = first.get(key), second.get(key)
        if a != b:
            shown = [str(v)[:24] for v in (a, b)]
            raise UserError(
                f"{name}: figures of unlike {key} are not compared, got {shown[0]} and "
                f"{shown[1]}: jaxgen evaluate both with one --features and --num, on one "
                "set"
            )


def _or_none(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def taken(source: data.Source, num: int, seed: int) -> dict[str, np.ndarray]:
    """Examples spread over a split; rows with weights are drawn by them."""
    examples = source.take(data.spread(source.num_examples, num))
    if "weight" not in examples:
        return examples
    everything = source.take(np.arange(source.num_examples))
    weight = np.asarray(everything["weight"], np.float64)
    rng = np.random.default_rng(seed)
    chosen = rng.choice(source.num_examples, num, p=weight / weight.sum())
    return {"x": everything["x"][chosen]}


def _compared(
    features: Features,
    dataset: data.Dataset,
    samples: np.ndarray,
    test: np.ndarray,
    seed: int,
) -> Compared:
    instead = taken(dataset.train, len(samples), seed)["x"]
    rng = np.random.default_rng(seed)
    fake = _finite(features, "samples", samples)  # first, since they may be refused
    floor = _finite(features, "training examples", instead)
    if dataset.columns is None:
        noise = rng.normal(0.0, 255 * NOISE, instead.shape)
        noisy = np.clip(np.rint(instead + noise), 0, 255).astype(np.uint8)
        ceiling = _finite(features, "noisy examples", noisy)
    else:
        ceiling = floor + rng.normal(0.0, NOISE, floor.shape) * floor.std(axis=0)
    num_train = min(dataset.train.num_examples, max(1, NUMBERS // floor.shape[1]))
    places = data.spread(dataset.train.num_examples, num_train)
    return Compared(
        real=_finite(features, "test examples", test),
        fake=fake,
        floor=floor,
        ceiling=ceiling,
        train=np.concatenate(
            [
                _finite(features, "training examples", dataset.train.take(some)["x"])
                for some in np.array_split(places, math.ceil(num_train / 5000))
            ]
        ),
        places=places,
    )


def _finite(features: Features, what: str, x: np.ndarray) -> np.ndarray:
    made = features.apply(x)
    bad = int(np.sum(~np.isfinite(made).all(axis=1)))
    if bad:
        raise RunError(
            f"evaluate: {bad:,} of {len(made):,} {what} have features by {features.id} that "
            "are NaN or infinite"
        )
    return made
