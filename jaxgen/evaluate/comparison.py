"""Runs compared by what their evaluation.json says: groups of seeds, and verdicts.

Nothing is evaluated here. A difference is claimed where it stands out from the spread
between training seeds, after a correction for the number of metrics; values that were
not measured alike are not compared.
"""

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxgen._checks import UserError
from jaxgen.evaluate import formats, significance
from jaxgen.evaluate.quantities import Run, read
from jaxgen.train import config as configs

# What of a config makes no other model: where, how often and on what it was trained.
INCIDENTAL = frozenset({"data.data_dir", "model.remat", "train.seed"}) | {
    f"train.{name}"
    for name in (
        *("log_every", "sample_every", "checkpoint_every"),
        *("devices", "parallel", "steps_per_dispatch", "accumulate"),
    )
}


class Group(NamedTuple):
    """Runs that differ in their seed only, under one letter.

    Attributes:
        name: A, B, ...
        runs: At least one.
        differs: What of their config is not that of all groups.
    """

    name: str
    runs: tuple[Run, ...]
    differs: Mapping[str, Any]

    def values(self, metric: str) -> list[float]:
        """Of the runs that have it."""
        return [run.quantities[metric].value for run in self.with_metric(metric)]

    def with_metric(self, metric: str) -> list[Run]:
        """Runs that have it."""
        return [run for run in self.runs if metric in run.quantities]


class Verdict(NamedTuple):
    """On one metric of two groups.

    Attributes:
        metric: Its name.
        pair: Names of the groups.
        means: Of each group's runs, None where it has none.
        num_seeds: Of each.
        difference: Of the means, None where they are not compared.
        p_adjusted: Corrected for the number of tests.
        winner: The better group, or None.
        text: The verdict in words.
    """

    metric: str
    pair: tuple[str, str]
    means: tuple[float | None, float | None]
    num_seeds: tuple[int, int]
    difference: significance.Difference | None
    p_adjusted: float | None
    winner: str | None
    text: str


class Comparison(NamedTuple):
    """All of it.

    Attributes:
        groups: In the order in which they were named.
        verdicts: By pair, then by metric.
        num_tests: For how many they are corrected.
        variation: Between seeds, that was assumed of groups of one run.
        notes: A line each.
    """

    groups: tuple[Group, ...]
    verdicts: tuple[Verdict, ...]
    num_tests: int
    variation: float
    notes: tuple[str, ...]


def compare(
    paths: Sequence[Path], *, variation: float = significance.SEED_VARIATION
) -> Comparison:
    """Compares runs, each with its evaluation.json.

    Args:
        paths: Run folders, at least two. Those of one config are a group; where all are
            of one, each is a side of its own.
        variation: Standard deviation between seeds, as a share of the value, that is
            assumed of a group of one run.

    Raises:
        UserError: if there are fewer than two, one comes twice, one is not evaluated or
            damaged, or their data differ.
    """
    if len(paths) < 2:
        raise UserError(f"compare needs at least two runs, got {len(paths)}")
    if not 0 < variation < 1:
        raise UserError(f"--seed-variation is a share in (0, 1), got {variation}")
    places = [path.resolve() for path in paths]
    for path, place in zip(paths, places, strict=True):
        if places.count(place) > 1:
            raise UserError(f"{path} is given twice: compare needs different runs")
    runs = [read(path) for path in paths]
    _check_data(runs)
    groups, notes = _grouped(runs)
    if any(len(group.runs) == 1 for group in groups):
        notes.append(
            f"groups of one run: {100 * variation:g} % of the value are assumed to be the "
            "spread between its seeds (published: 1 to 2 %, arXiv:2606.20536), the "
            "resampling error is added to it, and both are believed as if from four seeds"
        )
    metrics = _metrics(runs)
    pairs = itertools.combinations(groups, 2)
    tests = [_test(metric, *pair, variation) for pair in pairs for metric in metrics]
    p_values = [test.difference.p_value for test in tests if test.difference]
    adjusted = iter(significance.holm(p_values))
    verdicts = tuple(
        _verdict(test, next(adjusted) if test.difference else None, len(p_values))
        for test in tests
    )
    notes += [
        f"{run.folder.path} was judged at step {step:,} of {run.config.train.steps:,}"
        for run in runs
        if isinstance(step := run.evaluation.get("step"), int)
        and step < run.config.train.steps
    ]
    return Comparison(groups, verdicts, len(p_values), variation, tuple(notes))


def _check_data(runs: Sequence[Run]) -> None:
    first = runs[0]
    for run in runs[1:]:
        for name in sorted(first.data.keys() | run.data.keys()):
            pair = first.data.get(name), run.data.get(name)
            if pair[0] != pair[1]:
                raise UserError(
                    f"{first.folder.path} and {run.folder.path} are of different data "
                    f"({name} {pair[0]} and {pair[1]}): compare runs of the same"
                )


def _grouped(runs: Sequence[Run]) -> tuple[tuple[Group, ...], list[str]]:
    """Runs by their config but for what is incidental, and what is to be said of it."""
    by_config: dict[str, list[Run]] = {}
    for run in runs:
        key = json.dumps(_essence(run), sort_keys=True, default=str)
        for other in by_config.setdefault(key, []):
            seed = run.config.train.seed
            if seed == other.config.train.seed:
                raise UserError(
                    f"{other.folder.path} and {run.folder.path} are one run twice, of one "
                    f"config and seed {seed}: compare different seeds or configs"
                )
        by_config[key].append(run)
    members, notes = list(by_config.values()), []
    if len(members) == 1:
        members = [[run] for run in runs]
        notes = ["all runs are of one config: each seed is a side of its own"]
    essences = [_essence(group[0]) for group in members]
    if len(by_config) == 1:
        essences = [{"train.seed": run.config.train.seed} for run in runs]
    names = sorted(set().union(*essences))
    differing = [
        n for n in names if any(e.get(n) != essences[0].get(n) for e in essences)
    ]
    groups = (
        Group(
            _letter(i), tuple(group), {n: essence[n] for n in differing if n in essence}
        )
        for i, (group, essence) in enumerate(zip(members, essences, strict=True))
    )
    return tuple(groups), notes


def _essence(run: Run) -> dict[str, Any]:
    """What makes its model and how it was judged, flat."""
    flat = configs.flat(run.config)
    sampling = run.evaluation.get("sampling", {})
    flat |= {f"model.sampling.{name}": value for name, value in sampling.items()}
    if "ema_width" in run.evaluation:
        flat["ema_width"] = run.evaluation["ema_width"]
    return {name: value for name, value in flat.items() if name not in INCIDENTAL}


def _letter(number: int) -> str:
    turn, place = divmod(number, 26)
    return chr(ord("A") + place) + (str(turn) if turn else "")


def _metrics(runs: Sequence[Run]) -> list[str]:
    """All that any run has; the likelihood even if none has it."""
    names = list(dict.fromkeys(name for run in runs for name in run.quantities))
    if not {"bits_per_dim", "nll_nats"} & set(names):
        names.insert(0, "bits_per_dim")
    return names


class _Test(NamedTuple):
    """A metric of two groups: their sides and difference, or why there are none."""

    metric: str
    groups: tuple[Group, Group]
    sides: tuple[significance.Side, significance.Side] | None
    difference: significance.Difference | None
    reason: str


def _test(metric: str, first: Group, second: Group, variation: float) -> _Test:
    pair = (first, second)
    reason = _unlike(metric, pair)
    if reason:
        return _Test(metric, pair, None, None, f"not compared: {reason}")
    sides = []
    for group in pair:
        quantities = [run.quantities[metric] for run in group.runs]
        share = variation if quantities[0].has_zero else None
        errors = [quantity.error for quantity in quantities]
        sides.append(significance.side(group.values(metric), errors, share))
    difference = significance.difference(*sides)
    reason = "" if difference else "cannot tell: more seeds a side are needed"
    return _Test(metric, pair, (sides[0], sides[1]), difference, reason)


def _unlike(metric: str, pair: tuple[Group, Group]) -> str:
    """Why the values of a metric may not be compared, or nothing."""
    lacking = [(g.name, len(g.runs), len(g.values(metric))) for g in pair]
    if none := [name for name, _, num in lacking if not num]:
        return f"{' and '.join(none)} {'has' if len(none) == 1 else 'have'} none"
    for name, total, num in lacking:
        if num < total:
            return f"{total - num} of {total} runs of {name} have none"
    measured = [
        (group.name, run.quantities[metric].alike)
        for group in pair
        for run in group.runs
    ]
    name, alike = measured[0]
    for other, theirs in measured[1:]:
        for key in [*alike, *theirs]:
            if alike.get(key) != theirs.get(key):
                values = (_short(values.get(key)) for values in (alike, theirs))
                return (
                    f"unlike {key}: {next(values)} ({name}), {next(values)} ({other})"
                )
    return ""


def _short(value: Any) -> str:
    text = formats.plain(value)
    return text if len(text) <= 24 else f"{text[:12]}..."


def _verdict(test: _Test, p_adjusted: float | None, num_tests: int) -> Verdict:
    first, second = test.groups
    means = tuple(
        sum(values) / len(values) if (values := group.values(test.metric)) else None
        for group in test.groups
    )
    nums = (len(first.runs), len(second.runs))
    winner, text = None, test.reason
    if test.sides and test.difference and p_adjusted is not None:
        if p_adjusted <= significance.LEVEL:
            lower = first.runs[0].quantities[test.metric].better == "lower"
            winner = (first if lower == (test.difference.value < 0) else second).name
        text = _in_words(test, test.difference, winner, p_adjusted, num_tests)
    pair = (first.name, second.name)
    return Verdict(
        test.metric,
        pair,
        (means[0], means[1]),
        nums,
        test.difference,
        p_adjusted,
        winner,
        text,
    )


def _in_words(
    test: _Test,
    difference: significance.Difference,
    winner: str | None,
    p_adjusted: float,
    num_tests: int,
) -> str:
    names = [group.name for group in test.groups]
    nums = [len(group.runs) for group in test.groups]
    value = difference.value if winner is None else abs(difference.value)
    said = formats.with_error({"d": value, "d_se": difference.half_width}, "d") or "0"
    said = said.replace("±", "+-")
    what = f"{names[0]} - {names[1]} = {said}"
    words = (
        f"no difference shown: {what}"
        if winner is None
        else f"{winner} better by {said}"
    )
    words += f" (95 %), {nums[0]} and {nums[1]} seeds"
    if winner is None and difference.p_value <= significance.LEVEL:
        words += f"; p = {difference.p_value:.2g} by itself, {p_adjusted:.2g} among {num_tests}"
    return words
