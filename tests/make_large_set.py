"""Writes a prepared TFDS set of many small images without TensorFlow.

    python tests/make_large_set.py DIR --num 500000 --file-format array_record

The images come from a pool of 1000 PNGs, so that half a million take a minute; DIR must
then be given as data_dir, and `large_images` as name. `write_set` serves the tests.
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

POOL = 1000


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
) -> Path:
    """Prepares a set with TFDS itself; returns the directory of the version.

    Args:
        data_dir: TFDS root.
        name: In snake case.
        features: TFDS features; an Image must be given as PNG bytes in a file object.
        splits: Name -> a function that gives the examples.
        file_format: "array_record", "parquet", or "tfrecord", which TFDS would write
            with TensorFlow: written as array_record, then copied by hand.
        config: Name of a builder config, or None.
        version: Three numbers.
    """
    given_name = name

    class SmallSet(tfds.core.GeneratorBasedBuilder):
        name = given_name
        VERSION = tfds.core.Version(version)
        BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=config)] if config else []

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, dl_manager):
            del dl_manager
            return {split: self._numbered(make) for split, make in splits.items()}

        def _numbered(self, make):
            yield from enumerate(make())

        def _generate_examples(self):
            raise NotImplementedError

    written = "array_record" if file_format == "tfrecord" else file_format
    builder = SmallSet(data_dir=str(data_dir), file_format=written)
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(try_download_gcs=False)
    )
    path = Path(builder.data_dir)
    if file_format == "tfrecord":
        _to_tfrecord(path)
    return path


def write_tfrecord(path: Path, records: Iterable[bytes]) -> None:
    """A TFRecord file: length, its CRC (left zero), data, their CRC (left zero)."""
    with path.open("wb") as file:
        for record in records:
            file.write(struct.pack("<Q4x", len(record)) + record + bytes(4))


def _to_tfrecord(path: Path) -> None:
    from array_record.python import array_record_module

    for shard in sorted(path.glob("*.array_record*")):
        reader = array_record_module.ArrayRecordReader(str(shard))
        target = path / shard.name.replace("array_record", "tfrecord")
        write_tfrecord(target, reader.read_all())
        reader.close()
        shard.unlink()
    info = path / "dataset_info.json"
    info.write_text(info.read_text().replace('"array_record"', '"tfrecord"'))


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

    def examples(num: int) -> Iterable[dict[str, Any]]:
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
            "train": lambda: examples(arguments.num),
            "test": lambda: examples(1000),
        },
        file_format=arguments.file_format,
    )
    sys.stdout.write(f"{path}\n")


if __name__ == "__main__":
    main()
