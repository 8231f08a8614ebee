"""`minatar:GAME`: frames of gymnax's MinAtar games under random play.

A frame has 10x10 cells and, of each, a bit a channel (paddle, ball, brick, ...), several
of which may be set. It becomes an image whose colours add: channel i is a binary digit
of red, green or blue, in turns, the first three the highest digits. So every set of
channels has a colour of its own, and the nearest colour gives the channels back.

References:
    Young & Tian 2019, "MinAtar", arXiv:1903.03176. Lange 2022, gymnax.
"""

import importlib.metadata
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxgen._checks import UserError, unknown
from jaxgen.data import clips
from jaxgen.data.sources import ArraySource, Dataset

PREFIX = "minatar:"
NUM_TRAIN, NUM_TEST = 200, 20  # games that are played at once
NUM_KEPT = 100  # frames of each
EVERY = 5  # frames of play, one is kept
_SEED = 20_190_307


class Game(NamedTuple):
    """A game of gymnax.

    Attributes:
        identifier: There.
        channels: What a cell may hold, in its order.
    """

    identifier: str
    channels: tuple[str, ...]


GAMES = {
    "asterix": Game("Asterix-MinAtar", ("player", "enemy", "trail", "gold")),
    "breakout": Game("Breakout-MinAtar", ("paddle", "ball", "trail", "brick")),
    "freeway": Game(
        "Freeway-MinAtar",
        ("chicken", "car", "speed1", "speed2", "speed3", "speed4", "speed5"),
    ),
    "seaquest": Game(
        "Seaquest-MinAtar",
        (
            "submarine",
            "its back",
            "own bullet",
            "trail",
            "enemy bullet",
            "fish",
            "enemy submarine",
            "oxygen",
            "divers aboard",
            "diver",
        ),
    ),
    "space_invaders": Game(
        "SpaceInvaders-MinAtar",
        ("cannon", "alien", "going left", "going right", "own bullet", "enemy bullet"),
    ),
}


def find(name: str) -> Game:
    """The game that `minatar:GAME` names.

    Raises:
        UserError: if there is none.
    """
    known = {f"{PREFIX}{game}": found for game, found in GAMES.items()}
    if name not in known:
        raise UserError(unknown("--data", name, known))
    return known[name]


def version(name: str) -> str:
    """Of gymnax, without importing it (5 s, and seaborn with it).

    Raises:
        UserError: if it is not installed.
    """
    try:
        return importlib.metadata.version("gymnax")
    except importlib.metadata.PackageNotFoundError:
        raise UserError(
            f'--data {name} needs: python -m pip install -e ".[games]"'
        ) from None


def open_minatar(name: str) -> Dataset:
    """20,000 and 2,000 examples of games apart, each fifth frame of play.

    The next frame of one that ends the game is its last; frames before the first are
    the first. A game that is soon lost has few different clips, most of which are in both
    splits: 3,496 of breakout. No label.

    Raises:
        UserError: if there is no such game, or gymnax is not installed.
    """
    game = find(name)
    version(name)
    keys = [
        jax.random.split(jax.random.key(_SEED + stream), num)
        for stream, num in enumerate((NUM_TRAIN, NUM_TEST))
    ]
    past, actions, following = play(game, jnp.concatenate(keys), num_kept=NUM_KEPT)
    x, condition = to_image(following), clips.stacked(to_image(past), actions)
    border = NUM_TRAIN * NUM_KEPT
    train = ArraySource(x[:border], condition=condition[:border])
    test = ArraySource(x[border:], condition=condition[border:])
    return Dataset(
        name=name,
        train=train,
        test=test,
        shape=train.shape,
        num_classes=None,
        notes=(f"channels are digits of colours: {_colours(game)}",),
    )


def play(
    game: Game, keys: Array, *, num_kept: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Random play, each key a game that begins anew whenever it has ended.

    Args:
        game: Which.
        keys: One for each of the games that are played at once.
        num_kept: Examples of each; `EVERY` frames are played for one.

    Returns:
        Past frames, bool `[N, PAST, 10, 10, C]`, the oldest first; planes of the action,
        `[N, 10, 10, A]`; and the next frames `[N, 10, 10, C]`.
    """
    import gymnax  # an extra

    environment, params = gymnax.make(game.identifier)

    def step(carry: Any, key: Array) -> Any:
        past, state = carry
        for_action, for_step = jax.random.split(key)
        action = jax.random.randint(for_action, (), 0, environment.num_actions)
        frame, state, _, terminated, truncated, info = environment.step(
            for_step, state, action, params
        )
        example = past, action, info["final_observation"] > 0
        anew = jnp.stack([frame > 0] * clips.PAST)
        later = jnp.concatenate([past[1:], frame[None] > 0])
        past = jnp.where(terminated | truncated, anew, later)
        return (past, state), example

    def keep(carry: Any, key: Array) -> Any:
        carry, played = jax.lax.scan(step, carry, jax.random.split(key, EVERY))
        return carry, jax.tree.map(lambda a: a[-1], played)

    def one(key: Array) -> Any:
        for_start, for_play = jax.random.split(key)
        frame, state = environment.reset(for_start, params)
        past = jnp.stack([frame > 0] * clips.PAST)
        return jax.lax.scan(keep, (past, state), jax.random.split(for_play, num_kept))[
            1
        ]

    played = jax.jit(jax.vmap(one))(keys)
    flat = [np.asarray(a).reshape(-1, *a.shape[2:]) for a in played]
    past, action, following = flat
    planes = clips.action_planes(
        action, num_actions=environment.num_actions, shape=following.shape[1:]
    )
    return past, np.asarray(planes), following


def to_image(channels: np.ndarray) -> np.ndarray:
    """Bits `[..., C]` as colours, uint8 `[..., 3]`."""
    weights, top = _codes(channels.shape[-1])
    return np.round(channels.astype(np.int64) @ weights * 255 / top).astype(np.uint8)


def to_channels(image: np.ndarray, num_channels: int) -> np.ndarray:
    """The bits of the nearest colours, bool `[..., num_channels]`.

    Args:
        image: `[..., 3]`, uint8 levels or floats in [0, 1].
        num_channels: C.
    """
    weights, top = _codes(num_channels)
    scale = 255 if image.dtype == np.uint8 else 1
    digits = np.clip(np.round(image / scale * top), 0, top).astype(np.int64)
    component, weight = weights.argmax(axis=1), weights.max(axis=1)
    return digits[..., component] & weight > 0


def _colours(game: Game) -> str:
    colours = ("red", "green", "blue")
    return ", ".join(f"{name} {colours[i % 3]}" for i, name in enumerate(game.channels))


def _codes(num_channels: int) -> tuple[np.ndarray, np.ndarray]:
    """The digit of each channel, `[C, 3]`, and the largest number of a colour, `[3]`."""
    channel = np.arange(num_channels)
    length = np.bincount(channel % 3, minlength=3)  # binary digits of each colour
    weights = np.zeros((num_channels, 3), np.int64)
    weights[channel, channel % 3] = 2 ** (length[channel % 3] - 1 - channel // 3)
    return weights, 2**length - 1
