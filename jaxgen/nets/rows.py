"""Dense networks of rows."""

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from jaxgen.nets.conditioning import Conditioning


class RowDenoiser(nn.Module):
    """`(x [B, 1, 1, D], noise [B], label [B], interval [B]) -> [B, 1, 1, D]`.

    Residual dense blocks with FiLM, as images of one pixel; zero at first.

    Attributes:
        width: Of the layers.
        num_blocks: Blocks of two layers.
        num_classes: As in `Conditioning`, and so is `has_interval`.
        remat: Whether blocks are computed again for the gradient, to save memory.
        jvp: For the same call as `UNet`; `jax.jvp` can be taken of every form.
    """

    width: int = 256
    num_blocks: int = 2
    num_classes: int = 0
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
    ) -> Array:
        """The raw output F."""
        told = Conditioning(
            self.width, self.num_classes, self.has_interval, name="conditioning"
        )(noise, label, interval).astype(x.dtype)
        h = nn.Dense(self.width, name="input")(x.reshape(x.shape[0], -1))
        kind = nn.remat(RowBlock) if self.remat else RowBlock
        for number in range(self.num_blocks):
            h = kind(name=f"block_{number}")(h, told)
        h = nn.silu(nn.LayerNorm(name="output_norm")(h))
        zeros = nn.initializers.zeros
        return nn.Dense(x.shape[-1], kernel_init=zeros, name="output")(h).reshape(
            x.shape
        )


class RowBlock(nn.Module):
    """h + two dense layers, FiLM between them; the identity at first."""

    @nn.compact
    def __call__(self, h: Array, told: Array) -> Array:
        """`h [B, width]`, `told [B, features]` of the conditioning."""
        width, zeros = h.shape[-1], nn.initializers.zeros
        r = nn.Dense(width, name="first")(nn.silu(nn.LayerNorm(name="norm")(h)))
        film = nn.Dense(2 * width, kernel_init=zeros, name="film")(told)
        scale, shift = jnp.split(film, 2, axis=-1)
        r = nn.silu(nn.LayerNorm(name="inner_norm")(r) * (1.0 + scale) + shift)
        return h + nn.Dense(width, kernel_init=zeros, name="second")(r)
