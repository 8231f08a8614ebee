"""Differentiable augmentation of what a discriminator sees, data and samples alike.

Every example draws its own change by its own key. Gradients pass through to the images, so
a generator trained so still learns to make plain ones: the changes can be told apart in
distribution as long as they are not made always.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Key

from jaxgen import _checks

Images = Float[Array, "B H W C"]
Keys = Key[Array, " B"]


def coloured(x: Images, keys: Keys) -> Images:
    """Other brightness (up to 0.5 of the range 2), saturation (0 to 2), contrast (0.5 to 1.5).

    Args:
        x: In [-1, 1], of any number of channels.
        keys: One for each image.

    References:
        Zhao et al. 2020 (DiffAugment), section 4.1, arXiv:2006.10738.
    """

    def one(x: Array, key: Array) -> Array:
        brightness, saturation, contrast = jax.random.uniform(key, (3,), x.dtype)
        x = x + (brightness - 0.5)
        grey = jnp.mean(x, axis=-1, keepdims=True)
        x = grey + (x - grey) * (2 * saturation)
        mean = jnp.mean(x)
        return mean + (x - mean) * (contrast + 0.5)

    return jax.vmap(one)(x, keys)


def shifted(x: Images, keys: Keys, *, ratio: float = 0.125) -> Images:
    """Moved by whole pixels, up to `ratio` of each side, and filled with zeros.

    References:
        Zhao et al. 2020, section 4.1, arXiv:2006.10738.
    """
    _, height, width, _ = x.shape
    up, across = (int(side * ratio + 0.5) for side in (height, width))

    def one(x: Array, key: Array) -> Array:
        limits = jnp.array([up, across])
        start = jax.random.randint(key, (2,), 0, 2 * limits + 1)
        padded = jnp.pad(x, ((up, up), (across, across), (0, 0)))
        return jax.lax.dynamic_slice(padded, (start[0], start[1], 0), x.shape)

    return jax.vmap(one)(x, keys)


def cut_out(x: Images, keys: Keys, *, ratio: float = 0.5) -> Images:
    """A rectangle of `ratio` of each side is zero; its middle may be anywhere.

    References:
        DeVries & Taylor 2017, arXiv:1708.04552; Zhao et al. 2020, section 4.1.
    """
    _, height, width, _ = x.shape

    def one(x: Array, key: Array) -> Array:
        def span(key: Array, side: int) -> Array:
            size = int(side * ratio + 0.5)
            first = jax.random.randint(key, (), 0, side + 1 - size % 2) - size // 2
            place = jnp.arange(side)
            return (place >= first) & (place < first + size)

        row, column = jax.random.split(key)
        inside = span(row, height)[:, None] & span(column, width)[None]
        return jnp.where(inside[..., None], 0, x)

    return jax.vmap(one)(x, keys)


CHANGES: dict[str, Callable[[Array, Array], Array]] = {
    "color": coloured,
    "translation": shifted,
    "cutout": cut_out,
}


def augmented(
    x: Images,
    keys: Keys,
    probability: Float[Array, ""] | float,
    *,
    changes: tuple[str, ...] = tuple(CHANGES),
) -> Images:
    """Each change with this probability, by each image's own draw; 0 changes no bit.

    Args:
        x: `[B, H, W, C]` in [-1, 1].
        keys: One for each image.
        probability: Of each change, in [0, 1]; may be traced.
        changes: Which, of `CHANGES`, in this order.

    Raises:
        ValueError: for a change that is none.

    References:
        Zhao et al. 2020, section 3, arXiv:2006.10738; Karras et al. 2020 (ADA),
        section 2.2, arXiv:2006.06676.
    """
    for number, name in enumerate(changes):
        _checks.check_in("augmented", "change", name, CHANGES)
        own = jax.vmap(jax.random.fold_in, (0, None))(keys, number)
        drawn, change = jnp.moveaxis(jax.vmap(jax.random.split)(own), 1, 0)
        is_changed = jax.vmap(jax.random.uniform)(drawn) < probability
        other = CHANGES[name](x, change)
        x = jnp.where(is_changed[:, None, None, None], other, x)
    return x


def adapted_probability(
    probability: Float[Array, ""] | float,
    mean_sign: Float[Array, ""] | float,
    progress: float,
    *,
    target: float = 0.6,
    largest: float = 1.0,
) -> Float[Array, ""]:
    """The next probability: up where the discriminator is too sure of data, down else.

    Args:
        probability: So far.
        mean_sign: Mean of sign D(x) over a batch of data: 0 at chance, 1 of one who knows
            the data by heart.
        progress: By how much it may go up or down.
        target: Of `mean_sign`.
        largest: Bound of the probability.

    References:
        Karras et al. 2020, section 3.1 (r_t), arXiv:2006.06676.
    """
    step = jnp.sign(jnp.asarray(mean_sign) - target) * progress
    return jnp.clip(jnp.asarray(probability) + step, 0.0, largest)
