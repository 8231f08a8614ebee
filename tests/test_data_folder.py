import io
import os
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxgen import operators
from jaxgen._checks import UserError
from jaxgen.data import ArraySource, DataConfig, cache, eval_batches, open_dataset
from jaxgen.data import images as images_module
from jaxgen.data.images import conform_array, decode_image, scale_16_bit


@pytest.fixture(autouse=True)
def cache_dir(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXGEN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "pictures"
    path.mkdir()
    return path


def _noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).integers(0, 256, shape, dtype=np.uint8)


def _fill(folder: Path, num: int, side: int = 8) -> None:
    for i in range(num):
        pixels = np.full((side, side, 3), i, np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:03d}.png")


def _open(folder: Path, **options):
    max_decoded_bytes = options.pop("max_decoded_bytes", 2**28)
    config = DataConfig(name=f"folder:{folder}", **options)
    return open_dataset(config, max_decoded_bytes=max_decoded_bytes)


def _all(dataset) -> np.ndarray:
    splits = (dataset.train, dataset.test)
    return np.concatenate([s.take(np.arange(s.num_examples))["x"] for s in splits])


def test_folder_reads_every_mode_and_size(folder):
    (folder / "deep").mkdir()
    Image.fromarray(_noise(40, 31)).save(folder / "grey.png")
    Image.fromarray(_noise(33, 70, 3)).save(folder / "deep" / "colour.jpg")
    Image.fromarray(_noise(5, 5, 4)).save(folder / "alpha.webp", lossless=True)
    Image.fromarray(_noise(32, 32, 3)).quantize(16).save(folder / "palette.gif")
    Image.fromarray(_noise(40, 40) > 127).save(folder / "bits.TIFF")
    Image.fromarray((_noise(9, 300).astype(np.uint16)) * 257).save(folder / "deep.png")
    Image.fromarray(_noise(36, 36, 3)).convert("CMYK").save(folder / "print.tif")
    (folder / "notes.txt").write_text("not an image")
    (folder / ".hidden.png").write_bytes(b"")
    opened = _open(folder)
    assert opened.shape == (32, 32, 3)
    assert _all(opened).shape == (7, 32, 32, 3)
    assert opened.num_classes is None
    assert opened.notes == (
        "images cropped to the centre square and resized to 32x32",
        "no test split: 10 % of train (1 images) held out by a fixed seed",
    )
    assert _open(folder, image_size=20, channels=1).shape == (20, 20, 1)


def test_folder_order_and_split_are_fixed(folder):
    _fill(folder, 30)
    one, two = _open(folder), _open(folder)
    np.testing.assert_array_equal(_all(one), _all(two))
    assert sorted(_all(one)[:, 0, 0, 0]) == list(range(30))
    assert one.test.num_examples == 3


def test_folder_lists_unreadable_files_and_goes_on(folder, cache_dir):
    _fill(folder, 12)
    whole = (folder / "003.png").read_bytes()
    (folder / "003.png").write_bytes(whole[: len(whole) // 2])
    (folder / "004.png").write_bytes(b"")
    (folder / "005.png").write_text("<html>404</html>")
    (folder / "006.jpg").write_bytes(os.urandom(300))
    (folder / "007.png").unlink()
    (folder / "007.png").symlink_to("nowhere.png")
    Image.fromarray(np.zeros((4, 4), np.float32)).save(folder / "float.tif")
    opened = _open(folder)
    assert sorted(_all(opened)[:, 0, 0, 0]) == [0, 1, 2, 6, 8, 9, 10, 11]
    note = opened.notes[1]
    assert note.startswith("6 of 14 files unreadable and left out: 003.png (")
    for name in ("003.png", "004.png", "005.png", "006.jpg", "007.png", "float.tif"):
        assert f"{name} (" in note
    again = _open(folder)  # from the cache, with the same notes
    assert again.notes == opened.notes
    np.testing.assert_array_equal(_all(again), _all(opened))


def test_folder_too_large_to_decode_gives_the_same_images(folder, monkeypatch):
    _fill(folder, 20)
    (folder / "005.png").write_text("broken")
    small, large = _open(folder), _open(folder, max_decoded_bytes=1000)
    assert isinstance(small.train, ArraySource)
    assert not isinstance(large.train, ArraySource)
    assert (small.notes, small.shape) == (large.notes, large.shape)
    np.testing.assert_array_equal(_all(small), _all(large))
    batches = list(eval_batches(large.test, 3))
    np.testing.assert_array_equal(batches[0]["x"][:2], _all(small)[-2:])
    # Which files can be read is remembered.
    monkeypatch.setattr(
        "jaxgen.data.blocks.map_threads", lambda *_: pytest.fail("read")
    )
    assert _open(folder, max_decoded_bytes=1000).notes == small.notes


def test_folder_file_lost_during_the_run_is_named(folder):
    _fill(folder, 10)
    opened = _open(folder, max_decoded_bytes=0)
    for file in folder.iterdir():
        file.unlink()
    with pytest.raises(UserError, match=r"0\d\d.png could be read when"):
        opened.train.take(np.array([4]))


def test_folder_changed_is_decoded_again(folder):
    _fill(folder, 5)
    _open(folder)
    Image.fromarray(np.full((8, 8, 3), 99, np.uint8)).save(folder / "001.png")
    os.utime(folder / "001.png", ns=(1, 1))
    assert sorted(_all(_open(folder))[:, 0, 0, 0]) == [0, 2, 3, 4, 99]


def test_folder_says_what_is_wrong(folder, monkeypatch):
    with pytest.raises(UserError, match="nowhere does not exist, expected a directory"):
        _open(folder / "nowhere")
    (folder / "a.txt").write_text("x")
    with pytest.raises(UserError, match="holds no image, expected files that end in"):
        _open(folder)
    with pytest.raises(UserError, match="a.txt is a file, expected a directory"):
        _open(folder / "a.txt")
    (folder / "a.png").write_text("x")
    (folder / "b.png").write_text("x")
    with pytest.raises(UserError, match=r"none of the 2 images in .* can be read \(a"):
        _open(folder)
    (folder / "b.png").unlink()
    _fill(folder, 1)
    with pytest.raises(UserError, match="got 1 readable image, expected at least 2"):
        _open(folder)

    def denied(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "listdir", denied)
    with pytest.raises(UserError, match="no permission to read .*, expected a"):
        _open(folder)


def _decode(image: Image.Image, file_format: str = "PNG", **options) -> np.ndarray:
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return decode_image(file.getvalue(), size=None, channels=3, orient=True)


def test_decode_image_lays_transparent_pixels_on_white():
    pixels = np.zeros((1, 3, 4), np.uint8)
    pixels[0, :, 3] = (0, 128, 255)
    assert _decode(Image.fromarray(pixels))[0, :, 0].tolist() == [255, 127, 0]
    grey = Image.fromarray(pixels[:, :, 2:])
    assert grey.mode == "LA"
    assert _decode(grey)[0, :, 1].tolist() == [255, 127, 0]
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putpixel((1, 0), 1)
    assert _decode(palette).tolist() == [[[10, 20, 30], [40, 50, 60]]]
    assert _decode(palette, transparency=0).tolist() == [[[255] * 3, [40, 50, 60]]]


def test_decode_image_turns_as_exif_says():
    pixels = _noise(4, 6, 3)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to view
    turned = _decode(Image.fromarray(pixels), exif=exif)
    np.testing.assert_array_equal(turned, np.rot90(pixels, -1))
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", exif=exif)
    plain = decode_image(file.getvalue(), size=None, channels=3, orient=False)
    np.testing.assert_array_equal(plain, pixels)


def test_decode_image_of_16_bits_rounds_to_the_nearest_level():
    levels = np.array([[0, 128, 129, 257 * 77, 65_406, 65_407, 65_535]], np.uint16)
    expected = [0, 0, 1, 77, 254, 255, 255]
    assert _decode(Image.fromarray(levels))[0, :, 2].tolist() == expected
    assert _decode(Image.fromarray(levels), "TIFF")[0, :, 2].tolist() == expected
    every = np.arange(65_536, dtype=np.uint16)
    np.testing.assert_array_equal(scale_16_bit(every), np.round(every / 257))
    with pytest.raises(ValueError, match="32-bit pixels have no agreed range"):
        _decode(Image.fromarray(np.array([[0, 70_000]], np.int32)), "TIFF")


def test_decode_image_resizes_the_shorter_side_and_crops_the_centre():
    wide = Image.fromarray(_noise(10, 30))
    small = wide.resize((12, 4), Image.Resampling.LANCZOS).crop((4, 0, 8, 4))
    expected = np.asarray(small)[:, :, None]
    for image, turned in ((wide, False), (wide.transpose(Image.Transpose(5)), True)):
        file = io.BytesIO()
        image.save(file, "PNG")
        out = decode_image(file.getvalue(), size=4, channels=1, orient=True)
        np.testing.assert_array_equal(
            out, expected.swapaxes(0, 1) if turned else expected
        )


@pytest.mark.parametrize("channels", [1, 3])
def test_images_are_made_smaller_as_the_task_enlarge_makes_them(channels):
    x = np.random.default_rng(0).integers(0, 256, (28, 28, channels), np.uint8)
    for scale in (2, 4):
        out = conform_array(x, size=28 // scale, channels=channels)
        seen = operators.block_mean(scale).apply(jnp.asarray(x[None], jnp.float32))[0]
        assert np.abs(out - seen).max() <= 0.51  # of a level: it is rounded


def test_decode_image_resizes_without_aliasing():
    board = ((np.indices((64, 64)).sum(0) % 2) * 255).astype(np.uint8)
    out = conform_array(board[:, :, None], size=16, channels=1)
    assert np.abs(out.astype(int) - 127).max() <= 3  # sampling would give 0 or 255


def test_conform_array_of_bool_uint16_and_others():
    bits = np.array([[[True], [False]]])
    assert conform_array(bits, size=None, channels=1).reshape(-1).tolist() == [255, 0]
    deep = np.full((2, 2, 1), 65_535, np.uint16)
    assert conform_array(deep, size=None, channels=3).min() == 255
    with pytest.raises(ValueError, match="float32 pixels have no agreed range"):
        conform_array(np.zeros((2, 2, 1), np.float32), size=None, channels=1)
    ones = np.array([[[1], [0]]], np.uint8)
    out = conform_array(ones, size=None, channels=1, binary=True)
    assert out.reshape(-1).tolist() == [255, 0]
    with pytest.raises(ValueError, match="level 2 in a set whose levels are 0 and 1"):
        conform_array(ones * 2, size=None, channels=1, binary=True)


def test_broken_exif_does_not_lose_the_image(monkeypatch):
    def broken(image):
        raise SyntaxError("not a TIFF file")

    monkeypatch.setattr(images_module.ImageOps, "exif_transpose", broken)
    assert _decode(Image.fromarray(_noise(3, 3, 3))).shape == (3, 3, 3)


def test_cache_listing_sees_size_and_time(folder):
    (folder / "a").write_text("x")
    before = cache.listing(folder)
    (folder / "a").write_text("xy")
    assert cache.listing(folder) != before
    assert [name for name, _, _ in cache.listing(folder)] == ["a"]
