"""Convolution layers: Flax's, with gradients that are fast on every platform.

`nn.Conv` in a loop trains a hundred times slower on XLA:CPU than outside; these layers do
not. How is told in `conv_forms`.
"""

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype
from jax import Array, lax
from jax.typing import ArrayLike, DTypeLike

from jaxgen._checks import check_axes, check_in
from jaxgen.nets import conv_forms
from jaxgen.nets.conv_forms import Pair

Padding = str | Sequence[Pair]


def conv(
    x: ArrayLike,
    kernel: ArrayLike,
    *,
    strides: Pair = (1, 1),
    padding: Padding = "SAME",
    jvp: bool = False,
) -> Array:
    """Cross-correlates images with a kernel, as `lax.conv_general_dilated` does.

    Args:
        x: Images, `[B, H, W, C]`.
        kernel: `[KH, KW, C, O]`.
        strides: Between windows, vertically and horizontally.
        padding: "SAME", "VALID" or `((top, bottom), (left, right))`.
        jvp: Whether `jax.jvp` will be taken. That needs a form which on CPU is slower
            and keeps `KH * KW` copies of the images for the gradient.

    Returns:
        `[B, H', W', O]` in the common dtype.

    Raises:
        ValueError: if an array has not four axes, or there is no such padding.
    """
    x, kernel = _operands("conv", x, kernel, padding)
    size = x.shape[1:3]
    pads = (
        lax.padtype_to_pads(size, kernel.shape[:2], strides, padding)
        if isinstance(padding, str)
        else padding
    )
    window = conv_forms.make_window(size, kernel, strides, pads)
    function = conv_forms.output_with_jvp if jvp else conv_forms.output
    return function(window, x, kernel)


def conv_transpose(
    x: ArrayLike,
    kernel: ArrayLike,
    *,
    strides: Pair = (1, 1),
    padding: Padding = "SAME",
    jvp: bool = False,
) -> Array:
    """Convolves images spread out by `strides`, as `lax.conv_transpose` does.

    Args:
        x: Images, `[B, H, W, C]`.
        kernel: `[KH, KW, C, O]`.
        strides: How many pixels one becomes, vertically and horizontally.
        padding: "SAME" (`strides` times the size), "VALID", or
            `((top, bottom), (left, right))` of the spread images.
        jvp: As in `conv`.

    Returns:
        `[B, H', W', O]` in the common dtype.

    Raises:
        ValueError: if an array has not four axes, or there is no such padding.
    """
    x, kernel = _operands("conv_transpose", x, kernel, padding)
    # It is the image gradient of a convolution with the kernel turned round.
    sizes, pads = [], []
    for axis in range(2):
        k, s = kernel.shape[axis], strides[axis]
        low, high = (
            _spread_pads(k, s, padding) if isinstance(padding, str) else padding[axis]
        )
        sizes.append((x.shape[1 + axis] - 1) * s + low + high - k + 2)
        pads.append((k - 1 - low, k - 1 - high))
    window = conv_forms.make_window(sizes, kernel, strides, pads)
    turned = jnp.flip(kernel, (0, 1)).swapaxes(2, 3)
    if jvp:
        return conv_forms.image_gradient_with_jvp(window, x, turned)
    return conv_forms.image_gradient(window, x, turned)


class Conv(nn.Module):
    """`conv` and a bias: the parameters and values of `nn.Conv`.

    Attributes:
        features: Output channels.
        kernel_size: Height and width.
        strides: As in `conv`, and so are `padding` and `jvp`.
        use_bias: Whether a bias is added.
        dtype: Of the computation; by default the common one of the input and the
            parameters, which are float32.
        kernel_init: Initialiser of the kernel.
    """

    features: int
    kernel_size: Pair
    strides: Pair = (1, 1)
    padding: Padding = "SAME"
    use_bias: bool = True
    dtype: DTypeLike | None = None
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()
    jvp: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """`[B, H, W, C] -> [B, H', W', features]`."""
        return _layer(self, conv, x)


class ConvTranspose(nn.Module):
    """`conv_transpose` and a bias: the parameters and values of `nn.ConvTranspose`.

    Attributes are those of `Conv`.
    """

    features: int
    kernel_size: Pair
    strides: Pair = (1, 1)
    padding: Padding = "SAME"
    use_bias: bool = True
    dtype: DTypeLike | None = None
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()
    jvp: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """`[B, H, W, C] -> [B, H', W', features]`."""
        return _layer(self, conv_transpose, x)


def _layer(
    module: Conv | ConvTranspose, function: Callable[..., Array], x: Array
) -> Array:
    shape = (*module.kernel_size, x.shape[-1], module.features)
    kernel = module.param("kernel", module.kernel_init, shape)
    bias = None
    if module.use_bias:
        bias = module.param("bias", nn.initializers.zeros, (module.features,))
    x, kernel, bias = promote_dtype(x, kernel, bias, dtype=module.dtype)
    y = function(
        x, kernel, strides=module.strides, padding=module.padding, jvp=module.jvp
    )
    return y if bias is None else y + bias[None, None, None]


def _operands(
    function: str, x: ArrayLike, kernel: ArrayLike, padding: Padding
) -> tuple[Array, Array]:
    check_axes(function, "[B, H, W, C]", x=x)
    check_axes(function, "[KH, KW, C, O]", kernel=kernel)
    if isinstance(padding, str):
        check_in(function, "padding", padding, ("SAME", "VALID"))
    dtype = jnp.result_type(x, kernel)
    return jnp.asarray(x, dtype), jnp.asarray(kernel, dtype)


def _spread_pads(kernel: int, stride: int, padding: str) -> Pair:
    """What `lax.conv_transpose` means by "SAME" and "VALID" along one axis."""
    if padding == "VALID":
        return kernel - 1, max(kernel, stride) - 1
    low = kernel - 1 if stride >= kernel else (kernel + stride - 1) // 2
    return low, kernel + stride - 2 - low
