"""What networks are told besides the image: noise level, class, interval, planes."""

import math

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from jaxgen.nets.conv import Conv
from jaxgen.nets.patches import patches

NUM_NEAR = 3  # convolutions, each of which sees a place further


class Conditioning(nn.Module):
    """`(noise [B], label [B], interval [B]) -> [B, features]`.

    Attributes:
        features: Size of the vector that FiLM layers read.
        num_classes: Labels are 0 .. num_classes - 1, and num_classes is "none"; 0 where
            the network knows no classes.
        has_interval: Whether it is told an interval of time, as a MeanFlow network is.
            What that adds starts at zero: a network trained without it goes on with it.
    """

    features: int
    num_classes: int = 0
    has_interval: bool = False

    @nn.compact
    def __call__(
        self, noise: Array, label: Array | None = None, interval: Array | None = None
    ) -> Array:
        """`noise` is log(sigma / alpha) / 4; `interval` a part of time, in [0, 1]."""
        h = nn.Dense(self.features, name="noise")(waves(noise))
        if self.num_classes:
            if label is None:
                label = jnp.full(noise.shape, self.num_classes)
            h = h + nn.Embed(self.num_classes + 1, self.features, name="label")(label)
        if self.has_interval:
            interval = jnp.zeros_like(noise) if interval is None else interval
            dense = nn.Dense(
                self.features, kernel_init=nn.initializers.zeros, name="interval"
            )
            h = h + dense(waves(interval))
        return nn.silu(nn.Dense(self.features, name="output")(nn.silu(h)))


class Told(nn.Module):
    """What the T places of a network hear: `(B, T, condition) -> [B, T or 1, width]`.

    Of a class all hear the same. Of planes, the T squares that cover them in the order of
    reading, each hears what is near it (a convolutional network) and the whole of them.

    Attributes:
        width: Channels.
        num_classes: Labels are 0 .. num_classes - 1, and num_classes is "none".
        planes: Shape `(H, W, K)` of planes that come instead of classes, or `()`; where
            none come they are zero.
    """

    width: int
    num_classes: int = 0
    planes: tuple[int, ...] = ()

    @nn.compact
    def __call__(self, batch: int, length: int, condition: Array | None) -> Array:
        """Zeros `[B, 1, 1]` where there is nothing to tell."""
        if self.planes:
            if condition is None:
                condition = jnp.zeros((batch, *self.planes))
            return self._near(condition, length) + self._whole(condition)[:, None]
        if not self.num_classes:
            return jnp.zeros((batch, 1, 1))
        if condition is None:
            condition = jnp.full(batch, self.num_classes)
        embed = nn.Embed(self.num_classes + 1, self.width, name="label")
        return embed(condition)[:, None]

    def _near(self, planes: Array, length: int) -> Array:
        height, width, _ = self.planes
        h = patches(planes, math.isqrt(height * width // length))
        half = max(1, self.width // 2)
        h = nn.Dense(half, name="near_input")(h)
        for number in range(NUM_NEAR):
            h = h + Conv(half, (3, 3), name=f"near_{number}")(nn.silu(h))
        h = nn.Dense(self.width, name="near")(nn.silu(h))
        return h.reshape(len(h), length, self.width)

    def _whole(self, planes: Array) -> Array:
        h = planes.reshape(len(planes), -1)
        for number in range(2):
            h = nn.silu(nn.Dense(2 * self.width, name=f"planes_{number}")(h))
        return nn.Dense(self.width, name="planes")(h)


def beside(x: Array, planes: Array | None, num_planes: int) -> Array:
    """An image and the planes that are given with it, `[B, H, W, C + num_planes]`."""
    if not num_planes:
        return x
    if planes is None:
        planes = jnp.zeros((*x.shape[:-1], num_planes), x.dtype)
    return jnp.concatenate([x, planes.astype(x.dtype)], axis=-1)


def waves(x: Array, num: int = 16, highest: float = 32.0) -> Array:
    """Sines and cosines of a number at frequencies from 1/2 to `highest`, `[B, 2 num]`."""
    angles = x[:, None] * jnp.geomspace(0.5, highest, num, dtype=x.dtype)[None]
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
