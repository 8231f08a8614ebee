"""What texts cost without a network: counts that are probabilities, and gzip."""

import gzip
import math

import numpy as np
import pytest

from jaxgen.data import texts
from jaxgen.evaluate import baselines, features

RNG = np.random.default_rng(0)


def some_text(num=3000):
    """Bytes of a chain of five states, so that contexts tell something."""
    table = RNG.dirichlet(np.full(5, 0.3), size=5)
    x = [0]
    for _ in range(num - 1):
        x.append(RNG.choice(5, p=table[x[-1]]))
    return np.array(x, np.uint8) + np.uint8(97)


@pytest.mark.parametrize("order", [1, 2, 5])
def test_the_probabilities_of_all_next_bytes_sum_to_one(order):
    text = some_text()
    model = baselines.count(text, order=order)
    contexts = [text[500:507], text[:7], np.frombuffer(b"zzzzzzz", np.uint8)]
    contexts.append(np.frombuffer(b"abzabca", np.uint8))
    for context in contexts:
        windows = np.tile(np.append(context, 0), (256, 1)).astype(np.uint8)
        windows[:, -1] = np.arange(256)
        p = np.exp(baselines.log_prob(model, windows)[:, -1])
        assert p.sum() == pytest.approx(1, abs=1e-12)
        assert p.min() > 0


def test_the_first_bytes_of_a_window_have_shorter_contexts():
    text = some_text()
    model = baselines.count(text, order=5)
    whole = baselines.log_prob(model, text[None, :40])[0]
    for start in (3, 17):
        part = baselines.log_prob(model, text[None, start:40])[0]
        np.testing.assert_allclose(part[4:], whole[start + 4 :], rtol=1e-12)
        assert not np.allclose(part[:4], whole[start : start + 4])
    alone = baselines.log_prob(model, text[None, :1])[0, 0]
    share, kinds = np.mean(text == text[0]), len(np.unique(text))
    num = len(text)
    assert math.exp(alone) == pytest.approx(
        (share * num + kinds / 256) / (num + kinds), rel=1e-12
    )


def test_witten_and_bell_by_hand():
    """Of "abab" after a: b twice, one kind; the byte b is half of the text, of two kinds."""
    model = baselines.count(np.frombuffer(b"abab", np.uint8), order=2)
    got = np.exp(baselines.log_prob(model, np.frombuffer(b"ab", np.uint8)[None]))[0]
    single = (2 + 2 / 256) / (4 + 2)
    assert got[0] == pytest.approx(single)
    assert got[1] == pytest.approx((2 + 1 * single) / (2 + 1))


def test_counts_come_near_the_entropy_of_a_chain():
    """A chain that always steps on costs nothing; fresh uniform bytes cost eight bits."""
    steps = (np.arange(20_000) % 7).astype(np.uint8)
    model = baselines.count(steps, order=5)
    bits = -baselines.log_prob(model, steps[None, :700])[0, 4:].mean() / math.log(2)
    assert bits < 0.01
    noise = RNG.integers(0, 256, 20_000).astype(np.uint8)
    fresh = RNG.integers(0, 256, (1, 5000)).astype(np.uint8)
    bits = -baselines.log_prob(baselines.count(noise, order=1), fresh).mean()
    assert bits / math.log(2) == pytest.approx(8, abs=0.05)


def test_a_text_is_told_by_gzip_and_by_counts(tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes(some_text(20_000).tobytes())
    told = baselines.of_text(f"text:{path}", 50)
    parts, _, _ = texts.read(f"text:{path}")
    test = parts.test.tobytes()
    assert told["gzip_bits_per_byte"] == 8 * len(gzip.compress(test, 9, mtime=0)) / 2000
    assert told["gzip_after_train_bits_per_byte"] < told["gzip_bits_per_byte"]
    assert 0 < told["five_gram_bits_per_byte"] < told["gzip_bits_per_byte"]
    model = baselines.count(parts.train, order=5)
    windows = parts.test.reshape(40, 50)
    bits = -baselines.log_prob(model, windows).mean() / math.log(2)
    assert told["five_gram_bits_per_byte"] == pytest.approx(bits, rel=1e-12)
    assert told["five_gram_bits_per_byte_se"] < 0.2


def test_ngram_features_are_roots_of_shares_and_tell_texts_apart():
    by = features.ngrams()
    x = some_text(6000).reshape(60, 100)
    made = by.apply(x)
    assert made.shape == (60, features.NUM_BINS)
    np.testing.assert_allclose(np.square(made).sum(axis=1), 1, rtol=1e-12)
    np.testing.assert_array_equal(by.apply(x[7:9]), made[7:9])
    forth, back = (np.frombuffer(t * 9, np.uint8)[None] for t in (b"abc", b"cba"))
    assert np.abs(by.apply(forth) - by.apply(back)).max() > 0.3
    shuffled = RNG.permuted(x, axis=1)  # the same bytes, in another order
    gap = np.linalg.norm(made.mean(0) - by.apply(shuffled).mean(0))
    noise = np.linalg.norm(made[:30].mean(0) - made[30:].mean(0))
    assert gap > 2 * noise
