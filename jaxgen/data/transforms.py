"""From the 256 levels of a uint8 image, a row or a text to what a model is trained on."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen._checks import check_in
from jaxgen.data.config import TRANSFORMS
from jaxgen.data.sources import ArraySource, Source

STATIC_SEED = 20_080_101
_BLOCK = 4096


def prepare(
    batch: Mapping[str, Any], key: jax.Array, *, transform: str | None
) -> dict[str, Any]:
    """Turns `batch["x"]` from uint8 to float32; pure, to be called inside the update.

    "none": rows of a table, float32, pass unchanged. "bytes": those of a text, as int32.
    The others are for images.

    "levels": k / 255. "binarise": a fresh draw of Bernoulli(k / 255); level 0 always
    gives 0 and level 255 always 1, and in between the probability is off by at most
    1 / 131072. "static": images that `static_binarise` has made, as 0 and 1.
    "dequantise": (k + u) / 256 in [0, 1), where u is one of the 65536 numbers
    0, 1/65536, ..., so that every value is exact in float32 and floor(256 x) is k.

    The noise of an example comes from `fold_in(key, index)`, where `batch["index"]` is
    its place in the global batch (absent: 0, 1, ...). So it does not depend on how the
    batch is split over devices or processes.

    Args:
        batch: `x` uint8 `[B, ...]` or, for "none", float32 `[B, C]`; perhaps `index`
            `[B]`; the rest passes unchanged.
        key: One key for the global batch.
        transform: Which of the six.

    Returns:
        The batch with `x` float32, or int32 for "bytes", of the same shape.
    """
    check_in("prepare", "transform", transform, TRANSFORMS)
    x = jnp.asarray(batch["x"])
    expected = jnp.float32 if transform == "none" else jnp.uint8
    if x.dtype != expected:
        raise ValueError(
            f"prepare: x must be {expected.dtype} for transform {transform!r}, got "
            f"{x.dtype}; pass the batch as it was read, rows of a table with 'none'."
        )
    if transform == "none":
        return {**batch, "x": x}
    if transform == "bytes":
        return {**batch, "x": x.astype(jnp.int32)}
    index = jnp.asarray(batch["index"]) if "index" in batch else jnp.arange(len(x))
    if transform == "levels":
        prepared = x.astype(jnp.float32) / 255
    elif transform == "static":
        prepared = (x > 127).astype(jnp.float32)
    elif transform == "binarise":
        prepared = _bernoulli(x, key, index).astype(jnp.float32)
    else:
        noise = _sixteen_bits(key, index, x.shape[1:]).astype(jnp.float32)
        prepared = (x.astype(jnp.float32) + noise / 65_536) / 256
    return {**batch, "x": prepared}


def static_binarise(source: Source) -> Source:
    """One fixed draw of Bernoulli(k / 255) per example, as levels 0 and 255.

    The draw depends on the number of the example in the source and on a seed fixed in
    the code, never on the order or the size of batches. Applied twice it is the same as
    once.
    """
    if not isinstance(source, ArraySource):
        return _StaticSource(source)
    x = np.empty_like(source.arrays["x"])
    for start in range(0, len(x), _BLOCK):
        stop = min(start + _BLOCK, len(x))
        x[start:stop] = _draw(source.arrays["x"][start:stop], np.arange(start, stop))
    return ArraySource(**{**source.arrays, "x": x})


class _StaticSource:
    """Binarises what another source reads."""

    def __init__(self, source: Source):
        self._source = source
        self.num_examples: int = source.num_examples
        self.shape: tuple[int, ...] = source.shape

    def take(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """The examples at `indices`, each with its own fixed draw."""
        batch = self._source.take(indices)
        return {**batch, "x": _draw(batch["x"], np.asarray(indices))}


def _draw(x: np.ndarray, index: np.ndarray) -> np.ndarray:
    key = jax.random.key(STATIC_SEED)
    ones = _jit_bernoulli(x, key, index.astype(np.uint32))
    return np.asarray(ones).astype(np.uint8) * np.uint8(255)


def _bernoulli(x: jax.Array, key: jax.Array, index: jax.Array) -> jax.Array:
    # P(bits < threshold) is threshold / 65536: 0 at level 0 and 1 at level 255.
    threshold = (x.astype(jnp.int32) * 65_536 + 127) // 255
    return _sixteen_bits(key, index, x.shape[1:]) < threshold


_jit_bernoulli = jax.jit(_bernoulli)


def _sixteen_bits(
    key: jax.Array, index: jax.Array, shape: tuple[int, ...]
) -> jax.Array:
    """Uniform int32 in 0..65535, `[B, *shape]`: two from each random word."""
    size = int(np.prod(shape))

    def one_example(i: jax.Array) -> jax.Array:
        words = jax.random.bits(
            jax.random.fold_in(key, i), ((size + 1) // 2,), jnp.uint32
        )
        halves = jax.lax.bitcast_convert_type(words, jnp.uint16).reshape(-1)
        return halves[:size].reshape(shape).astype(jnp.int32)

    return jax.vmap(one_example)(index)
