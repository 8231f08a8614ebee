"""A run may start from another one's averaged parameters."""

import dataclasses

import jax
import numpy as np
import pytest
from doors import TINY, call

from jaxgen import data
from jaxgen._checks import UserError
from jaxgen.train import assembly, session

SHORT = (*TINY, "--steps", "4")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("given") / "run"
    from jaxgen import cli

    with pytest.raises(SystemExit) as stop:
        cli.main(["train", "vae", *SHORT, "--out", str(path)])
    assert not stop.value.code
    return path


def first_state(run, **model):
    """The state before the first update of a run like this one, from it."""
    loaded = session.load(run)
    config = dataclasses.replace(
        loaded.config,
        model=dataclasses.replace(loaded.config.model, **model),
        train=dataclasses.replace(loaded.config.train, init_from=str(run), seed=7),
    )
    dataset = data.open_dataset(config.data)
    (state,) = assembly.first_states([session.bind(config)], dataset)
    return loaded.params, state


def test_the_first_state_is_the_average_of_the_other_run(run, capsys):
    given, state = first_state(run)
    for tree in (state.params, *state.averages):
        for ours, theirs in zip(
            jax.tree.leaves(tree), jax.tree.leaves(given), strict=True
        ):
            np.testing.assert_array_equal(ours, theirs)
    buffers = {id(leaf) for leaf in jax.tree.leaves((state.params, state.averages))}
    assert len(buffers) == 2 * len(jax.tree.leaves(given))  # each is donated once
    num = len(jax.tree.leaves(given))
    assert f"{num} of {num} arrays from {run}" in capsys.readouterr().err


def test_what_does_not_fit_starts_afresh_and_is_named(run, capsys):
    given, state = first_state(run, latent_dim=3)
    assert state.params["vae"]["encoder"]["moments"]["kernel"].shape[1] == 6
    first = state.params["vae"]["encoder"]["Dense_0"]["kernel"]
    np.testing.assert_array_equal(first, given["vae"]["encoder"]["Dense_0"]["kernel"])
    assert "afresh: ['vae']['decoder']['Dense_0']['kernel']" in capsys.readouterr().err


def test_another_network_is_refused(run):
    with pytest.raises(
        UserError, match="--init-from .*: only .* arrays fit this model"
    ):
        first_state(run, hidden=(5, 5, 5))


def test_the_doors_take_it_and_name_a_place_that_is_no_run(run, tmp_path, capsys):
    status, _, err = call(
        capsys, "train", "vae", *SHORT, "--init-from", run, "--out", tmp_path / "r"
    )
    assert status == 0
    assert "arrays from" in err
    argv = ("train", "vae", *SHORT, "--init-from", tmp_path / "no", "--out")
    status, _, err = call(capsys, *argv, tmp_path / "s")
    assert status == 2
    assert "/no" in err
    assert len(err.strip().splitlines()) < 4
    assert not (tmp_path / "s" / "config.json").exists()
