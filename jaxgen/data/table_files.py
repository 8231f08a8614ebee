"""Where the numbers of a table come from: a CSV file, or four sets of scikit-learn."""

import csv
import re
import shlex
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxgen._checks import UserError, unknown

# The real tables that come inside scikit-learn, by name.
BUNDLED = {
    "wine": "178 Italian wines: 13 measurements of chemistry and colour.",
    "iris": "150 irises: length and width of sepal and petal.",
    "breast_cancer": "569 tumours: 30 figures of the shape of their cells.",
    "diabetes": "442 patients: age, sex, 8 measurements and the progression.",
}
_DELIMITERS = ",;\t"
_MISSING = ("", "NA", "N/A", "#N/A", "NaN", "nan", "None", "none", "NULL", "null")
_NUMBER = re.compile(
    r"\s*[+-]?(\d+\.?\d*([eE][+-]?\d+)?|\.\d+([eE][+-]?\d+)?|inf|infinity|nan)\s*",
    re.ASCII | re.IGNORECASE,
)
_SHOWN = 40  # characters of a wrong value


class Table(NamedTuple):
    """A table of which the header has been read.

    Attributes:
        name: `table:` and the absolute path, or the name of a set of scikit-learn.
        names: Of all columns.
        read: Numbers of the wanted columns -> their values, float64 `[N]` each, NaN
            where one is missing.
        line: Row, from 0 -> its line in the file; the header is line 1.
    """

    name: str
    names: tuple[str, ...]
    read: Callable[[Sequence[int]], list[np.ndarray]]
    line: Callable[[int], int]

    def fault(self, column: str, reason: str, row: int | None = None) -> UserError:
        """One line that says where, and the reason, which ends in what to do."""
        where = f"column {column!r}"
        if row is not None:
            where += f", line {self.line(row)}"
        return UserError(f"{self.name}: {where}: {reason}")


def find_table(place: str) -> Table:
    """The table at a path or, where no such file is, of this name in scikit-learn.

    Raises:
        UserError: where there is none, or its header cannot be used.
    """
    if not place:
        raise UserError("table: no path given, expected a CSV file: table:FILE.csv.")
    path = Path(place).expanduser().absolute()
    if path.exists() or path.suffix or path.name != place:
        return _open_csv(path)
    if place not in BUNDLED:
        raise UserError(f"{unknown('table', place, BUNDLED)}, or give table:FILE.csv")
    return _open_bundled(place)


def option(name: str, kind: str) -> str:
    """The option that says what a column is, as one types it."""
    return f"--columns {shlex.quote(f'{name}={kind}')}"


def _open_bundled(place: str) -> Table:
    from sklearn import datasets

    load: Any = getattr(datasets, f"load_{place}")
    bunch = load(scaled=False) if place == "diabetes" else load()
    names, values = tuple(map(str, bunch.feature_names)), bunch.data
    if place == "diabetes":
        names = (*names, "progression")
        values = np.column_stack([values, bunch.target])
    return Table(
        f"table:{place}",
        names,
        lambda wanted: [values[:, i].copy() for i in wanted],
        lambda row: row + 2,
    )


def _open_csv(path: Path) -> Table:
    label = f"table:{path}"
    try:
        headers = [(d, *_header(path, d)) for d in _DELIMITERS]
    except OSError as error:
        raise UserError(
            f"{label}: {error.strerror}, expected a CSV file; give table:FILE.csv of one."
        ) from error
    except UnicodeDecodeError as error:
        raise UserError(f"{label}: not UTF-8 text; save it as CSV in UTF-8.") from error
    # A quote inside of a name is, nearly always, one that another delimiter ends at.
    delimiter, names, num_lines = max(
        headers, key=lambda h: (bool(h[1]), '"' not in "".join(h[1]), len(h[1]))
    )
    if not names:
        raise UserError(
            f"{label}: empty file or broken quotes, expected a header line and rows of numbers."
        )
    given = [name for name in names if name]
    if given and all(map(_NUMBER.fullmatch, given)):
        raise UserError(
            f"{label}: no header: the first line holds numbers alone; put a line of "
            "column names above it."
        )
    doubled = next((name for name in given if given.count(name) > 1), None)
    if doubled is not None:
        raise UserError(
            f"{label}: {given.count(doubled)} columns are named {doubled!r}, expected "
            "different names; rename all but one in the header."
        )
    rows = _Rows(path, label, delimiter, names)
    return Table(
        label, names, lambda wanted: _read(rows, num_lines, wanted), rows.line_of
    )


def _header(path: Path, delimiter: str) -> tuple[tuple[str, ...], int]:
    """The names in the first line that is not empty, and the number of that line.

    No name where quotes do not end at this delimiter: it is another one.
    """
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        try:
            cells = next(filter(None, reader), [])
        except csv.Error:
            cells = []
        return tuple(cell.strip() for cell in cells), reader.line_num


def _read(rows: "_Rows", num_lines: int, wanted: Sequence[int]) -> list[np.ndarray]:
    """Reads the file with pyarrow; where that fails, finds the line at fault."""
    import pyarrow
    from pyarrow import csv as arrow

    places = [str(i) for i in range(len(rows.names))]
    chosen = [places[i] for i in wanted]
    try:
        with open(rows.path, "rb") as file:
            table = arrow.read_csv(
                file,
                arrow.ReadOptions(skip_rows=num_lines, column_names=places),
                arrow.ParseOptions(delimiter=rows.delimiter, newlines_in_values=True),
                arrow.ConvertOptions(
                    include_columns=chosen,
                    column_types=dict.fromkeys(chosen, pyarrow.float64()),
                    null_values=_MISSING,
                ),
            )
    except pyarrow.ArrowInvalid as error:
        if rows.check(wanted) == 0:  # nothing follows the header
            return [np.empty(0) for _ in wanted]
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"{rows.label}: {reason}; correct the file.") from error
    return [table.column(place).to_numpy() for place in chosen]


class _Rows(NamedTuple):
    """The rows of a file read by Python: slow, but it knows at which line it is."""

    path: Path
    label: str
    delimiter: str
    names: tuple[str, ...]

    def _cells(self) -> Iterator[tuple[int, list[str]]]:
        """The line where each row begins, and its cells; empty lines are no rows."""
        with open(
            self.path, encoding="utf-8-sig", errors="replace", newline=""
        ) as file:
            reader = csv.reader(file, delimiter=self.delimiter)
            next(filter(None, reader), None)
            line = reader.line_num
            try:
                for cells in reader:
                    if cells:
                        yield line + 1, cells
                    line = reader.line_num
            except csv.Error as error:
                raise UserError(f"{self.label}: line {line + 1}: {error}.") from error

    def line_of(self, row: int) -> int:
        """The line in the file where a row begins."""
        return next(line for i, (line, _) in enumerate(self._cells()) if i == row)

    def check(self, wanted: Sequence[int]) -> int:
        """Raises UserError for the first ragged row or value that is no number.

        Returns:
            The number of rows.
        """
        num = -1
        for num, (line, cells) in enumerate(self._cells()):  # noqa: B007
            if len(cells) != len(self.names):
                raise UserError(
                    f"{self.label}: line {line} has {len(cells)} cells, the header has "
                    f"{len(self.names)}; correct that line."
                )
            for place in wanted:
                name, cell = self.names[place], cells[place]
                if cell in _MISSING or _NUMBER.fullmatch(cell):
                    continue
                point = " with a decimal point" if "," in cell else ""
                raise UserError(
                    f"{self.label}: column {name!r}, line {line}: {cell[:_SHOWN]!r} is "
                    f"no number; write it as one{point}, or leave the column out: "
                    f"{option(name, 'skip')}"
                )
        return num + 1
