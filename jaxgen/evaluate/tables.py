"""Quality and copying of evaluation.json as tables, for a terminal and for the report."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxgen.evaluate import formats

NAMES = {
    "frechet": "Frechet distance",
    "kernel": "kernel distance (cubic)",
    "rbf_mmd": "MMD (Gaussian kernel)",
    "sliced_wasserstein": "sliced Wasserstein",
    "precision": "precision",
    "recall": "recall",
    "density": "density",
    "coverage": "coverage",
    "c2st": "told from data (C2ST)",
    "vendi": "effective number (Vendi)",
    "copying_z": "z of the distance (C_T)",
    "authentic_share": "authentic (AuthPct)",
    "near_share": "near a training example",
}
ANSWERS = {
    "best": "error of the best answer",
    "of_mean": "error of the mean of the answers",
    "diversity": "distance between two answers",
    "disagreement": "off from what is seen, at most, as the model answers",
    "settled": "the same, when the answer is made to agree",
    "recognised": "of the true class, where what is seen decides it",
    "none_share": "none of the possible answers",
}
PAIRS = "nearest_pairs.png"
COPYING = ("copying_z", "authentic_share", "near_share")

Rows = list[list[str]]  # a heading first


def of_evaluation(values: Mapping[str, Any]) -> list[tuple[str, Rows]]:
    """A caption and rows of each table that evaluation.json has something for."""
    found = []
    quality, copying = values.get("quality"), values.get("memorisation")
    if isinstance(quality, dict) and quality:
        entry = next(iter(quality.values()))
        caption = (
            f"Quality of {entry['num_fake']:,} samples against {entry['num_real']:,} test "
            f"examples, by {entry['features']} ({entry['features_sha256'][:12]}; "
            f"{entry['preprocessing']}). Real data: as many training examples in their "
            "place. Noise: those, under noise."
        )
        heading = ["", "samples", "95 % interval", "real data", "noise", "better"]
        rows = [
            [*_figure(name, entry), *_cells(entry, "floor", "ceiling"), entry["better"]]
            for name, entry in quality.items()
        ]
        found.append((caption, [heading, *rows]))
    if isinstance(copying, dict) and copying:
        caption = (
            f"{copying['verdict'][:1].upper()}{copying['verdict'][1:]} "
            f"({copying['num_train']:,} training examples)."
        )
        heading = ["", "samples", "95 % interval", "held-out data", "copies"]
        rows = [
            [*_figure(name, entry), *_cells(entry, "held_out", "copy_cat")]
            for name, entry in ((name, copying[name]) for name in COPYING)
        ]
        found.append((caption, [heading, *rows]))
    answers = values.get("answers")
    if isinstance(answers, dict) and answers:
        caption = (
            f"{answers['num_answers']} answers to each of {answers['num_questions']} test "
            "examples, root mean squares of images in [0, 1]."
        )
        modes = answers.get("modes") or {}
        caption += _modes_told(modes) if modes else ""
        figures = {**answers, "none_share": modes.get("none_share")}
        rows = [
            _figure(title, figures[name])
            for name, title in ANSWERS.items()
            if figures.get(name)
        ]
        found.append((caption, [["", "answers", "95 % interval"], *rows]))
    return found


def text(values: Mapping[str, Any]) -> str:
    """The tables for a terminal."""
    lines = []
    for caption, rows in of_evaluation(values):
        lines += ["", caption, *lines_of(rows)]
    return "\n".join([*lines, ""]) if lines else ""


def lines_of(rows: Rows) -> list[str]:
    """A table for a terminal, the first column to the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for name, *cells in rows:
        shown = (f"{c:>{w}}" for c, w in zip(cells, widths[1:], strict=True))
        lines.append(f"{name:<{widths[0]}}  {'  '.join(shown)}".rstrip())
    return lines


def page(values: Mapping[str, Any], folder: Path) -> str:
    """The tables for the report, and the picture of pairs that lies in the run's folder."""
    shown = "".join(
        f"<h3>{formats.text(caption)}</h3>{table(rows)}"
        for caption, rows in of_evaluation(values)
    )
    if "memorisation" in values and (folder / PAIRS).is_file():
        source = formats.uri("png", (folder / PAIRS).read_bytes())
        told = "The samples nearest to training images, each above the image."
        shown += f'<figure><img class="pixels" alt="{told}" src="{source}">'
        shown += f"<figcaption>{told}</figcaption></figure>"
    return shown


def _modes_told(modes: Mapping[str, Any]) -> str:
    """Of answers whose possible ones are known: which occur, and how often."""
    if modes["shares"] is None:
        return " None of the answers is a possible one."
    shares = ", ".join(f"{100 * share:.1f}" for share in modes["shares"])
    return (
        f" Of {modes['num_judged']:,} answers whose possible ones are known those occur in "
        f"{shares} %, off by {100 * modes['largest_deviation']:.1f} % at most (p "
        f"{modes['p_value']:.2g}); {100 * modes['recall']:.0f} % of them occur."
    )


def table(rows: Rows) -> str:
    """A table for a page."""
    return f'<table class="wide">{"".join(map(_row, rows))}</table>'


def _row(cells: Sequence[str]) -> str:
    name, *rest = map(formats.text, cells)
    return f"<tr><th>{name}</th>{''.join(f'<td>{cell}</td>' for cell in rest)}</tr>"


def _figure(name: str, entry: Mapping[str, Any]) -> list[str]:
    value, low, high = _cells(entry, "value", "low", "high")
    return [NAMES.get(name, name), value, f"{low} .. {high}"]


def _cells(entry: Mapping[str, Any], *names: str) -> list[str]:
    return [_short(entry[name]) for name in names]


def _short(value: Any) -> str:
    """Four digits, and no more than five places."""
    if not formats.is_number(value):
        return "none"
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{round(value, 5):.4g}"
