"""Judging by `peg:K`: which of the known possible next frames an answer is."""

import functools
from typing import Any

import numpy as np

from jaxgen.data import peg
from jaxgen.evaluate.answers import of_modes

# In norms of a ball. A frame without it is 0.75 to 1 away, a ball that is moved by a quarter
# of a pixel less than 0.3.
WITHIN = 0.5
BLURRED = 0.2  # of another way's ball; the blur of ways of 0.3 and 0.7 has 0.3 of it
_BLOCK = 64  # frames whose distances fit into a processor's cache


def read(given: np.ndarray) -> peg.Scene:
    """The scene whose two frames are nearest, by least squares; exact of exact frames.

    Args:
        given: `[N, 16, 16, 2]`, uint8 levels or floats in [0, 1]; a model's frames too.
    """
    frames = np.moveaxis(_unit(given), -1, 1).reshape(len(given), 2, -1)
    blocks = [
        _nearest(frames[start : start + _BLOCK])
        for start in range(0, len(frames), _BLOCK)
    ]
    post, ball = (np.concatenate(part) for part in zip(*blocks, strict=True))
    peg_y, peg_x = np.divmod(post, len(peg.PEG_X))
    y, x = np.divmod(ball, peg.LAST + 1)
    return peg.Scene(
        x[:, 0], y[:, 0], x[:, 1], y[:, 1], peg.PEG_X[peg_x], peg.PEG_Y[peg_y]
    )


def outcomes(scene: peg.Scene, num_modes: int) -> np.ndarray:
    """Every possible next frame, uint8 `[N, num_modes, 16, 16, 1]`.

    They are all the same where the ball does not meet the peg.
    """
    ways = [np.full(len(scene.x), way) for way in range(num_modes)]
    frames = [peg.draw(peg.advanced(scene, way, num_modes)) for way in ways]
    return np.stack(frames, axis=1)


def modes(
    scene: peg.Scene, answers: np.ndarray, num_modes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Which of the possible next frames each answer is.

    Args:
        scene: `read` of the conditions, N of them.
        answers: `[N, K, 16, 16, 1]`, uint8 levels or floats in [0, 1].
        num_modes: 2 or 4.

    Returns:
        The way of the nearest possible frame, `[N, K]`, -1 for none of them: the
        distance is 0.5 or more, or, by least squares, the answer has a fifth or more of
        another way in it; and the distance, `[N, K]`: of a Euclidean norm of pixels, over
        that of a ball. Without a meeting the way is 0 or -1.
    """
    possible = _unit(outcomes(scene, num_modes))
    apart = _unit(answers)[:, :, None] - possible[:, None]
    squares = np.sum(apart**2, axis=(3, 4, 5))
    way, least = squares.argmin(axis=2), squares.min(axis=2)
    between = np.sum((possible[:, :, None] - possible[:, None]) ** 2, axis=(3, 4, 5))
    between = between[np.arange(len(way))[:, None], way]  # [N, K, num_modes]
    # Where the line to the other way is nearest; all are one without a meeting.
    share = (least[..., None] + between - squares) / (2 * np.maximum(between, 1e-9))
    ball = peg.BALL_LEVEL / 255 * (peg.BALL / peg.FINE)
    distance = np.sqrt(least) / ball
    is_known = (distance < WITHIN) & (share.max(axis=2) < BLURRED)
    return np.where(is_known, way, -1), distance


def counted(
    name: str, condition: np.ndarray, answers: np.ndarray
) -> dict[str, Any] | None:
    """What `answers.of_modes` tells of answers, with the number of them, `num_judged`.

    Args:
        name: Of the data, `peg:K`.
        condition: In [0, 1], `[N, 16, 16, 2]`.
        answers: `[N, num, 16, 16, 1]`.

    Returns:
        Of the conditions where the ball meets the peg; None where none does.
    """
    num_modes = int(name.removeprefix(peg.PREFIX))
    scene = read(condition)
    at_peg = peg.meets(scene)
    if not at_peg.any():
        return None
    labels, _ = modes(scene, answers, num_modes)
    told = of_modes(labels[at_peg], peg.PROBABILITIES[num_modes])
    return {**told, "num_judged": int(labels[at_peg].size)}


def _unit(frames: np.ndarray) -> np.ndarray:
    scale = 255 if frames.dtype == np.uint8 else 1
    return np.asarray(frames, np.float32) / np.float32(scale)


def _nearest(frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of `[N, 2, 256]`, the number of the peg `[N]` and of the ball `[N, 2]`."""
    balls, pegs, norms = _patterns()
    with_balls = -2 * (frames @ balls.T)  # [N, 2, balls]
    with_pegs = -2 * (frames @ pegs.T)
    errors, chosen, error = [], [], np.empty_like(with_balls)
    for post, norm in enumerate(norms):
        np.add(norm, with_balls, out=error)
        nearest = error.argmin(axis=2)
        chosen.append(nearest)
        least = np.take_along_axis(error, nearest[..., None], axis=2)[..., 0]
        errors.append(least + with_pegs[..., post])
    best = np.sum(errors, axis=2).argmin(axis=0)
    return best, np.array(chosen)[best, np.arange(len(best))]


@functools.cache
def _patterns() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All balls `[M, 256]`, all pegs `[P, 256]`, squared norms of their sums `[P, M]`."""
    line = peg.covered(np.arange(peg.LAST + 1))
    balls = np.einsum("yi,xj->yxij", line, line).reshape(-1, peg.SIDE**2) / peg.FINE**2
    pegs = np.zeros((len(peg.PEG_Y), len(peg.PEG_X), peg.SIDE, peg.SIDE))
    for row, y in enumerate(peg.PEG_Y):
        for column, x in enumerate(peg.PEG_X):
            pegs[row, column, y, x] = peg.PEG_LEVEL / 255
    balls, pegs = balls * peg.BALL_LEVEL / 255, pegs.reshape(-1, peg.SIDE**2)
    norms = np.sum(balls**2, axis=1) + np.sum(pegs**2, axis=1)[:, None]
    norms = norms + 2 * pegs @ balls.T
    return balls.astype(np.float32), pegs.astype(np.float32), norms.astype(np.float32)
