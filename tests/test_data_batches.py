import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxgen._checks import UserError
from jaxgen.data import (
    ArraySource,
    batch_indices,
    check_batch_size,
    eval_batches,
    stream,
)
from jaxgen.data.sources import SubsetSource, fixed_order, hold_out, spread


def _source(num: int, *, label: bool = True) -> ArraySource:
    x = np.arange(num, dtype=np.uint8).reshape(-1, 1, 1, 1)
    return ArraySource(x, np.arange(num, dtype=np.int32) if label else None)


class _LazySource(SubsetSource):
    """Not an ArraySource, so that `stream` takes the path of large sets."""

    def __init__(self, num: int):
        super().__init__(_source(num), np.arange(num))


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(-(2**63), 2**63),
    num_examples=st.integers(1, 50),
    batch_size=st.integers(1, 120),
    start_epoch=st.integers(0, 1000),
)
def test_batch_indices_every_epoch_is_a_permutation(
    seed, num_examples, batch_size, start_epoch
):
    first = start_epoch * num_examples
    last = first + 2 * num_examples  # two whole epochs, wherever batches begin
    steps = range(first // batch_size, (last - 1) // batch_size + 1)
    sequence = np.concatenate(
        [
            batch_indices(seed, t, num_examples=num_examples, batch_size=batch_size)
            for t in steps
        ]
    )
    offset = first - steps[0] * batch_size
    epochs = sequence[offset : offset + 2 * num_examples].reshape(2, num_examples)
    np.testing.assert_array_equal(
        np.sort(epochs, axis=1), np.tile(np.arange(num_examples), (2, 1))
    )


def test_spread_reaches_both_ends_evenly():
    np.testing.assert_array_equal(spread(1000, 5), [0, 249, 499, 749, 999])
    np.testing.assert_array_equal(spread(3, 3), [0, 1, 2])


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 500), min_size=2, max_size=8), st.integers(0, 3))
def test_batch_indices_depends_on_seed_and_step_only(steps, seed):
    def ask(step):
        return batch_indices(seed, step, num_examples=37, batch_size=10).tolist()

    assert [ask(t) for t in steps] == [ask(t) for t in steps[::-1]][::-1]


def test_batch_indices_changes_with_seed_and_epoch():
    def epoch(seed, number):
        return batch_indices(seed, number, num_examples=64, batch_size=64).tolist()

    orders = [epoch(seed, number) for seed in (0, 1, -1) for number in (0, 1)]
    assert len({tuple(order) for order in orders}) == 6


def test_batch_indices_are_the_same_in_every_release():
    indices = batch_indices(7, 3, num_examples=10, batch_size=6)
    assert indices.tolist() == [0, 7, 6, 7, 8, 4]


def test_batch_indices_of_batch_larger_than_the_set():
    indices = batch_indices(0, 1, num_examples=4, batch_size=11)  # places 11..21
    assert np.bincount(indices, minlength=4).sum() == 11
    assert sorted(indices[1:5]) == sorted(indices[5:9]) == [0, 1, 2, 3]


def test_batch_indices_first_place_is_uniform():
    firsts = [
        int(batch_indices(s, 0, num_examples=5, batch_size=1)[0]) for s in range(2000)
    ]
    counts = np.bincount(firsts, minlength=5)  # 400 each, standard deviation 18
    assert np.abs(counts - 400).max() < 5 * 18


def test_batch_indices_says_what_is_wrong():
    with pytest.raises(ValueError, match="batch_size must be positive, got 0"):
        batch_indices(0, 0, num_examples=3, batch_size=0)
    with pytest.raises(ValueError, match="num_examples must be positive, got 0"):
        batch_indices(0, 0, num_examples=0, batch_size=1)
    with pytest.raises(ValueError, match="step must not be negative, got -1"):
        batch_indices(0, -1, num_examples=3, batch_size=1)


def test_fixed_order_is_read_only():
    with pytest.raises(ValueError, match="read-only"):
        fixed_order(0, 0, 5)[0] = 3


@pytest.mark.parametrize("make", [_source, _LazySource])
@pytest.mark.parametrize("num_threads", [None, 1, 5])
def test_stream_gives_the_batches_of_batch_indices(make, num_threads):
    batches = list(
        stream(
            make(30),
            seed=3,
            batch_size=7,
            start_step=4,
            num_steps=12,
            num_threads=num_threads,
        )
    )
    assert len(batches) == 12
    for step, batch in enumerate(batches, start=4):
        expected = batch_indices(3, step, num_examples=30, batch_size=7)
        np.testing.assert_array_equal(batch["label"], expected)
        np.testing.assert_array_equal(batch["x"].reshape(-1), expected)
        assert "index" not in batch


def test_stream_resumed_is_stream_continued():
    whole = list(stream(_LazySource(30), seed=0, batch_size=7, num_steps=9))
    rest = list(
        stream(_LazySource(30), seed=0, batch_size=7, start_step=5, num_steps=4)
    )
    for a, b in zip(whole[5:], rest, strict=True):
        np.testing.assert_array_equal(a["x"], b["x"])


def test_stream_rows_of_all_processes_make_the_global_batch():
    def ask(rows):
        return next(stream(_source(30), seed=0, batch_size=8, num_steps=1, rows=rows))

    parts = [ask(slice(0, 4)), ask(slice(4, 8))]
    joined = {k: np.concatenate([part[k] for part in parts]) for k in parts[0]}
    np.testing.assert_array_equal(joined["index"], np.arange(8))
    assert joined["index"].dtype == np.int32
    np.testing.assert_array_equal(joined["x"], ask(slice(None))["x"])


def _prefetch_threads() -> int:
    return sum("grain-prefetch" in thread.name for thread in threading.enumerate())


def _wait_for_no_threads() -> None:
    deadline = time.monotonic() + 10
    while _prefetch_threads() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert _prefetch_threads() == 0


def test_stream_closed_early_ends_its_threads():
    _wait_for_no_threads()
    batches = stream(_LazySource(30), seed=0, batch_size=7, num_steps=10**9)
    next(batches)
    assert _prefetch_threads() > 0
    batches.close()
    _wait_for_no_threads()


def test_stream_exhausted_ends_its_threads():
    assert len(list(stream(_source(30), seed=0, batch_size=7, num_steps=3))) == 3
    _wait_for_no_threads()


def test_stream_reads_no_further_ahead_than_asked():
    class Counting(_LazySource):
        taken = 0

        def take(self, indices):
            self.taken += 1
            return super().take(indices)

    source = Counting(30)
    batches = stream(
        source, seed=0, batch_size=7, num_steps=1000, num_threads=2, num_prefetched=4
    )
    next(batches)
    time.sleep(0.2)
    batches.close()
    assert 1 <= source.taken <= 6


def test_stream_passes_errors_on_unchanged():
    class Broken(_LazySource):
        def take(self, indices):
            raise UserError("record 5 is corrupt")

    with pytest.raises(UserError) as caught:
        next(stream(Broken(30), seed=0, batch_size=7, num_steps=2))
    assert str(caught.value) == "record 5 is corrupt"
    _wait_for_no_threads()


@pytest.mark.parametrize("batch_size", [1, 4, 5, 10, 16])
def test_eval_batches_every_example_exactly_once(batch_size):
    batches = list(eval_batches(_source(10), batch_size))
    assert all(batch["x"].shape == (batch_size, 1, 1, 1) for batch in batches)
    assert all(batch["mask"].dtype == np.float32 for batch in batches)
    mask = np.concatenate([batch["mask"] for batch in batches])
    for name in ("label", "index"):
        values = np.concatenate([batch[name] for batch in batches])
        np.testing.assert_array_equal(values[mask == 1], np.arange(10))
        assert (values[mask == 0] == 9).all()
    assert mask.sum() == 10
    assert (np.diff(mask) <= 0).all()


def test_eval_batches_of_chosen_examples_keep_their_numbers():
    batches = list(eval_batches(_source(10), 2, chosen=np.array([1, 4, 9])))
    for name in ("label", "index"):
        assert [b[name].tolist() for b in batches] == [[1, 4], [9, 9]]
    assert [b["mask"].tolist() for b in batches] == [[1, 1], [1, 0]]


def test_array_source_take_copies():
    source = _source(4)
    source.take(np.array([1, 2]))["x"][:] = 77
    assert source.arrays["x"].max() == 3


def test_array_source_says_what_is_wrong():
    with pytest.raises(ValueError, match=r"float32 \[N, C\], got float64 \(2, 3\)"):
        ArraySource(np.zeros((2, 3)))
    with pytest.raises(ValueError, match=r"label must have shape \(2,\)"):
        ArraySource(np.zeros((2, 1, 1, 1), np.uint8), np.zeros(3))
    for condition in (np.zeros((2, 1, 2, 3), np.uint8), np.zeros((2, 1, 1, 3))):
        with pytest.raises(
            ValueError, match=r"condition must be uint8 \[2, 1, 1, 'K'\]"
        ):
            ArraySource(np.zeros((2, 1, 1, 1), np.uint8), condition=condition)


def test_array_source_takes_conditions():
    x = np.arange(12, dtype=np.uint8).reshape(3, 2, 2, 1)
    source = ArraySource(x, condition=np.repeat(x, 2, axis=-1) + 1)
    taken = source.take(np.array([2, 0]))
    np.testing.assert_array_equal(taken["condition"][..., 1:], taken["x"] + 1)


def test_hold_out_is_disjoint_complete_and_fixed():
    for source in (_source(50), _LazySource(50)):
        train, test, note = hold_out(source, where="here")
        parts = [s.take(np.arange(s.num_examples))["label"] for s in (train, test)]
        assert (len(parts[0]), len(parts[1])) == (45, 5)
        assert sorted(np.concatenate(parts)) == list(range(50))
        assert parts[1].tolist() == [6, 26, 28, 29, 32]
        assert "10 % of train (5 images) held out by a fixed seed" in note
    with pytest.raises(
        UserError, match="here: got 1 readable image, expected at least"
    ):
        hold_out(_source(1), where="here")


def test_check_batch_size_says_what_is_wrong():
    check_batch_size(_source(10), 10)
    for batch_size in (0, 11):
        with pytest.raises(
            UserError, match=f"size {batch_size}: expected 1 to 10, the"
        ):
            check_batch_size(_source(10), batch_size)
