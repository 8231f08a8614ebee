"""Oracles of GANs: the best discriminators, slopes of known critics, the Dirac-GAN."""

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxgen.losses import gan, penalties
from jaxgen.verify.records import (
    Record,
    Records,
    at_least,
    at_most,
    compiled,
    equal,
    exactly,
    holds,
)

LOG2 = math.log(2)
# On a line: data and samples, and the densities of both at places of a quadrature.
PLACES = np.linspace(-12, 12, 4801)
STEP = float(PLACES[1] - PLACES[0])


def _normal(mean: float, deviation: float) -> np.ndarray:
    standardised = (PLACES - mean) / deviation
    return np.exp(-0.5 * standardised**2) / (deviation * math.sqrt(2 * math.pi))


P, Q = _normal(0.5, 1.0), _normal(-0.3, 1.4)
JSD = 0.5 * STEP * np.sum(P * np.log(2 * P / (P + Q)) + Q * np.log(2 * Q / (P + Q)))


class Optimum(NamedTuple):
    """What is known of a game at its best discriminator.

    Attributes:
        best: The discriminator at `PLACES`, for data of density `P` and samples of `Q`.
        paid: What it then pays in the mean.
        is_smooth: Whether the loss has a derivative there.
    """

    best: np.ndarray
    paid: float
    is_smooth: bool = True


OPTIMA: Mapping[str, Optimum] = MappingProxyType(
    {
        "minimax": Optimum(np.log(P / Q), 2 * LOG2 - 2 * JSD),
        "non_saturating": Optimum(np.log(P / Q), 2 * LOG2 - 2 * JSD),
        "least_squares": Optimum(P / (P + Q), 0.5 * STEP * np.sum(P * Q / (P + Q))),
        "hinge": Optimum(
            np.sign(P - Q), 2 * STEP * np.sum(np.minimum(P, Q)), is_smooth=False
        ),
    }
)
# The best discriminator where samples are data, and what both players pay.
AT_CHANCE: Mapping[str, tuple[float, float, float]] = MappingProxyType(
    {
        "minimax": (0.0, 2 * LOG2, -LOG2),
        "non_saturating": (0.0, 2 * LOG2, LOG2),
        "least_squares": (0.5, 0.25, 0.125),
        "hinge": (0.0, 2.0, 0.0),
        "wasserstein": (0.0, 0.0, 0.0),
        "relativistic": (0.0, LOG2, LOG2),
    }
)
Game = Callable[[Array, Array], gan.Payoff]


def gan_loss(game: Game, *, optimum: Optimum | None = None) -> Records:
    """Checks a loss of a GAN: `(real [B], fake [B]) -> Payoff`, `[B]` each.

    Args:
        game: The loss.
        optimum: What its best discriminator is and pays; None where that is not known.

    Returns:
        Whether gradients are finite differences and finite for logits of 1e4, examples
        are judged pair by pair, and, with an optimum, whether the discriminator is the
        best, and pays what it should.
    """
    with exactly():
        records = _gradients(game)
        return records if optimum is None else (*records, *_optimum(game, optimum))


def _gradients(game: Game) -> Records:
    # Far from the corners of a hinge.
    logits = jnp.array([[0.5, -2.0, 3.0], [1.5, 0.25, -4.0]])

    def summed(logits: Array) -> Array:
        return jnp.stack([jnp.sum(p) for p in game(logits[0], logits[1])])

    slope = np.asarray(compiled(jax.jacrev(summed))(logits))
    truth, step, value = np.zeros((2, 2, 3)), 1e-6, compiled(summed)
    for place in np.ndindex(2, 3):
        moved = (logits.at[place].add(s) for s in (step, -step))
        more, less = (np.asarray(value(m)) for m in moved)
        truth[:, *place] = (more - less) / (2 * step)
    far = jnp.array([1e4, -1e4, 1e4, -1e4], jnp.float32)
    both = far, far * jnp.array([1, 1, -1, -1], jnp.float32)
    ends = [*game(*both), *jax.jacrev(lambda f: jnp.stack(game(*f)))(both)]
    finite = all(np.isfinite(e).all() for e in ends)
    whole = np.stack(game(logits[0], logits[1]))
    pairs = (game(*logits[:, i : i + 1]) for i in range(3))
    alone = np.concatenate([np.stack(pair) for pair in pairs], axis=1)
    return (
        equal("gradients are finite differences", slope, truth, 1e-7),
        holds("values and gradients at logits of 1e4 are finite", finite),
        equal("examples are judged pair by pair", whole, alone, 1e-12),
    )


def _mean_paid(game: Game, logits: Array) -> Array:
    """Over data and samples: for a discriminator's loss that is a sum of both parts."""
    zeros = jnp.zeros_like(logits)
    both = game(zeros, zeros).discriminator
    real = game(logits, zeros).discriminator - both / 2
    fake = game(zeros, logits).discriminator - both / 2
    return STEP * jnp.sum(P * real + Q * fake)


def _optimum(game: Game, optimum: Optimum) -> Records:
    best, paid = jnp.asarray(optimum.best), optimum.paid
    both = compiled(jax.value_and_grad(lambda logits: _mean_paid(game, logits)))
    value, slope = both(best)
    records = [equal("the best discriminator's pay", value, paid, 1e-6)]
    if optimum.is_smooth:
        records.append(equal("slope at the best discriminator", slope, 0, 1e-9))
    rng = np.random.default_rng(0)
    others = [best + size * rng.normal(size=len(best)) for size in (1e-2, 0.3, 2.0)]
    more = np.array([both(other)[0] for other in others]) - paid
    return (*records, at_least("pay of other discriminators, less the best's", more, 0))


def games() -> Records:
    """Every game at chance and, where it has a pointwise best discriminator, there."""
    records: list[Record] = []
    for name, game in gan.GAMES.items():
        logit, *paid = AT_CHANCE[name]
        seen = game(jnp.full(2, logit), jnp.full(2, logit))
        for player, observed, expected in zip(
            gan.Payoff._fields, seen, paid, strict=True
        ):
            title = f"{player}'s pay where nothing is told apart"
            records.append(equal(f"{name}: {title}", observed, expected, 1e-12))
        for record in gan_loss(game, optimum=OPTIMA.get(name)):
            records.append(record._replace(name=f"{name}: {record.name}"))
    return tuple(records)


def distances() -> Records:
    """The best critic of slope one pays the distance; differences are all that counts."""
    rng = np.random.default_rng(0)
    p, q = rng.dirichlet(np.ones(61), 2)
    width = 0.1
    below = np.cumsum(q - p)[:-1]  # of the distribution functions
    critic = np.concatenate([[0], np.cumsum(np.sign(below)) * width])
    zeros = np.zeros_like(critic)
    paid = p @ gan.wasserstein(critic, zeros)[0] + q @ gan.wasserstein(zeros, critic)[0]
    real, fake = rng.normal(size=(2, 50))
    here, there = gan.relativistic(real, fake), gan.relativistic(real + 7, fake + 7)
    mirrored = gan.relativistic(fake, real).discriminator
    distance = width * np.abs(below).sum()
    return (
        equal("wasserstein: minus the distance of two laws", paid, -distance, 1e-12),
        equal("relativistic: blind to what is added", np.stack(here), np.stack(there), 1e-9),
        equal("relativistic: players mirror each other", here.generator, mirrored, 1e-12),
    )  # fmt: skip


def slopes() -> Records:
    """Penalties of linear and quadratic critics, and a norm by power iteration."""
    rng = np.random.default_rng(0)
    w, a, b = rng.normal(size=3), rng.normal(size=(3, 3)), rng.normal(size=3)
    a, x = a + a.T, rng.normal(size=(6, 3))

    def linear(x: Array) -> Array:
        return x @ w + 3.0

    def quadratic(x: Array) -> Array:
        return 0.5 * jnp.sum((x @ a) * x, 1) + x @ b

    keys = jax.random.split(jax.random.key(0), 20_000)
    square = float(w @ w)
    seen = penalties.estimated_squared_slope(
        linear, jnp.zeros((len(keys), 3)), keys, deviation=0.1, checked=False
    )
    kernel = jnp.asarray(rng.normal(size=(5, 4)))
    norm, _ = penalties.spectral_norm(kernel, jnp.ones(4), num_steps=200)
    truth = np.sum((x @ a + b) ** 2, 1)
    between = penalties.slope_deviation(
        linear, jnp.asarray(x), jnp.asarray(2 * x), keys[:6], checked=False
    )
    return (
        equal(
            "R1 of a linear critic",
            penalties.squared_slope(linear, jnp.asarray(x)),
            square,
            1e-9,
        ),
        equal(
            "R1 of a quadratic critic",
            penalties.squared_slope(quadratic, jnp.asarray(x)),
            truth,
            1e-9,
        ),
        equal(
            "gradient penalty of a linear critic",
            between,
            (math.sqrt(square) - 1) ** 2,
            1e-9,
        ),
        equal(
            "R1 by one step of noise, in the mean",
            np.mean(seen),
            square,
            4 * np.std(seen) / math.sqrt(len(keys)),
        ),
        equal("spectral norm of a kernel", norm, np.linalg.svd(kernel)[1].max(), 1e-9),
    )


def dirac() -> Records:
    """Eigenvalues of the Dirac-GAN's gradient field, -g/2 +- sqrt(g^2/4 - 1/4).

    Data at 0, a sample at theta, D(x) = psi x; Mescheder et al. 2018, arXiv:1801.04406.
    """

    def field(place: Array, gamma: float) -> Array:
        def pays(place: Array, player: int) -> Array:
            psi, theta = place[0], place[1]
            real, square = penalties.logits_and_slopes(
                lambda x: psi * x[:, 0], jnp.zeros((1, 1)), checked=False
            )
            fake = (psi * theta)[None]
            paid = gan.non_saturating(real, fake)[player]
            return (paid + (0.5 * gamma * square if player == 0 else 0)).sum()

        return -jnp.stack([jax.grad(pays)(place, i)[i] for i in (0, 1)])

    records = []
    slope = compiled(jax.jacfwd(field))
    for gamma in (0.0, 0.6, 2.0):
        root = np.sqrt(complex(gamma**2 / 4 - 0.25))
        matrix = np.asarray(slope(jnp.zeros(2), gamma))
        truth = np.array([-gamma / 2 - root, -gamma / 2 + root])
        seen = np.sort_complex(np.round(np.linalg.eigvals(matrix).astype(complex), 12))
        for part in ("real", "imag"):
            values = getattr(seen, part), getattr(truth, part)
            name = f"Dirac-GAN's eigenvalues with R1 of {gamma:g}, {part}"
            records.append(equal(name, *values, 1e-9))
    inside = max(abs(1 + 0.1 * seen))  # by Euler's steps of 0.1, the last gamma
    return (*records, at_most("its steps of 0.1 with R1 contract", inside, 1))


ORACLES = (games, distances, slopes, dirac)
