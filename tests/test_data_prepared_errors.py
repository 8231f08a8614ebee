"""Prepared sets that are absent, damaged or of no use: one clear line each."""

import io

import numpy as np
import pytest
import tensorflow_datasets as tfds
from make_large_set import (
    FORMATS,
    copy_set,
    images_only,
    noise,
    open_prepared,
    png,
    write_tiny_set,
)

from jaxgen._checks import UserError
from jaxgen.data import DataConfig, open_dataset, records

pytestmark = pytest.mark.usefixtures("fresh_cache")


def test_prepared_features_that_are_no_images_are_refused(tmp_path):
    sound = {"sound": tfds.features.Tensor(shape=(8,), dtype=np.int64)}
    write_tiny_set(
        tmp_path, name="sounds", **images_only(sound, sound=np.zeros((3, 8), np.int64))
    )
    with pytest.raises(
        UserError, match="got features sound: Tensor, expected an Image"
    ):
        open_prepared(tmp_path, "sounds")
    tensor = tfds.features.Tensor(shape=(2, 2, 1), dtype=np.float32)
    write_tiny_set(
        tmp_path,
        name="floats",
        **images_only({"x": tensor}, x=np.zeros((3, 2, 2, 1), "f4")),
    )
    with pytest.raises(
        UserError, match="feature x holds float32 pixels, expected uint8"
    ):
        open_prepared(tmp_path, "floats")


def test_prepared_corrupt_record_is_named(sets, tmp_path):
    for file_format in FORMATS:
        path = copy_set(sets[file_format], tmp_path / file_format)
        opened = open_prepared(path, max_decoded_bytes=0)
        (shard,) = path.glob("*train*")
        data = bytearray(shard.read_bytes())
        middle = len(data) // 2 if file_format != "array_record" else 20_000
        data[middle : middle + 300] = bytes(300)
        shard.write_bytes(data)
        opened = (
            open_prepared(path, max_decoded_bytes=0)
            if file_format != "tfrecord"
            else opened
        )
        with pytest.raises(UserError, match=r"tiny_set train record \d+ is corrupt \("):
            opened.train.take(np.arange(210))


def test_corrupt_record_in_a_later_shard_is_counted_from_the_start():
    def opener(shard):
        def read(positions):
            if shard == 1 and 2 in positions:
                raise records.CorruptRecordError(2, "torn")
            return [bytes([shard, p]) for p in positions]

        return read

    split = records.ShardedRecords([10, 0, 5], lambda i: opener(min(i, 1)))
    assert split.read([14, 3, 10]) == [b"\x01\x04", b"\x00\x03", b"\x01\x00"]
    with pytest.raises(records.CorruptRecordError, match="record 12: torn"):
        split.read([0, 12])


def test_prepared_corrupt_image_names_its_index(tmp_path):
    pictures = [png(noise(4, 4, 3)) for _ in range(20)]
    features = {"image": tfds.features.Image(shape=(4, 4, 3), encoding_format="png")}
    files = [io.BytesIO(one if i != 13 else one[:40]) for i, one in enumerate(pictures)]
    write_tiny_set(tmp_path, **images_only(features, image=files))
    with pytest.raises(
        UserError, match=r"train record \d+ is corrupt \(\w+: .*\), exp"
    ):
        open_prepared(tmp_path)
    small = [io.BytesIO(png(noise(4, 3, 3))) for _ in range(5)]
    write_tiny_set(tmp_path, name="lying", **images_only(features, image=small))
    with pytest.raises(
        UserError, match=r"record 0 is corrupt .*shape \(4, 3, 3\), not"
    ):
        open_prepared(tmp_path, "lying")


def test_prepared_damaged_directories_are_explained(sets, tmp_path):
    def copy(name):
        return copy_set(sets["array_record"], tmp_path / name)

    path = copy("missing")
    next(path.glob("*train*")).unlink()
    with pytest.raises(UserError, match=r"train.*is missing \(1 of 1 shards are\)"):
        open_prepared(path)
    path = copy("json")
    (path / "dataset_info.json").write_text("{")
    with pytest.raises(UserError, match="dataset_info.json cannot be read .JSONDecode"):
        open_prepared(path)
    path = copy("features")
    (path / "features.json").unlink()
    with pytest.raises(UserError, match="features cannot be opened|cannot be opened"):
        open_prepared(path)
    path = copy("garbage")
    next(path.glob("*train*")).write_bytes(b"garbage" * 100)
    with pytest.raises(
        UserError, match="cannot be opened|holds 0 records, expected 210"
    ):
        open_prepared(path)
    path = copy_set(sets["tfrecord"], tmp_path / "cut")
    shard = next(path.glob("*train*"))
    shard.write_bytes(shard.read_bytes()[:-9])
    with pytest.raises(UserError, match="record 209 of .* is cut off or corrupt"):
        open_prepared(path)
    path = copy_set(sets["parquet"], tmp_path / "short")
    info = (path / "dataset_info.json").read_text()
    (path / "dataset_info.json").write_text(info.replace('"210"', '"211"'))
    with pytest.raises(UserError, match="holds 210 records, expected 211"):
        open_prepared(path)
    path = copy("riegeli")
    (path / "dataset_info.json").write_text(info.replace('"parquet"', '"riegeli"'))
    for shard in list(path.glob("*array_record*")):
        shard.rename(path / shard.name.replace("array_record", "riegeli"))
    with pytest.raises(
        UserError, match="'riegeli' .* cannot be read without TensorFlow"
    ):
        open_prepared(path)


def test_names_not_found_are_explained(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="nowhere does not exist, expected a directory"):
        open_prepared(tmp_path / "nowhere", "mnist")
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(UserError, match="file is a file, expected a directory with"):
        open_prepared(file, "mnist")
    with pytest.raises(UserError) as caught:
        open_prepared(tmp_path, "mnist")
    message = str(caught.value)
    assert (
        f"not prepared in {tmp_path.resolve()} (which holds no prepared set)" in message
    )
    assert "python -m venv tf-env && tf-env/bin/pip install tensorflow-cpu" in message
    assert (
        'tf-env/bin/python -c "import tensorflow_datasets as tfds; '
        f"tfds.builder('mnist', data_dir='{tmp_path}', file_format='array_record')."
        'download_and_prepare()"'
    ) in message
    assert "\n" not in message
    write_tiny_set(tmp_path)
    with pytest.raises(UserError, match=r"\(which holds tiny_set:1.0.0\)"):
        open_prepared(tmp_path, "mnist")
    with pytest.raises(
        UserError, match=r"unknown name 'tiny_sett'; did you mean 'tiny_s"
    ):
        open_prepared(tmp_path, "tiny_sett")
    with pytest.raises(
        UserError, match=r"'mnistt'; did you mean 'mnist'\? \(choose from"
    ):
        open_prepared(tmp_path, "mnistt")
    with pytest.raises(UserError, match=r"'digitz'; did you mean 'digits'\?"):
        open_prepared(tmp_path, "digitz")
    with pytest.raises(UserError, match="unknown name '../../etc'"):
        open_prepared(tmp_path, "../../etc")
    with pytest.raises(UserError, match=r"'tiny_set:2.0.0': not prepared in .*:1.0.0"):
        open_prepared(tmp_path, "tiny_set:2.0.0")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    assert open_dataset(DataConfig(name="tiny_set")).train.num_examples == 210
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "none"))
    with pytest.raises(UserError, match="'mnist': not prepared in .*none"):
        open_dataset(DataConfig(name="mnist"))

    def denied(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("os.listdir", denied)
    with pytest.raises(UserError, match="--data-dir: no permission to read"):
        open_prepared(tmp_path)
