"""Generators and discriminators: residual or DCGAN for images of any size, dense for rows.

None has a normalisation that looks at more than one example, so that a penalty of the
discriminator's slope is one of each example. Between stages images are halved, odd sides
rounded up, until no side is above four pixels; generators go the same way back.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from jaxgen.nets.conditioning import beside
from jaxgen.nets.conv import Conv, ConvTranspose
from jaxgen.nets.patches import patches, unpatched

SMALLEST = 4  # pixels a side
SLOPE = 0.2  # of the leaky rectifier below zero


def sides(height: int, width: int) -> list[tuple[int, int]]:
    """Of every stage, from the largest to the smallest."""
    found = [(height, width)]
    while max(found[-1]) > SMALLEST:
        rows, columns = found[-1]
        found.append((-(-rows // 2), -(-columns // 2)))
    return found


class ResidualGenerator(nn.Module):
    """`(z [B, L], told or None) -> [B, H, W, C]`, about in [-1, 1]; unbounded.

    Huang et al. 2025 (R3GAN), section 4, arXiv:2501.05441, with whole instead of grouped
    convolutions between fewer channels. What is told are labels `[B]` or planes `[B, H, W,
    num_planes]`; these go down through as many blocks, and join the way up at each stage.

    Attributes:
        shape: Of an image.
        width: Channels of the largest stage; they double to at most four times as many.
        num_blocks: Residual blocks a stage.
        patch: Side of the squares of pixels that become one at the largest stage.
        num_classes: Of which labels are told; 0 for none.
        num_planes: That are told; zeros if none come.
    """

    shape: tuple[int, int, int]
    width: int = 96
    num_blocks: int = 2
    patch: int = 2
    num_classes: int = 0
    num_planes: int = 0

    @nn.compact
    def __call__(self, z: Array, told: Array | None = None) -> Array:
        """Images."""
        height, width, channels = self.shape
        stages = sides(-(-height // self.patch), -(-width // self.patch))
        depth, given = len(stages) * self.num_blocks, []
        if self.num_planes:
            empty = jnp.zeros((len(z), height, width, 0), z.dtype)
            given, told = self._down(beside(empty, told, self.num_planes)), None
        h = _started(self, z, told, stages[-1], self.width * _times(len(stages) - 1))
        for stage in reversed(range(len(stages))):
            if stage < len(stages) - 1:
                own = self.width * _times(stage)
                if h.shape[-1] != own:
                    h = nn.Dense(own, use_bias=False, name=f"narrowed_{stage}")(h)
                h = doubled(h)[:, : stages[stage][0], : stages[stage][1]]
            if given:
                h = h + given[stage]
            for number in range(self.num_blocks):
                h = Block(depth, name=f"stage_{stage}_{number}")(h)
        x = unpatched(nn.Dense(channels * self.patch**2, name="output")(h), self.patch)
        return x[:, :height, :width]

    def _down(self, planes: Array) -> list[Array]:
        """What is told at every stage, the largest first."""
        h = nn.Dense(self.width, name="told")(patches(planes, self.patch))
        found, num = [], len(sides(*h.shape[1:3]))
        for stage in range(num):
            if stage:
                h = nn.Dense(self.width * _times(stage), name=f"told_{stage}")(
                    halved(h)
                )
            for number in range(self.num_blocks):
                h = Block(num * self.num_blocks, name=f"down_{stage}_{number}")(h)
            found.append(h)
        return found


class ResidualDiscriminator(nn.Module):
    """`(x [B, H, W, C], told or None) -> logits [B]`, each of its own image alone.

    Attributes are those of `ResidualGenerator`.
    """

    width: int = 96
    num_blocks: int = 2
    patch: int = 2
    num_classes: int = 0
    num_planes: int = 0

    @nn.compact
    def __call__(self, x: Array, told: Array | None = None) -> Array:
        """Logits."""
        seen = beside(x, told, self.num_planes)
        h = nn.Dense(self.width, name="input")(patches(seen, self.patch))
        stages = sides(*h.shape[1:3])
        depth = len(stages) * self.num_blocks
        for stage in range(len(stages)):
            if stage:
                h, own = halved(h), self.width * _times(stage)
                if h.shape[-1] != own:
                    h = nn.Dense(own, use_bias=False, name=f"widened_{stage}")(h)
            for number in range(self.num_blocks):
                h = Block(depth, name=f"stage_{stage}_{number}")(h)
        spread = 1 / math.sqrt(math.prod(h.shape[1:3]))
        basis = self.param("basis", nn.initializers.normal(spread), h.shape[1:])
        return _judged(self, jnp.sum(h * basis[None], axis=(1, 2)), told)


class Block(nn.Module):
    """h + a narrow 3x3 convolution between two products; the identity at first.

    Attributes:
        depth: Blocks of the whole network, by which the first weights shrink.
    """

    depth: int

    @nn.compact
    def __call__(self, h: Array) -> Array:
        """`[B, H, W, C]`, C as it comes."""
        channels = h.shape[-1]
        inner = max(8, channels // 2)
        init = nn.initializers.variance_scaling(
            2 / math.sqrt(self.depth), "fan_in", "normal"
        )
        r = nn.leaky_relu(nn.Dense(inner, kernel_init=init, name="narrow")(h), SLOPE)
        r = nn.leaky_relu(Conv(inner, (3, 3), kernel_init=init, name="conv")(r), SLOPE)
        zeros = nn.initializers.zeros
        return h + nn.Dense(channels, use_bias=False, kernel_init=zeros, name="wide")(r)


class DCGANGenerator(nn.Module):
    """Transposed convolutions of 4x4 at stride 2; see `ResidualGenerator`.

    Radford et al. 2015, arXiv:1511.06434, with each pixel's channels normalised (Karras
    et al. 2017, section 4.2, arXiv:1710.10196) in place of batch normalisation.
    """

    shape: tuple[int, int, int]
    width: int = 32
    num_classes: int = 0

    @nn.compact
    def __call__(self, z: Array, label: Array | None = None) -> Array:
        """Images."""
        stages = sides(*self.shape[:2])
        last = len(stages) - 1
        h = _started(self, z, label, stages[-1], self.width * _times(last - 1))
        for stage in reversed(range(last)):
            h = nn.relu(_normalised(h))
            out = self.width * _times(stage - 1) if stage else self.shape[-1]
            h = ConvTranspose(out, (4, 4), (2, 2), name=f"stage_{stage}")(h)
            h = h[:, : stages[stage][0], : stages[stage][1]]
        return h if last else nn.Dense(self.shape[-1], name="output")(h)


class DCGANDiscriminator(nn.Module):
    """Convolutions of 4x4 at stride 2, without normalisation."""

    width: int = 32
    num_classes: int = 0

    @nn.compact
    def __call__(self, x: Array, label: Array | None = None) -> Array:
        """Logits `[B]`."""
        for stage in range(len(sides(*x.shape[1:3])) - 1):
            width = self.width * _times(stage)
            x = Conv(width, (4, 4), (2, 2), name=f"stage_{stage}")(x)
            x = nn.leaky_relu(x, SLOPE)
        return _judged(self, x.reshape(x.shape[0], -1), label)


class RowGenerator(nn.Module):
    """`(z [B, L], label None) -> [B, D]` by residual dense blocks."""

    num_values: int
    width: int = 48
    num_blocks: int = 5

    @nn.compact
    def __call__(self, z: Array, label: Array | None = None) -> Array:
        """Rows."""
        del label
        h = _dense_blocks(self, nn.Dense(self.width, name="input")(z))
        return nn.Dense(self.num_values, name="output")(h)


class RowDiscriminator(nn.Module):
    """`(x [B, D], label None) -> logits [B]`."""

    width: int = 48
    num_blocks: int = 5

    @nn.compact
    def __call__(self, x: Array, label: Array | None = None) -> Array:
        """Logits."""
        h = _dense_blocks(self, nn.Dense(self.width, name="input")(x))
        return _judged(self, nn.leaky_relu(h, SLOPE), label)


def halved(h: Array) -> Array:
    """`[B, H, W, C] -> [B, ceil(H/2), ceil(W/2), C]`, by weights 1 3 3 1 along each side."""
    for axis in (1, 2):
        side = h.shape[axis]
        half = -(-side // 2)
        pads = [(0, 0)] * 4
        pads[axis] = (1, 2 * half - side + 1)
        padded = jnp.pad(h, pads, mode="edge")
        a, b, c, d = (
            jax.lax.slice_in_dim(padded, first, first + 2 * half - 1, 2, axis)
            for first in range(4)
        )
        h = (a + 3 * b + 3 * c + d) / 8
    return h


def doubled(h: Array) -> Array:
    """`[B, H, W, C] -> [B, 2 H, 2 W, C]`, bilinear; the edges are continued."""
    for axis in (1, 2):
        side = h.shape[axis]
        pads = [(0, 0)] * 4
        pads[axis] = (1, 1)
        padded = jnp.pad(h, pads, mode="edge")
        before = jax.lax.slice_in_dim(padded, 0, side, 1, axis)
        behind = jax.lax.slice_in_dim(padded, 2, side + 2, 1, axis)
        pair = jnp.stack([0.75 * h + 0.25 * before, 0.75 * h + 0.25 * behind], axis + 1)
        h = pair.reshape(*h.shape[:axis], 2 * side, *h.shape[axis + 1 :])
    return h


def _times(stage: int) -> int:
    """How many times the width a stage has, the largest being number 0."""
    return 2 ** min(max(stage, 0), 2)


def _started(
    module: nn.Module,
    z: Array,
    label: Array | None,
    size: tuple[int, int],
    channels: int,
) -> Array:
    """A learned image, each of its channels times a linear map of z and the class."""
    num_classes = getattr(module, "num_classes", 0)
    if num_classes:
        told = nn.Embed(
            num_classes,
            z.shape[-1],
            embedding_init=nn.initializers.normal(1.0),
            name="label",
        )(label)
        z = jnp.concatenate([z, told.astype(z.dtype)], axis=-1)
    basis = module.param("basis", nn.initializers.normal(1.0), (*size, channels))
    return basis[None] * nn.Dense(channels, name="input")(z)[:, None, None]


def _judged(module: nn.Module, features: Array, label: Array | None) -> Array:
    """The logit, with classes by projection (Miyato & Koyama 2018, arXiv:1802.05637)."""
    logit = nn.Dense(1, use_bias=False, name="output")(features)[:, 0]
    num_classes = getattr(module, "num_classes", 0)
    if not num_classes:
        return logit
    init = nn.initializers.normal(1 / math.sqrt(features.shape[-1]))
    told = nn.Embed(num_classes, features.shape[-1], embedding_init=init, name="label")(
        label
    )
    return logit + jnp.sum(features * told.astype(features.dtype), axis=-1)


def _dense_blocks(module: RowGenerator | RowDiscriminator, h: Array) -> Array:
    zeros = nn.initializers.zeros
    for number in range(module.num_blocks):
        r = nn.Dense(module.width, name=f"first_{number}")(nn.leaky_relu(h, SLOPE))
        r = nn.leaky_relu(r, SLOPE)
        h = h + nn.Dense(module.width, kernel_init=zeros, name=f"second_{number}")(r)
    return h


def _normalised(h: Array) -> Array:
    return h * jax.lax.rsqrt(jnp.mean(h**2, axis=-1, keepdims=True) + 1e-8)
