import os
import subprocess
import sys

import numpy as np
import pytest
from sklearn.datasets import load_digits, load_sample_images

from jaxgen._checks import UserError
from jaxgen.data import DATASETS, ArraySource, DataConfig, builtin, cache, open_dataset


@pytest.fixture(autouse=True)
def cache_dir(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXGEN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def _arrays(dataset) -> dict[str, np.ndarray]:
    return {
        f"{split}_{name}": array
        for split in ("train", "test")
        for name, array in getattr(dataset, split).arrays.items()
    }


def _assert_same(one, other) -> None:
    assert one._replace(train=None, test=None) == other._replace(train=None, test=None)
    a, b = _arrays(one), _arrays(other)
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name])


def test_digits_are_the_scikit_learn_digits_split_once():
    digits = open_dataset(DataConfig())
    assert (digits.name, digits.shape, digits.num_classes) == ("digits", (8, 8, 1), 10)
    assert (digits.train.num_examples, digits.test.num_examples) == (1437, 360)
    arrays = _arrays(digits)
    x = np.concatenate([arrays["train_x"], arrays["test_x"]]).reshape(-1, 64)
    label = np.concatenate([arrays["train_label"], arrays["test_label"]])
    assert (x.dtype, label.dtype) == (np.uint8, np.int32)
    images, digit = load_digits(return_X_y=True)
    expected = np.column_stack([np.round(images * 255 / 16), digit]).astype(int)
    found = np.column_stack([x, label])
    assert sorted(map(tuple, found)) == sorted(map(tuple, expected))
    assert set(np.unique(arrays["test_label"])) == set(range(10))
    assert (x.min(), x.max()) == (0, 255)


def test_digits_split_is_fixed():
    test = open_dataset(DataConfig()).test.take(np.arange(6))
    assert test["label"].tolist() == [2, 4, 5, 4, 8, 2]


def test_photos_train_and_test_share_no_pixel(monkeypatch):
    # In these photographs every pixel says where it is.
    row, column = np.mgrid[:427, :640]
    place = np.stack([row % 256, column % 256, column // 256 + 4 * (row // 256)], -1)
    fake = type("Photos", (), {"images": [place.astype(np.uint8)] * 2})
    monkeypatch.setattr("sklearn.datasets.load_sample_images", lambda: fake)
    photos = builtin.make_photos()

    def pixels(source):
        x = source.arrays["x"].astype(np.uint32)
        return np.unique(x @ np.array([1, 2**8, 2**16], np.uint32))

    train, test = pixels(photos.train), pixels(photos.test)
    assert not np.isin(train, test).any()
    assert len(train) + len(test) > 0.9 * 427 * 640
    assert (photos.train.num_examples, photos.test.num_examples) == (5700, 1700)


def test_photos_are_patches_of_the_two_photographs():
    photos = open_dataset(DataConfig(name="photos"))
    assert (photos.shape, photos.num_classes) == ((32, 32, 3), None)
    x = photos.train.take(np.array([0, 1, 57, 2850]))
    assert set(x) == {"x"}
    china, flower = load_sample_images().images
    for patch, photo, top, left in zip(
        x["x"], (china, china, china, flower), (0, 0, 8, 0), (0, 8, 0, 0), strict=True
    ):
        np.testing.assert_array_equal(patch, photo[top : top + 32, left : left + 32])


@pytest.mark.parametrize("name", DATASETS)
def test_datasets_all_open_twice_the_same(name):
    first = open_dataset(DataConfig(name=name))
    _assert_same(first, open_dataset(DataConfig(name=name)))
    for source in (first.train, first.test):
        assert isinstance(source, ArraySource)
        assert source.shape == first.shape


def test_image_size_and_channels_convert_a_set_in_memory():
    small = open_dataset(DataConfig(image_size=6, channels=3))
    assert small.shape == small.train.shape == (6, 6, 3)
    x = small.train.take(np.arange(20))["x"]
    np.testing.assert_array_equal(x[..., 0], x[..., 2])
    grey = open_dataset(DataConfig(name="photos", channels=1)).test.take(np.arange(9))
    colour = open_dataset(DataConfig(name="photos")).test.take(np.arange(9))["x"]
    luma = colour @ np.array([0.299, 0.587, 0.114])  # ITU-R 601
    assert np.abs(grey["x"][..., 0] - luma).max() < 1


def test_transform_static_binarises_both_splits():
    static = open_dataset(DataConfig(transform="static"))
    for source in (static.train, static.test):
        assert set(np.unique(source.take(np.arange(300))["x"])) == {0, 255}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"channels": 2}, r"channels: got 2, expected 1 \(grey\) or 3 \(RGB\); leave"),
        ({"image_size": 0}, "image_size: got 0, expected 1 to 4096 pixels; leave it"),
        ({"transform": "dequantize"}, "'dequantize'; did you mean 'dequantise'"),
    ],
)
def test_open_dataset_says_what_is_wrong(config, message):
    with pytest.raises(UserError, match=message):
        open_dataset(DataConfig(**config))


def test_cache_is_used(cache_dir, monkeypatch):
    first = open_dataset(DataConfig())
    assert len(list(cache_dir.glob("*.npz"))) == 1
    monkeypatch.setitem(DATASETS, "digits", lambda: pytest.fail("decoded again"))
    _assert_same(first, open_dataset(DataConfig()))


def test_cache_key_changes_with_options_and_version(cache_dir, monkeypatch):
    open_dataset(DataConfig())
    open_dataset(DataConfig(image_size=4))
    open_dataset(DataConfig(channels=3))
    monkeypatch.setattr(builtin, "version", lambda: "99.9")
    open_dataset(DataConfig())
    assert len(list(cache_dir.glob("*.npz"))) == 4


def test_cache_damage_anywhere_is_found_and_repaired(cache_dir):
    first = open_dataset(DataConfig())
    (entry,) = cache_dir.glob("*.npz")
    whole = entry.read_bytes()
    rng = np.random.default_rng(0)
    places = [*rng.integers(0, len(whole), 20), *range(0, 200, 13), *range(-300, 0, 13)]
    for place in places:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << int(rng.integers(8))
        entry.write_bytes(damaged)
        _assert_same(first, open_dataset(DataConfig()))
    for damaged in (b"", whole[: len(whole) // 2], b"PK" + whole, b"\x93NUMPY"):
        entry.write_bytes(damaged)
        _assert_same(first, open_dataset(DataConfig()))
        assert cache.load(entry.stem) is not None  # written anew


def test_cache_never_unpickles(cache_dir, tmp_path):
    class Trap:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "sprung"),))

    open_dataset(DataConfig())
    (entry,) = cache_dir.glob("*.npz")
    np.savez(entry, meta=np.array([Trap()], dtype=object))
    assert open_dataset(DataConfig()).train.num_examples == 1437
    assert not (tmp_path / "sprung").exists()


def test_cache_unwritable_is_a_note(tmp_path, monkeypatch):
    blocked = tmp_path / "file"
    blocked.write_text("not a directory")
    monkeypatch.setenv("JAXGEN_CACHE", str(blocked / "cache"))
    digits = open_dataset(DataConfig())
    assert digits.train.num_examples == 1437
    assert "decoded set not cached, so it is made again next time" in digits.notes[0]


def test_cache_on_a_full_disk_is_a_note_and_leaves_no_rubbish(cache_dir, monkeypatch):
    def full(file, **arrays):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    assert "No space left on device" in open_dataset(DataConfig()).notes[0]
    assert list(cache_dir.iterdir()) == []


def test_cache_without_a_home_is_a_note(monkeypatch):
    def homeless(path):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("JAXGEN_CACHE")
    monkeypatch.setattr("pathlib.Path.expanduser", homeless)
    assert "Could not determine home" in open_dataset(DataConfig()).notes[0]


def test_import_and_cached_open_load_no_heavy_package():
    open_dataset(DataConfig())
    code = (
        "import sys; from jaxgen.data import *; open_dataset(DataConfig());"
        "print([m for m in ('sklearn', 'grain', 'tensorflow_datasets', 'tensorflow',"
        " 'flax') if m in sys.modules])"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "[]"
