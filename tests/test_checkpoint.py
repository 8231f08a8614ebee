"""A checkpoint is verified before it is trusted."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.train import checkpoint


def state_at(step):
    return {"step": jnp.int32(step), "w": jnp.arange(3000.0) * step, "none": ()}


def target():
    return checkpoint.abstract(jax.eval_shape(lambda: state_at(0)))


def latest(checkpoints):
    step, notes = checkpoints.newest()
    return None if step is None else checkpoints.read(step, target()), notes


@pytest.fixture
def saved(tmp_path):
    checkpoints = checkpoint.Checkpoints(tmp_path / "checkpoints")
    for step in (10, 20):
        checkpoints.save(step, state_at(step))
    checkpoints.wait()
    return tmp_path / "checkpoints"


def test_checkpoints_restore_the_newest_bit_for_bit(saved):
    state, notes = latest(checkpoint.Checkpoints(saved))
    assert notes == []
    np.testing.assert_array_equal(state["w"], state_at(20)["w"])
    assert int(state["step"]) == 20


def test_checkpoints_keep_the_newest(saved):
    checkpoints = checkpoint.Checkpoints(saved, keep=2)
    checkpoints.save(30, state_at(30))
    checkpoints.wait()
    assert checkpoint.steps(saved) == [30, 20]


def test_find_fault_sees_one_flipped_byte_in_any_file(saved):
    path = saved / "20"
    files = [p for p in path.rglob("*") if p.is_file() and p.stat().st_size]
    assert len(files) > 5
    rng = np.random.default_rng(0)
    for file in files:
        original = file.read_bytes()
        for position in {0, len(original) - 1, int(rng.integers(len(original)))}:
            changed = bytearray(original)
            changed[position] ^= 1 << int(rng.integers(8))
            file.write_bytes(changed)
            assert checkpoint.find_fault(path) is not None, (file, position)
        file.write_bytes(original)
    assert checkpoint.find_fault(path) is None


@pytest.mark.parametrize(
    "harm", ["flip", "truncate", "remove", "add", "manifest", "empty"]
)
def test_restore_latest_falls_back_and_says_so(saved, harm):
    path = saved / "20"
    big = max(
        (p for p in path.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size
    )
    content = big.read_bytes()
    if harm == "flip":
        big.write_bytes(content[:50] + bytes([content[50] ^ 1]) + content[51:])
    elif harm == "truncate":
        big.write_bytes(content[:-1])
    elif harm == "remove":
        big.unlink()
    elif harm == "add":
        (path / "d" / "more").write_text("x")
    elif harm == "manifest":
        (path / checkpoint.MANIFEST).unlink()
    else:
        (saved / "30").mkdir()
    wanted = 20 if harm == "empty" else 10
    state, notes = checkpoint.restore(saved, target())
    assert int(state["step"]) == wanted
    state, notes = latest(checkpoint.Checkpoints(saved))
    assert int(state["step"]) == wanted
    assert "is not valid" in notes[0]
    # What was set aside is met only once, and training passes that step again.
    checkpoints = checkpoint.Checkpoints(saved)
    _, notes = latest(checkpoints)
    assert notes == []
    checkpoints.save(20, state_at(20))
    checkpoints.wait()
    assert checkpoint.find_fault(path) is None


def test_read_errors_are_not_taken_for_damage(saved, monkeypatch):
    def refuse(path):
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(checkpoint, "_digests", refuse)
    with pytest.raises(checkpoint.CheckpointError, match="Too many open files"):
        latest(checkpoint.Checkpoints(saved))
    assert checkpoint.steps(saved) == [20, 10]


def test_read_refuses_another_model(saved):
    """In a process of its own: Orbax leaves threads behind where it refuses."""
    code = (
        "import jax.numpy as jnp; from pathlib import Path; "
        "from jaxgen.train import checkpoint as c; "
        "t = c.abstract({'step': jnp.int32(0), 'w': jnp.zeros(7), 'none': ()}); "
        f"s = c.Checkpoints(Path({str(saved)!r})); "
        "s.read(s.newest()[0], t)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "CheckpointError" in done.stderr
    assert "does not fit the model of config.json" in done.stderr
    assert checkpoint.steps(saved) == [20, 10]


def test_newest_can_be_asked_for_an_older_one(saved):
    checkpoints = checkpoint.Checkpoints(saved)
    assert checkpoints.newest(at_most=19) == (10, [])
    assert checkpoints.newest(at_most=9) == (None, [])
    assert checkpoint.steps(saved) == [20, 10]


def test_unfinished_checkpoints_are_removed_and_damaged_ones_kept(saved):
    (saved / "20" / checkpoint.MANIFEST).unlink()
    latest(checkpoint.Checkpoints(saved))
    assert {p.name for p in saved.iterdir()} == {"10"}
    (saved / "10" / "more").write_text("x")
    latest(checkpoint.Checkpoints(saved))
    assert {p.name for p in saved.iterdir()} == {"10.damaged"}


def test_restore_without_any_valid_checkpoint_says_so(saved):
    for step in (10, 20):
        (saved / str(step) / checkpoint.MANIFEST).unlink()
    with pytest.raises(checkpoint.CheckpointError, match="no valid checkpoint.*20.*10"):
        checkpoint.restore(saved, target())
    assert latest(checkpoint.Checkpoints(saved))[0] is None


def test_save_copies_what_is_donated_next(tmp_path):
    checkpoints = checkpoint.Checkpoints(tmp_path / "c")
    double = jax.jit(lambda s: jax.tree.map(lambda a: a * 2, s), donate_argnums=0)
    state = state_at(1)
    for step in range(1, 6):
        checkpoints.save(step, jax.tree.map(jnp.copy, state))
        for _ in range(20):
            state = double(state)
        state = state_at(1)
        checkpoints.wait()
        restored, _ = checkpoint.restore(tmp_path / "c", target())
        np.testing.assert_array_equal(restored["w"], state_at(1)["w"])


def test_save_reports_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "c").write_text("a file")
    checkpoints = checkpoint.Checkpoints(tmp_path / "c")
    with pytest.raises(checkpoint.CheckpointError, match="cannot write checkpoint"):
        checkpoints.save(1, state_at(1))
        checkpoints.wait()
    assert os.path.isfile(tmp_path / "c")
