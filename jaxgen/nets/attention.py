"""Self-attention between tokens, as the U-Net and the transformer have it."""

import flax.linen as nn
import jax.numpy as jnp
from jax import Array


class Attention(nn.Module):
    """Self-attention with normalised queries and keys: `[B, N, C] -> [B, N, C]`.

    Without the norm the products grow until the softmax saturates (Dehghani et al. 2023,
    arXiv:2302.05442).

    Attributes:
        head_width: Channels of a head, at least: as many heads as divide C evenly.
        kernel_init: Of the last layer; zeros where nothing after it is zero.
    """

    head_width: int = 32
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, h: Array) -> Array:
        """What every token takes from all tokens."""
        batch, length, channels = h.shape
        heads = max(1, channels // self.head_width)
        while channels % heads:
            heads -= 1
        qkv = nn.Dense(3 * channels, name="qkv")(h)
        qkv = qkv.reshape(batch, length, 3, heads, channels // heads)
        q, k = (
            nn.LayerNorm(name="q")(qkv[:, :, 0]),
            nn.LayerNorm(name="k")(qkv[:, :, 1]),
        )
        weights = jnp.einsum("bqhc,bkhc->bhqk", q, k) * (channels // heads) ** -0.5
        mixed = jnp.einsum("bhqk,bkhc->bqhc", nn.softmax(weights), qkv[:, :, 2])
        mixed = mixed.reshape(batch, length, channels)
        return nn.Dense(channels, kernel_init=self.kernel_init, name="output")(mixed)
