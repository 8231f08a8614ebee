"""From any picture to uint8 `[H, W, C]`: bit depth, transparency, colour, size."""

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps


def decode_image(
    data: bytes | Path,
    *,
    size: int | None,
    channels: int,
    orient: bool,
    binary: bool = False,
) -> np.ndarray:
    """Decodes one image file.

    In this order: turn as EXIF says (`orient`); 16 bits become 8 by round(v / 257);
    transparent pixels are laid on white; grey or RGB; the centre square is resized to
    `size`: where that divides its side by block means, as `--task enlarge` makes its small
    images, else by an antialiased Lanczos filter. Of an animation the first frame is taken.

    Args:
        data: The bytes of the file, or its path.
        size: Side of the square, or None to keep the stored size.
        channels: 1 or 3.
        orient: Whether to honour the EXIF orientation tag.
        binary: Whether the stored levels are 0 and 1, to be shown as 0 and 255.

    Returns:
        uint8 `[H, W, channels]`.

    Raises:
        Exception: whatever Pillow raises for a broken file; ValueError for float or
            32-bit pixels, which have no agreed range.
    """
    with Image.open(io.BytesIO(data) if isinstance(data, bytes) else data) as image:
        image.load()
        turned = _turned(image) if orient else image
        return _conform(turned, size, channels, binary=binary)


def conform_array(
    x: np.ndarray, *, size: int | None, channels: int, binary: bool = False
) -> np.ndarray:
    """The same as `decode_image` for an array: bool, uint8 or uint16 `[H, W, 1..4]`."""
    if x.dtype == np.bool_:
        x = x.astype(np.uint8) * 255
    if x.dtype == np.uint16:
        x = scale_16_bit(x)
    if x.dtype != np.uint8:
        raise ValueError(f"{x.dtype} pixels have no agreed range; expected uint8")
    if size is None and x.shape[-1] == channels and not binary:
        return x
    image = Image.fromarray(x.squeeze(-1) if x.shape[-1] == 1 else x)
    return _conform(image, size, channels, binary=binary)


def scale_16_bit(x: np.ndarray) -> np.ndarray:
    """0..65535 to 0..255 by round(v / 257), exact in integers."""
    return ((x.astype(np.uint32) * 255 + 32_767) // 65_535).astype(np.uint8)


def _turned(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # a broken EXIF block does not make the pixels unreadable
        return image


def _conform(
    image: Image.Image, size: int | None, channels: int, *, binary: bool
) -> np.ndarray:
    mode = "L" if channels == 1 else "RGB"
    image = _on_white(_eight_bit(image))
    if image.mode != mode:
        image = image.convert(mode)
    if binary:
        image = _stretched(image)
    if size is not None and image.size != (size, size):
        image = _resized(image, size)
    pixels = np.asarray(image, dtype=np.uint8)
    return pixels[:, :, None] if channels == 1 else pixels


def _resized(image: Image.Image, size: int) -> Image.Image:
    side = min(image.size)
    if side % size:
        method = Image.Resampling.LANCZOS
        return ImageOps.fit(image, (size, size), method=method)
    left, top = ((length - side) // 2 for length in image.size)
    return image.reduce(side // size, box=(left, top, left + side, top + side))


def _stretched(image: Image.Image) -> Image.Image:
    levels = np.asarray(image)
    if levels.max() > 1:
        raise ValueError(f"level {levels.max()} in a set whose levels are 0 and 1")
    return Image.fromarray(levels * np.uint8(255))


def _eight_bit(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ValueError("float pixels have no agreed range")
    if image.mode == "I" or image.mode.startswith("I;"):
        levels = np.asarray(image)
        if levels.size and not (levels.min() >= 0 and levels.max() <= 65_535):
            raise ValueError("32-bit pixels have no agreed range")
        return Image.fromarray(scale_16_bit(levels))
    return image


def _on_white(image: Image.Image) -> Image.Image:
    if not image.has_transparency_data:
        return image
    image = image.convert("RGBA")
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, image)
