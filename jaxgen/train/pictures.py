"""Grids of images as PNG."""

import io

import numpy as np
from PIL import Image


def to_uint8(x: np.ndarray) -> np.ndarray:
    """Images in [0, 1] to the nearest of 256 levels."""
    return np.round(np.clip(np.asarray(x, np.float32), 0.0, 1.0) * 255.0).astype(
        np.uint8
    )


def grid(images: np.ndarray, *, gap: int = 1) -> np.ndarray:
    """Tiles uint8 images `[N, H, W, C]` or `[rows, columns, H, W, C]` into one picture.

    Args:
        images: What is tiled, row by row; a stack of N as a near-square.
        gap: Pixels of mid-grey between the images.

    Returns:
        `[height, width, C]` uint8.
    """
    if images.ndim == 4:
        columns = int(np.ceil(np.sqrt(len(images))))
        rows = -(-len(images) // columns)
        blank = np.full(
            (rows * columns - len(images), *images.shape[1:]), 128, np.uint8
        )
        images = np.concatenate([images, blank])
        images = images.reshape(rows, columns, *images.shape[1:])
    rows, columns, height, width, channels = images.shape
    canvas = np.full(
        (rows * (height + gap) - gap, columns * (width + gap) - gap, channels),
        128,
        np.uint8,
    )
    for r in range(rows):
        for c in range(columns):
            top, left = r * (height + gap), c * (width + gap)
            canvas[top : top + height, left : left + width] = images[r, c]
    return canvas


def beside(left: np.ndarray, right: np.ndarray, *, gap: int = 6) -> np.ndarray:
    """Two pictures of one height next to each other, a white bar between them."""
    bar = np.full((left.shape[0], gap, left.shape[2]), 255, np.uint8)
    return np.concatenate([left, bar, right], axis=1)


def png(picture: np.ndarray, *, min_side: int = 0) -> bytes:
    """A `[height, width, 1 or 3]` uint8 picture as PNG, enlarged by whole factors.

    Args:
        picture: The pixels.
        min_side: Pixels are repeated until the shorter side is at least this.
    """
    factor = max(1, -(-min_side // min(picture.shape[:2])))
    picture = picture.repeat(factor, axis=0).repeat(factor, axis=1)
    pixels = picture[..., 0] if picture.shape[-1] == 1 else picture
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
