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
        is_causal: Whether a token takes from itself and those before it only.
        is_rotary: Whether queries and keys are turned by their place, so that a product
            hears how far apart they are (Su et al. 2021, arXiv:2104.09864).
    """

    head_width: int = 32
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()
    is_causal: bool = False
    is_rotary: bool = False

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
        if self.is_rotary:
            q, k = turned(q), turned(k)
        weights = jnp.einsum("bqhc,bkhc->bhqk", q, k) * (channels // heads) ** -0.5
        if self.is_causal:
            below = jnp.tril(jnp.ones((length, length), bool))
            weights = jnp.where(below[None, None], weights, -jnp.inf)
        mixed = jnp.einsum("bhqk,bkhc->bqhc", nn.softmax(weights), qkv[:, :, 2])
        mixed = mixed.reshape(batch, length, channels)
        return nn.Dense(channels, kernel_init=self.kernel_init, name="output")(mixed)


def turned(x: Array) -> Array:
    """Pairs of channels turned by angles that grow with the place, `[B, N, heads, C]`.

    An odd last channel stays as it is.
    """
    half = x.shape[-1] // 2
    speed = 1e4 ** (-jnp.arange(half) / max(half, 1))
    angle = (jnp.arange(x.shape[1])[:, None] * speed[None])[None, :, None]
    cos, sin = jnp.cos(angle).astype(x.dtype), jnp.sin(angle).astype(x.dtype)
    a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    cos, sin = (jnp.broadcast_to(w, a.shape) for w in (cos, sin))
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos, rest], axis=-1)
