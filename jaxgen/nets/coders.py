"""Encoders and decoders between images and latent vectors.

Both kinds take any image size: the convolutional ones pad to even before halving and
crop after doubling. Down- and upsampling are 2x2 patches and a matrix product, the
cheapest exact forms on every backend (a transposed convolution's gradient is 15 times
slower on XLA:CPU).
"""

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from jaxgen.nets.conv import Conv

Shape = tuple[int, int, int]  # H, W, C
ACTIVATIONS = {"tanh": nn.tanh, "silu": nn.silu, "relu": nn.relu}


class MLPEncoder(nn.Module):
    """`x [B, H, W, C] -> (mu [B, L], log_var [B, L])` through dense layers."""

    hidden: Sequence[int]
    latent_dim: int
    activation: str = "silu"

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, Array]:
        """Encodes centred images."""
        h = x.reshape(x.shape[0], -1)
        for width in self.hidden:
            h = ACTIVATIONS[self.activation](nn.Dense(width)(h))
        return _moments(self.latent_dim, h)


class MLPDecoder(nn.Module):
    """`z [B, L] -> outputs [B, H, W, num_channels]` through dense layers."""

    hidden: Sequence[int]
    size: tuple[int, int]
    num_channels: int
    activation: str = "silu"

    @nn.compact
    def __call__(self, z: Array) -> Array:
        """Decodes latents to the parameters of a likelihood."""
        h = z
        for width in self.hidden:
            h = ACTIVATIONS[self.activation](nn.Dense(width)(h))
        height, width = self.size
        h = nn.Dense(height * width * self.num_channels, name="output")(h)
        return h.reshape(z.shape[0], height, width, self.num_channels)


class ConvEncoder(nn.Module):
    """Residual convolutions at `width, 2 width, ...` channels, halving between levels."""

    width: int
    num_levels: int
    num_blocks: int
    latent_dim: int

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, Array]:
        """Encodes centred images."""
        h = Conv(self.width, (3, 3))(x)
        for level in range(self.num_levels):
            for _ in range(self.num_blocks):
                h = _residual_block(h)
            if level < self.num_levels - 1:
                h = nn.Dense(self.width * 2 ** (level + 1))(_patches(h))
        return _moments(self.latent_dim, nn.silu(h).reshape(x.shape[0], -1))


class ConvDecoder(nn.Module):
    """The mirror image of `ConvEncoder`."""

    width: int
    num_levels: int
    num_blocks: int
    size: tuple[int, int]
    num_channels: int

    @nn.compact
    def __call__(self, z: Array) -> Array:
        """Decodes latents to the parameters of a likelihood."""
        sizes = [self.size]
        for _ in range(self.num_levels - 1):
            sizes.append(((sizes[-1][0] + 1) // 2, (sizes[-1][1] + 1) // 2))
        channels = self.width * 2 ** (self.num_levels - 1)
        height, width = sizes[-1]
        h = nn.Dense(height * width * channels)(z)
        h = h.reshape(z.shape[0], height, width, channels)
        for level in reversed(range(self.num_levels)):
            for _ in range(self.num_blocks):
                h = _residual_block(h)
            if level > 0:
                h = _unpatched(nn.Dense(4 * self.width * 2 ** (level - 1))(h))
                h = h[:, : sizes[level - 1][0], : sizes[level - 1][1]]
        return Conv(self.num_channels, (3, 3), name="output")(nn.silu(h))


def _moments(latent_dim: int, h: Array) -> tuple[Array, Array]:
    moments = nn.Dense(2 * latent_dim, name="moments")(h)
    mu, log_var = jnp.split(moments, 2, axis=-1)
    # exp(log_var) is taken downstream: bounded where no trained posterior lies.
    return mu, jnp.clip(log_var, -16.0, 16.0)


def _residual_block(h: Array) -> Array:
    channels = h.shape[-1]
    r = Conv(channels, (3, 3))(nn.silu(nn.LayerNorm()(h)))
    r = Conv(channels, (3, 3), kernel_init=nn.initializers.zeros)(nn.silu(r))
    return h + r


def _patches(h: Array) -> Array:
    """`[B, H, W, C] -> [B, ceil(H/2), ceil(W/2), 4 C]`, zero-padded to even."""
    batch, height, width, channels = h.shape
    h = jnp.pad(h, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)))
    rows, columns = (height + 1) // 2, (width + 1) // 2
    h = h.reshape(batch, rows, 2, columns, 2, channels).transpose(0, 1, 3, 2, 4, 5)
    return h.reshape(batch, rows, columns, 4 * channels)


def _unpatched(h: Array) -> Array:
    """`[B, H, W, 4 C] -> [B, 2 H, 2 W, C]`, the inverse of `_patches`."""
    batch, rows, columns, channels = h.shape
    h = h.reshape(batch, rows, columns, 2, 2, channels // 4).transpose(0, 1, 3, 2, 4, 5)
    return h.reshape(batch, 2 * rows, 2 * columns, channels // 4)
