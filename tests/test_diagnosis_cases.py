"""Runs of planted faults, and one of each family, diagnosed from their folders."""

import json

import pytest
from doors import call

from jaxgen.evaluate import diagnosis

SIZES = ["--transform", "dequantise", "--steps", "1200", "--hidden", "128"]
CASES = {
    "collapse": ["--beta", "20"],
    "balance": ["--sigma", "fixed", "--sigma-value", "0.01"],
    "variance": ["--sigma", "fixed", "--sigma-value", "0.25"],  # a mean squared error
    "prior": ["--sigma", "optimal"],  # whose mend is a prior that is fitted
}
# One row of noise is much like another: few steps and examples tell that it works.
FAMILIES = {
    "diffusion": ["--widths", "8", "--blocks", "1", "--attention-side", "0"],
    "flow": ["--depth", "2", "--width", "16", "--layers", "1"],
    "gan": ["--width", "8", "--blocks", "1"],
}
ROWS = ["--data", "table:wine", "--hidden", "8", "--latent-dim", "2", "--steps", "12"]


def diagnosed(capsys, path, *argv):
    status, out, err = call(capsys, "diagnose", path, "--json", *argv)
    assert status == 0, err
    return json.loads(out)


@pytest.mark.slow
def test_planted_faults_are_found_and_a_mended_run_is_clean(tmp_path, capsys):
    for problem, argv in CASES.items():
        path = tmp_path / problem
        status, _, err = call(capsys, "train", "vae", *SIZES, *argv, "--out", path)
        assert status == 0, err
        told = diagnosed(capsys, path)
        wrong = [n for n, f in told["problems"].items() if f["is_clean"] is False]
        assert wrong[0] == problem, told["verdict"]
        if problem == "prior":  # the others have consequences
            assert wrong == [problem]
    told = diagnosed(capsys, tmp_path / "prior", "--ex-post", "gmm")
    assert told["verdict"] == "clean"
    assert told["sampling"]["ex_post"] == "gmm"


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_every_other_family_is_diagnosed_from_its_folder(family, tmp_path, capsys):
    assert {*FAMILIES, "vae"} == set(diagnosis.DIAGNOSES)
    argv = [*FAMILIES[family], "--steps", "6", "--batch-size", "16", "--log-every", "2"]
    path = tmp_path / "run"
    status, _, err = call(capsys, "train", family, *argv, "--out", path)
    assert status == 0, err
    told = diagnosed(capsys, path, "--num", "64", "--features", "pixels")
    assert told["family"] == family
    for found in told["problems"].values():
        nulls = {n for n, v in found["figures"].items() if v is None}
        assert nulls == set(found["missing"])
    assert (path / "diagnosis.png").is_file()


@pytest.mark.slow
def test_rows_have_no_spectrum_and_no_picture(tmp_path, capsys):
    path = tmp_path / "run"
    status, _, err = call(capsys, "train", "vae", *ROWS, "--out", path)
    assert status == 0, err
    status, out, err = call(capsys, "diagnose", path)
    assert status == 0, err
    told = json.loads((path / "diagnosis.json").read_text())
    assert told["examples"] == "rows"
    found = told["problems"]["variance"]
    assert found["figures"]["spectrum"] is None
    assert found["missing"]["spectrum"] == "rows of a table have no frequencies"
    assert found["figures"]["ratio"] is not None
    assert "none: rows of a table have no frequencies" in out
    assert not (path / "diagnosis.png").exists()
