"""Arrays that several test files draw."""

import numpy as np

LEVELS = np.arange(256) / np.float32(255)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def binary(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 2, shape).astype(np.float32)


def levels(*shape, seed=0):
    return LEVELS[np.random.default_rng(seed).integers(0, 256, shape)]
