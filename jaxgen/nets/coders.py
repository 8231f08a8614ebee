"""Encoders and decoders between images and latent vectors.

Both kinds take any image size: the convolutional ones pad to even before halving and
crop after doubling. Down- and upsampling are 2x2 patches and a matrix product.

With `remat` a block keeps only its input for the gradient and is computed again there.
"""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from jaxgen.nets.conv import Conv
from jaxgen.nets.patches import patches, unpatched

Shape = tuple[int, int, int]  # H, W, C
ACTIVATIONS = {"tanh": nn.tanh, "silu": nn.silu, "relu": nn.relu}


def applied(
    module: nn.Module, params: Any, x: Array, *told: Any, compute: str = "float32"
) -> Any:
    """Outputs in float32 of a network that computes in another dtype.

    Args:
        module: The network.
        params: Its parameters, float32; so are their gradients.
        x: Its input.
        *told: What else it is told; stays as it is.
        compute: "float32" or "bfloat16".
    """
    if compute == "float32":
        return module.apply({"params": params}, x, *told)
    params, x = jax.tree.map(lambda a: a.astype(compute), (params, x))
    outputs = module.apply({"params": params}, x, *told)
    return jax.tree.map(lambda a: a.astype(jnp.float32), outputs)


class MLPEncoder(nn.Module):
    """`x [B, H, W, C] -> (mu [B, L], log_var [B, L])` through dense layers."""

    hidden: Sequence[int]
    latent_dim: int
    activation: str = "silu"
    remat: bool = False

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, Array]:
        """Encodes centred images."""
        h = x.reshape(x.shape[0], -1)
        for width in self.hidden:
            h = _block(self, _dense(width, self.activation), h)
        return _moments(self.latent_dim, h)


class MLPDecoder(nn.Module):
    """`z [B, L] -> outputs [B, H, W, num_channels]` through dense layers.

    They may be told planes `[B, H, W, K]` besides.
    """

    hidden: Sequence[int]
    size: tuple[int, int]
    num_channels: int
    activation: str = "silu"
    remat: bool = False

    @nn.compact
    def __call__(self, z: Array, planes: Array | None = None) -> Array:
        """Decodes latents to the parameters of a likelihood."""
        h = z
        if planes is not None:
            h = jnp.concatenate(
                [z, planes.reshape(len(z), -1).astype(z.dtype)], axis=-1
            )
        for width in self.hidden:
            h = _block(self, _dense(width, self.activation), h)
        height, width = self.size
        h = nn.Dense(height * width * self.num_channels, name="output")(h)
        return h.reshape(z.shape[0], height, width, self.num_channels)


class ConvEncoder(nn.Module):
    """Residual convolutions at `width, 2 width, ...` channels, halving between levels."""

    width: int
    num_levels: int
    num_blocks: int
    latent_dim: int
    remat: bool = False

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, Array]:
        """Encodes centred images."""
        h = Conv(self.width, (3, 3))(x)
        for level in range(self.num_levels):
            for _ in range(self.num_blocks):
                h = _block(self, _residual, h)
            if level < self.num_levels - 1:
                h = nn.Dense(self.width * 2 ** (level + 1))(patches(h))
        return _moments(self.latent_dim, nn.silu(h).reshape(x.shape[0], -1))


class ConvDecoder(nn.Module):
    """The mirror image of `ConvEncoder`; planes `[B, H, W, K]` join it at every level."""

    width: int
    num_levels: int
    num_blocks: int
    size: tuple[int, int]
    num_channels: int
    remat: bool = False

    @nn.compact
    def __call__(self, z: Array, planes: Array | None = None) -> Array:
        """Decodes latents to the parameters of a likelihood."""
        sizes, told = [self.size], [] if planes is None else [planes.astype(z.dtype)]
        for _ in range(self.num_levels - 1):
            sizes.append(((sizes[-1][0] + 1) // 2, (sizes[-1][1] + 1) // 2))
            told.extend(patches(each) for each in told[-1:])
        channels = self.width * 2 ** (self.num_levels - 1)
        height, width = sizes[-1]
        h = nn.Dense(height * width * channels)(z)
        h = h.reshape(z.shape[0], height, width, channels)
        for level in reversed(range(self.num_levels)):
            if told:
                h = h + nn.Dense(h.shape[-1], name=f"told_{level}")(told[level])
            for _ in range(self.num_blocks):
                h = _block(self, _residual, h)
            if level > 0:
                h = unpatched(nn.Dense(4 * self.width * 2 ** (level - 1))(h))
                h = h[:, : sizes[level - 1][0], : sizes[level - 1][1]]
        return Conv(self.num_channels, (3, 3), name="output")(nn.silu(h))


def _moments(latent_dim: int, h: Array) -> tuple[Array, Array]:
    moments = nn.Dense(2 * latent_dim, name="moments")(h)
    mu, log_var = jnp.split(moments, 2, axis=-1)
    # exp(log_var) is taken downstream: bounded where no trained posterior lies.
    return mu, jnp.clip(log_var, -16.0, 16.0)


def _block(module: Any, block: Callable[[Any, Array], Array], h: Array) -> Array:
    """A block of a network that says whether to compute it again for the gradient."""
    return (nn.remat(block) if module.remat else block)(module, h)


def _dense(width: int, activation: str) -> Callable[[Any, Array], Array]:
    def block(module: Any, h: Array) -> Array:
        del module
        return ACTIVATIONS[activation](nn.Dense(width)(h))

    return block


def _residual(module: Any, h: Array) -> Array:
    del module
    channels = h.shape[-1]
    r = Conv(channels, (3, 3))(nn.silu(nn.LayerNorm()(h)))
    r = Conv(channels, (3, 3), kernel_init=nn.initializers.zeros)(nn.silu(r))
    return h + r
