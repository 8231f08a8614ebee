"""The report of a run: RUN/report.html, one page that needs no network and no file.

It is made from the run folder, the averaged parameters and the test split, and knows no
family by name. Layout, script and headings are in report.html.in beside.
"""

import contextlib
import dataclasses
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jaxgen import data
from jaxgen._checks import UserError
from jaxgen.evaluate import figures, formats, pages, tables, views
from jaxgen.evaluate.diagnosis import page as diagnosed
from jaxgen.train import config as configs
from jaxgen.train import (
    console,
    health,
    medium,
    rundir,
    session,
    stopping,
)

GRID_WIDTH = 440  # CSS pixels of a grid of samples, about
KINDS = {"bound": "upper bound"}  # a lower one of the log-likelihood

Record = dict[str, Any]  # a line of metrics.jsonl


def write_report(loaded: session.Loaded, dataset: data.Dataset) -> Path:
    """Writes RUN/report.html, whole or not at all.

    Args:
        loaded: The run. Where its folder lacks metrics, samples or an evaluation the
            page says so.
        dataset: The data of the run; the model's views are made of its test split.

    Returns:
        The path of the page.
    """
    run, config = loaded.run, loaded.run.read_config()
    # What was trained; the model may sample or be judged in another way just now.
    loaded = loaded._replace(config=config)
    records, evaluation = run.read_metrics(), _read_json(run.evaluation)
    given = _given(config, dataset)
    early = stopping.told(records, config.train)
    ending = "finished" if loaded.step >= config.train.steps else "not finished"
    ending = "finished: stopped early" if early else ending
    page = pages.filled(
        "report.html.in",
        title=formats.text(f"{config.family} on {dataset.name}"),
        name=formats.text(run.path.absolute().name),
        progress=f"step {loaded.step:,} of {config.train.steps:,}, {ending}",
        notes="".join(
            f"<p>{formats.text(n)}</p>"
            for n in (*health.notes(run), *loaded.notes, *dataset.notes)
        ),
        numbers=_numbers(loaded, records, evaluation),
        evaluation=_evaluation(loaded, evaluation),
        diagnosis=diagnosed.section(run),
        curves=_curves(loaded, records),
        **_samples(loaded, dataset),
        views=views.section(loaded, dataset),
        config=_config(config, given),
        environment=_environment(_read_json(run.path / "environment.json")),
        commands=_commands(loaded, dataset, given, early),
    )
    rundir.write_text(run.report, page)
    return run.report


def _numbers(loaded: session.Loaded, records: list[Record], evaluation: Record) -> str:
    """The headline numbers; one that is not known is not shown."""
    last = records[-1] if records else {}
    unit = medium.of(loaded.config.model).unit
    cards = []  # title, value or None, unit, note
    for name in _losses(records):
        title = " of ".join(["training loss", *name.split("/")[1:]])
        note = f"per {unit[:-1]}; mean of the steps up to {last.get('step', 0):,}"
        value = f"{last[name]:,.2f}" if formats.is_number(last.get(name)) else None
        cards.append((title, value, _unit(loaded, name), note))
    kind = evaluation.get("nll_nats_kind")
    note = f"{KINDS.get(str(kind), kind)}, {evaluation.get('num_examples')} test {unit}"
    note += f", step {evaluation.get('step')}; ± is the standard error"
    nll, bits = (
        formats.with_error(evaluation, n) for n in ("nll_nats", "bits_per_dim")
    )
    cards.append(
        ("test negative log-likelihood", nll, "nats", f"per {unit[:-1]}; {note}")
    )
    each = medium.of(loaded.config.model).bits.replace("/", " per ")
    cards.append((f"test {each}", bits, "bits", note))
    if not evaluation and loaded.model.log_likelihood:
        cards.append(("test negative log-likelihood", "–", "", "not evaluated yet"))
    counts = {n: session.num_parameters(tree) for n, tree in loaded.params.items()}
    note = ", ".join(f"{name} {count:,}" for name, count in counts.items())
    cards.append(("parameters", f"{sum(counts.values()):,}", "", note))
    rates, seconds, compiled = (
        [r[name] for r in records if formats.is_number(r.get(name))]
        for name in ("examples_per_s", "train_s", "compile_s")
    )
    if rates:
        rate = f"{np.median(rates):,.0f}"
        cards.append(("training speed", rate, f"{unit}/s", "median of the run"))
    if seconds:
        time = console.duration(seconds[-1])
        cards.append(("training time", time, "h:mm:ss", "without compiling, sampling"))
    if compiled:
        starts = f"{len(compiled)} starts" if len(compiled) > 1 else ""
        cards.append(("compile time", f"{sum(compiled):.1f}", "s", starts))
    return "\n".join(
        f"<div><dt>{formats.text(title)}</dt><dd>{formats.text(value)} "
        f'<span class="unit">{unit}</span><small>{formats.text(note)}</small></dd></div>'
        for title, value, unit, note in cards
        if value is not None
    )


def _curves(loaded: session.Loaded, records: list[Record]) -> str:
    """The loss or losses, each named term, the gradient's norm, the speed."""
    unit = medium.of(loaded.config.model).unit
    names = list(dict.fromkeys(name for record in records for name in record))
    norms = [name for name in names if name.startswith("gradient_norm/")]
    others = {"step", "loss", "examples_per_s", "train_s", "compile_s", *norms}
    others |= {stopping.NAME, health.NAME}
    terms = [n for n in names if n not in others and not n.startswith("loss/")]
    losses = _losses(records)
    per = f"{_unit(loaded, losses[0])} per {unit[:-1]}"
    grouped: dict[str, list[str]] = {}
    for name in terms:  # the panel of a term is what its name begins with
        grouped.setdefault(name.split("/")[0], []).append(name)
    panels = [
        ("loss", per, [*losses, stopping.NAME]),
        *(
            # A lone term is named whole.
            (n if m[1:] else m[0].replace("/", " "), _units(loaded).get(n, per), m)
            for n, m in grouped.items()
        ),
        ("gradient norm before clipping", "L2 norm", norms),
        ("training speed", f"{unit}/s", ["examples_per_s"]),
    ]
    shown = [
        figures.figure(title, unit, lines)
        for title, unit, names in panels
        if (lines := _lines(records, names))
    ]
    return "\n".join(shown) or "<p>No line in metrics.jsonl yet.</p>"


def _unit(loaded: session.Loaded, loss: str) -> str:
    """Of the loss under this name, or of the only player."""
    units = {f"loss/{player.name}": player.unit for player in loaded.model.players}
    return units.get(loss, next(iter(units.values())) if len(units) == 1 else "nats")


def _units(loaded: session.Loaded) -> dict[str, str]:
    """Of terms whose unit is not that of the loss."""
    units = {health.GROUP: "share of the data's"}
    for player in loaded.model.players:
        units |= player.units
    return units


def _losses(records: list[Record]) -> list[str]:
    """`loss`, or where several players have one each, theirs."""
    names = [n for n in (records[-1] if records else {}) if n.startswith("loss/")]
    return names if len(names) > 1 else ["loss"]


def _lines(records: list[Record], names: list[str]) -> figures.Lines:
    """The finite values under each name, where there are any."""
    lines = {}
    for name in names:
        points = [
            (r["step"], r[name]) for r in records if formats.is_number(r.get(name))
        ]
        if points:
            steps, values = np.asarray(points, np.float64).T
            lines[name.split("/", 1)[-1]] = (steps, values)
    return lines


def _samples(loaded: session.Loaded, dataset: data.Dataset) -> dict[str, Any]:
    """Every grid of samples, all but the last hidden; the reals at the same scale."""
    folder, grids = loaded.run.samples, loaded.run.grids()
    shown = medium.of(loaded.config.model)
    num_reals = min(shown.num_samples, dataset.train.num_examples)
    # In pixels, before they were enlarged.
    width, width_of_reals = shown.width(shown.num_samples), shown.width(num_reals)
    images = [
        f'<img class="pixels" data-step="{step}" alt="samples at step {step}" '
        f'src="{formats.uri("png", path.read_bytes())}">'
        for step, path in grids
    ]
    reals = [formats.uri("png", path.read_bytes()) for path in folder.glob("reals.png")]
    return {
        "last_grid": len(grids) - 1,
        "last_step": f"{grids[-1][0]:,}" if grids else "-",
        "grid_size": width * max(1, round(GRID_WIDTH / width)),
        "share_of_reals": f"{100 * width_of_reals / width:.4g}",
        "grids": "\n".join(images) or "<p>None yet.</p>",
        "reals": reals[0] if reals else "data:,",
    }


def _given(config: configs.RunConfig, dataset: data.Dataset) -> list[str]:
    """The "part.key" of the options without which the config were another.

    One that was left open, and that resolving fills in as it is, is not among them.
    """
    default = configs.from_dict({"version": configs.VERSION, "family": config.family})
    changed = configs.differences(default, config)
    given, opened = list(changed), config
    for key in [key for key, (value, _) in changed.items() if value is None]:
        candidate = _with_none(opened, key.split("."))
        with contextlib.suppress(UserError):
            if session.resolve(candidate, dataset) == config:
                opened = candidate
                given.remove(key)
    return given


def _with_none(values: Any, path: list[str]) -> Any:
    """A config with None for the option at this path."""
    name, *rest = path
    value = _with_none(getattr(values, name), rest) if rest else None
    return dataclasses.replace(values, **{name: value})


def _options(values: Any, prefix: str) -> Iterator[tuple[str, str, Any, Any]]:
    """Key, name, value and default of each option, those of a part inside too."""
    for field in dataclasses.fields(values):
        value, key = getattr(values, field.name), f"{prefix}.{field.name}"
        if dataclasses.is_dataclass(value):
            yield from _options(value, key)
        else:
            yield key, field.name, value, field.default


def _config(config: configs.RunConfig, given: list[str]) -> str:
    tables = []
    for part in ("model", "data", "train"):
        rows = []
        for key, name, value, default in _options(getattr(config, part), part):
            note, mark = "", ""
            if key in given:
                note, mark = f"default {formats.plain(default)}", ' class="given"'
            elif value != default:
                note = "from the data or the family"
            cell = f"{formats.text(formats.plain(value))} <small>{formats.text(note)}</small>"
            rows.append(f"<tr{mark}><th>{name}</th><td>{cell}</td></tr>")
        tables.append(_titled(part, rows))
    return "\n".join(tables)


def _environment(values: Record) -> str:
    if isinstance(values.get("command"), list):
        values["command"] = shlex.join(map(str, values["command"]))
    parts = {name: v for name, v in values.items() if isinstance(v, dict)}
    machine = {name: v for name, v in values.items() if name not in parts}
    tables = [_table("machine", machine), *(_table(n, v) for n, v in parts.items())]
    return "\n".join(filter(None, tables)) or "<p>Not recorded.</p>"


def _commands(
    loaded: session.Loaded, dataset: data.Dataset, given: list[str], early: str | None
) -> str:
    """What one may do next, as commands to copy."""
    config, words = loaded.config, []
    folder = str(loaded.run.path.absolute())
    finished = loaded.step >= config.train.steps
    values = {
        name: value
        for part in ("model", "data", "train")
        for key, name, value, _ in _options(getattr(config, part), part)
        if key in given and (key != "train.steps" or not finished)
    }
    if finished:
        values["steps"] = 2 * config.train.steps
    if early and config.train.patience is not None:
        values["patience"] = 2 * config.train.patience
    for name, value in values.items():
        flag = "data" if name == "name" else name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            several = value if isinstance(value, tuple) else (value,)
            words += [f"--{flag}", *map(str, several)]
    train = "Train on, to twice the steps" if finished else "Continue the training"
    train = "Train on, with twice the patience" if early else train
    commands = {
        train: ["train", config.family, *words, "--out", folder],
        "Draw other samples": ["sample", folder, "--num", "64", "--seed", "1"],
    }
    if loaded.model.log_likelihood:
        commands["Judge it on the whole test split"] = ["evaluate", folder]
    elif dataset.num_classes:
        judged = ["evaluate", folder, "--judge", "2000"]
        commands["Judge its samples by a classifier of the labels"] = judged
    return "\n".join(
        f"<h3>{what}</h3><pre>{formats.text(shlex.join(['jaxgen', *command]))}</pre>"
        for what, command in commands.items()
    )


def _evaluation(loaded: session.Loaded, values: Record) -> str:
    """A table of evaluation.json, error and kind beside their number."""
    if values.keys() <= {"step", "best_step"} and loaded.model.log_likelihood is None:
        return "<p>This family has no likelihood.</p>"
    if not values:
        command = shlex.join(["jaxgen", "evaluate", str(loaded.run.path.absolute())])
        return (
            f"<p>Not evaluated yet. This does it:</p><pre>{formats.text(command)}</pre>"
        )
    rows, ranks = {}, values.get("ranks")
    for name in (n for n in values if n not in ("ranks", "quality", "memorisation")):
        number = formats.figure(values, name)
        kind = str(values.get(f"{name}_kind", ""))
        if re.sub("_(se|kind)$", "", name) not in values.keys() - {name}:
            rows[name] = ", ".join(filter(None, [number, KINDS.get(kind, kind)]))
    shown = _ranks(ranks) if isinstance(ranks, dict) else ""
    return _table("", rows) + shown + tables.page(values, loaded.run.path)


def _ranks(ranks: Record) -> str:
    """Histograms of the first columns' ranks, level where the model is calibrated."""
    lines = {}
    for name in list(ranks)[: len(figures.COLOURS)]:
        counts = np.asarray(ranks[name], np.float64)
        centres = (np.arange(len(counts)) + 0.5) / len(counts)
        lines[name] = (centres, counts / counts.mean())
    title = "ranks of test rows among samples, level where calibrated"
    return figures.figure(title, "times the mean", lines, xlabel="rank")


def _table(title: str, values: Record) -> str:
    row = "<tr><th>{}</th><td>{}</td></tr>".format
    return _titled(
        title,
        [
            row(formats.text(n), formats.text(formats.plain(v)))
            for n, v in values.items()
        ],
    )


def _titled(title: str, rows: list[str]) -> str:
    heading = f"<h3>{formats.text(title)}</h3>" if title else ""
    return f"<div>{heading}<table>{''.join(rows)}</table></div>" if rows else ""


def _read_json(path: Path) -> Record:
    """The object in a JSON file; empty where there is no file or no object in it."""
    with contextlib.suppress(OSError, ValueError):
        values = json.loads(path.read_text())
        if isinstance(values, dict):
            return values
    return {}
