"""A small U-Net: residual blocks, attention at low resolution, FiLM on the noise level.

Any image size: what is odd is padded before halving and cropped after doubling. The
parts are chosen for speed: patches and a product instead of strided convolutions, one
skip a level, merged by a product. Ronneberger et al. 2015, arXiv:1505.04597; Ho et al.
2020, arXiv:2006.11239; FiLM: Perez et al. 2017, arXiv:1709.07871.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from jaxgen.nets.attention import Attention
from jaxgen.nets.conditioning import Conditioning, beside
from jaxgen.nets.conv import Conv
from jaxgen.nets.patches import patches, unpatched


class UNet(nn.Module):
    """`(x [B, H, W, C], noise [B], label, interval [B], planes) -> [B, H, W, C]`.

    Attributes:
        widths: Channels of each level; the image is halved between them.
        num_blocks: Residual blocks a level, on the way down and on the way up.
        patch: Side of the squares of pixels that become one at the first level.
        attention_side: Levels whose images are at most this high have attention.
        num_classes: As in `Conditioning`, and so is `has_interval`.
        num_planes: That it sees beside x, `[B, H, W, num_planes]`; zeros if none come.
        remat: Whether blocks are computed again for the gradient, to save memory.
        jvp: Whether `jax.jvp` will be taken (see `nets.conv`).
    """

    widths: Sequence[int] = (32, 64)
    num_blocks: int = 2
    patch: int = 1
    attention_side: int = 8
    num_classes: int = 0
    num_planes: int = 0
    has_interval: bool = False
    remat: bool = False
    jvp: bool = False

    @nn.compact
    def __call__(
        self,
        x: Array,
        noise: Array,
        label: Array | None = None,
        interval: Array | None = None,
        planes: Array | None = None,
    ) -> Array:
        """The raw output F of the network."""
        told = Conditioning(
            4 * self.widths[0], self.num_classes, self.has_interval, name="conditioning"
        )(noise, label, interval).astype(x.dtype)
        h = Conv(self.widths[0], (3, 3), jvp=self.jvp, name="input")(
            patches(beside(x, planes, self.num_planes), self.patch)
        )
        skips = []
        for level, width in enumerate(self.widths):
            if level:
                h = nn.Dense(width)(patches(h))
            h = self._level(h, told, width, f"down_{level}")
            skips.append(h)
        h = self._block(h, told, self.widths[-1], "middle")
        for level in reversed(range(len(self.widths))):
            width, skip = self.widths[level], skips[level]
            if h.shape[1:3] != skip.shape[1:3] or h.shape[-1] != width:
                h = unpatched(nn.Dense(4 * width)(h))
                h = h[:, : skip.shape[1], : skip.shape[2]]
            h = nn.Dense(width)(jnp.concatenate([h, skip], axis=-1))
            h = self._level(h, told, width, f"up_{level}")
        h = nn.silu(nn.LayerNorm(name="output_norm")(h))
        h = Conv(
            x.shape[-1] * self.patch**2,
            (3, 3),
            kernel_init=nn.initializers.zeros,
            jvp=self.jvp,
            name="output",
        )(h)
        return unpatched(h, self.patch)[:, : x.shape[1], : x.shape[2]]

    def _level(self, h: Array, told: Array, width: int, name: str) -> Array:
        for number in range(self.num_blocks):
            h = self._block(h, told, width, f"{name}_{number}")
        return h

    def _block(self, h: Array, told: Array, width: int, name: str) -> Array:
        attends = h.shape[1] <= self.attention_side
        kind = nn.remat(Block) if self.remat else Block
        # A name of its own: with remat a block would be named after another class.
        return kind(width, attends, self.jvp, name=name)(h, told)


class Block(nn.Module):
    """Two convolutions, FiLM between them, perhaps attention; the identity at first."""

    width: int
    attends: bool
    jvp: bool

    @nn.compact
    def __call__(self, h: Array, told: Array) -> Array:
        """`h [B, H, W, width]`, `told [B, features]` of the conditioning."""
        zeros = nn.initializers.zeros
        r = Conv(self.width, (3, 3), jvp=self.jvp)(nn.silu(nn.LayerNorm()(h)))
        film = nn.Dense(2 * self.width, kernel_init=zeros)(told)
        scale, shift = jnp.split(film[:, None, None], 2, axis=-1)
        r = nn.silu(nn.LayerNorm()(r) * (1.0 + scale) + shift)
        h = h + Conv(self.width, (3, 3), kernel_init=zeros, jvp=self.jvp)(r)
        if not self.attends:
            return h
        tokens = nn.LayerNorm()(h).reshape(h.shape[0], -1, self.width)
        return h + Attention(kernel_init=zeros)(tokens).reshape(h.shape)
