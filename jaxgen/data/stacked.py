"""Grey images stacked to the channels of one: a thousand known modes from ten classes.

Metz et al. 2016, section 3.3.1 (stacked MNIST), arXiv:1611.02163.
"""

import numpy as np

from jaxgen._checks import UserError
from jaxgen.data.sources import ArraySource, Dataset, Source

PREFIX = "stacked:"
CHANNELS = 3
NUM_TRAIN, NUM_TEST = 60_000, 10_000  # triples


def stacked(dataset: Dataset) -> Dataset:
    """Random triples of a set's images; of classes a, b, c the label is (a K + b) K + c.

    Raises:
        UserError: if the images have colours, or no labels.
    """
    if dataset.shape[-1] != 1 or dataset.columns is not None:
        raise UserError(
            f"{PREFIX}{dataset.name}: only grey images can be stacked: --channels 1"
        )
    if dataset.num_classes is None:
        raise UserError(f"{PREFIX}{dataset.name}: these images have no labels")
    num_classes = dataset.num_classes
    return Dataset(
        name=f"{PREFIX}{dataset.name}",
        train=_triples(dataset.train, NUM_TRAIN, 0, num_classes),
        test=_triples(dataset.test, NUM_TEST, 1, num_classes),
        shape=(*dataset.shape[:2], CHANNELS),
        num_classes=num_classes**CHANNELS,
        notes=(
            *dataset.notes,
            f"{NUM_TRAIN:,} and {NUM_TEST:,} random triples of the images of "
            f"{dataset.name}",
        ),
        parts=dataset,
    )


def _triples(source: Source, num: int, stream: int, num_classes: int) -> ArraySource:
    """By a seed fixed in the code; raw Philox words are the same in every NumPy."""
    key = np.array([2**32, stream], np.uint64)
    words = np.random.Philox(key=key).random_raw(CHANNELS * num)
    chosen = (words % np.uint64(source.num_examples)).astype(np.int64)
    chosen = chosen.reshape(CHANNELS, num)
    parts = [source.take(indices) for indices in chosen]
    label = np.zeros(num, np.int64)
    for part in parts:
        label = label * num_classes + part["label"]
    x = np.concatenate([part["x"] for part in parts], axis=-1)
    return ArraySource(x, label.astype(np.int32))
