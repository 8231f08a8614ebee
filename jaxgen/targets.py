"""Densities that are known exactly, to judge by: toy pictures in 2-D, and chains in any D.

A model q of data from p can never have E_p[log q] above -H(p), the Gibbs bound: so the
distance to the truth, KL(p || q) = E_p[log p - log q], is measured on the same draws.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

NUM_NODES = 512  # of a quadrature along a curve


class Target(NamedTuple):
    """A known density.

    Attributes:
        dim: D.
        sample: `(key, num) -> [num, D]`.
        log_prob: `x [B, D] -> [B]` nats.
        entropy: In nats, where it has a closed form, or None.
    """

    dim: int
    sample: Callable[[Array, int], Array]
    log_prob: Callable[[Array], Array]
    entropy: float | None = None


def gaussians(centres: np.ndarray, deviation: float) -> Target:
    """A mixture of equal, equally likely round Gaussians at `centres [K, D]`."""
    centres = np.asarray(centres, np.float32)
    num, dim = centres.shape

    def sample(key: Array, count: int) -> Array:
        first, second = jax.random.split(key)
        which = jax.random.randint(first, (count,), 0, num)
        noise = jax.random.normal(second, (count, dim))
        return jnp.asarray(centres)[which] + deviation * noise

    def log_prob(x: Array) -> Array:
        return jax.nn.logsumexp(_log_normal(x, centres, deviation), 1) - math.log(num)

    return Target(dim, sample, log_prob)


def ring(num: int = 8, *, radius: float = 2.0, deviation: float = 0.2) -> Target:
    """`num` Gaussians evenly on a circle."""
    return gaussians(ring_centres(num, radius=radius), deviation)


def grid(side: int = 5, *, spacing: float = 1.0, deviation: float = 0.05) -> Target:
    """`side` x `side` Gaussians on a square grid around 0."""
    return gaussians(grid_centres(side, spacing=spacing), deviation)


def ring_centres(num: int, *, radius: float) -> np.ndarray:
    """`num` points evenly on a circle around 0, `[num, 2]`."""
    turn = 2 * np.pi * np.arange(num) / num
    return radius * np.stack([np.cos(turn), np.sin(turn)], 1)


def grid_centres(side: int, *, spacing: float) -> np.ndarray:
    """`side` x `side` points on a square grid around 0, `[side^2, 2]`."""
    line = spacing * (np.arange(side) - (side - 1) / 2)
    return np.stack(np.meshgrid(line, line), -1).reshape(-1, 2)


def checkerboard(side: int = 4) -> Target:
    """Uniform on the white squares of a board of `side` x `side` unit squares around 0."""
    rows, columns = np.nonzero((np.indices((side, side)).sum(0)) % 2 == 0)
    corners = np.stack([columns, rows], 1) - side / 2
    log_area = math.log(len(corners))

    def sample(key: Array, num: int) -> Array:
        first, second = jax.random.split(key)
        which = jax.random.randint(first, (num,), 0, len(corners))
        place = jax.random.uniform(second, (num, 2))
        return jnp.asarray(corners, place.dtype)[which] + place

    def log_prob(x: Array) -> Array:
        square = jnp.floor(x + side / 2)
        white = jnp.sum(square, axis=1) % 2 == 0
        inside = jnp.all((square >= 0) & (square < side), axis=1)
        return jnp.where(white & inside, -log_area, -jnp.inf)

    return Target(2, sample, log_prob, log_area)


def moons(*, deviation: float = 0.1) -> Target:
    """Two half circles that hold each other, with round noise."""

    def curve(u: Array) -> Array:
        t = jnp.pi * u
        one = jnp.stack([jnp.cos(t), jnp.sin(t)], -1)
        other = jnp.stack([1 - jnp.cos(t), 0.5 - jnp.sin(t)], -1)
        return jnp.stack([one, other])

    return _along(curve, deviation)


def spirals(*, deviation: float = 0.1) -> Target:
    """Two arms that wind one and a half times around 0, with round noise."""

    def curve(u: Array) -> Array:
        t = 3 * jnp.pi * jnp.sqrt(u)
        arm = (t / 3)[..., None] * jnp.stack([-jnp.cos(t), jnp.sin(t)], -1)
        return jnp.stack([arm, -arm])

    return _along(curve, deviation)


def pinwheel(num: int = 5, *, along: float = 0.3, across: float = 0.1) -> Target:
    """`num` blades, Gaussians at radius 1 turned by an angle that grows with the radius.

    A turn that depends on the radius alone keeps areas, so the density is that of the
    straight blades.
    """
    scale = np.array([along, across], np.float32)
    turns = 2 * np.pi * np.arange(num) / num

    def turned(x: Array, sign: float, more: Array | np.ndarray) -> Array:
        radius = jnp.linalg.norm(x, axis=-1)
        angle = sign * (more + 0.25 * jnp.exp(radius))
        cos, sin = jnp.cos(angle), jnp.sin(angle)
        first, second = x[..., 0], x[..., 1]
        return jnp.stack([cos * first - sin * second, sin * first + cos * second], -1)

    def sample(key: Array, count: int) -> Array:
        first, second = jax.random.split(key)
        blade = jax.random.randint(first, (count,), 0, num)
        straight = jax.random.normal(second, (count, 2)) * scale[None]
        straight = straight + jnp.array([[1.0, 0.0]])
        return turned(straight, 1.0, jnp.asarray(turns, straight.dtype)[blade])

    def log_prob(x: Array) -> Array:
        blades = jnp.broadcast_to(x[:, None], (len(x), num, 2))
        straight = turned(blades, -1.0, turns[None].astype(np.float32))
        z = (straight - jnp.array([[[1.0, 0.0]]])) / scale[None, None]
        each = -0.5 * jnp.sum(z**2, -1) - math.log(2 * math.pi * along * across)
        return jax.nn.logsumexp(each, axis=1) - math.log(num)

    return Target(2, sample, log_prob)


def gaussian_chain(dim: int, *, correlation: float = 0.9) -> Target:
    """Each value of variance 1 and correlated with the one before (AR(1))."""
    rest = math.sqrt(1 - correlation**2)
    return _chain(dim, lambda last: (correlation * last, rest), math.log(rest))


def banana_chain(dim: int, *, bend: float = 0.5, deviation: float = 0.3) -> Target:
    """Each value near a parabola of the one before: mean bend (x^2 - 1)."""
    return _chain(
        dim,
        lambda last: (bend * (jnp.clip(last, -3, 3) ** 2 - 1), deviation),
        math.log(deviation),
    )


def funnel(dim: int, *, deviation: float = 1.5) -> Target:
    """Neal's: v ~ N(0, deviation^2), the others N(0, exp(v))."""

    def sample(key: Array, num: int) -> Array:
        z = jax.random.normal(key, (num, dim))
        v = deviation * z[:, :1]
        return jnp.concatenate([v, z[:, 1:] * jnp.exp(v / 2)], axis=1)

    def log_prob(x: Array) -> Array:
        v, rest = x[:, 0], x[:, 1:]
        first = -0.5 * (v / deviation) ** 2 - math.log(deviation)
        others = -0.5 * jnp.exp(-v) * jnp.sum(rest**2, 1) - 0.5 * (dim - 1) * v
        return first + others - 0.5 * dim * math.log(2 * math.pi)

    normal = 0.5 * dim * math.log(2 * math.pi * math.e)
    return Target(dim, sample, log_prob, normal + math.log(deviation))


TOYS: dict[str, Callable[[], Target]] = {
    "eight_gaussians": ring,
    "moons": moons,
    "checkerboard": checkerboard,
    "spirals": spirals,
    "pinwheel": pinwheel,
}
CHAINS: dict[str, Callable[[int], Target]] = {
    "gaussian_chain": gaussian_chain,
    "banana_chain": banana_chain,
    "funnel": funnel,
}


def _along(curve: Callable[[Array], Array], deviation: float) -> Target:
    """Round noise around curves `[0, 1] -> [2, ..., 2]`, both as likely."""
    u = (jnp.arange(NUM_NODES, dtype=jnp.float32) + 0.5) / NUM_NODES
    nodes = curve(u).reshape(-1, 2)

    def sample(key: Array, num: int) -> Array:
        first, second, third = jax.random.split(key, 3)
        points = curve(jax.random.uniform(first, (num,)))
        which = jax.random.randint(second, (num,), 0, 2)
        points = jnp.where((which == 0)[:, None], points[0], points[1])
        return points + deviation * jax.random.normal(third, (num, 2))

    def log_prob(x: Array) -> Array:
        each = _log_normal(x, nodes, deviation)
        return jax.nn.logsumexp(each, axis=1) - math.log(len(nodes))

    return Target(2, sample, log_prob)


def _chain(dim: int, step: Callable, log_deviation: float) -> Target:
    """The first value standard normal, each other Gaussian by `step(last)`."""

    def sample(key: Array, count: int) -> Array:
        noise = jax.random.normal(key, (dim, count))

        def one(last: Array, eps: Array) -> tuple[Array, Array]:
            mean, deviation = step(last)
            x = mean + deviation * eps
            return x, x

        _, rest = jax.lax.scan(one, noise[0], noise[1:])
        return jnp.concatenate([noise[:1], rest]).T

    def log_prob(x: Array) -> Array:
        mean, deviation = step(x[:, :-1])
        z = jnp.concatenate([x[:, :1], (x[:, 1:] - mean) / deviation], axis=1)
        total = -0.5 * jnp.sum(z**2, axis=1) - 0.5 * dim * math.log(2 * math.pi)
        return total - (dim - 1) * log_deviation

    normal = 0.5 * dim * math.log(2 * math.pi * math.e)
    return Target(dim, sample, log_prob, normal + (dim - 1) * log_deviation)


def _log_normal(x: Array, centres: Array | np.ndarray, deviation: float) -> Array:
    """Log N(x; centre, deviation^2), `[B, K]`."""
    squares = jnp.sum((x[:, None] - centres[None]) ** 2, axis=-1)
    dim = x.shape[1]
    return -0.5 * squares / deviation**2 - dim * math.log(
        deviation * math.sqrt(2 * math.pi)
    )
