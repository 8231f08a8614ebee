"""`experiments/benchmarks/peers`: its arithmetic, and the whole of it at smoke size."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).parent.parent / "experiments" / "benchmarks" / "peers"
EXTRA = [name for name in ("torch", "pythae") if not importlib.util.find_spec(name)]


@pytest.fixture
def ratios(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module("ratios")


def told(**changed):
    return {"num_parameters": 10, "losses": [2.0, 1.5], "settings": {}, **changed}


def test_summary_divides_medians_and_tells_the_spread_of_the_rounds(ratios):
    seconds = {"jaxgen": [1.0, 2.0, 3.0], "eager": [3.0, 4.0, 15.0]}
    sides = {"jaxgen": told(), "eager": told(settings={"threads": 2})}
    result = ratios.summary({"case": "toy"}, sides, seconds)
    assert result["case"] == "toy"
    assert result["rounds"] == 3
    assert result["num_parameters"] == 10
    assert result["ms_per_step"] == {"jaxgen": 2000.0, "eager": 4000.0}
    assert result["settings"]["eager"] == {"threads": 2}
    # The rounds' own ratios are 3, 2 and 5: their percentiles lie between 2 and 5.
    assert result["ratios"] == {
        "eager": {
            "median": 2.0,
            "p10": pytest.approx(2.2),
            "p90": pytest.approx(4.6),
            "fastest": 3.0,
        }
    }
    assert json.loads(json.dumps(result, allow_nan=False)) == result


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"num_parameters": 11}, "num_parameters: eager has 11, jaxgen 10"),
        ({"losses": [2.001, 1.5]}, "losses: eager"),  # another loss
        ({"losses": [2.0, 1.51]}, "losses: eager"),  # another update
        ({"losses": [float("nan"), 1.5]}, "losses: eager"),
    ],
)
def test_summary_refuses_what_is_not_the_same_model(ratios, changed, message):
    sides = {"jaxgen": told(), "eager": told(**changed)}
    seconds = dict.fromkeys(sides, [1.0])
    with pytest.raises(ValueError, match=message):
        ratios.summary({}, sides, seconds)


def test_table_has_a_line_for_every_side(ratios):
    sides = {"jaxgen": told(), "eager": told(), "pythae": told()}
    seconds = {"jaxgen": [1.0], "eager": [1.5], "pythae": [2.0]}
    head, *lines = ratios.table([ratios.summary({"case": "toy"}, sides, seconds)])
    assert head.split()[-4:] == ["ratio", "p10", "p90", "fastest"]
    assert [line.split()[1] for line in lines] == list(sides)
    assert [line.split()[4:] for line in lines] == [[], ["1.50"] * 4, ["2.00"] * 4]


@pytest.mark.slow
@pytest.mark.skipif(
    bool(EXTRA), reason=f"{' and '.join(EXTRA)}: the extra `peers` is not installed"
)
@pytest.mark.parametrize("case", ["mlp", "conv", "unet"])
def test_peers_compare_the_same_model_at_smoke_size(case, tmp_path):
    out = tmp_path / "peers.json"
    argv = [sys.executable, FOLDER, case, "--smoke", "--rounds", "2", "--out", out]
    done = subprocess.run([str(a) for a in argv], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (result,) = json.loads(out.read_text())["results"]
    assert result["case"] == case
    assert result["rounds"] == 2
    assert set(result["ms_per_step"]) == set(result["sides"])
    assert set(result["ratios"]) == set(result["sides"]) - {"jaxgen"}
    for side in result["sides"]:  # three updates from equal parameters
        np.testing.assert_allclose(
            result["losses"][side], result["losses"]["jaxgen"], rtol=1e-3
        )
        assert len(set(result["losses"][side])) == 3


def test_peers_refuse_an_unknown_case():
    argv = [sys.executable, str(FOLDER), "mpl"]
    done = subprocess.run(argv, capture_output=True, text=True)
    assert done.returncode == 2
    assert "unknown case 'mpl'" in done.stderr
