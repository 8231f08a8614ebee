"""`peg:2`, `peg:4`: a ball that meets a peg and goes one of K ways, of known probabilities.

Grey images of 16x16 pixels. The next frame is a function of the past two and, where the
ball meets the peg, of one random choice that depends on nothing. So the exact answers to
a condition are known, and how often each of them is right.

Places are whole quarters of a pixel. The ball (a square of two pixels) falls two pixels a
frame and keeps its way sideways, at most two pixels a frame; a wall turns it round. Where
its next fall would touch the peg (one pixel) from above, it is thrown to the side and, of
four ways, up or down. A ball that would leave below is followed by a new one above the
peg, a sixth as far from the peg's middle as the old one was from the picture's, which
falls straight. So it meets the peg about every seventh frame, for ever.

What is seen of ball and peg is added, and the scene can be read from two frames again
(`jaxgen.evaluate.peg_answers`).
"""

from typing import NamedTuple

import numpy as np

from jaxgen._checks import UserError, unknown
from jaxgen.data import clips
from jaxgen.data.sources import ArraySource, Dataset

PREFIX = "peg:"
# Of each way, in tenths: 0.3 left, 0.7 right; and of four ways 0.1 left and up, 0.2 left
# and down, 0.3 right and up, 0.4 right and down.
TENTHS: dict[int, tuple[int, ...]] = {2: (3, 7), 4: (1, 2, 3, 4)}
PROBABILITIES = {num: np.array(tenths) / 10 for num, tenths in TENTHS.items()}
NUM_TRAIN, NUM_TEST = 20_000, 2_000
SIDE = 16  # pixels
FINE = 4  # places in a pixel
BALL = 8  # side of the ball, in places
LAST = SIDE * FINE - BALL  # the largest place of the ball
PEG_X, PEG_Y = np.arange(5, 11), np.arange(8, 12)  # pixels where the peg may be
BALL_LEVEL, PEG_LEVEL = 160, 95  # 255 together; a sixteenth of a ball's pixel is 10

_FALL, _FASTEST = 8, 8  # places a frame: down, and sideways at most
_THROWS = {2: ((-11, 8), (11, 8)), 4: ((-11, -8), (-11, 8), (11, -8), (11, 8))}
_SEED = 2**33


class Scene(NamedTuple):
    """Balls and pegs, an integer `[N]` each.

    Attributes:
        before_x: Left side of the ball in the frame before, in quarters of a pixel.
        before_y: Its upper side then, from above.
        x: Left side of the ball.
        y: Its upper side.
        peg_x: Column of the peg, in pixels.
        peg_y: Row of the peg.
    """

    before_x: np.ndarray
    before_y: np.ndarray
    x: np.ndarray
    y: np.ndarray
    peg_x: np.ndarray
    peg_y: np.ndarray


def open_peg(name: str) -> Dataset:
    """20,000 and 2,000 examples, of which every other one is of a ball at the peg.

    No label: a model must not be told which way the ball goes, and what is seen tells it
    (`jaxgen.evaluate.peg_answers`).

    Raises:
        UserError: if it is not a known number of ways.
    """
    known = {f"{PREFIX}{num}": num for num in TENTHS}
    if name not in known:
        raise UserError(unknown("--data", name, known))
    num_modes = known[name]
    shares = ", ".join(str(p) for p in PROBABILITIES[num_modes])
    return Dataset(
        name=name,
        train=_source(NUM_TRAIN, num_modes, 0),
        test=_source(NUM_TEST, num_modes, 1),
        shape=(SIDE, SIDE, 1),
        num_classes=None,
        notes=(f"at the peg the next frame is one of {num_modes}: {shares}",),
    )


def meets(scene: Scene) -> np.ndarray:
    """Whether the next frame is a matter of chance, `[N]`."""
    gap = FINE * scene.peg_y - (scene.y + BALL)
    aside = scene.x - _above(scene.peg_x)
    touches = np.abs(aside) < (BALL + FINE) // 2
    return touches & (gap >= 0) & (gap < _FALL)


def advanced(scene: Scene, way: np.ndarray, num_modes: int) -> Scene:
    """The scene a frame later.

    Args:
        scene: Of N balls.
        way: `[N]` in 0 .. num_modes - 1, which counts where the ball meets the peg.
        num_modes: 2 or 4.
    """
    has_entered = scene.y - scene.before_y < -_FALL
    speed = np.clip(scene.x - scene.before_x, -_FASTEST, _FASTEST)
    speed = np.where(has_entered, 0, speed)
    turns = (scene.x + speed < 0) | (scene.x + speed > LAST)
    x = scene.x + np.where(turns, -speed, speed)
    y = scene.y + _FALL
    leaves = y > LAST
    x = np.where(leaves, _above(scene.peg_x) + (scene.x - LAST // 2) // 6, x)
    y = np.where(leaves, y - LAST, y)
    throw_x, throw_y = np.moveaxis(np.array(_THROWS[num_modes])[way], -1, 0)
    thrown = meets(scene)
    x = np.where(thrown, scene.x + throw_x, x)
    y = np.where(thrown, scene.y + throw_y, y)
    return Scene(scene.x, scene.y, x, y, scene.peg_x, scene.peg_y)


def draw(scene: Scene) -> np.ndarray:
    """The frame of now, uint8 `[N, 16, 16, 1]`."""
    rows, columns = covered(scene.y), covered(scene.x)
    levels = rows[:, :, None] * columns[:, None, :] * (BALL_LEVEL // FINE**2)
    levels[np.arange(len(levels)), scene.peg_y, scene.peg_x] += PEG_LEVEL
    return levels.astype(np.uint8)[..., None]


def condition(scene: Scene) -> np.ndarray:
    """The frames of before and now, uint8 `[N, 16, 16, 2]`."""
    before = scene._replace(x=scene.before_x, y=scene.before_y)
    return clips.stacked(np.stack([draw(before), draw(scene)], axis=1))


def drawn_ways(words: np.ndarray, num_modes: int) -> np.ndarray:
    """Ways of the known probabilities, from random 64-bit words of the same shape."""
    tenths = TENTHS[num_modes]
    return np.repeat(np.arange(num_modes), tenths)[words % np.uint64(10)]


def examples(num: int, num_modes: int, stream: int) -> tuple[Scene, np.ndarray]:
    """Scenes and the ways they go on, by a seed fixed in the code.

    Those of even number are at the peg; the others up to six frames later or one before.

    Args:
        num: N.
        num_modes: 2 or 4.
        stream: Each gives other examples.
    """
    key = np.array([_SEED + num_modes, stream], np.uint64)
    words = np.random.Philox(key=key).random_raw(14 * num).reshape(14, num)

    def among(row: int, low: int, high: int) -> np.ndarray:
        return low + (words[row] % np.uint64(high - low + 1)).astype(np.int64)

    peg_x, peg_y = among(0, PEG_X[0], PEG_X[-1]), among(1, PEG_Y[0], PEG_Y[-1])
    x = _above(peg_x) + among(2, -5, 5)
    y = FINE * peg_y - BALL - among(3, 0, _FALL - 1)
    speed = among(4, -6, 6)
    scene = Scene(x - 2 * speed, y - 2 * _FALL, x - speed, y - _FALL, peg_x, peg_y)
    num_steps = np.array([0, 2, 3, 4, 5, 6, 7])[among(5, 0, 6)]
    num_steps[::2] = 1
    for step in range(7):
        later = advanced(scene, drawn_ways(words[6 + step], num_modes), num_modes)
        pairs = zip(scene, later, strict=True)
        scene = Scene(*(np.where(step < num_steps, b, a) for a, b in pairs))
    return scene, drawn_ways(words[13], num_modes)


def _source(num: int, num_modes: int, stream: int) -> ArraySource:
    scene, way = examples(num, num_modes, stream)
    x = draw(advanced(scene, way, num_modes))
    return ArraySource(x, condition=condition(scene))


def _above(peg_x: np.ndarray) -> np.ndarray:
    """The place of a ball whose middle is above the peg's."""
    return FINE * peg_x + (FINE - BALL) // 2


def covered(place: np.ndarray) -> np.ndarray:
    """Of each pixel of a line the quarters that a ball covers, `[N] -> [N, 16]`."""
    pixel = FINE * np.arange(SIDE)
    end = np.minimum(place[:, None] + BALL, pixel + FINE)
    return np.clip(end - np.maximum(place[:, None], pixel), 0, FINE)
