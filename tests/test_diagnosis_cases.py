"""Runs of planted faults, and one of each family, diagnosed from their folders."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from jaxgen import data, models
from jaxgen.evaluate import diagnosis
from jaxgen.models.vae_config import Sampling
from jaxgen.train import config as configs
from jaxgen.train import expost, loop, rundir, session
from jaxgen.train.keeping import Run

CASES = {
    "collapse": {"beta": 20.0},
    "balance": {"sigma": "fixed", "sigma_value": 0.01},
    "variance": {"sigma": "fixed", "sigma_value": 0.25},  # a mean squared error
}
# Few steps of small networks tell that it works.
FAMILIES = {
    "diffusion": {"widths": (8,), "blocks": 1, "attention_side": 0},
    "flow": {"net": "jet", "depth": 1, "width": 8, "layers": 1},
    "gan": {"width": 8, "blocks": 1},
}


def trained(path, name, family, steps, **options) -> Path:
    """A run's folder, without judgement and report."""
    path.mkdir(exist_ok=True)
    config = configs.default(family)
    train = dataclasses.replace(
        config.train, steps=steps, batch_size=64, log_every=max(1, steps // 4)
    )
    config = dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, **options),
        data=data.DataConfig(
            name=name, transform="dequantise" if family == "vae" else None
        ),
        train=train,
    )
    if name != "digits":
        config = dataclasses.replace(config, data=data.DataConfig(name=name))
    dataset = data.open_dataset(config.data)
    bound = session.bind(session.resolve(config, dataset))
    run = rundir.RunFolder(path)
    run.claim()
    run.create(bound.config)
    loop.train([Run(bound, run)], dataset)
    return path


def diagnosed(path, sampling=None, **options):
    loaded = expost.load(path, sampling)
    dataset = data.open_dataset(loaded.config.data)
    found = diagnosis.diagnose(loaded, dataset, **options)
    json.dumps(found.result, allow_nan=False)
    for each in found.result["problems"].values():
        nulls = {n.removesuffix("_se") for n, v in each["figures"].items() if v is None}
        assert nulls == set(each["missing"])
    return found


def wrong(found):
    told = found.result["problems"]
    return [name for name, each in told.items() if each["is_clean"] is False]


@pytest.mark.slow
@pytest.mark.parametrize("problem", CASES)
def test_planted_faults_are_found(problem, tmp_path):
    path = trained(tmp_path / "r", "digits", "vae", 500, **CASES[problem])
    assert wrong(diagnosed(path))[0] == problem


@pytest.mark.slow
def test_a_fitted_prior_makes_a_run_clean_and_without_it_there_is_a_mismatch(tmp_path):
    path = trained(tmp_path / "r", "digits", "vae", 2500, sigma="optimal")
    assert wrong(diagnosed(path)) == ["prior"]
    found = diagnosed(path, Sampling(ex_post="gmm"))
    assert found.result["verdict"] == "clean"
    assert found.result["sampling"]["ex_post"] == "gmm"


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_every_other_family_is_diagnosed_from_its_folder(family, tmp_path):
    of_images = {n for n, f in models.FAMILIES.items() if "images" in f.examples}
    assert {*FAMILIES, "vae"} == of_images  # texts: test_models_masked
    path = trained(tmp_path / "r", "digits", family, 4, **FAMILIES[family])
    found = diagnosed(path, num=64, by="pixels")
    assert found.result["family"] == family
    assert found.picture is not None
    if family == "flow":  # its mathematics is right however little it is trained
        told = found.result["problems"]["log_det"]
        assert told["is_clean"]
        assert abs(told["figures"]["log_det_against_jacobian_nats"]) < 1e-3


@pytest.mark.slow
def test_rows_have_no_spectrum_and_no_picture(tmp_path):
    path = trained(tmp_path / "r", "table:breast_cancer", "vae", 4, hidden=(8,))
    found = diagnosed(path)
    assert found.picture is None
    assert found.result["examples"] == "rows"
    told = found.result["problems"]["variance"]
    assert told["figures"]["spectrum"] is None
    assert told["missing"]["spectrum"] == "rows of a table have no frequencies"
    assert np.isfinite(told["figures"]["ratio"])
