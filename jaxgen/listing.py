"""What there is to choose from: models, data sets, tasks, experiments."""

import ast
from pathlib import Path

from jaxgen import data, models, tasks


def text() -> str:
    """All of it, a name and a line each, under four titles."""
    titles = {
        "models": {name: f.summary for name, f in models.FAMILIES.items()},
        "data sets (--data)": data.described(),
        "tasks (--task)": tasks.TASKS,
        "experiments": experiments(),
    }
    lines = []
    for title, entries in titles.items():
        width = max((len(name) for name in entries), default=0)
        lines += [title, *(f"  {n:<{width}}  {s}" for n, s in entries.items())]
    return "\n".join([*lines, ""])


def experiments() -> dict[str, str]:
    """Scripts of the clone this package is installed from, with their first lines."""
    folder = Path(__file__).parent.parent / "experiments"
    found = {}
    for path in sorted(folder.glob("*.py")):
        docstring = ast.get_docstring(ast.parse(path.read_text())) or ""
        found[f"experiments/{path.name}"] = docstring.split("\n")[0]
    return found or {"(none)": "they lie in a clone of the repository"}
