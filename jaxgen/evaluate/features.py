"""What examples are compared by: functions from examples to vectors, with an identity.

A distance is one between features, so a number without them means nothing. Each record
says which function it is: figures of unlike features are not compared.

```
classifier   the last hidden layer of a small classifier of the data's own labels; of
             mnist, digits and photos it comes with the package
random       the same network, with weights drawn by a seed: any images
pixels       the values themselves; of a table, what networks are told of its columns
pca          their first principal components
ngrams       of texts, how often runs of three bytes come
own(...)     anybody's function
```

References:
    Random networks judge much as trained ones do: arXiv:2208.09218.
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen import columns as tables
from jaxgen import data
from jaxgen._checks import UserError, unknown
from jaxgen.evaluate import classifier, tensors

BATCH = 250  # examples at once
NUMBERS = 2**24  # of them at once, at most
NUM_COMPONENTS = 64
NUM_FITTED = 5000  # training examples that components are fitted to, at most
LEAST_SIDE = 8  # pixels that the networks need
NAMES = ("auto", "classifier", "random", "pixels", "pca", "ngrams")
NUM_BINS, RUN = 128, 3  # of ngrams: runs of so many bytes, hashed


class Features(NamedTuple):
    """A function of examples, and what identifies it.

    Attributes:
        id: Its name.
        sha256: Of its weights, or of what else it depends on.
        preprocessing: What is done to the examples first.
        apply: Examples as they are stored, uint8 `[N, H, W, C]` or `[N, L]` or float32
            `[N, C]`, to `[N, D]`; row i depends on example i alone.
    """

    id: str
    sha256: str
    preprocessing: str
    apply: Callable[[np.ndarray], np.ndarray]


def choose(name: str, dataset: data.Dataset) -> Features:
    """The features of this name for a set.

    "auto" is the classifier where there are labels or shipped weights, pixels for a
    table, and else the random network.

    Raises:
        UserError: if there is no such name, or the data lack what it needs.
    """
    shipped = sorted(classifier.SHIPPED)
    if name not in (*NAMES, *shipped):
        raise UserError(unknown("--features", name, (*NAMES, *shipped)))
    if name == "auto":
        name = _usual(dataset)
    if (name == "ngrams") != (dataset.kind == "texts"):
        raise UserError(
            f"--features {name} is not for {dataset.kind}: texts have ngrams, and only they"
        )
    if name == "ngrams":
        return ngrams()
    if dataset.columns is not None and name not in ("pixels", "pca"):
        raise UserError(f"--features {name} is for images: tables have pixels and pca")
    if name == "pixels":
        return pixels(dataset.columns)
    if name == "pca":
        return pca(dataset.train, dataset.columns)
    if min(dataset.shape[:2]) < LEAST_SIDE:
        raise UserError(
            f"--features {name} needs images of at least {LEAST_SIDE} pixels a side, these "
            f"are {dataset.shape[0]}x{dataset.shape[1]}: --features pixels"
        )
    if name == "random":
        return random(dataset.shape)
    if name in shipped:
        return _shipped(name, dataset)
    return _by_labels(dataset)


def _usual(dataset: data.Dataset) -> str:
    if dataset.kind == "texts":
        return "ngrams"
    if dataset.columns is not None:
        return "pixels"
    if min(dataset.shape[:2]) < LEAST_SIDE:
        return "pixels"
    judged = dataset if dataset.parts is None else dataset.parts
    if classifier.is_shipped(judged) or (judged.num_classes or 0) > 1:
        return "classifier"
    return "random"


def _by_labels(dataset: data.Dataset) -> Features:
    judged = dataset if dataset.parts is None else dataset.parts
    if classifier.is_shipped(judged):
        return _shipped(judged.name, dataset)
    trained = classifier.make_classifier(judged)
    return _network(f"classifier:{judged.name}", trained, _digest(trained), dataset)


def _shipped(name: str, dataset: data.Dataset) -> Features:
    held = classifier.SHIPPED[name]
    if tuple(dataset.shape[:2]) != held.shape[:2] or (
        dataset.shape[2] != held.shape[2] and held.shape[2] > 1
    ):
        raise UserError(
            f"--features {name} is for images {held.shape}, these are {dataset.shape}: "
            "--features random"
        )
    trained = classifier.shipped(name)
    return _network(f"classifier:{name}", trained, held.sha256, dataset)


def _digest(trained: classifier.Classifier) -> str:
    return tensors.sha256(tensors.encode(classifier.named(trained.params)))


def _network(
    identity: str, trained: classifier.Classifier, digest: str, dataset: data.Dataset
) -> Features:
    """Features of a network; of one for grey images, channel by channel."""
    each: Any = trained.features
    num_channels = trained.params["params"]["Conv_0"]["kernel"].shape[2]
    if num_channels == dataset.shape[2]:
        return Features(identity, digest, "uint8 / 255", in_batches(each))
    apply = in_batches(
        lambda x: np.concatenate(
            [each(x[..., i : i + 1]) for i in range(x.shape[-1])], axis=1
        )
    )
    return Features(identity, digest, "uint8 / 255, each channel by itself", apply)


def random(shape: Sequence[int], *, seed: int = 0) -> Features:
    """The classifiers' network with weights drawn evenly, of variance 2 / fan-in.

    Args:
        shape: Of an image, `(H, W, C)`, at least 8x8.
        seed: Of the weights.
    """
    net = classifier.network(1, classifier.Recipe())
    image = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    form = jax.eval_shape(net.init, jax.random.key(0), image)
    words = np.random.Philox(key=seed)

    def drawn(leaf: Any) -> np.ndarray:
        if leaf.ndim == 1:
            return np.zeros(leaf.shape, np.float32)
        size = math.prod(leaf.shape)
        # Of raw words, whose stream NumPy promises.
        u = (words.random_raw(size) >> np.uint64(40)).reshape(leaf.shape) / 2.0**24
        bound = math.sqrt(6.0 * leaf.shape[-1] / size)
        return (bound * (2.0 * u - 1.0)).astype(np.float32)

    params = jax.tree.map(drawn, form)
    untrained = classifier.bind(net, params)
    apply: Any = untrained.features
    digest = _digest(untrained)
    return Features(f"random:{seed}", digest, "uint8 / 255", in_batches(apply))


def pixels(columns: Sequence[tables.Column] | None = None) -> Features:
    """The values of images, or what networks are told of rows of a table.

    Args:
        columns: Of the table: its values are brought to the line and to mean 0 and
            variance 1, angles to points of a circle. None for images.
    """
    if columns is None:
        made = "uint8 / 255"
        return Features("pixels", _of_text(made), made, lambda x: _flat(x) / 255.0)
    told = [repr(column) for column in columns]
    of_rows = jax.jit(lambda x: tables.features(columns, x))
    apply = in_batches(lambda x: np.asarray(of_rows(jnp.asarray(x, jnp.float32))))
    made = "columns on the line, standardised"
    return Features("pixels", _of_text(made, *told), made, apply)


def pca(
    train: data.Source,
    columns: Sequence[tables.Column] | None = None,
    *,
    num_components: int = NUM_COMPONENTS,
) -> Features:
    """The first principal components of `pixels`, fitted to training examples.

    Args:
        train: Of which at most 5,000, spread evenly, are used.
        columns: Of a table.
        num_components: D, at most; not scaled to variance 1.
    """
    base = pixels(columns)
    chosen = data.spread(train.num_examples, min(train.num_examples, NUM_FITTED))
    x = np.ascontiguousarray(train.take(chosen)["x"])
    values = base.apply(x)
    mean = values.mean(axis=0)
    centred = values - mean
    _, directions = np.linalg.eigh(centred.T @ centred)
    kept = directions[:, ::-1][:, :num_components]
    kept = kept * np.sign(kept[np.abs(kept).argmax(axis=0), np.arange(kept.shape[1])])
    digest = hashlib.sha256(x.tobytes() + base.sha256.encode()).hexdigest()
    return Features(
        f"pca:{kept.shape[1]}",
        digest,
        base.preprocessing,
        lambda x: (base.apply(x) - mean) @ kept,
    )


def ngrams() -> Features:
    """Square roots of how often runs of three bytes come in a text, hashed to 128 bins.

    The distance of two texts is then Hellinger's, but for what falls into one bin.
    """

    def apply(x: Any) -> np.ndarray:
        x = np.asarray(x).astype(np.uint64)
        runs = np.zeros((len(x), x.shape[1] - RUN + 1), np.uint64)
        for i in range(RUN):
            runs = runs * np.uint64(256) + x[:, i : i + runs.shape[1]]
        # Multiplicative hashing, modulo 2^64; the highest bits are the best.
        mixed = runs * np.uint64(0x9E3779B97F4A7C15)
        bins = (mixed >> np.uint64(64 - NUM_BINS.bit_length() + 1)).astype(np.int64)
        place = bins + NUM_BINS * np.arange(len(x))[:, None]
        counts = np.bincount(place.ravel(), minlength=NUM_BINS * len(x))
        return np.sqrt(counts.reshape(len(x), NUM_BINS) / runs.shape[1])

    made = f"runs of {RUN} bytes, hashed to {NUM_BINS} bins, roots of their shares"
    return Features("ngrams", _of_text(made), made, apply)


def own(
    identity: str,
    apply: Callable[[np.ndarray], Any],
    *,
    preprocessing: str,
    sha256: str | None = None,
) -> Features:
    """Features of your own: another network, or any function.

    Args:
        identity: Its name; results under different names are not compared.
        apply: Examples as they are stored, uint8 `[B, H, W, C]` or float32 `[B, C]`, to
            `[B, D]`, of up to 250 examples at once.
        preprocessing: What it does to them first, in words.
        sha256: Of its weights; by default of the name and the words.
    """
    digest = _of_text(identity, preprocessing) if sha256 is None else sha256
    return Features(f"own:{identity}", digest, preprocessing, in_batches(apply))


def in_batches(apply: Callable[[np.ndarray], Any]) -> Callable[[Any], np.ndarray]:
    """A function of any number of examples from one of always as many, in float64.

    The last batch is filled up with its own first examples: one program, and no result
    that depends on how many are asked for at once.
    """

    def applied(x: Any) -> np.ndarray:
        x = np.asarray(x)
        size = max(1, min(BATCH, NUMBERS // max(1, math.prod(x.shape[1:]))))
        parts = []
        for start in range(0, len(x), size):
            part = x[start : start + size]
            full = np.resize(part, (size, *x.shape[1:]))
            made = np.asarray(apply(full), np.float64)
            if made.ndim != 2 or len(made) != size:
                raise ValueError(
                    f"features: apply must give [{size}, D] of {size} examples, got "
                    f"{made.shape}; flatten each example's."
                )
            parts.append(made[: len(part)])
        return np.concatenate(parts)

    return applied


def _flat(x: Any) -> np.ndarray:
    return np.asarray(x, np.float64).reshape(len(x), -1)


def _of_text(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
