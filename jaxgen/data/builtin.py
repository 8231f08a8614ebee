"""The two sets that need no download: both come inside scikit-learn."""

import importlib.metadata

import numpy as np

from jaxgen.data.sources import ArraySource, Dataset, fixed_order

DIGITS_SPLIT_SEED = 0
DIGITS_NUM_TEST = 360
PHOTO_PATCH = 32
PHOTO_STRIDE = 8
PHOTO_TRAIN_SHARE = 0.75


def version() -> str:
    """Of scikit-learn, without importing it (2 s and 80 MB)."""
    return importlib.metadata.version("scikit-learn")


def make_digits() -> Dataset:
    """1797 handwritten digits, 8x8x1: 1437 train, 360 test, split by a fixed seed.

    The 17 stored levels 0..16 become round(v * 255 / 16).
    """
    from sklearn.datasets import load_digits

    images, label = load_digits(return_X_y=True)
    x = np.round(images * 255 / 16).astype(np.uint8).reshape(-1, 8, 8, 1)
    label = np.asarray(label, np.int32)
    order = fixed_order(DIGITS_SPLIT_SEED, 0, len(x))
    test, train = order[:DIGITS_NUM_TEST], order[DIGITS_NUM_TEST:]
    return Dataset(
        name="digits",
        train=ArraySource(x[train], label[train]),
        test=ArraySource(x[test], label[test]),
        shape=(8, 8, 1),
        num_classes=10,
        notes=(),
    )


def make_photos() -> Dataset:
    """32x32x3 patches of two photographs, every 8 pixels; 5700 train, 1700 test.

    Train patches lie wholly in the left three quarters of each photograph, test patches
    wholly in the right quarter, so that no pixel is in both.
    """
    from sklearn.datasets import load_sample_images

    train, test = [], []
    for photo in load_sample_images().images:
        border = int(photo.shape[1] * PHOTO_TRAIN_SHARE)
        train.append(cut_patches(photo[:, :border]))
        test.append(cut_patches(photo[:, border:]))
    return Dataset(
        name="photos",
        train=ArraySource(np.concatenate(train)),
        test=ArraySource(np.concatenate(test)),
        shape=(PHOTO_PATCH, PHOTO_PATCH, 3),
        num_classes=None,
        notes=("train and test patches come from disjoint parts of two photographs",),
    )


def cut_patches(region: np.ndarray) -> np.ndarray:
    """Every `PHOTO_PATCH` square on a grid of `PHOTO_STRIDE`, from `[H, W, C]`."""
    window = (PHOTO_PATCH, PHOTO_PATCH)
    views = np.lib.stride_tricks.sliding_window_view(region, window, axis=(0, 1))
    grid = views[::PHOTO_STRIDE, ::PHOTO_STRIDE]  # [rows, columns, C, 32, 32]
    patches = np.moveaxis(grid, 2, -1).reshape(-1, *window, region.shape[-1])
    return np.ascontiguousarray(patches)
