"""Tables as data: one line for each bad file, that says where and what to do."""

import numpy as np
import pytest
from doors import call

from jaxgen._checks import UserError
from jaxgen.data import DataConfig, open_dataset

NORMAL = np.random.default_rng(0).normal(3, 2, 40)
GOOD = {"a": NORMAL, "b": np.exp(NORMAL)}
ROWS = "\n".join(f"{a},{b}" for a, b in zip(*GOOD.values(), strict=True))


def spoilt(column, row, value):
    cells = [list(map(str, values)) for values in GOOD.values()]
    cells[list(GOOD).index(column)][row] = value
    rows = [",".join(row) for row in zip(*cells, strict=True)]
    return "\n".join(["a,b", *rows]) + "\n"


BAD = {  # bytes or text of the file, --columns, what the line says
    "empty": ("", (), "empty file"),
    "blank": ("\n\n\n", (), "empty file"),
    "no header": (ROWS, (), "no header: the first line holds numbers"),
    "header alone": ("a,b", (), "0 rows of 2 columns, expected at least 10"),
    "few rows": ("a\n1\n2\n3\n", (), "3 rows of 1 columns, expected at least 10"),
    "more columns than rows": (
        "\n".join([",".join(f"x{i}" for i in range(12))] + [",".join("1" * 12)] * 11),
        (),
        "11 rows of 12 columns",
    ),
    "word": (spoilt("b", 5, "abc"), (), "column 'b', line 7: 'abc' is no number"),
    "comma": ("a;b\n" + "1,5;2\n" * 12, (), "line 2: '1,5' is no number; write it as"),
    "space": (spoilt("b", 5, " "), (), "column 'b', line 7: ' ' is no number"),
    "missing": (spoilt("a", 0, ""), (), "column 'a', line 2: missing value (1 missing"),
    "nan": (spoilt("b", 9, "NaN"), (), "column 'b', line 11: missing value"),
    "infinite": (spoilt("b", 9, "-inf"), (), "column 'b', line 11: infinite value"),
    "overflow": (spoilt("b", 9, "1e999"), (), "column 'b', line 11: infinite value"),
    "after blank lines": (
        spoilt("b", 5, "abc").replace("\n", "\n\n", 3),
        (),
        "column 'b', line 10: 'abc'",
    ),
    "constant": ("a,b\n" + "1,2\n" * 12, (), "column 'a': all values that are trained"),
    "bounds": (
        spoilt("a", 3, "99"),
        ("a=bounded:-9:19",),
        "line 5: 99 is outside -9..19",
    ),
    "turn": (spoilt("a", 3, "-9"), ("a=angle:-5:19",), "line 5: -9 is outside -5..19"),
    "no turn": (
        spoilt("a", 3, "999"),
        ("a=angle",),
        "say which: --columns a=angle:LOW",
    ),
    "positive": (
        spoilt("b", 3, "0"),
        ("b=positive,step:0",),
        "line 5: 0 in a positive",
    ),
    "negative": (
        spoilt("b", 3, "-1"),
        ("b=positive,step:1",),
        "line 5: -1 in a positive",
    ),
    "no multiple": (
        spoilt("b", 0, "1"),
        ("b=real,step:1",),
        "is no multiple of step 1",
    ),
    "fine step": (
        spoilt("a", 0, "1"),
        ("a=real,step:1e-9",),
        "cannot hold steps of 1e-09",
    ),
    "doubled": ("a,b,a\n" + "1,2,3\n" * 12, (), "2 columns are named 'a'"),
    "no name": ("a,\n" + "1,2\n" * 12, (), "column 2 has no name; give it one"),
    "short row": (
        "a,b\n1,2\n3\n" + "1,2\n" * 12,
        (),
        "line 3 has 1 cells, the header has 2",
    ),
    "long row": ("a,b\n1,2\n" + "1,2,3\n" * 12, (), "line 3 has 3 cells"),
    "nothing left": (spoilt("a", 0, "1"), ("a=skip", "b=context"), "no column is left"),
    "negative weight": (spoilt("a", 3, "-1"), ("a=weight",), "line "),
    "no weight": (
        "a,b\n" + "0,2\n0,3\n" * 9,
        ("a=weight",),
        "the weights have the mean 0",
    ),
    "two weights": (spoilt("a", 0, "1"), ("a=weight", "b=weight"), "'a' and 'b' are"),
    "low and high": (spoilt("a", 0, "1"), ("a=bounded:2:2",), "low must be below high"),
    "no bounds": (spoilt("a", 0, "1"), ("a=bounded",), "expected bounded:LOW:HIGH"),
    "no number": (spoilt("a", 0, "1"), ("a=bounded:0:x",), "'x' is no finite number"),
    "column": (
        spoilt("a", 0, "1"),
        ("aa=real",),
        "unknown column 'aa'; did you mean 'a'",
    ),
    "kind": (spoilt("a", 0, "1"), ("a=positiv",), "did you mean 'positive'?"),
    "context kind": (spoilt("a", 0, "1"), ("a=context,rea",), "did you mean 'real'?"),
    "no equals": (spoilt("a", 0, "1"), ("a",), "expected NAME=KIND"),
    "said twice": (spoilt("a", 0, "1"), ("a=real", "a=skip"), "said twice of 'a'"),
    "option": (spoilt("a", 0, "1"), ("a=real,width:1",), "expected only step:S"),
    "negative step": (
        spoilt("a", 0, "1"),
        ("a=real,step:-1",),
        "step must not be negative",
    ),
    "time stamps": (
        "t\n" + "\n".join(f"{1.7e9 + 0.1 * i}" for i in range(40)),
        (),
        "subtract 1.7e+09 from them first",
    ),
    "tiny": ("t\n" + "\n".join(f"{i}e-40" for i in range(40)), (), "in another unit"),
    "latin": ("caf\u00e9\n1\n".encode("latin-1"), (), "not UTF-8"),
}


@pytest.mark.parametrize("case", BAD)
def test_open_dataset_says_what_is_wrong_where(case, tmp_path):
    text, columns, message = BAD[case]
    path = tmp_path / "t.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError) as error:
        open_dataset(DataConfig(name=f"table:{path}", columns=columns))
    assert message in str(error.value)
    assert len(str(error.value)) < 300 + 2 * len(str(path))


def test_a_bad_table_is_one_line_and_status_2(tmp_path, capsys):
    (tmp_path / "t.csv").write_text(spoilt("b", 5, "abc"))
    argv = ("train", "vae", "--data", f"table:{tmp_path / 't.csv'}")
    status, out, err = call(capsys, *argv)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert "column 'b', line 7: 'abc' is no number" in err
