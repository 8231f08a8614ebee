"""`latents:RUN`: the encodings of a run's training data, as the rows of a table.

RUN/latents.npz is made by `jaxgen.train.latents`; `numpy.load` reads it. A run on these
rows is a prior of the first run's latents that is fitted afterwards.
"""

import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxgen._checks import UserError
from jaxgen.columns import Column
from jaxgen.data.sources import ArraySource, Dataset

PREFIX = "latents:"
FILE = "latents.npz"
LEAST_DEVIATION = 1e-6  # of a latent variable that is nearly constant


class Latents(NamedTuple):
    """Encodings `[N, L]`, float32.

    Attributes:
        train: Of the training data, perhaps several draws of each example.
        validation: Of a tenth that was held out of them, one draw each.
        test: Of the test data, one draw each.
        digest: Of what they were made by: the parameters and the data.
    """

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    digest: str


def folder_of(name: str) -> Path:
    """The run folder that `latents:RUN` names."""
    return Path(name.removeprefix(PREFIX)).expanduser().absolute()


def read(folder: Path) -> Latents | None:
    """The encodings that lie in a run folder; None where there are no sound ones."""
    try:
        with np.load(folder / FILE, allow_pickle=False) as file:
            splits = [
                np.asarray(file[name], np.float32) for name in Latents._fields[:3]
            ]
            digest = str(file["digest"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        return None
    return Latents(splits[0], splits[1], splits[2], digest)


def open_latents(name: str) -> Dataset:
    """The rows of `latents:RUN`, every column real.

    Raises:
        UserError: if they have not been made.
    """
    folder = folder_of(name)
    found = read(folder)
    if found is None:
        raise UserError(
            f"{folder} holds no sound {FILE}: `jaxgen train MODEL --data "
            f"{PREFIX}{folder}` makes it of a trained run"
        )
    mean, deviation = found.train.mean(axis=0), found.train.std(axis=0)
    columns = tuple(
        Column(name=f"z{i}", mean=float(m), deviation=max(float(d), LEAST_DEVIATION))
        for i, (m, d) in enumerate(zip(mean, deviation, strict=True))
    )
    return Dataset(
        name=f"{PREFIX}{folder}",
        train=ArraySource(found.train),
        test=ArraySource(found.test),
        shape=found.train.shape[1:],
        num_classes=None,
        notes=(
            f"encodings of {folder}: {len(found.train):,} of its training data, "
            f"{len(found.validation):,} held out, {len(found.test):,} of its test data",
        ),
        columns=columns,
        validation=ArraySource(found.validation),
    )
