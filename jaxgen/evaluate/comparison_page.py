"""A comparison as people read it: lines at the terminal, JSON, and one page."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jaxgen._checks import UserError
from jaxgen.evaluate import figures, formats, pages
from jaxgen.evaluate.comparison import Comparison, Group, Verdict
from jaxgen.train import rundir

MOST_SHOWN = 3  # runs of a group whose samples are on the page
MOST_KEYS = 6  # of a config that tell groups apart, in one line
TOLD_BESIDE = ("family", "train.seed")
MARKS = ("floor", "ceiling")


def lines(comparison: Comparison) -> Iterator[str]:
    """The groups, and a verdict a line."""
    for group in comparison.groups:
        paths = ", ".join(str(run.folder.path) for run in group.runs)
        yield f"{group.name}: {described(group)}; {_seeds(group)} ({paths})"
    yield from comparison.notes
    for verdict in comparison.verdicts:
        pair = zip(verdict.pair, verdict.means, strict=True)
        means = ", ".join(f"{name} {_value(mean)}" for name, mean in pair)
        yield f"{verdict.metric}: {means}: {verdict.text}"
    corrected = f"corrected for {comparison.num_tests} tests (Holm)"
    yield f"a difference is claimed where p, {corrected}, is at most 0.05"


def as_json(comparison: Comparison) -> dict[str, Any]:
    """All of it as one JSON object."""
    return {
        "groups": [
            {
                "name": group.name,
                "family": group.runs[0].config.family,
                "differs": dict(group.differs),
                "runs": [str(run.folder.path) for run in group.runs],
                "seeds": [run.config.train.seed for run in group.runs],
            }
            for group in comparison.groups
        ],
        "verdicts": [_as_json(verdict) for verdict in comparison.verdicts],
        "num_tests": comparison.num_tests,
        "seed_variation": comparison.variation,
        "notes": list(comparison.notes),
    }


def write_page(comparison: Comparison, path: Path) -> None:
    """Writes the page, whole or not at all.

    Raises:
        UserError: if the path does not end in .html, or its folder is not there.
    """
    check_path(path)
    first = comparison.groups[0].runs[0]
    names = ", ".join(dict.fromkeys(g.runs[0].config.family for g in comparison.groups))
    title = f"{len(comparison.groups)} ways of training compared"
    shape = "x".join(map(str, first.data.get("shape", ())))
    data = f"{names} on {first.config.data.name} ({shape})"
    page = pages.filled(
        "comparison.html.in",
        title=title,
        data=formats.text(data),
        notes="".join(f"<p>{formats.text(note)}</p>" for note in comparison.notes),
        groups="\n".join(map(_group_row, comparison.groups)),
        num_tests=comparison.num_tests,
        verdicts="\n".join(map(_verdict_row, comparison.verdicts)),
        figures="\n".join(_figures(comparison)),
        samples="\n".join(_samples(comparison)) or "<p>None yet.</p>",
    )
    rundir.write_text(path, page)


def check_path(path: Path) -> None:
    """Raises UserError unless a page may be written there."""
    if path.suffix != ".html":
        raise UserError(f"--html must end in .html, got {path}")
    if not path.parent.is_dir():
        raise UserError(f"--html: no such folder: {path.parent}")


def described(group: Group) -> str:
    """A group by what only it has."""
    others = {n: v for n, v in group.differs.items() if n not in TOLD_BESIDE}
    told = [f"{n.removeprefix('train.')} {formats.plain(v)}" for n, v in others.items()]
    rest = len(told) - MOST_KEYS
    more = [f"{rest} more"] if rest > 0 else []
    return ", ".join([group.runs[0].config.family, *told[:MOST_KEYS], *more])


def _seeds(group: Group) -> str:
    seeds = [str(run.config.train.seed) for run in group.runs]
    return f"seed{'s' if len(seeds) > 1 else ''} {' '.join(seeds)}"


def _value(mean: float | None) -> str:
    return "none" if mean is None else formats.short(mean)


def _as_json(verdict: Verdict) -> dict[str, Any]:
    told = verdict._asdict()
    difference = told.pop("difference")
    nothing = dict.fromkeys(("difference", "half_width", "p_value"))
    if difference is not None:
        nothing = dict(zip(nothing, difference, strict=True))
    return told | nothing


def _group_row(group: Group) -> str:
    paths = ", ".join(str(run.folder.path) for run in group.runs)
    return (
        f"<tr><th>{group.name}</th><td>{formats.text(described(group))}</td>"
        f"<td>{formats.text(f'{_seeds(group)}: {paths}')}</td></tr>"
    )


def _verdict_row(verdict: Verdict) -> str:
    means = " and ".join(map(_value, verdict.means))
    p = "" if verdict.p_adjusted is None else f"{verdict.p_adjusted:.2g}"
    mark = ' class="given"' if verdict.winner else ""
    cells = (" and ".join(verdict.pair), means, verdict.text.replace("+-", "±"), p)
    row = "".join(f"<td>{formats.text(cell)}</td>" for cell in cells)
    return f"<tr{mark}><th>{formats.text(verdict.metric)}</th>{row}</tr>"


def _figures(comparison: Comparison) -> Iterator[str]:
    """A figure for each metric: every run, the floor and the ceiling."""
    for metric in dict.fromkeys(verdict.metric for verdict in comparison.verdicts):
        groups, marks = {}, {}
        for group in comparison.groups:
            found = [run.quantities[metric] for run in group.with_metric(metric)]
            if found:
                groups[group.name] = [(each.value, each.error) for each in found]
            for name in MARKS:
                levels = [v for q in found if (v := getattr(q, name)) is not None]
                if levels:
                    marks.setdefault(name, []).extend(levels)
        if not groups:
            continue
        levels = {name: math.fsum(v) / len(v) for name, v in marks.items()}
        source = formats.uri("svg+xml", figures.dots(metric, groups, levels))
        told = [
            f"{n} {formats.short(float(np.mean([v for v, _ in vs])))}"
            for n, vs in groups.items()
        ]
        told += [f"{name} {formats.short(level)}" for name, level in levels.items()]
        text = formats.text(f"{metric}: {', '.join(told)}.")
        yield (
            f'<figure><img alt="{text}" src="{source}">'
            f"<figcaption>{text}</figcaption></figure>"
        )


def _samples(comparison: Comparison) -> Iterator[str]:
    """The newest grid of the first runs of each group, real data before."""
    first = comparison.groups[0].runs[0].folder
    reals = first.samples / "reals.png"
    if reals.is_file():
        yield _picture(reals, "training examples")
    for group in comparison.groups:
        for run in group.runs[:MOST_SHOWN]:
            for step, path in run.folder.grids()[-1:]:
                seed = run.config.train.seed
                yield _picture(
                    path, f"{group.name}, seed {seed}: samples at step {step:,}"
                )


def _picture(path: Path, caption: str) -> str:
    text = formats.text(caption)
    source = formats.uri("png", path.read_bytes())
    return (
        f'<figure><img class="pixels" style="width:100%" alt="{text}" src="{source}">'
        f"<figcaption>{text}</figcaption></figure>"
    )
