"""Texts as windows of bytes: splits that share no byte, and mistakes in one line."""

import numpy as np
import pytest

from jaxgen import data
from jaxgen._checks import UserError
from jaxgen.data import ArraySource, DataConfig, open_dataset, texts

# Every run of four bytes comes once: a window tells where it begins.
NUMBERED = np.array([[i >> 8 & 255, i & 255, 255, 254] for i in range(1000)], np.uint8)


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "book.txt"
    path.write_bytes(NUMBERED.tobytes())
    return path


def test_splits_are_contiguous_and_share_no_byte(text):
    dataset = open_dataset(DataConfig(name=f"text:{text}", length=20))
    assert (dataset.kind, dataset.shape, dataset.num_classes) == ("texts", (20,), None)
    whole = NUMBERED.ravel()
    train, validation, test = (
        source.arrays["x"]
        for source in (dataset.train, dataset.validation, dataset.test)
    )
    assert {a.dtype for a in (train, validation, test)} == {np.dtype(np.uint8)}
    np.testing.assert_array_equal(validation.ravel(), whole[3200:3600])
    np.testing.assert_array_equal(test.ravel(), whole[3600:4000])
    starts = np.arange(0, 3200 - 19, texts.STRIDE)
    expected = whole[starts[:, None] + np.arange(20)]
    np.testing.assert_array_equal(train, expected)
    assert dataset.name == f"text:{text}"
    assert (
        "the first 3,200 to train, 400 to validate, the last 400 to test"
        in (dataset.notes[-1])
    )


def test_windows_overlap_less_where_there_are_many(text, monkeypatch):
    monkeypatch.setattr(texts, "MAX_BYTES", 2 * 3200)
    train = open_dataset(DataConfig(name=f"text:{text}", length=100)).train
    assert train.num_examples == (3200 - 100) // 50 + 1
    monkeypatch.setattr(texts, "MAX_BYTES", 100)
    train = open_dataset(DataConfig(name=f"text:{text}", length=100)).train
    assert train.num_examples == 32


def test_early_stopping_takes_the_tenth_that_no_training_window_touches(text):
    dataset = open_dataset(DataConfig(name=f"text:{text}", length=20))
    held = data.with_validation(dataset, 5)
    assert held.validation is dataset.validation
    assert held.train is dataset.train


def test_pydoc_is_the_language_reference_without_what_comes_again():
    dataset = open_dataset(DataConfig(name="text:pydoc"))
    parts, name, _ = texts.read("text:pydoc")
    whole = np.concatenate(parts).tobytes().decode()
    assert name == "text:pydoc"
    assert 200_000 < len(whole) < 2_000_000
    assert 'The "assert" statement' in whole
    paragraphs = [p.strip() for p in whole.split("\n\n")]
    assert len(set(paragraphs)) == len(paragraphs)
    assert dataset.shape == (128,)
    assert dataset.test.num_examples == len(parts.test) // 128
    assert any("another version's is another text" in note for note in dataset.notes)


def test_bytes_become_whole_numbers():
    x = np.arange(256, dtype=np.uint8).reshape(2, 128)
    made = data.prepare({"x": x, "index": np.arange(2)}, None, transform="bytes")
    assert made["x"].dtype == np.int32
    np.testing.assert_array_equal(made["x"], x)
    with pytest.raises(ValueError, match="x must be uint8"):
        data.prepare({"x": x.astype(np.float32)}, None, transform="bytes")


def test_a_source_of_texts_is_taken_and_other_types_are_not():
    source = ArraySource(np.zeros((5, 7), np.uint8))
    assert (source.num_examples, source.shape) == (5, (7,))
    with pytest.raises(ValueError, match=r"uint8 \[N, H, W, C\] or \[N, L\]"):
        ArraySource(np.zeros((5, 7), np.int32))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 8}, "--image-size is for images, .* holds texts"),
        ({"channels": 1}, "--channels is for images, .* holds texts"),
        ({"transform": "levels"}, "--transform levels is for images"),
        ({"columns": ("a=real",)}, "--columns is for tables, .* holds texts"),
        ({"length": 1}, "--length must be at least 2 bytes, got 1"),
        (
            {"length": 500},
            r"has 4,000 bytes, expected at least 4,995 for windows of 500",
        ),
        ({"name": "digits", "length": 64}, "--length is for texts, digits is none"),
        (
            {"name": "digits", "transform": "bytes"},
            "bytes is for texts, digits holds images",
        ),
        ({"name": "text:nowhere.txt"}, "nowhere.txt is not there: unknown text"),
        ({"name": "text:pydok"}, "did you mean 'pydoc'"),
        ({"name": "text:."}, "is a folder"),
    ],
)
def test_a_mistake_is_one_line(text, options, message):
    config = DataConfig(**{"name": f"text:{text}", **options})
    with pytest.raises(UserError, match=message) as caught:
        open_dataset(config)
    assert "\n" not in str(caught.value)


def test_the_least_text_is_enough_and_a_byte_less_is_not(tmp_path):
    path = tmp_path / "short.txt"
    path.write_bytes(bytes(texts.least(40)))
    dataset = open_dataset(DataConfig(name=f"text:{path}", length=40))
    assert dataset.test.num_examples == 1
    path.write_bytes(bytes(texts.least(40) - 1))
    with pytest.raises(UserError, match="a longer text, or a smaller --length"):
        open_dataset(DataConfig(name=f"text:{path}", length=40))
    path.write_bytes(b"")
    with pytest.raises(UserError, match="has 0 bytes"):
        open_dataset(DataConfig(name=f"text:{path}", length=40))
