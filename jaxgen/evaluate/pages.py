"""Pages that need no network and no file: a layout beside this module, filled."""

import string
from pathlib import Path


def filled(layout: str, **parts: object) -> str:
    """The page of a layout, in the style that all of them have; `parts` are escaped."""
    folder = Path(__file__).parent
    style = (folder / "page.css").read_text()
    template = string.Template((folder / layout).read_text())
    return template.substitute(style=style, **parts)
