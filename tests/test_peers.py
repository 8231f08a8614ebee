"""`experiments/benchmarks/peers`: its arithmetic, and the whole of it at smoke size."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).parent.parent / "experiments" / "benchmarks" / "peers"
EXTRA = [
    name
    for name in ("torch", "pythae", "diffusers", "denoising_diffusion_pytorch")
    if not importlib.util.find_spec(name)
]


FLOW_EXTRA = [
    name
    for name in ("torch", "zuko", "nflows", "flowjax")
    if not importlib.util.find_spec(name)
]

TOY = {"case": "toy", "batch_size": 8, "parameters_apart": 0.0}


def imported(monkeypatch, name):
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module(name)


@pytest.fixture
def ratios(monkeypatch):
    return imported(monkeypatch, "ratios")


@pytest.fixture
def cases(monkeypatch):
    return imported(monkeypatch, "cases")


def told(**changed):
    return {"num_parameters": 10, "losses": [2.0, 1.5], "settings": {}, **changed}


def sampled(**changed):
    return {"num_parameters": 10, "samples": [0.0, -1.5], "settings": {}, **changed}


def test_summary_divides_medians_and_tells_the_spread_of_the_rounds(ratios):
    seconds = {"jaxgen": [1.0, 2.0, 3.0], "eager": [3.0, 4.0, 15.0]}
    sides = {"jaxgen": told(), "eager": told(settings={"threads": 2})}
    result = ratios.summary(TOY, sides, seconds)
    assert result["case"] == "toy"
    assert result["rounds"] == 3
    assert result["num_parameters"] == {"jaxgen": 10, "eager": 10}
    assert result["losses"] == {"jaxgen": [2.0, 1.5], "eager": [2.0, 1.5]}
    assert result["ms_per_step"] == {"jaxgen": 2000.0, "eager": 4000.0}
    assert result["examples_per_s"] == {"jaxgen": 4.0, "eager": 2.0}
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
        ratios.summary(TOY, sides, seconds)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"num_parameters": 89}, "num_parameters: peer has 89, jaxgen 100"),
        ({"num_parameters": 111}, "num_parameters: peer has 111, jaxgen 100"),
        ({"samples": [0.0002, -1.5]}, "samples: peer"),
        ({"samples": [0.0, -1.5002]}, "samples: peer"),
    ],
)
def test_check_equal_of_other_networks_compares_sizes_and_samples(
    ratios, changed, message
):
    near = sampled(num_parameters=100)
    sides = {"jaxgen": near, "peer": sampled(num_parameters=109, samples=[5e-5, -1.5])}
    ratios.check_equal(sides, parameters_apart=0.1)
    with pytest.raises(ValueError, match=message):
        ratios.check_equal(
            {"jaxgen": near, "peer": near | changed}, parameters_apart=0.1
        )


def test_check_equal_compares_each_density_with_its_own_numerical_one(ratios):
    sides = {
        "jaxgen": {"num_parameters": 10, "densities": [[-2.0, -3.0], [-2.0, -3.0]]},
        "peer": {"num_parameters": 10, "densities": [[-5.0, -9.0], [-5.0, -9.0]]},
    }
    ratios.check_equal(sides)
    for side in sides:
        wrong = {"num_parameters": 10, "densities": [[-5.0, -9.0], [-5.0, -9.01]]}
        with pytest.raises(ValueError, match="densities: peer"):
            ratios.check_equal({**sides, side: wrong})


def test_densities_are_those_of_a_linear_map(monkeypatch):
    flow_cases = imported(monkeypatch, "flow_cases")
    matrix, x = np.array([[2.0, 1.0], [0.0, 3.0]]), np.array([[1.0, -2.0]])
    z = x @ matrix.T
    told = np.log(6.0) - 0.5 * (z**2).sum(1) - np.log(2 * np.pi)
    found = flow_cases.densities(told, z, matrix[None])["densities"]
    np.testing.assert_allclose(found[1], found[0], rtol=1e-12)


def test_posterior_mean_is_that_of_the_mixture(cases):
    alpha, sigma, x = 0.8, 0.6, np.array([-1.3, -0.2, 0.5, 2.0])
    x0 = np.linspace(-4.0, 4.0, 20001)
    density = np.exp(-8 * (x0 - 1) ** 2) + np.exp(-8 * (x0 + 1) ** 2)
    weights = density * np.exp(-((x[:, None] - alpha * x0) ** 2) / (2 * sigma**2))
    mean = (weights * x0).sum(1) / weights.sum(1)
    np.testing.assert_allclose(
        cases.posterior_mean(np.tanh, x, alpha, sigma), mean, rtol=1e-6
    )


def test_cases_of_diffusion_keep_their_networks_at_smoke_size(cases):
    for name, full in cases.CASES.items():
        small = cases.case(name, smoke=True)
        assert small.batch_size < full.batch_size
        if hasattr(full, "widths"):
            assert (small.widths == full.widths) == (full.net == "diffusion")
        else:
            assert (small.dim, small.hidden) < (full.dim, full.hidden)
        assert {full.module(side).split("_")[0] for side in full.sides} == {
            "jax",
            "torch",
        }


def test_table_has_a_line_for_every_side(ratios):
    sides = {"jaxgen": told(), "eager": told(), "pythae": told()}
    seconds = {"jaxgen": [1.0], "eager": [1.5], "pythae": [2.0]}
    head, *lines = ratios.table([ratios.summary(TOY, sides, seconds)])
    assert head.split()[-4:] == ["ratio", "p10", "p90", "fastest"]
    assert [line.split()[1] for line in lines] == list(sides)
    assert [line.split()[4] for line in lines] == ["8.0", "5.3", "4.0"]
    assert [line.split()[5:] for line in lines] == [[], ["1.50"] * 4, ["2.00"] * 4]


@pytest.mark.slow
@pytest.mark.skipif(
    bool(EXTRA), reason=f"{' and '.join(EXTRA)}: the extra `peers` is not installed"
)
@pytest.mark.parametrize("case", ["mlp", "conv", "unet", "gan-residual", "gan-dcgan"])
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
        assert len(set(result["losses"][side])) == (6 if "gan" in case else 3)


@pytest.mark.slow
@pytest.mark.skipif(
    bool(EXTRA), reason=f"{' and '.join(EXTRA)}: the extra `peers` is not installed"
)
@pytest.mark.parametrize(
    ("case", "sides"),
    [
        ("diffusion", ("jaxgen", "ddp", "diffusers")),
        ("sampling", ("jaxgen", "diffusers")),
    ],
)
def test_peers_of_diffusion_compare_networks_of_one_size(case, sides, tmp_path):
    """And their samplers agree, on one exact denoiser and from the same noise."""
    out = tmp_path / "peers.json"
    argv = [sys.executable, FOLDER, case, "--smoke", "--rounds", "2", "--out", out]
    argv += ["--sides", *sides]
    done = subprocess.run([str(a) for a in argv], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (result,) = json.loads(out.read_text())["results"]
    assert set(result["ratios"]) == set(sides) - {"jaxgen"}
    ours = result["num_parameters"]["jaxgen"]
    for side in sides[1:]:
        assert result["num_parameters"][side] == pytest.approx(ours, rel=0.11)
        if case == "sampling":
            samples = result["samples"]
            assert len(set(samples[side])) == 64
            np.testing.assert_allclose(samples[side], samples["jaxgen"], atol=1e-4)


@pytest.mark.slow
@pytest.mark.skipif(
    bool(FLOW_EXTRA),
    reason=f"{' and '.join(FLOW_EXTRA)}: the extra `peers` is not installed",
)
@pytest.mark.parametrize("case", ["spline-8d", "maf-8d", "affine-8d"])
def test_peers_of_flows_are_of_one_size_and_their_densities_right(case, tmp_path):
    out = tmp_path / "peers.json"
    sides = ("jaxgen", "zuko", "nflows", "flowjax", "flowjax-scan")
    argv = [sys.executable, FOLDER, case, "--smoke", "--rounds", "1", "--out", out]
    argv += ["--sides", *sides]
    done = subprocess.run([str(a) for a in argv], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (result,) = json.loads(out.read_text())["results"]
    ours = result["num_parameters"]["jaxgen"]
    for side in sides:
        apart = 0.1 if side.startswith("flowjax") else 0
        assert result["num_parameters"][side] == pytest.approx(ours, rel=apart)
        told, numerical = result["densities"][side]
        assert len(set(told)) == 4
        np.testing.assert_allclose(told, numerical, rtol=1e-4, atol=1e-3)


def test_peers_refuse_an_unknown_case():
    argv = [sys.executable, str(FOLDER), "mpl"]
    done = subprocess.run(argv, capture_output=True, text=True)
    assert done.returncode == 2
    assert "unknown case 'mpl'" in done.stderr
