"""`table:FILE.csv`: rows of a table as examples, each column with what it may be.

One row is one example, float32 `[C]` in the units of the file, columns in its order.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from jaxgen._checks import UserError
from jaxgen.columns import Column
from jaxgen.data import schema
from jaxgen.data.sources import HOLD_OUT_SHARE, ArraySource, Dataset, fixed_order
from jaxgen.data.table_files import Table, find_table, option

PREFIX = "table:"
SPLIT_SEED = 20_260_101
MIN_ROWS = 10
_SPIKE = 0.05  # of the rows, with one value
_LINE = 84  # characters of a note


def open_table(place: str, columns: Sequence[str]) -> Dataset:
    """Reads a table, finds out what its columns are, and splits its rows.

    Args:
        place: Path of a CSV file, or the name of a table of scikit-learn.
        columns: What the user says of columns, `NAME=KIND` each.

    Returns:
        Splits of `x` and, where a column is the weight, `weight`, of mean 1 over the
        training rows. Mean and deviation of the columns are those of these rows.

    Raises:
        UserError: for every fault of the file or of `columns`, in one line.
    """
    table = find_table(place)
    wishes = schema.parse_columns(columns, table.names)
    wishes = {name: wishes.get(name, schema.Wish()) for name in table.names}
    values = _read(table, wishes)
    num = len(next(iter(values.values())))
    train, validation, test = _split(num)
    weighing = next((n for n, wish in wishes.items() if wish.role == "weight"), None)
    weight = np.ones(num)
    if weighing is not None:
        weight = _weight(table, weighing, values.pop(weighing), train)
    seen = train[weight[train] > 0]
    found, repeated = [], []
    x = np.empty((num, len(values)), np.float32)
    for i, (name, given) in enumerate(values.items()):
        if np.ptp(given[seen]) == 0:
            raise table.fault(
                name,
                f"all values that are trained on are {given[seen[0]]:g}, expected "
                f"different ones; leave it out: {option(name, 'skip')}",
            )
        column, numbers = schema.make_column(table, name, given, wishes[name])
        found.append(schema.standardise(column, numbers[seen], weight[seen]))
        x[:, i] = numbers
        if wishes[name].step is None and _has_spikes(column, numbers):
            repeated.append(name)
        if column.kind == "angle":  # rounding to float32 may reach the end
            x[x[:, i] >= column.high, i] = column.low
    weights = None if weighing is None else weight.astype(np.float32)

    def part(rows: np.ndarray) -> ArraySource:
        return ArraySource(x[rows], weight=None if weights is None else weights[rows])

    split = (
        f"{len(train):,} to train, {len(validation):,} to validate, {len(test):,} to"
    )
    return Dataset(
        name=table.name,
        train=part(train),
        test=part(test),
        shape=(len(found),),
        num_classes=None,
        notes=(
            f"{num:,} rows, drawn by a fixed seed: {split} test",
            "columns as they look, where --columns NAME=KIND does not say otherwise:",
            *_schema_notes(found, wishes),
            *_warning(repeated),
        ),
        columns=tuple(found),
        validation=part(validation),
    )


def _split(num: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The rows to train, to validate (10 %) and to test (10 %), in order."""
    order = fixed_order(SPLIT_SEED, 0, num)
    held = max(1, round(HOLD_OUT_SHARE * num))
    test, validation, train = np.split(order, [held, 2 * held])
    return np.sort(train), np.sort(validation), np.sort(test)


def _read(table: Table, wishes: Mapping[str, schema.Wish]) -> dict[str, np.ndarray]:
    """The columns that are not skipped, all finite, checked to be enough rows."""
    roles = [wishes[name].role for name in table.names]
    if "model" not in roles:
        raise UserError(f"{table.name}: no column is left to model; skip fewer")
    wanted = [i for i, role in enumerate(roles) if role != "skip"]
    names = [table.names[i] for i in wanted]
    if "" in names:
        raise UserError(
            f"{table.name}: column {wanted[names.index('')] + 1} has no name; give it one "
            "in the header, or leave it out: --columns =skip"
        )
    values = dict(zip(names, table.read(wanted), strict=True))
    num = len(values[names[0]])
    if num < max(MIN_ROWS, len(names)):
        raise UserError(
            f"{table.name}: {num} rows of {len(names)} columns, expected at least "
            f"{MIN_ROWS} rows and no fewer than columns; add rows or skip columns"
        )
    wrong = {name: ~np.isfinite(column) for name, column in values.items()}
    for name, where in wrong.items():
        if where.any():
            row = int(np.argmax(where))
            what = "missing value" if np.isnan(values[name][row]) else "infinite value"
            count = sum(map(np.count_nonzero, wrong.values()))
            raise table.fault(
                name,
                f"{what} ({count:,} missing or infinite in all); remove such rows, or "
                f"leave the column out: {option(name, 'skip')}",
                row,
            )
    return values


def _weight(
    table: Table, name: str, values: np.ndarray, train: np.ndarray
) -> np.ndarray:
    """The weights with mean 1 over the training rows."""
    if values.min() < 0:
        row = int(np.argmax(values < 0))
        raise table.fault(
            name, f"weight {values[row]:g}, expected 0 or more; correct it", row
        )
    mean = values[train].mean()
    if not 0 < mean < np.inf:
        raise table.fault(
            name, f"the weights have the mean {mean:g}; give some that are above 0"
        )
    return values / mean


def _has_spikes(column: Column, values: np.ndarray) -> bool:
    """Whether a modelled column without step has values that come again and again."""
    if column.is_context or column.step:
        return False
    counts = np.unique(values, return_counts=True)[1]
    num = len(values)
    return 2 * len(counts) <= num or counts.max() > max(5, _SPIKE * num)


def _warning(names: Sequence[str]) -> list[str]:
    if not names:
        return []
    return [
        f"the same values again and again, no step: {_listed(names)}; a density of them "
        "has no bound: give a step, make them context or skip them"
    ]


def _schema_notes(
    columns: Sequence[Column], wishes: Mapping[str, schema.Wish]
) -> list[str]:
    """A line for each kind of column, with as many names as it holds."""
    groups: dict[str, list[str]] = {}
    for column in columns:
        title = "context" if column.is_context else column.kind
        groups.setdefault(title, []).append(_described(column))
    for role, title in (("weight", "weight"), ("skip", "left out")):
        names = [name for name, wish in wishes.items() if wish.role == role]
        if names:
            groups[title] = names
    order = ("real", "positive", "bounded", "angle", "context", "weight", "left out")
    return [
        f"{title:>8}: {_listed(groups[title])}" for title in order if title in groups
    ]


def _described(column: Column) -> str:
    kind = [column.kind] if column.is_context else []
    if column.kind in ("bounded", "angle"):
        kind.append(f"{column.low:.4g}..{column.high:.4g}")
    facts = [" ".join(kind)] if kind else []
    if column.step:
        facts.append(f"step {column.step:g}")
    return column.name + (f" ({', '.join(facts)})" if facts else "")


def _listed(names: Sequence[str]) -> str:
    """The names, as many as a line holds, and how many more there are."""
    shown = 1
    while shown < len(names) and len(", ".join(names[: shown + 1])) <= _LINE:
        shown += 1
    more = len(names) - shown
    return ", ".join(names[:shown]) + (f" and {more} more" if more else "")
