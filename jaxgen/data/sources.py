"""A source: examples with random access, `take(indices)` and a length."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from jaxgen._checks import UserError
from jaxgen.columns import Column

HOLD_OUT_SEED = 20_250_101
HOLD_OUT_SHARE = 0.1


class Source(Protocol):
    """Random access to one split."""

    @property
    def num_examples(self) -> int:
        """The number of examples."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Height, width and channels of an image, or the columns of a row."""
        ...

    def take(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Of images `{"x": uint8 [B, H, W, C]}` and, if any, `"label": int32 [B]`.

        Of clips also `"condition": uint8 [B, H, W, K]`, what is given with each frame.
        Of rows `{"x": float32 [B, C]}` and, if any, `"weight": float32 [B]`. Of texts
        `{"x": uint8 [B, L]}`.
        """
        ...


class Dataset(NamedTuple):
    """The splits of one set, and what the user should know about how they were made.

    Attributes:
        name: Of the set.
        train: What is trained on.
        test: What is judged by.
        shape: Of an example: `(H, W, C)`, `(C,)` of a table, or `(L,)` of a text.
        num_classes: Of the labels, or None where there are none.
        notes: A line each.
        columns: Of a table; None where the examples are images.
        validation: Held out of `train` for early stopping, or None.
        parts: The set whose images are the channels of these, or None.
        num_planes: That are given with each image, by the task of the config; or 0.
    """

    name: str
    train: Source
    test: Source
    shape: tuple[int, ...]
    num_classes: int | None
    notes: tuple[str, ...]
    columns: tuple[Column, ...] | None = None
    validation: Source | None = None
    parts: "Dataset | None" = None
    num_planes: int = 0

    @property
    def kind(self) -> str:
        """What the examples are: "images", "rows" of a table, or "texts"."""
        if self.columns is not None:
            return "rows"
        return "texts" if len(self.shape) == 1 else "images"


class ArraySource:
    """A split that lies in memory whole; `arrays` may be put on the device as it is.

    Args:
        x: Images, uint8 `[N, H, W, C]`, rows, float32 `[N, C]`, or texts, uint8 `[N, L]`.
        label: int32 `[N]`, or None.
        weight: float32 `[N]`, or None.
        condition: What is given with each image, uint8 `[N, H, W, K]`, or None.
    """

    def __init__(
        self,
        x: np.ndarray,
        label: np.ndarray | None = None,
        weight: np.ndarray | None = None,
        condition: np.ndarray | None = None,
    ):
        if (x.ndim, x.dtype) not in ((4, np.uint8), (2, np.float32), (2, np.uint8)):
            raise ValueError(
                "ArraySource: x must be uint8 [N, H, W, C] or [N, L] or float32 [N, C], "
                f"got {x.dtype} {x.shape}; convert it first."
            )
        self.arrays: dict[str, np.ndarray] = {"x": x}
        for name, array, dtype in (
            ("label", label, np.int32),
            ("weight", weight, np.float32),
        ):
            if array is None:
                continue
            if array.shape != x.shape[:1]:
                raise ValueError(
                    f"ArraySource: {name} must have shape {x.shape[:1]}, one for each "
                    f"example, got {array.shape}; pass {name}=None where there are none."
                )
            self.arrays[name] = array.astype(dtype, copy=False)
        if condition is not None:
            wrong = condition.dtype != np.uint8 or condition.ndim != 4
            if wrong or condition.shape[:-1] != x.shape[:-1]:
                raise ValueError(
                    f"ArraySource: condition must be uint8 {[*x.shape[:-1], 'K']}, got "
                    f"{condition.dtype} {condition.shape}; give planes of the image's size."
                )
            self.arrays["condition"] = condition
        self.num_examples: int = x.shape[0]
        self.shape: tuple[int, ...] = x.shape[1:]

    def take(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """The examples at `indices`, copied."""
        return {name: array[indices] for name, array in self.arrays.items()}


class SubsetSource:
    """Some examples of another source, renumbered from zero."""

    def __init__(self, source: Source, indices: np.ndarray):
        self._source = source
        self._indices = indices
        self.num_examples: int = len(indices)
        self.shape: tuple[int, ...] = source.shape

    def take(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """The examples at `indices` of this subset."""
        return self._source.take(self._indices[indices])


def fixed_order(seed: int, stream: int, num_examples: int) -> np.ndarray:
    """A permutation of `range(num_examples)` that no NumPy release will change.

    NumPy promises stable raw Philox words, but not a stable `Generator.permutation`.

    Args:
        seed: Any integer; taken modulo 2**64.
        stream: A non-negative integer; each one gives an independent permutation.
        num_examples: Length.

    Returns:
        int32 `[num_examples]` (int64 beyond 2**31), read-only.
    """
    key = np.array([seed % 2**64, stream % 2**64], np.uint64)
    words = np.random.Philox(key=key).random_raw(num_examples)
    dtype = np.int32 if num_examples < 2**31 else np.int64
    order = np.argsort(words, kind="stable").astype(dtype)
    order.setflags(write=False)
    return order


def hold_out(source: Source, *, where: str) -> tuple[Source, Source, str]:
    """Splits one source into train (90 %) and test (10 %) by a seed fixed in the code.

    Returns:
        Train, test, and a note for the user.
    """
    if source.num_examples < 2:
        raise UserError(
            f"{where}: got {source.num_examples} readable image, expected at least 2, "
            "since 10 % are held out as test; add images."
        )
    order = fixed_order(HOLD_OUT_SEED, 0, source.num_examples)
    num_test = max(1, round(HOLD_OUT_SHARE * source.num_examples))
    test, train = np.sort(order[:num_test]), np.sort(order[num_test:])
    note = f"no test split: 10 % of train ({num_test} images) held out by a fixed seed"
    return _subset(source, train), _subset(source, test), note


def with_validation(dataset: Dataset, patience: int | None) -> Dataset:
    """The set with a tenth of its training split held out, where that is needed.

    Args:
        dataset: As it was opened; one with a validation split stays as it is.
        patience: Of early stopping; None or 0 needs no validation split.
    """
    if not patience or dataset.validation is not None:
        return dataset
    train, validation, _ = hold_out(dataset.train, where="--patience")
    note = (
        f"early stopping: 10 % of train ({validation.num_examples} examples) held out by "
        "a fixed seed"
    )
    notes = (*dataset.notes, note)
    return dataset._replace(train=train, validation=validation, notes=notes)


def spread(num_examples: int, num: int) -> np.ndarray:
    """`num` indices spread evenly over a set whose neighbours may be alike."""
    return np.linspace(0, num_examples - 1, num).astype(np.int64)


def check_batch_size(source: Source, batch_size: int) -> None:
    """Raises UserError unless 1 <= batch_size <= the number of examples."""
    if not 1 <= batch_size <= source.num_examples:
        raise UserError(
            f"--batch-size {batch_size}: expected 1 to {source.num_examples}, the number of "
            "training examples; choose a smaller batch or a larger set"
        )


def check_indices(indices: np.ndarray, num_examples: int) -> Sequence[int]:
    """The indices as a list of ints; IndexError where one is outside the set."""
    numbers = np.asarray(indices)
    if numbers.size and not (numbers.min() >= 0 and numbers.max() < num_examples):
        raise IndexError(
            f"take: indices must lie in 0..{num_examples - 1}, got "
            f"{numbers.min()}..{numbers.max()}."
        )
    return numbers.tolist()


def _subset(source: Source, indices: np.ndarray) -> Source:
    if isinstance(source, ArraySource):
        return ArraySource(**source.take(indices))
    return SubsetSource(source, indices)
