import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxgen.data import ArraySource, prepare, static_binarise, transforms
from jaxgen.data.config import IMAGE_TRANSFORMS
from jaxgen.data.sources import SubsetSource

KEY = jax.random.key(3)


def _levels(num: int) -> np.ndarray:
    """`[num, 16, 16, 1]`: in every image each of the 256 levels once."""
    return np.tile(np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1), (num, 1, 1, 1))


@pytest.mark.parametrize("transform", IMAGE_TRANSFORMS)
@pytest.mark.parametrize("shape", [(8, 8, 1), (3, 5, 3)])
def test_prepare_jit_equals_eager_and_keeps_the_rest(transform, shape):
    x = np.random.default_rng(0).integers(0, 256, (6, *shape), dtype=np.uint8)
    batch = {"x": x, "label": np.arange(6), "mask": np.ones(6, np.float32)}
    eager = prepare(batch, KEY, transform=transform)
    jitted = jax.jit(prepare, static_argnames="transform")(
        batch, KEY, transform=transform
    )
    assert eager["x"].dtype == jnp.float32
    assert eager["x"].shape == x.shape
    assert set(eager) == {"x", "label", "mask"}
    np.testing.assert_array_equal(eager["x"], jitted["x"])
    np.testing.assert_array_equal(jitted["label"], batch["label"])


@pytest.mark.parametrize("transform", ["binarise", "dequantise"])
def test_prepare_does_not_depend_on_how_the_batch_is_split(transform):
    batch = {"x": np.random.default_rng(1).integers(0, 256, (8, 5, 5, 3), np.uint8)}
    whole = prepare(batch, KEY, transform=transform)["x"]
    index = np.arange(8, dtype=np.int32)
    shuffled = np.array([5, 0, 7, 2, 1, 6, 3, 4])
    for rows in (slice(0, 4), slice(4, 8), shuffled):
        part = {"x": batch["x"][rows], "index": index[rows]}
        np.testing.assert_array_equal(
            prepare(part, KEY, transform=transform)["x"], whole[rows]
        )


@pytest.mark.parametrize("transform", ["binarise", "dequantise"])
def test_prepare_noise_differs_between_examples_keys_and_pixels(transform):
    x = np.full((2, 16, 16, 1), 128, np.uint8)
    a = np.asarray(prepare({"x": x}, KEY, transform=transform)["x"])
    b = np.asarray(prepare({"x": x}, jax.random.key(4), transform=transform)["x"])
    assert not np.array_equal(a[0], a[1])
    assert not np.array_equal(a, b)
    halves = a[0].reshape(-1, 2)  # the two halves of each random word
    assert abs(np.corrcoef(halves.T)[0, 1]) < 5 / np.sqrt(len(halves))


def test_prepare_levels_is_k_over_255():
    x = prepare({"x": _levels(1)}, KEY, transform="levels")["x"]
    np.testing.assert_allclose(x.reshape(-1), np.arange(256) / 255, rtol=1e-7)


def test_prepare_binarise_has_mean_k_over_255():
    num = 4000
    drawn = prepare({"x": _levels(num)}, KEY, transform="binarise")["x"]
    drawn = np.asarray(drawn).reshape(num, 256)
    assert set(np.unique(drawn)) == {0.0, 1.0}
    assert drawn[:, 0].max() == 0.0
    assert drawn[:, 255].min() == 1.0
    p = np.arange(1, 255) / 255
    error = (drawn.mean(0)[1:255] - p) / np.sqrt(p * (1 - p) / num)
    assert np.abs(error).max() < 5  # 254 z-scores
    assert abs((error**2).mean() - 1) < 5 * np.sqrt(2 / 254)  # their variance is 1


def test_prepare_dequantise_is_uniform_within_its_level():
    x = prepare({"x": _levels(200)}, KEY, transform="dequantise")["x"]
    scaled = np.asarray(x, np.float64) * 256
    np.testing.assert_array_equal(np.floor(scaled), _levels(200))
    assert scaled.min() >= 0
    assert scaled.max() < 256
    inside = (scaled - np.floor(scaled)).reshape(-1)
    assert stats.kstest(inside, "uniform").pvalue > 1e-3
    bottom = (scaled - np.floor(scaled)).reshape(200, 256)
    for level in (0, 255):
        assert stats.kstest(bottom[:, level], "uniform").pvalue > 1e-3


def test_prepare_dequantise_largest_noise_stays_below_the_next_level(monkeypatch):
    largest = lambda key, index, shape: jnp.full((len(index), *shape), 65_535)  # noqa: E731
    monkeypatch.setattr(transforms, "_sixteen_bits", largest)
    x = prepare({"x": _levels(1)}, KEY, transform="dequantise")["x"]
    np.testing.assert_array_equal(np.floor(np.asarray(x) * 256), _levels(1))
    assert x.max() < 1


def test_prepare_static_reads_0_and_255():
    x = np.array([0, 255, 255, 0], np.uint8).reshape(1, 2, 2, 1)
    out = prepare({"x": x}, KEY, transform="static")["x"]
    assert out.reshape(-1).tolist() == [0.0, 1.0, 1.0, 0.0]


def test_prepare_says_what_is_wrong():
    with pytest.raises(ValueError, match="unknown transform 'binarize'; did you mean"):
        prepare({"x": _levels(1)}, KEY, transform="binarize")
    with pytest.raises(
        ValueError, match="x must be uint8 for transform .*, got float32"
    ):
        prepare({"x": jnp.zeros((1, 2, 2, 1))}, KEY, transform="levels")


def test_static_binarise_is_fixed_and_belongs_to_the_example():
    whole = ArraySource(_levels(300), np.arange(300))
    fixed = static_binarise(whole)
    assert isinstance(fixed, ArraySource)
    lazy = static_binarise(SubsetSource(whole, np.arange(300)))
    for indices in (np.array([7, 299, 0, 7]), np.arange(300)):
        batch = fixed.take(indices)
        np.testing.assert_array_equal(lazy.take(indices)["x"], batch["x"])
        np.testing.assert_array_equal(batch["label"], indices)
    x = fixed.arrays["x"]
    np.testing.assert_array_equal(static_binarise(whole).take(np.arange(300))["x"], x)
    assert set(np.unique(x)) == {0, 255}
    assert not np.array_equal(x[0], x[1])
    np.testing.assert_array_equal(static_binarise(fixed).take(np.arange(300))["x"], x)
    ones = (x.reshape(300, 256) == 255).mean(0)
    p = np.arange(256) / 255
    assert np.abs(ones - p).max() < 5 * np.sqrt(0.25 / 300)
    assert (ones[0], ones[255]) == (0, 1)


def test_static_binarise_in_blocks_equals_one_by_one():
    num = transforms._BLOCK + 3
    source = ArraySource(np.full((num, 2, 2, 1), 128, np.uint8))
    x = static_binarise(source).take(np.arange(num))["x"]
    lazy = static_binarise(SubsetSource(source, np.arange(num)))
    last = np.arange(num - 5, num)
    np.testing.assert_array_equal(lazy.take(last)["x"], x[last])
