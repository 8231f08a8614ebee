"""Stored averages: kept sparse, damaged files left out, another width rebuilt."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_loop

from jaxgen import averaging
from jaxgen._checks import RunError, UserError
from jaxgen.train import session, snapshots

WIDTHS = (0.05, 0.1)
STEPS, EVERY = 400, 20


def walk(num):
    """Parameters of two leaves after each update."""
    rng = np.random.default_rng(0)
    steps = 1e-2 * np.cumsum(rng.normal(size=(num, 7)) + 0.1, axis=0)
    return [{"net": {"w": s[:6].reshape(2, 3), "b": s[6]}} for s in steps]


def history(width):
    """The average of a width after each update."""
    gamma, average, record = averaging.width_to_gamma(width), None, []
    for step, params in enumerate(walk(STEPS), start=1):
        weight = float(averaging.power_weight(step, gamma))
        average = params if average is None else average
        average = jax.tree.map(
            lambda a, p, w=weight: np.float64(a + w * (p - a)), average, params
        )
        record.append(average)
    return record


@pytest.fixture(scope="module")
def kept():
    return [history(width) for width in WIDTHS]


def as_stored(tree):
    return jax.tree.map(jnp.float32, tree)


@pytest.fixture
def folder(tmp_path, kept):
    """What a run of STEPS updates leaves."""
    path = tmp_path / "averages"
    for step in range(EVERY, STEPS + 1, EVERY):
        averages = [as_stored(record[step - 1]) for record in kept]
        snapshots.write(path, step, WIDTHS, averages, every=EVERY)
    return path


def rebuild(folder, kept, width=0.08):
    newest = [as_stored(record[-1]) for record in kept]
    return snapshots.rebuild(folder, STEPS, WIDTHS, newest, width)


def distance(tree, other):
    pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True)
    return max(float(np.max(np.abs(a - b))) for a, b in pairs)


def test_rebuild_is_the_average_that_was_not_kept(folder, kept):
    params, notes = rebuild(folder, kept)
    exact = history(0.08)[-1]
    apart = distance(kept[0][-1], kept[1][-1])
    assert distance(params, exact) < 3e-3 * apart
    assert len(notes) == 1
    assert "rebuilt from 20 moments of 2 averages, to 0.19 %" in notes[0]
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(np.float32)}


def test_rebuild_leaves_a_damaged_file_out_and_says_so(folder, kept):
    path = folder / "200.npz"
    content = bytearray(path.read_bytes())
    content[content.find(b"NUMPY") + 125] ^= 1  # a bit of the numbers
    path.write_bytes(content)
    (folder / "100.npz").write_bytes(b"no archive")
    (folder / "240.npz").write_bytes((folder / "240.npz").read_bytes()[:700])
    params, notes = rebuild(folder, kept)
    assert [n.split(":")[0] for n in notes[:-1]] == [
        f"{folder / name}.npz is left out" for name in ("100", "200", "240")
    ]
    assert "is damaged" in notes[1]
    assert "17 moments" in notes[-1]
    apart = distance(kept[0][-1], kept[1][-1])
    assert distance(params, history(0.08)[-1]) < 1e-2 * apart


def test_find_fault_sees_every_bit_that_matters(folder, kept):
    """Each byte changed: either it is told, or the numbers are the same."""
    path, like = folder / "20.npz", as_stored(kept[0][0])
    content = path.read_bytes()
    with np.load(path) as file:
        numbers = {name: file[name] for name in file.files}
    told = 0
    for place in range(len(content)):
        path.write_bytes(
            content[:place] + bytes([content[place] ^ 64]) + content[place + 1 :]
        )
        if snapshots.find_fault(path, WIDTHS, like) is not None:
            told += 1
            continue
        with np.load(path, allow_pickle=False) as file:
            for name, array in numbers.items():
                np.testing.assert_array_equal(file[name], array)
    assert told > len(content) / 2


def test_find_fault_names_what_has_another_form(folder, kept):
    wider = jax.tree.map(lambda a: np.stack([a, a]), kept[0][0])
    assert "has another shape" in snapshots.find_fault(folder / "20.npz", WIDTHS, wider)
    assert "cannot be read" in snapshots.find_fault(
        folder / "20.npz", (0.2,), kept[0][0]
    )


def test_rebuild_ignores_what_is_later_than_the_checkpoint(folder, kept):
    expected, _ = rebuild(folder, kept)
    later = [jax.tree.map(lambda a: a + 1e3, as_stored(r[-1])) for r in kept]
    snapshots.write(folder, STEPS + EVERY, WIDTHS, later, every=EVERY)
    assert distance(rebuild(folder, kept)[0], expected) == 0
    snapshots.drop_after(folder, STEPS)
    assert max(snapshots.stored(folder)) == STEPS


@pytest.mark.parametrize(
    ("width", "widths", "message"),
    [
        (0.08, (), "has stored no averages: it was trained without --ema-widths"),
        (0.28, WIDTHS, r"--ema-width must be in \(0, 0.28\), got 0.28"),
        (0.27, WIDTHS, "20 moments of 2 averages at 0.05, 0.1 come no nearer .* 1.%"),
    ],
)
def test_rebuild_refuses_what_it_cannot_do(folder, kept, width, widths, message):
    newest = [as_stored(record[-1]) for record in kept]
    with pytest.raises(UserError, match=message):
        snapshots.rebuild(folder, STEPS, widths, newest[: len(widths)], width)


def test_rebuild_with_every_file_lost_says_how_far_it_is(tmp_path, kept):
    with pytest.raises(UserError, match="1 moments of 2 averages .* nearer"):
        rebuild(tmp_path / "none", kept, 0.02)


@pytest.mark.parametrize("last", [7, 400, 4001, 40_003])
def test_thinned_keeps_few_and_spreads_them_over_the_run(last):
    steps = []
    for step in [*range(10, last, 10), last]:
        steps = snapshots.thinned([*steps, step], 10)
        assert len(steps) <= snapshots.MAX_FILES
        assert steps[-1] == step
    gaps = np.diff([0, *steps[:-1]])
    assert len(set(gaps)) <= 1
    assert len(steps) > snapshots.MAX_FILES // 2 or last < 400


def test_thinned_keeps_the_steps_of_an_earlier_interval_where_there_is_room():
    assert snapshots.thinned([10, 20, 30, 75], 15) == [10, 20, 30, 75]
    assert snapshots.thinned([*range(7, 281, 7), 300], 100) == [300]


def test_write_says_in_one_line_that_it_cannot(tmp_path, kept):
    (tmp_path / "file").write_text("")
    averages = [as_stored(record[0]) for record in kept]
    with pytest.raises(RunError, match="cannot make .*file/averages: Not a directory"):
        snapshots.write(tmp_path / "file" / "averages", 1, WIDTHS, averages, every=1)


@pytest.mark.slow
def test_a_run_rebuilds_what_another_run_has_tracked(tmp_path):
    """Two runs of one seed: of one 0.05 and 0.1 are stored, of the other 0.08 kept."""
    from jaxgen import data

    digits = data.open_dataset(test_loop.TINY.data)
    loaded = {}
    for name, widths in {"two": WIDTHS, "one": (0.08,)}.items():
        train = dataclasses.replace(
            test_loop.TINY.train,
            steps=40,
            checkpoint_every=2,
            warmup=0.0,
            learning_rate=0.02,
            ema_widths=widths,
        )
        config = dataclasses.replace(test_loop.TINY, train=train)
        test_loop.run_in(tmp_path / name, digits, config)
        loaded[name] = session.load(tmp_path / name)
    rebuilt = session.load(tmp_path / "two", ema_width=0.08)
    away = distance(loaded["two"].params, loaded["one"].params)
    # Of 40 updates, the first of which move most; measured: 0.16.
    assert distance(rebuilt.params, loaded["one"].params) < 0.25 * away
    assert "rebuilt from 20 moments" in rebuilt.notes[-1]
    assert len(list((tmp_path / "two" / "averages").iterdir())) == 20
