"""Command lines by tyro: dataclasses of options, and a mistake in one line."""

import contextlib
import dataclasses
import io
import re
from pathlib import Path
from typing import Any

import tyro

from jaxgen._checks import UserError


def parse_parts(parts: dict[str, Any], argv: list[str], prog: str, doc: str) -> Any:
    """Several dataclasses of options as one; `parts` are their defaults."""
    fields: list[Any] = [(name, type(part)) for name, part in parts.items()]
    cls = dataclasses.make_dataclass("arguments", fields, frozen=True, kw_only=True)
    cls.__doc__ = doc
    return parse(cls, argv, prog, default=cls(**parts))


def parse_use(options: Any, argv: list[str], prog: str) -> tuple[Any, Any]:
    """The options of a command on a run, and what its model lets one choose anew."""
    first = [arg for arg in argv[:1] if not arg.startswith("-")]
    folders = (arg for arg in argv if (Path(arg) / "config.json").is_file())
    if (folder := next(folders, *first) if first else next(folders, None)) is None:
        return parse(options, argv, prog), None  # a mistake, told by the command
    from jaxgen.train.rundir import RunFolder

    sampling = getattr(RunFolder(Path(folder)).read_config().model, "sampling", None)
    if sampling is None:
        return parse(options, argv, prog), None
    parts = {"run": options(run=Path(folder)), "sampling": sampling}
    place = argv.index(folder)
    argv = [*argv[:place], *argv[place + 1 :]]
    parsed = parse_parts(parts, argv, f"{prog} RUN", options.__doc__)
    return parsed.run, parsed.sampling


def parse(cls: Any, argv: list[str], prog: str, default: Any = None) -> Any:
    """tyro, but a mistake is one line that names the nearest option."""
    output = io.StringIO()
    extra = {} if default is None else {"default": default}
    try:
        with contextlib.redirect_stderr(output):
            return tyro.cli(
                tyro.conf.configure(tyro.conf.OmitArgPrefixes)(cls),
                args=argv,
                prog=prog,
                **extra,
            )
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise UserError(_one_line(output.getvalue(), prog)) from None


def _one_line(box: str, prog: str) -> str:
    """The message inside tyro's box, with its nearest suggestion."""
    lines = [line.strip("│╭╮╰╯| ") for line in box.splitlines()]
    sections: list[list[str]] = [[]]
    for line in filter(None, lines):
        if set(line) <= set("─-") or line.startswith("╭"):
            sections.append([])
        else:
            sections[-1].append(line)
    # A title stands in a section of its own (plain text) or in the frame (unicode).
    texts = [" ".join(section) for section in sections]
    message, *rest = texts[1:] if "─" not in box else texts
    if "─" in box:
        message = " ".join(sections[0][1:])
    meant = next((text for text in rest if text.startswith("Perhaps you meant:")), "")
    near = re.search(r"--[\w-]+", meant)
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"{message.strip().rstrip('.')}{hint} (all options: {prog} --help)"
