"""Linear operators on images: what of an image is seen, y = A x, and the way back.

An operator is a record of pure functions on one batch of images `[B, H, W, C]`. For those
here A A^T is one number, the `gram`, times the identity on the range of A, so that the
adjoint A^T is `gram` times the pseudo-inverse A^+.

    grey = operators.luma()
    seen = operators.mask(operators.MASKS["half"](keys, 28, 28))
    small = operators.block_mean(2)

Masks say what is hidden, `[B, H, W, 1]`: 1 where it is, 0 elsewhere. All take one key for
each example, of which row i is a function, whether they draw or not.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Key

from jaxgen import _checks

LUMA = (0.299, 0.587, 0.114)  # of ITU-R BT.601, as Pillow makes grey images
Images = Float[Array, "B H W C"]
Seen = Float[Array, "B h w c"]
Hidden = Float[Array, "B H W 1"]
Keys = Key[Array, " B"]


class Operator(NamedTuple):
    """A linear map A of a batch of images, row by row.

    Attributes:
        apply: A, `[B, H, W, C] -> [B, h, w, c]`.
        adjoint: A^T, `[B, h, w, c] -> [B, H, W, C]`.
        pseudo_inverse: A^+ of Moore and Penrose, of the same shapes.
        gram: The number that A A^T is on the range of A.
    """

    apply: Callable[[Array], Array]
    adjoint: Callable[[Array], Array]
    pseudo_inverse: Callable[[Array], Array]
    gram: float


def luma(weights: tuple[float, ...] = LUMA) -> Operator:
    """Colour to grey: the weighted sum of the channels, `[B, H, W, 1]`.

    Args:
        weights: Of the channels; by default 0.299, 0.587 and 0.114 of red, green, blue.

    Raises:
        ValueError: (when applied) if the images have another number of channels.
    """
    squared = sum(weight**2 for weight in weights)

    def row(like: Array) -> Array:
        return jnp.asarray(weights, like.dtype)[None, None, None]

    def apply(x: Images) -> Seen:
        if x.shape[-1] != len(weights):
            raise ValueError(
                f"luma: x must have {len(weights)} channels, one a weight, got shape "
                f"{x.shape}; grey images have no colour to leave out."
            )
        return jnp.sum(x * row(x), axis=-1, keepdims=True)

    def adjoint(y: Seen) -> Images:
        return y * row(y)

    return Operator(apply, adjoint, lambda y: adjoint(y) / squared, squared)


def mask(hidden: Hidden) -> Operator:
    """The pixels that are not hidden; in the place of the others there is 0.

    It is a projection: its own adjoint and pseudo-inverse, of gram 1 on its range.

    Args:
        hidden: 1 where a pixel is hidden, 0 where it is seen, `[B, H, W, 1]` or
            `[1, H, W, 1]`, the same for all images.

    Raises:
        ValueError: (when applied) if the images are of another size.
    """

    def apply(x: Images) -> Seen:
        (num, *size, _), (rows, *sides, _) = x.shape, hidden.shape
        if size != sides or rows not in (1, num):
            raise ValueError(
                f"mask: x must be [B, H, W, C] of the mask's [B, H, W, 1], got shapes "
                f"{x.shape} and {hidden.shape}; make the mask for images of this size."
            )
        return x * jnp.broadcast_to(1 - hidden, x.shape).astype(x.dtype)

    return Operator(apply, apply, apply, 1.0)


def block_mean(scale: int) -> Operator:
    """An image made smaller: the mean of each square of `scale` by `scale` pixels.

    The pseudo-inverse repeats each pixel.

    Raises:
        ValueError: if scale is below 1, or (when applied) does not divide height and width.
    """
    _checks.check_positive("block_mean", scale=scale)

    def apply(x: Images) -> Seen:
        num, height, width, channels = x.shape
        if height % scale or width % scale:
            raise ValueError(
                f"block_mean: scale must divide height and width, got {scale} for "
                f"{height}x{width}; crop the images or take another."
            )
        sides = height // scale, scale, width // scale, scale
        return jnp.mean(x.reshape(num, *sides, channels), axis=(2, 4))

    def repeat(y: Seen) -> Images:
        return jnp.repeat(jnp.repeat(y, scale, axis=1), scale, axis=2)

    gram = 1 / scale**2
    return Operator(apply, lambda y: repeat(y) * gram, repeat, gram)


def consistent(
    operator: Operator, x: Float[Array, " B *event"], y: Float[Array, " B *seen"]
) -> Float[Array, " B *event"]:
    """The nearest image of which y is seen: x + A^+ (y - A x)."""
    return x + operator.pseudo_inverse(y - operator.apply(x))


def consistent_within(
    operator: Operator, x: Images, y: Seen, *, low: float = 0.0, high: float = 1.0
) -> Images:
    """The nearest image between low and high of which y is seen, if there is one.

    It is x + A^+ u, cut off, for one u; each number of y being of pixels of its own, as
    here, each number of u is found by halving.

    Args:
        operator: A.
        x: Between low and high, `[B, H, W, C]`.
        y: What is seen, `[B, h, w, c]`.
        low: The least value of a pixel.
        high: The greatest.
    """
    reach = 8 * (high - low)  # with which the weakest channel of luma goes all the way

    def moved(u: Array) -> Array:
        return jnp.clip(x + operator.pseudo_inverse(u), low, high)

    def halve(_: Array, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        middle = 0.5 * (ends[0] + ends[1])
        short = operator.apply(moved(middle)) < y
        return jnp.where(short, middle, ends[0]), jnp.where(short, ends[1], middle)

    ends = jnp.full_like(y, -reach), jnp.full_like(y, reach)
    low_end, high_end = jax.lax.fori_loop(0, 30, halve, ends)
    return moved(0.5 * (low_end + high_end))


def centre_mask(keys: Keys, height: int, width: int) -> Hidden:
    """Hides the middle: half of the height and half of the width."""
    top, left = height // 4, width // 4
    inside = jnp.zeros((height, width))
    inside = inside.at[top : top + height // 2, left : left + width // 2].set(1.0)
    return _same(inside, keys)


def half_mask(keys: Keys, height: int, width: int) -> Hidden:
    """Hides the right half; of an odd width the column in the middle is seen."""
    right = jnp.arange(width) >= width - width // 2
    return _same(jnp.broadcast_to(right[None], (height, width)), keys)


def box_mask(keys: Keys, height: int, width: int) -> Hidden:
    """Hides a box anywhere in the image, each side a quarter to three quarters of its."""

    def span(key: Array, side: int) -> Array:
        length, first = jax.random.split(key)
        least, most = max(side // 4, 1), max(3 * side // 4, 1)
        length = jax.random.randint(length, (), least, most + 1)
        first = jax.random.randint(first, (), 0, side - length + 1)
        place = jnp.arange(side)
        return (place >= first) & (place < first + length)

    def one(key: Array) -> Array:
        down, across = jax.random.split(key)
        return span(down, height)[:, None] & span(across, width)[None]

    return jax.vmap(one)(keys)[..., None].astype(float)


def pixel_mask(keys: Keys, height: int, width: int, *, share: float = 0.75) -> Hidden:
    """Hides each pixel with probability `share`."""
    shape = height, width, 1
    draw = jax.vmap(lambda key: jax.random.bernoulli(key, share, shape))
    return draw(keys).astype(float)


MASKS: Mapping[str, Callable[[Array, int, int], Array]] = MappingProxyType(
    {
        "centre": centre_mask,
        "half": half_mask,
        "boxes": box_mask,
        "pixels": pixel_mask,
    }
)


def _same(hidden: Array, keys: Array) -> Array:
    """One mask `[H, W]` for all, `[B, H, W, 1]`."""
    shape = (*keys.shape, *hidden.shape)
    return jnp.broadcast_to(hidden[None], shape)[..., None].astype(float)
