"""A patch transformer: attention between all patches, adaLN-zero, long skips.

The layers of each half run in one `nn.scan`: compile time does not grow with depth. DiT:
Peebles & Xie 2022, arXiv:2212.09748; long skips: Bao et al. 2022 (U-ViT),
arXiv:2209.12152; SwiGLU: Shazeer 2020, arXiv:2002.05202.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from jaxgen.nets.attention import Attention
from jaxgen.nets.conditioning import Conditioning, beside, waves
from jaxgen.nets.patches import patches, unpatched


class Transformer(nn.Module):
    """`(x [B, H, W, C], noise [B], label, interval [B], planes) -> [B, H, W, C]`.

    Attributes:
        width: Channels of a token.
        depth: Layers, an even number: the second half hears the first by skips.
        head_width: As in `Attention`.
        patch: Side of the squares of pixels that become one token; it divides H and W.
        num_classes: As in `Conditioning`, and so is `has_interval`.
        num_planes: As in `UNet`.
        remat: Whether layers are computed again for the gradient, to save memory.
        jvp: For the same call as `UNet`; `jax.jvp` can be taken of every form.
    """

    width: int = 192
    depth: int = 6
    head_width: int = 32
    patch: int = 2
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
        """The raw output F; ValueError for an odd depth or sides that do not fit."""
        if self.depth < 2 or self.depth % 2:
            raise ValueError(
                f"Transformer: depth must be even and at least 2, got {self.depth}; half "
                "of the layers come before the skips and half after."
            )
        check_sides(x.shape[1], x.shape[2], self.patch)
        told = Conditioning(
            self.width, self.num_classes, self.has_interval, name="conditioning"
        )(noise, label, interval).astype(x.dtype)
        h = patches(beside(x, planes, self.num_planes), self.patch)
        batch, rows, columns, pixels = h.shape
        place = nn.Dense(self.width, use_bias=False, name="place")(
            places(rows, columns, x.dtype)
        )
        h = nn.Dense(self.width, name="input")(h.reshape(batch, rows * columns, pixels))
        h, skips = self._half("first")(h + place[None], told, None)
        h, _ = self._half("second")(h, told, skips[::-1])
        film = nn.Dense(
            2 * self.width, kernel_init=nn.initializers.zeros, name="output_film"
        )(told)
        scale, shift = jnp.split(film[:, None], 2, axis=-1)
        pixels = x.shape[-1] * self.patch**2
        h = nn.Dense(pixels, kernel_init=nn.initializers.zeros, name="output")(
            _normalised(h) * (1.0 + scale) + shift
        )
        return unpatched(h.reshape(batch, rows, columns, pixels), self.patch)

    def _half(self, name: str) -> nn.Module:
        layer = nn.remat(Layer, prevent_cse=False) if self.remat else Layer
        axes: Any = (nn.broadcast, 0)  # Flax takes a tuple, and says int.
        scanned = nn.scan(
            layer,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=axes,
            length=self.depth // 2,
        )
        return scanned(self.head_width, name=name)


class Layer(nn.Module):
    """A skip if one comes, attention, SwiGLU; the last two add nothing at first.

    Attributes:
        head_width: As in `Attention`, and so are the others.
    """

    head_width: int
    is_causal: bool = False
    is_rotary: bool = False

    @nn.compact
    def __call__(
        self, h: Array, told: Array, skip: Array | None
    ) -> tuple[Array, Array]:
        """`h` and `skip` `[B, N, C]`, `told [B, features]`; the new h as carry and skip."""
        width = h.shape[-1]
        if skip is not None:
            h = nn.Dense(width, name="skip")(jnp.concatenate([h, skip], axis=-1))
        film = nn.Dense(6 * width, kernel_init=nn.initializers.zeros, name="film")(told)
        scale_1, shift_1, gate_1, scale_2, shift_2, gate_2 = jnp.split(
            film[:, None], 6, axis=-1
        )
        r = _normalised(h) * (1.0 + scale_1) + shift_1
        attention = Attention(
            self.head_width,
            is_causal=self.is_causal,
            is_rotary=self.is_rotary,
            name="attention",
        )
        h = h + gate_1 * attention(r)
        r = _normalised(h) * (1.0 + scale_2) + shift_2
        # As many parameters as the usual MLP of 4 width, and fewer exponentials.
        hidden = 8 * max(1, round(width / 3))
        gate, value = jnp.split(nn.Dense(2 * hidden, name="swiglu")(r), 2, axis=-1)
        h = h + gate_2 * nn.Dense(width, name="mlp")(nn.silu(gate) * value)
        return h, h


def places(rows: int, columns: int, dtype: DTypeLike = jnp.float32) -> Array:
    """Sines and cosines of each patch's row and column, `[rows * columns, 64]`.

    The place is absolute, from -1 to 1: in small pictures things are centred. It costs
    one small product a call, where rotary embeddings cost two of every layer.
    """

    def along(count: int) -> Array:
        return waves((2.0 * jnp.arange(count, dtype=dtype) + 1.0) / count - 1.0)

    down, across = along(rows), along(columns)
    features = down.shape[-1]
    grid = (rows, columns, features)
    both = (
        jnp.broadcast_to(down[:, None], grid),
        jnp.broadcast_to(across[None], grid),
    )
    return jnp.concatenate(both, axis=-1).reshape(rows * columns, 2 * features)


def check_sides(height: int, width: int, patch: int) -> None:
    """Raises ValueError, naming the nearest sizes that fit, unless patch divides both."""
    if height % patch == 0 and width % patch == 0:
        return
    below = [max(patch, side // patch * patch) for side in (height, width)]
    above = [-(-side // patch) * patch for side in (height, width)]
    fit = " or ".join(
        dict.fromkeys(f"{rows} x {columns}" for rows, columns in (below, above))
    )
    raise ValueError(
        f"Transformer: x must have sides that patch {patch} divides, got "
        f"{height} x {width}; {fit} would fit, or take another patch."
    )


def _normalised(h: Array) -> Array:
    return nn.LayerNorm(use_scale=False, use_bias=False)(h)
