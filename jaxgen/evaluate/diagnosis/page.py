"""A diagnosis for a terminal, and for the report of a run."""

import html
import json
from collections.abc import Mapping
from typing import Any

from jaxgen.evaluate import formats, tables
from jaxgen.evaluate.diagnosis import picture
from jaxgen.train.rundir import RunFolder

NOT_SHOWN = 24  # numbers of a list, from which on only its range is


def text(result: Mapping[str, Any]) -> str:
    """Verdicts first, then the figures of each problem."""
    lines = [f"{result['verdict']} ({_of(result)})"]
    for name, found in result["problems"].items():
        lines += ["", f"{name}: {found['verdict']}"]
        if found["mend"] is not None:
            lines.append(f"mend: {found['mend']}")
        lines += [f"  {line}" for line in tables.lines_of(rows(found))]
    return "\n".join([*lines, ""])


def section(run: RunFolder) -> str:
    """The section of a report, of what lies in a run's folder; "" where nothing does."""
    try:
        result = json.loads(run.diagnosis.read_text())
        parts = [
            f"<section><h2>Diagnosis</h2><p>{formats.text(result['verdict'])} "
            f"({formats.text(_of(result))}).</p>"
        ]
        for found in result["problems"].values():
            mend = found["mend"] and f" Mend: {found['mend']}."
            told = formats.text(f"{found['verdict']}.{mend or ''}")
            title = html.escape(found["title"].capitalize())
            parts.append(f"<h3>{title}</h3><p>{told}</p>{tables.table(rows(found))}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return ""
    shown = run.path / picture.NAME
    if shown.is_file():
        words = "Variance of images, by pixel and by frequency."
        source = formats.uri("png", shown.read_bytes())
        image = f'<img alt="{words}" src="{source}">'
        parts.append(f"<figure>{image}<figcaption>{words}</figcaption></figure>")
    return "\n".join([*parts, "</section>"])


def rows(found: Mapping[str, Any]) -> tables.Rows:
    """The figures of one problem, each with its error; of one that is null, why."""
    figures, missing = found["figures"], found["missing"]
    shown = []
    for name, value in figures.items():
        if name.removesuffix("_se") in figures.keys() - {name} and name.endswith("_se"):
            continue
        cell = missing.get(name) or _cell(figures, name)
        shown.append([name, f"none: {cell}" if value is None else cell])
    return shown


def _cell(figures: Mapping[str, Any], name: str) -> str:
    value = figures[name]
    if isinstance(value, dict):
        return f"{', '.join(value)}: in diagnosis.json"
    if isinstance(value, list):
        known = [v for v in value if v is not None]
        if len(value) > NOT_SHOWN and known:
            return f"{min(known):.3g} .. {max(known):.3g} ({len(value)} values)"
        return ", ".join("none" if v is None else f"{v:.3g}" for v in value)
    return formats.figure(figures, name)


def _of(result: Mapping[str, Any]) -> str:
    told = (
        f"{result['family']}, step {result['step']:,}, {result['num_examples']:,} test "
    )
    return told + str(result["examples"])
