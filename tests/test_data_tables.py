"""Tables as data: what a file becomes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import datasets

from jaxgen._checks import UserError
from jaxgen.columns import BOUNDED_MARGIN
from jaxgen.data import DataConfig, open_dataset, schema, table_files

NUM = 400
RNG = np.random.default_rng(0)
NORMAL = RNG.normal(3, 2, NUM)


def write(path, columns, *, delimiter=",", head="", end="\n"):
    """Writes named columns as CSV, floats so that they come back the same."""
    rows = [list(columns), *zip(*columns.values(), strict=True)]
    lines = [
        delimiter.join(
            f'"{cell}"' if set(",;") & set(str(cell)) else str(cell) for cell in row
        )
        for row in rows
    ]
    path.write_bytes((head + end.join(lines) + end).encode())
    return path


@pytest.fixture
def opened(tmp_path):
    """`opened({name: values}, *columns) -> Dataset`."""

    def open_columns(table, *columns):
        path = write(tmp_path / "t.csv", table)
        return open_dataset(DataConfig(name=f"table:{path}", columns=columns))

    return open_columns


def whole(dataset, name="x"):
    """All rows, in no particular order."""
    parts = (dataset.train, dataset.validation, dataset.test)
    return np.concatenate([part.arrays[name] for part in parts])


@settings(max_examples=15, deadline=None)
@given(
    delimiter=st.sampled_from(",;\t"),
    head=st.sampled_from(["", "\ufeff", "\n\n"]),
    end=st.sampled_from(["\n", "\r\n"]),
    names=st.lists(
        st.text("abc ,;=\u00e9()/", min_size=1).map(str.strip).filter(bool),
        min_size=1,
        max_size=4,
        unique=True,
    ),
    numbers=st.data(),
)
def test_open_dataset_reads_back_what_was_written(
    tmp_path_factory, delimiter, head, end, names, numbers
):
    value = st.floats(-1e6, 1e6, allow_subnormal=False).filter(lambda v: abs(v) > 1e-6)
    rows = st.lists(
        st.tuples(*[value] * len(names)), min_size=12, max_size=20, unique=True
    )
    written = np.array(numbers.draw(rows))
    spread = written.std(axis=0) > 1e-3 * np.abs(written).max(axis=0)
    if not spread.all():
        written += 1e6 * np.arange(len(written))[:, None]
    path = write(
        tmp_path_factory.mktemp("t") / "t.csv",
        dict(zip(names, written.T.tolist(), strict=True)),
        delimiter=delimiter,
        head=head,
        end=end,
    )
    kinds = tuple(f"{name}=real" for name in names)
    dataset = open_dataset(DataConfig(name=f"table:{path}", columns=kinds))
    assert [column.name for column in dataset.columns] == names
    found = whole(dataset)
    assert found.dtype == np.float32
    expected = written.astype(np.float32)
    np.testing.assert_array_equal(
        found[np.lexsort(found.T)], expected[np.lexsort(expected.T)]
    )


@pytest.mark.parametrize(
    ("header", "names"),
    [
        ('=;",;"', ["=", ",;"]),
        ('x;"a,b,c"', ["x", "a,b,c"]),
        ('b,"say ""so"""', ["b", 'say "so"']),
        ('"p;q","r"', ["p;q", "r"]),
    ],
)
def test_a_delimiter_in_quotes_is_none(header, names, tmp_path):
    path = tmp_path / "t.csv"
    delimiter = ";" if ";" in header.split('"')[0] else ","
    rows = [f"{i * 1.5}{delimiter}{(7 * i) % 11}.25" for i in range(20)]
    path.write_text("\n".join([header, *rows]) + "\n")
    found = open_dataset(DataConfig(name=f"table:{path}")).columns
    assert [column.name for column in found] == names


def test_open_dataset_splits_rows_once_for_all(opened):
    dataset = opened({"row": np.arange(NUM) + 0.25, "a": NORMAL}, "row=real")
    parts = (dataset.train, dataset.validation, dataset.test)
    assert [part.num_examples for part in parts] == [320, 40, 40]
    rows = [part.arrays["x"][:, 0] - 0.25 for part in parts]
    assert sorted(np.concatenate(rows)) == list(range(NUM))
    assert rows[2][:4].tolist() == [19, 28, 35, 40]
    assert rows[1][:4].tolist() == [8, 27, 42, 63]
    assert (dataset.shape, dataset.num_classes) == ((2,), None)
    assert any("320 to train, 40 to validate, 40 to test" in n for n in dataset.notes)


KINDS = {  # name of the column, its values, and what they look like
    "normal": ("x", NORMAL, ("real", 0)),
    "normal above 0": ("x", np.maximum(NORMAL + 4, 0.01), ("real", 0)),
    "normal rounded": ("x", NORMAL.round(1), ("real", 0.1)),
    "wide": ("x", np.exp(NORMAL), ("positive", 0)),
    "skewed": ("x", 5 + np.exp(2 * NORMAL), ("positive", 0)),
    "a little skewed": ("x", np.exp(NORMAL / 5), ("real", 0)),
    "counts": ("x", np.floor(np.exp(NORMAL - 3)), ("positive", 1)),
    "negative too": ("x", np.exp(NORMAL) - 2, ("real", 0)),
    "share": ("x", np.linspace(0.004, 0.997, NUM), ("bounded", 0)),
    "short of the end": ("x", np.linspace(0.004, 0.98, NUM), ("real", 0)),
    "binary": ("x", np.arange(NUM) % 2, ("bounded", 1)),
    "per cent": ("x", np.arange(NUM) % 101, ("bounded", 1)),
    "angle": ("wind_direction", np.linspace(0, 359.9, NUM), ("angle", 0)),
    "radians": ("phi1", np.linspace(-3.1, 3.1, NUM), ("angle", 0)),
    "camel": ("WindDir", np.linspace(-180, 180, NUM), ("angle", 0)),
    "half a turn": ("theta", np.linspace(0.1, 3.1, NUM), ("real", 0)),
    "no angle by name": ("triangle", np.linspace(-180, 179, NUM), ("real", 0)),
    "no angle by value": ("angle", np.linspace(-400, 400, NUM), ("real", 0)),
    "fives": ("x", 5.0 * RNG.integers(-9, 9, NUM), ("real", 5)),
    "quarters": ("x", RNG.integers(-9, 9, NUM) / 4, ("real", 0.05)),
    "few ties": ("x", np.arange(NUM) - 200.0, ("real", 0)),
    "no common step": ("x", np.sqrt(np.arange(NUM) % 9) - 1, ("real", 0)),
}


@pytest.mark.parametrize("case", KINDS)
def test_open_dataset_infers_the_kind(case, opened):
    name, values, expected = KINDS[case]
    (column,) = opened({name: values}).columns
    assert (column.kind, column.step) == expected
    if column.kind == "bounded":
        assert (column.low, column.high) == (0, 100 if case == "per cent" else 1)


def test_find_step_needs_ties_and_float32():
    assert schema.find_step(np.repeat([3.0, 7.0, 9.0], 2)) == 1.0
    assert schema.find_step(np.array([3.0, 7.0, 9.0, 3.0])) == 0.0
    assert schema.find_step(np.repeat([0.1, 0.3, 1.7], 4)) == 0.1
    assert schema.find_step(np.repeat([1e9, 1e9 + 1], 4)) == 0.0
    assert schema.find_step(np.repeat([1e5, 1e5 + 0.5], 4)) == 0.5
    assert schema.find_step(np.zeros(9)) == 0.0


@pytest.mark.parametrize("step", [0, 1])
def test_an_angle_begins_where_the_data_are_rarest(step, opened):
    around = np.mod(RNG.normal(20, 50, 4000), 360)  # rarest at 200
    around = np.floor(around) if step else around
    dataset = opened({"azimuth": around})
    (column,) = dataset.columns
    assert (column.step, column.mean, column.deviation) == (step, 0, 1)
    assert column.high - column.low == 360
    assert abs(column.low + 160) < 25
    x = whole(dataset)
    assert column.low <= x.min()
    assert x.max() < column.high
    np.testing.assert_allclose(
        np.sort(np.mod(x[:, 0], 360)), np.sort(around), atol=2e-5
    )
    if step:
        assert column.low % 1 == 0
        np.testing.assert_array_equal(x, np.round(x))


@pytest.mark.parametrize(
    ("values", "turn"),
    [
        (np.linspace(0, 6.28, NUM), 2 * np.pi),
        (np.linspace(-3.1, 3.1, NUM), 2 * np.pi),
        (np.linspace(0, 10, NUM), 360),
    ],
)
def test_an_angle_has_the_smallest_turn_that_holds_it(values, turn, opened):
    (column,) = opened({"x": values}, "x=angle").columns
    assert column.high - column.low == pytest.approx(turn)


def test_an_angle_just_below_its_end_stays_below_in_float32(opened):
    values = np.append(np.linspace(0, 359, 99), np.nextafter(360.0, 0))
    dataset = opened({"a": values}, "a=angle:0:360")
    (column,) = dataset.columns
    assert (column.low, column.high) == (0, 360)
    assert whole(dataset).max() < 360
    assert np.sum(whole(dataset) == 0) == 2


def on_the_line(column, x):
    """The map to the line, written anew."""
    middle = x.astype(np.float64) + column.step / 2
    if column.kind == "positive":
        return np.log(middle)
    if column.kind == "bounded":
        share = (middle - column.low) / (column.high + column.step - column.low)
        return np.log((1e-4 + 0.9998 * share) / (1 - 1e-4 - 0.9998 * share))
    return middle


@pytest.mark.parametrize("weighted", [False, True])
def test_mean_and_deviation_are_of_the_training_rows_on_the_line(weighted, opened):
    table = {
        "real": NORMAL,
        "rounded": np.round(NORMAL),
        "positive": np.exp(NORMAL),
        "count": np.floor(np.exp(NORMAL - 3)),
        "share": np.linspace(0, 1, NUM),
        "score": 2 * RNG.integers(0, 6, NUM) - 4,
        "w": RNG.integers(0, 5, NUM),
    }
    columns = ("score=bounded:-4:6,step:2", "w=weight" if weighted else "w=context")
    dataset = opened(table, *columns)
    found = dataset.columns[:6]
    assert [c.kind for c in found] == [
        *["real"] * 2,
        *["positive"] * 2,
        *["bounded"] * 2,
    ]
    assert [c.step for c in found] == [0, 1, 0, 1, 0, 2]
    weight = dataset.train.arrays["weight"] if weighted else None
    for i, column in enumerate(found):
        line = on_the_line(column, dataset.train.arrays["x"][:, i])
        mean = np.average(line, weights=weight)
        variance = np.average((line - mean) ** 2, weights=weight)
        np.testing.assert_allclose(
            (column.mean, column.deviation), (mean, variance**0.5), rtol=1e-5, atol=1e-6
        )
    assert BOUNDED_MARGIN == 1e-4


def test_columns_give_roles_kinds_and_steps(opened):
    table = {
        "a": NORMAL,
        "b=c": NORMAL.round(),
        "when": np.arange(NUM) % 24,
        "how": np.exp(NORMAL),
        "w": RNG.uniform(1, 3, NUM),
        "text": ["x, y"] * NUM,
    }
    dataset = opened(
        table,
        "a=bounded:-20:20",
        "b=c=real,step:0",
        "when=context,angle:0:24,step:1",
        "how=context",
        "w=weight",
        "text=skip",
    )
    a, b, when, how = dataset.columns
    assert (a.kind, a.low, a.high, a.is_context) == ("bounded", -20, 20, False)
    assert (b.name, b.kind, b.step) == ("b=c", "real", 0)
    assert (when.kind, when.low, when.high, when.step) == ("angle", 0, 24, 1)
    assert when.is_context
    assert (how.kind, how.is_context) == ("positive", True)
    assert dataset.shape == dataset.train.shape == (4,)
    weight = dataset.train.arrays["weight"]
    assert weight.dtype == np.float32
    np.testing.assert_allclose(weight.mean(), 1, rtol=1e-6)
    ratio = whole(dataset, "weight") / whole(dataset, "weight").min()
    np.testing.assert_allclose(
        np.sort(ratio), np.sort(table["w"] / table["w"].min()), rtol=1e-5
    )
    notes = "\n".join(dataset.notes)
    for line in ("a (-20..20)", "when (angle 0..24, step 1)", "weight: w", "out: text"):
        assert line in notes


def test_notes_are_few_for_many_columns_and_warn_of_repeated_values(opened):
    table = {f"x{i}": NORMAL + i for i in range(60)}
    table["rain"] = np.where(NORMAL < 2, 0, np.exp(NORMAL))
    notes = opened(table).notes
    assert len(notes) < 8
    assert max(map(len, notes)) < 150
    assert any("x0, x1" in note and "more" in note for note in notes)
    assert any("again and again, no step: rain;" in note for note in notes)
    assert not any("again" in note for note in opened({"a": NORMAL}).notes)


GOOD = {"a": NORMAL, "b": np.exp(NORMAL)}


def test_a_zero_weight_hides_a_row_from_mean_and_constancy(opened):
    values = np.full(NUM, 7.0)
    with pytest.raises(UserError, match="all values that are trained on are 7"):
        opened(
            {
                "a": np.where(np.arange(NUM) < 9, NORMAL, values),
                "w": 1 * (np.arange(NUM) >= 9),
                "b": NORMAL,
            },
            "w=weight",
        )


def test_open_dataset_tells_options_of_images_from_those_of_tables(tmp_path):
    name = f"table:{write(tmp_path / 't.csv', GOOD)}"
    for options, message in (
        ({"name": name, "image_size": 8}, "--image-size is for images"),
        ({"name": name, "channels": 1}, "--channels is for images"),
        ({"name": name, "transform": "levels"}, "--transform levels is for images"),
        ({"transform": "none"}, "--transform none is for tables, digits holds images"),
        ({"columns": ("a=real",)}, "--columns: digits holds images"),
    ):
        with pytest.raises(UserError, match=message):
            open_dataset(DataConfig(**options))
    assert open_dataset(DataConfig(name=name, transform="none")).shape == (2,)


@pytest.mark.parametrize("name", table_files.BUNDLED)
def test_tables_of_scikit_learn_come_by_name(name):
    dataset = open_dataset(DataConfig(name=f"table:{name}"))
    options = {"scaled": False} if name == "diabetes" else {}
    x, target = getattr(datasets, f"load_{name}")(return_X_y=True, **options)
    if name == "diabetes":
        x = np.column_stack([x, target])
        assert dataset.columns[-1].name == "progression"
    x = x.astype(np.float32)
    assert dataset.name == f"table:{name}"
    assert dataset.shape == x.shape[1:]
    assert sorted(map(tuple, whole(dataset))) == sorted(map(tuple, x))


def test_a_file_of_the_name_of_a_table_of_scikit_learn_comes_first(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "wine", GOOD)
    assert open_dataset(DataConfig(name="table:wine")).shape == (2,)
    with pytest.raises(UserError, match="unknown table 'wime'; did you mean 'wine'"):
        open_dataset(DataConfig(name="table:wime"))
    with pytest.raises(UserError, match="wine.csv: No such file or directory"):
        open_dataset(DataConfig(name="table:wine.csv"))
    with pytest.raises(UserError, match="no path given"):
        open_dataset(DataConfig(name="table:"))
    with pytest.raises(UserError, match="Is a directory"):
        open_dataset(DataConfig(name=f"table:{tmp_path}"))
