"""What a text costs without a network: by gzip, and by counts of its n-grams.

A model of windows is told nothing of what came before one, so the n-gram model is not
either: its first byte has no context, and so on. gzip has the whole text that it packs.
"""

import gzip
from typing import NamedTuple

import numpy as np

from jaxgen.data import texts

ORDER = 5
MAX_TRAIN = 2**25  # bytes whose n-grams are counted


class Counts(NamedTuple):
    """How often bytes follow contexts of one length, both as sorted numbers.

    Attributes:
        grams: Contexts with the byte that follows, as numbers to the base 256.
        num: How often each was seen.
        contexts: The contexts alone.
        total: How often each was seen.
        kinds: How many different bytes follow it.
    """

    grams: np.ndarray
    num: np.ndarray
    contexts: np.ndarray
    total: np.ndarray
    kinds: np.ndarray


def of_text(name: str, length: int) -> dict[str, float]:
    """Bits a byte of the test split of a text.

    Args:
        name: Of the text, with its prefix.
        length: Of the windows that n-grams are judged in.

    Returns:
        `gzip_bits_per_byte`, of the test split packed alone; `gzip_after_train_bits_per_byte`,
        what it adds to the packed training text (gzip looks back 32 kB);
        `five_gram_bits_per_byte`, of counts on the training text, with `_se` over windows.
    """
    parts, _, _ = texts.read(name)
    train, test = parts.train.tobytes(), parts.test.tobytes()
    alone, both, first = (packed(text) for text in (test, train + test, train))
    windows = texts.windows(parts.test, length, length)
    model = count(parts.train[-MAX_TRAIN:], order=ORDER)
    bits = -log_prob(model, windows).mean(axis=1) / np.log(2)
    error = bits.std(ddof=1) / np.sqrt(len(bits)) if len(bits) > 1 else np.nan
    told = {
        "gzip_bits_per_byte": 8 * alone / len(test),
        "gzip_after_train_bits_per_byte": 8 * (both - first) / len(test),
        "five_gram_bits_per_byte": float(bits.mean()),
    }
    if np.isfinite(error):
        told["five_gram_bits_per_byte_se"] = float(error)
    return told


def packed(text: bytes) -> int:
    """Bytes of a text by gzip at its best level."""
    return len(gzip.compress(text, 9, mtime=0))


def count(text: np.ndarray, *, order: int) -> tuple[Counts, ...]:
    """The n-grams of a text, uint8 `[N]`, for contexts of 0 to `order - 1` bytes."""
    told = []
    for size in range(1, order + 1):
        grams, num = np.unique(_numbers(text[None], size)[0], return_counts=True)
        contexts, first, kinds = np.unique(
            grams >> np.uint64(8), return_index=True, return_counts=True
        )
        total = np.add.reduceat(num, first)
        told.append(Counts(grams, num, contexts, total, kinds))
    return tuple(told)


def log_prob(model: tuple[Counts, ...], windows: np.ndarray) -> np.ndarray:
    """Log p of each byte given those before it in its window, `[N, L]` nats.

    Interpolated by Witten and Bell: with a context h seen c(h) times, followed by T(h)
    different bytes, p(x|h) = (c(hx) + T(h) p(x|shorter h)) / (c(h) + T(h)), from 1/256.

    Args:
        model: What `count` gives.
        windows: uint8 `[N, L]`.

    References:
        Witten & Bell 1991, method C; Chen & Goodman 1996, section 2.
    """
    p = np.full(windows.shape, 1 / 256)
    for size, counts in enumerate(model[: windows.shape[1]], start=1):
        grams = _numbers(windows, size)
        contexts = grams >> np.uint64(8)
        num = _found(counts.grams, counts.num, grams)
        total = _found(counts.contexts, counts.total, contexts)
        kinds = _found(counts.contexts, counts.kinds, contexts)
        known, shorter = total > 0, p[:, size - 1 :]
        longer = (num + kinds * shorter) / np.where(known, total + kinds, 1)
        p[:, size - 1 :] = np.where(known, longer, shorter)
    return np.log(p)


def _numbers(rows: np.ndarray, size: int) -> np.ndarray:
    """All runs of `size` bytes of each row, as numbers, `[N, L - size + 1]`."""
    total = np.zeros((len(rows), rows.shape[1] - size + 1), np.uint64)
    for i in range(size):
        part = rows[:, i : rows.shape[1] - size + 1 + i].astype(np.uint64)
        total = (total << np.uint64(8)) | part
    return total


def _found(keys: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The values under the wanted keys, 0 where there are none."""
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[place] == wanted, values[place], 0)
