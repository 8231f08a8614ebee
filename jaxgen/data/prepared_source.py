"""Reads a prepared TFDS set without TensorFlow, whole or record by record."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxgen._checks import UserError
from jaxgen.data import blocks, records
from jaxgen.data.images import conform_array, decode_image
from jaxgen.data.prepared import Prepared
from jaxgen.data.sources import (
    ArraySource,
    Dataset,
    Source,
    check_indices,
    hold_out,
)

TEST_SPLITS = ("test", "validation", "valid", "val")
_PROBED = 256
_BLOCK = 256
_STORED_CHANNELS = {1: 1, 2: 1, 3: 3, 4: 3}  # with alpha, laid on white

# Serialised example -> its uint8 image and, where the set has labels, its label.
Decode = Callable[[bytes], tuple[np.ndarray, int | None]]


class RecordSource:
    """One split, decoded on demand.

    Args:
        where: What to call the split in messages, e.g. "mnist train".
        split: Its serialised records.
        decode: See `Decode`.
        shape: Height, width, channels of every image.
        labelled: Whether `decode` gives labels.
    """

    def __init__(
        self,
        where: str,
        split: records.ShardedRecords,
        decode: Decode,
        *,
        shape: tuple[int, int, int],
        labelled: bool,
    ):
        self._where = where
        self._records = split
        self._decode = decode
        self._labelled = labelled
        self.num_examples: int = len(split)
        self.shape: tuple[int, int, int] = shape

    def take(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Reads and decodes the records at `indices`."""
        numbers = check_indices(indices, self.num_examples)
        x = np.empty((len(numbers), *self.shape), np.uint8)
        label = np.empty(len(numbers), np.int32)
        try:
            serialised = self._records.read(numbers)
        except records.CorruptRecordError as error:
            raise self._corrupt(error.index, error.reason) from error
        for row, record in enumerate(serialised):
            try:
                image, one_label = self._decode(record)
                if image.shape != self.shape:
                    raise ValueError(f"shape {image.shape}, not {self.shape}")
            except Exception as error:  # whatever a broken record provokes
                reason = f"{type(error).__name__}: {error}"
                raise self._corrupt(numbers[row], reason) from error
            x[row] = image
            label[row] = -1 if one_label is None else one_label
        return {"x": x, "label": label} if self._labelled else {"x": x}

    def _corrupt(self, index: int, reason: str) -> UserError:
        return UserError(
            f"data set: {self._where} record {index} is corrupt "
            f"({' '.join(reason.split())[:160]}), expected a whole image; copy or "
            "prepare the set again."
        )


class Fields(NamedTuple):
    """Where in an example the image and the label are."""

    image_path: tuple[str, ...]
    image: Any
    label_path: tuple[str, ...] | None
    num_classes: int | None


def read_prepared(
    found: Prepared,
    *,
    size: int | None,
    channels: int | None,
    max_decoded_bytes: int,
) -> Dataset:
    """Opens train and test of a prepared set.

    Args:
        found: What `find_prepared` gave.
        size: As `DataConfig.image_size`.
        channels: As `DataConfig.channels`.
        max_decoded_bytes: Decode whole where both splits take at most this much.
    """
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder_from_directory(found.path)
        file_format = getattr(builder.info.file_format, "value", "unknown")
        splits = {
            name: (list(map(Path, split.filepaths)), list(split.shard_lengths))
            for name, split in builder.info.splits.items()
            if split.num_examples
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(
            f"prepared set: {found.path} cannot be opened ({reason}), expected what "
            "TFDS 4 or later writes; copy or prepare the set again."
        ) from error
    fields = find_fields(found.full_name, builder.info.features)
    shape = _image_shape(found.full_name, fields.image, size, channels)
    train_name, test_name, notes = _choose_splits(found, list(splits))
    chosen = [train_name] if test_name is None else [train_name, test_name]
    files = {n: records.open_records(file_format, *splits[n]) for n in chosen}
    binary = _is_binary(files[train_name], fields, shape[2])
    decode = make_decode(fields, size=size, channels=shape[2], binary=binary)
    if binary:
        notes.append("levels 0 and 1 stored; shown as 0 and 255")
    labelled = fields.label_path is not None
    whole = sum(map(len, files.values())) * int(np.prod(shape)) <= max_decoded_bytes
    sources: list[Source] = []
    for name in chosen:
        where = f"{found.full_name} {name}"
        lazy = RecordSource(where, files[name], decode, shape=shape, labelled=labelled)
        sources.append(_decode_whole(lazy) if whole else lazy)
    if test_name is None:
        train, test, held_out = hold_out(sources[0], where=found.full_name)
        notes.append(held_out)
    else:
        train, test = sources
    return Dataset(
        found.full_name, train, test, shape, fields.num_classes, tuple(notes)
    )


def find_fields(name: str, features: Any) -> Fields:
    """The first `Image`, else the first image-like `Tensor`; the first `ClassLabel`."""
    import tensorflow_datasets as tfds

    kinds: Any = tfds.features
    leaves: list[tuple[tuple[str, ...], Any]] = list(_leaves((), features))
    images = [leaf for leaf in leaves if isinstance(leaf[1], kinds.Image)]
    tensors = [
        (path, leaf)
        for path, leaf in leaves
        if isinstance(leaf, kinds.Tensor)
        and not isinstance(leaf, kinds.ClassLabel)
        and len(leaf.shape) == 3
        and leaf.shape[-1] in _STORED_CHANNELS
    ]
    if not images and not tensors:
        came = ", ".join(f"{'/'.join(p)}: {type(f).__name__}" for p, f in leaves)
        raise UserError(
            f"data set {name!r}: got features {came}, expected an Image or a uint8 "
            "Tensor of shape [H, W, C]; choose a set of images."
        )
    image_path, image = (images + tensors)[0]
    if np.dtype(image.np_dtype) not in (np.uint8, np.uint16, np.bool_):
        raise UserError(
            f"data set {name!r}: feature {'/'.join(image_path)} holds "
            f"{np.dtype(image.np_dtype)} pixels, expected uint8, uint16 or bool; "
            "write the set again as uint8 images, with the scale of your choice."
        )
    labels = [leaf for leaf in leaves if isinstance(leaf[1], kinds.ClassLabel)]
    if not labels:
        return Fields(image_path, image, None, None)
    return Fields(image_path, image, labels[0][0], labels[0][1].num_classes)


def make_decode(
    fields: Fields, *, size: int | None, channels: int, binary: bool
) -> Decode:
    """A function from one serialised example to its image and label."""
    import tensorflow_datasets as tfds

    paths = {fields.image_path: fields.image}
    if fields.label_path is not None:
        count = fields.num_classes
        paths[fields.label_path] = tfds.features.ClassLabel(num_classes=count)
    wanted = tfds.features.FeaturesDict(_nested(paths))
    encoded = isinstance(fields.image, tfds.features.Image)
    skip = {fields.image_path: tfds.decode.SkipDecoding()}
    decoders = _nested(skip) if encoded else None
    options: dict[str, Any] = {"size": size, "channels": channels, "binary": binary}

    def decode(serialised: bytes) -> tuple[np.ndarray, int | None]:
        example = wanted.deserialize_example_np(serialised, decoders=decoders)
        stored = _at(example, fields.image_path)
        if encoded:
            image = decode_image(stored, orient=False, **options)
        else:
            image = conform_array(np.asarray(stored), **options)
        label = fields.label_path
        return image, None if label is None else int(_at(example, label))

    return decode


def _is_binary(split: records.ShardedRecords, fields: Fields, channels: int) -> bool:
    """Whether 256 examples spread over the split hold no level but 0 and 1."""
    if np.dtype(fields.image.np_dtype) != np.uint8:
        return False
    decode = make_decode(fields, size=None, channels=channels, binary=False)
    probed = np.unique(np.linspace(0, len(split) - 1, _PROBED).astype(int)).tolist()
    for number in probed:
        try:
            if decode(split.read([number])[0])[0].max() > 1:
                return False
        except Exception:  # noqa: S112 - a corrupt record is reported when it is needed
            continue
    return True


def _decode_whole(source: RecordSource) -> ArraySource:
    blocks_of = range(0, source.num_examples, _BLOCK)
    x = np.empty((source.num_examples, *source.shape), np.uint8)
    label: np.ndarray | None = None

    def read(start: int) -> dict[str, np.ndarray]:
        return source.take(np.arange(start, min(start + _BLOCK, source.num_examples)))

    parts = blocks.map_threads(read, blocks_of, in_flight=2 * blocks.num_threads())
    for start, part in zip(blocks_of, parts, strict=True):
        stop = start + len(part["x"])
        x[start:stop] = part["x"]
        if "label" in part:
            label = np.empty(len(x), np.int32) if label is None else label
            label[start:stop] = part["label"]
    return ArraySource(x, label)


def _image_shape(
    name: str, image: Any, size: int | None, channels: int | None
) -> tuple[int, int, int]:
    height, width, stored = image.shape
    if channels is None:
        channels = _STORED_CHANNELS.get(stored, 3)
    if size is not None:
        return size, size, channels
    if height is None or width is None:
        raise UserError(
            f"data set {name!r}: its images vary in size ({height} x {width} declared),"
            " expected image_size to say which square to make of them; give image_size,"
            " for instance 64."
        )
    return height, width, channels


def _choose_splits(
    found: Prepared, names: Sequence[str]
) -> tuple[str, str | None, list[str]]:
    if not names:
        raise UserError(
            f"data set {found.full_name!r}: {found.path} holds no examples, expected a "
            "split 'train'; prepare the set again."
        )
    if "train" not in names and len(names) > 1:
        raise UserError(
            f"data set {found.full_name!r}: got splits {', '.join(sorted(names))}, "
            "expected one named 'train'; choose another set or prepare one with it."
        )
    train = "train" if "train" in names else names[0]
    test = next((name for name in TEST_SPLITS if name in names and name != train), None)
    notes = []
    if test not in (None, "test"):
        notes.append(f"no test split: split {test!r} takes its place")
    if train != "train":
        notes.append(f"no train split: split {train!r} takes its place")
    unused = sorted(set(names) - {train, test})
    if unused:
        notes.append(f"splits not used: {', '.join(unused)}")
    return train, test, notes


def _leaves(path: tuple[str, ...], feature: Any) -> Any:
    import tensorflow_datasets as tfds

    if isinstance(feature, tfds.features.FeaturesDict):
        for name, inner in feature.items():
            yield from _leaves((*path, name), inner)
    else:
        yield path, feature


def _nested(leaves: dict[tuple[str, ...], Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        place = tree
        for name in path[:-1]:
            place = place.setdefault(name, {})
        place[path[-1]] = leaf
    return tree


def _at(tree: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        tree = tree[name]
    return tree
