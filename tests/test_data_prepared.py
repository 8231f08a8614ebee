import io
import json
import logging
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from make_large_set import (
    FORMATS,
    LABEL,
    X,
    copy_set,
    examples,
    images_only,
    noise,
    open_prepared,
    png,
    write_tiny_set,
)

from jaxgen._checks import UserError
from jaxgen.data import ArraySource, DataConfig, eval_batches, open_dataset, stream

pytestmark = pytest.mark.usefixtures("fresh_cache")


def _by_label(found: dict[str, np.ndarray]) -> set[bytes]:
    return {
        x.tobytes() + bytes([k])
        for x, k in zip(found["x"], found["label"], strict=True)
    }


@pytest.mark.parametrize("file_format", FORMATS)
@pytest.mark.parametrize("max_decoded_bytes", [0, 2**28])
def test_prepared_set_is_read_whole_and_on_demand(sets, file_format, max_decoded_bytes):
    opened = open_prepared(sets[file_format], max_decoded_bytes=max_decoded_bytes)
    assert isinstance(opened.train, ArraySource) == (max_decoded_bytes > 0)
    assert (opened.name, opened.shape, opened.num_classes) == ("tiny_set", (6, 5, 3), 7)
    assert (opened.train.num_examples, opened.test.num_examples) == (210, 20)
    assert opened.notes == ()
    train = opened.train.take(np.arange(210))
    assert (train["x"].dtype, train["label"].dtype) == (np.uint8, np.int32)
    # TFDS shuffles when it prepares a set: compare as sets.
    assert _by_label(train) == _by_label({"x": X[:210], "label": LABEL[:210]})
    test = opened.test.take(np.arange(20))
    assert _by_label(test) == _by_label({"x": X[210:], "label": LABEL[210:]})
    some = np.array([209, 0, 100, 100, 7])
    np.testing.assert_array_equal(opened.train.take(some)["x"], train["x"][some])
    with pytest.raises(IndexError, match="210|out of bounds"):
        opened.train.take(np.array([0, 210]))
    assert "tensorflow" not in sys.modules


@pytest.mark.parametrize("file_format", FORMATS)
def test_prepared_set_streams_from_threads(sets, file_format):
    small = open_prepared(sets[file_format])
    large = open_prepared(sets[file_format], max_decoded_bytes=0)
    options = {"seed": 1, "batch_size": 32, "num_steps": 15}
    pairs = zip(
        stream(small.train, **options),
        stream(large.train, num_threads=6, **options),
        strict=True,
    )
    for a, b in pairs:
        np.testing.assert_array_equal(a["x"], b["x"])
        np.testing.assert_array_equal(a["label"], b["label"])
    assert sum(batch["mask"].sum() for batch in eval_batches(large.test, 8)) == 20


def test_prepared_set_of_several_shards(sets, tmp_path):
    path = copy_set(sets["array_record"], tmp_path / "tiny_set" / "1.0.0")
    _split_in_shards(path, [100, 60, 50])
    whole = open_prepared(sets["array_record"]).train.take(np.arange(210))
    opened = open_prepared(tmp_path, max_decoded_bytes=0)
    some = np.array([209, 0, 99, 100, 159, 160, 5])
    found = opened.train.take(some)
    np.testing.assert_array_equal(found["x"], whole["x"][some])
    np.testing.assert_array_equal(found["label"], whole["label"][some])


def _split_in_shards(path: Path, lengths: list[int]) -> None:
    from array_record.python import array_record_module

    (shard,) = path.glob("*train*")
    reader = array_record_module.ArrayRecordReader(str(shard))
    records = reader.read_all()
    reader.close()
    shard.unlink()
    for i, length in enumerate(lengths):
        name = f"tiny_set-train.array_record-{i:05d}-of-{len(lengths):05d}"
        writer = array_record_module.ArrayRecordWriter(str(path / name), "group_size:1")
        for record in records[:length]:
            writer.write(record)
        writer.close()
        records = records[length:]
    info = json.loads((path / "dataset_info.json").read_text())
    for split in info["splits"]:
        if split["name"] == "train":
            split["shardLengths"] = [str(length) for length in lengths]
    (path / "dataset_info.json").write_text(json.dumps(info))


def test_prepared_cache_hit_needs_no_tfds(sets):
    first = open_prepared(sets["tfrecord"])
    code = (
        "import sys; from jaxgen.data import *;"
        f"c = DataConfig(name='tiny_set', data_dir={str(sets['tfrecord'])!r});"
        "d = open_dataset(c);"
        "print(d.train.arrays['x'].astype(int).sum(),"
        "      'tensorflow_datasets' in sys.modules)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert run.stdout.split() == [
        str(first.train.arrays["x"].astype(int).sum()),
        "False",
    ]


def test_prepared_cache_sees_a_set_prepared_anew(tmp_path):
    write_tiny_set(tmp_path)
    assert open_prepared(tmp_path).train.num_examples == 210
    for file in (tmp_path / "tiny_set" / "1.0.0").iterdir():
        file.unlink()
    (tmp_path / "tiny_set" / "1.0.0").rmdir()
    write_tiny_set(tmp_path, splits={"train": lambda: examples(X[:50], LABEL[:50])})
    assert open_prepared(tmp_path).train.num_examples == 45


def test_prepared_data_dir_may_be_root_set_or_version(sets):
    version = sets["parquet"]
    for place in (version, version.parent, version.parent.parent):
        assert open_prepared(place).train.num_examples == 210
    assert (
        open_prepared(version.parent.parent, "tiny_set:1.0.0").test.num_examples == 20
    )


def test_prepared_newest_version_and_config_are_taken(tmp_path):
    def make(num, **options):
        write_tiny_set(
            tmp_path,
            splits={"train": lambda: examples(X[:num], LABEL[:num])},
            **options,
        )

    make(10, version="9.0.0")
    make(20, version="10.0.0")
    assert open_prepared(tmp_path).train.num_examples == 18
    assert open_prepared(tmp_path, "tiny_set:9.0.0").train.num_examples == 9
    make(30, name="with_config", config="plain")
    make(40, name="with_config", config="rich")
    opened = open_prepared(tmp_path, "with_config")
    assert opened.train.num_examples == 36
    assert opened.notes[0] == (
        "took config with_config/rich; also there: with_config/plain"
    )
    assert open_prepared(tmp_path, "with_config/plain").train.num_examples == 27
    stopped = tmp_path / "tiny_set" / "incomplete.XY_11.0.0"  # as TFDS names it
    stopped.mkdir()
    info = (tmp_path / "tiny_set" / "10.0.0" / "dataset_info.json").read_text()
    (stopped / "dataset_info.json").write_text(info.replace("10.0.0", "11.0.0"))
    assert open_prepared(tmp_path).train.num_examples == 18


@pytest.mark.parametrize(
    ("splits", "note"),
    [
        ({"train": 20, "validation": 8}, "no test split: split 'validation' takes its"),
        ({"train": 20, "test": 8, "extra": 3}, "splits not used: extra"),
        ({"train": 28}, r"no test split: 10 % of train \(3 images\) held out"),
        ({"images": 28}, "no train split: split 'images' takes its place"),
    ],
)
def test_prepared_splits(tmp_path, splits, note):
    def make(num):
        return lambda: examples(X[:num], LABEL[:num])

    write_tiny_set(tmp_path, splits={name: make(num) for name, num in splits.items()})
    for limit in (0, 2**28):
        opened = open_prepared(tmp_path, max_decoded_bytes=limit)
        assert opened.train.num_examples + opened.test.num_examples == 28
        assert any(re.search(note, one) for one in opened.notes)


def test_prepared_image_options_apply(sets):
    opened = open_prepared(sets["array_record"], image_size=4, channels=1)
    assert opened.shape == (4, 4, 1)
    lazy = open_prepared(
        sets["array_record"], image_size=4, channels=1, max_decoded_bytes=0
    )
    indices = np.arange(210)
    np.testing.assert_array_equal(
        lazy.train.take(indices)["x"], opened.train.take(indices)["x"]
    )


def test_prepared_images_of_varying_size_need_image_size(tmp_path):
    pictures = [io.BytesIO(png(noise(5 + i, 9, 3))) for i in range(12)]
    features = {"image": tfds.features.Image(), "n": tfds.features.Scalar(np.int64)}
    write_tiny_set(tmp_path, **images_only(features, image=pictures, n=range(12)))
    with pytest.raises(UserError, match=r"images vary in size .* give image_size, for"):
        open_prepared(tmp_path)
    opened = open_prepared(tmp_path, image_size=7)
    assert (opened.shape, opened.num_classes) == ((7, 7, 3), None)
    assert set(opened.train.take(np.arange(3))) == {"x"}


@pytest.mark.parametrize("max_decoded_bytes", [0, 2**28])
def test_prepared_binary_images_become_0_and_255(tmp_path, max_decoded_bytes):
    bits = noise(40, 4, 4, 1) // 128
    pictures = [io.BytesIO(png(b[:, :, 0])) for b in bits]
    features = {"image": tfds.features.Image(shape=(4, 4, 1), encoding_format="png")}
    write_tiny_set(tmp_path, **images_only(features, image=pictures))
    opened = open_prepared(tmp_path, max_decoded_bytes=max_decoded_bytes)
    assert "levels 0 and 1 stored; shown as 0 and 255" in opened.notes
    assert set(np.unique(opened.train.take(np.arange(36))["x"])) == {0, 255}
    wide = open_prepared(tmp_path, max_decoded_bytes=max_decoded_bytes, image_size=8)
    assert wide.train.take(np.arange(36))["x"].max() == 255


@pytest.mark.parametrize("dtype", [np.bool_, np.uint8, np.uint16])
@pytest.mark.parametrize("encoding", ["none", "zlib"])
def test_prepared_tensors_and_nested_features(tmp_path, dtype, encoding):
    top = {np.bool_: 1, np.uint8: 255, np.uint16: 65_535}[dtype]
    x = (np.arange(24).reshape(24, 1, 1, 1) % 2 * top * np.ones((1, 3, 4, 1))).astype(
        dtype
    )
    features = {
        "inner": {
            "kind": tfds.features.ClassLabel(num_classes=2),
            "pixels": tfds.features.Tensor(
                shape=(3, 4, 1), dtype=dtype, encoding=encoding
            ),
        }
    }
    rows = [{"kind": i % 2, "pixels": x[i]} for i in range(24)]
    write_tiny_set(tmp_path, **images_only(features, inner=rows))
    opened = open_prepared(tmp_path)
    found = opened.train.take(np.arange(20))
    assert opened.num_classes == 2
    np.testing.assert_array_equal(found["x"][:, 0, 0, 0], found["label"] * 255)


def test_prepared_parquet_of_tfds_itself_is_read(tmp_path):
    splits = {"train": lambda: examples(X[:90], LABEL[:90])}
    options = {"splits": splits, "file_format": "parquet", "native": True}
    write_tiny_set(tmp_path, **options)
    opened = open_prepared(tmp_path)
    assert (opened.train.num_examples, opened.test.num_examples) == (81, 9)


def test_mnist_opens_from_the_cache_without_its_reader(mnist_dir, monkeypatch):
    """Real MNIST where it is near, else digits."""
    config = DataConfig(name="digits")
    if mnist_dir is not None:
        config = DataConfig(name="mnist", data_dir=str(mnist_dir))
    first = open_dataset(config)
    for reader in ("tensorflow_datasets", "array_record", "sklearn.datasets"):
        monkeypatch.setitem(sys.modules, reader, None)  # importing it would raise
    second = open_dataset(config)
    x = second.train.take(np.arange(second.train.num_examples))
    np.testing.assert_array_equal(x["x"], first.train.take(np.arange(len(x["x"])))["x"])
    if mnist_dir is None:
        logging.warning("real MNIST is not there: digits used in its place")
        return
    assert (second.shape, second.num_classes) == ((28, 28, 1), 10)
    assert (second.train.num_examples, second.test.num_examples) == (60_000, 10_000)
    assert np.bincount(x["label"]).tolist() == [
        5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949,
    ]  # fmt: skip
    np.testing.assert_allclose(x["x"].mean() / 255, 0.1307, atol=5e-5)
