"""Writes a prepared TFDS set of many small images without TensorFlow.

    python tests/make_large_set.py DIR --num 500000 --file-format array_record

The images come from a pool of 1000 PNGs, so that half a million take 20 s; then
DIR is the data_dir and `large_images` the name. `write_set` serves the tests.
"""

import argparse
import io
import struct
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import tensorflow_datasets as tfds

from jaxgen.data import DataConfig, Dataset, open_dataset

FORMATS = ("array_record", "parquet", "tfrecord")
POOL = 1000


def open_prepared(
    data_dir: Path, name: str = "tiny_set", *, max_decoded_bytes=2**28, **options
) -> Dataset:
    """A set that `write_set` has written, opened by the library."""
    config = DataConfig(name=name, data_dir=str(data_dir), **options)
    return open_dataset(config, max_decoded_bytes=max_decoded_bytes)


def png(pixels: np.ndarray) -> bytes:
    """The bytes of a PNG file."""
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, "PNG", compress_level=1)
    return file.getvalue()


def write_set(
    data_dir: Path,
    *,
    name: str,
    features: dict[str, Any],
    splits: dict[str, Callable[[], Iterable[dict[str, Any]]]],
    file_format: str = "array_record",
    config: str | None = None,
    version: str = "1.0.0",
    native: bool = False,
) -> Path:
    """Prepares a set with TFDS itself; returns the directory of the version.

    Args:
        data_dir: TFDS root.
        name: In snake case.
        features: TFDS features; an Image must be given as PNG bytes in a file object.
        splits: Name -> a function that gives the examples.
        file_format: "array_record"; "tfrecord", which TFDS would write with TensorFlow;
            or "parquet", of which TFDS 4.9.10 loses records beyond the first hundred
            of a shard. The last two are written as array_record and copied by hand.
        config: Name of a builder config, or None.
        version: Three numbers.
        native: Let TFDS itself write `file_format`.
    """
    given_name = name

    class SmallSet(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        name = given_name
        VERSION = tfds.core.Version(version)
        BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=config)] if config else []

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, dl_manager):
            del dl_manager
            return {
                split: self._generate_examples(make) for split, make in splits.items()
            }

        def _generate_examples(self, make):
            yield from enumerate(make())

    written = file_format if native else "array_record"
    builder = SmallSet(data_dir=str(data_dir), file_format=written)
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(try_download_gcs=False)
    )
    path = Path(builder.data_dir)
    if file_format != written:
        _copy_as(path, file_format)
    return path


def write_tfrecord(path: Path, records: Iterable[bytes]) -> None:
    """A TFRecord file: length, its CRC (left zero), data, their CRC (left zero)."""
    with path.open("wb") as file:
        for record in records:
            file.write(struct.pack("<Q4x", len(record)) + record + bytes(4))


def write_parquet(path: Path, records: Iterable[bytes]) -> None:
    """As TFDS means to: one binary column "data", a row group for each 100 records."""
    import pyarrow
    from pyarrow import parquet

    table = pyarrow.table({"data": pyarrow.array(records, pyarrow.binary())})
    parquet.write_table(table, path, row_group_size=100)


def _copy_as(path: Path, file_format: str) -> None:
    from array_record.python import array_record_module

    for shard in sorted(path.glob("*.array_record*")):
        reader = array_record_module.ArrayRecordReader(str(shard))
        write = {"tfrecord": write_tfrecord, "parquet": write_parquet}[file_format]
        write(path / shard.name.replace("array_record", file_format), reader.read_all())
        reader.close()
        shard.unlink()
    info = path / "dataset_info.json"
    info.write_text(info.read_text().replace('"array_record"', f'"{file_format}"'))


def noise(*shape: int) -> np.ndarray:
    """Uniform uint8 levels, always the same for a shape."""
    return np.random.default_rng(sum(shape)).integers(0, 256, shape, dtype=np.uint8)


X = noise(230, 6, 5, 3)
LABEL = np.arange(230) % 7
LABELLED = {
    "id": tfds.features.Text(),
    "image": tfds.features.Image(shape=(6, 5, 3), encoding_format="png"),
    "label": tfds.features.ClassLabel(num_classes=7),
}


def examples(x: np.ndarray, label: np.ndarray) -> Iterable[dict[str, Any]]:
    """Of the features `LABELLED`, in this order."""
    for i in range(len(x)):
        yield {"id": f"{i}", "image": io.BytesIO(png(x[i])), "label": int(label[i])}


def write_tiny_set(data_dir: Path, **options: Any) -> Path:
    """`write_set` of X and LABEL: 210 train, 20 test; every option can be changed."""
    options = {
        "name": "tiny_set",
        "features": LABELLED,
        "splits": {
            "train": lambda: examples(X[:210], LABEL[:210]),
            "test": lambda: examples(X[210:], LABEL[210:]),
        },
        **options,
    }
    return write_set(data_dir, **options)


def images_only(features: dict[str, Any], **arrays: Any) -> dict[str, Any]:
    """Options for `write_tiny_set`: one split `train` with these columns."""
    num = len(next(iter(arrays.values())))
    rows = [{name: column[i] for name, column in arrays.items()} for i in range(num)]
    return {"features": features, "splits": {"train": lambda: rows}}


def copy_set(source: Path, target: Path) -> Path:
    """Copies the files of a version; returns `target`."""
    target.mkdir(parents=True)
    for file in source.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    return target


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--num", type=int, default=500_000)
    parser.add_argument("--side", type=int, default=32)
    parser.add_argument("--file-format", default="array_record")
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    side = arguments.side
    base = rng.integers(0, 256, (POOL, side // 4, side // 4, 3), dtype=np.uint8)
    pool = [png(image.repeat(4, 0).repeat(4, 1)) for image in base]

    def repeated(num: int) -> Iterable[dict[str, Any]]:
        for i in range(num):
            yield {"image": io.BytesIO(pool[i % POOL]), "label": i % 10}

    path = write_set(
        arguments.directory,
        name="large_images",
        features={
            "image": tfds.features.Image(shape=(side, side, 3), encoding_format="png"),
            "label": tfds.features.ClassLabel(num_classes=10),
        },
        splits={
            "train": lambda: repeated(arguments.num),
            "test": lambda: repeated(1000),
        },
        file_format=arguments.file_format,
    )
    sys.stdout.write(f"{path}\n")


if __name__ == "__main__":
    main()
