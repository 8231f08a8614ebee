"""Options of a command from a dataclass, by tyro."""

import contextlib
import io
import re
from typing import Any

import tyro

from jaxgen._checks import UserError


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
