"""Convolutions that XLA:CPU runs fast everywhere: backwards, and in loops.

A convolution is linear in the image and in the kernel, so its two gradients are functions
of the same kind, and the gradients of each of the three are the other two. Written
so, derivatives of every order (a gradient penalty's too) stay among the three.

XLA:CPU has one fast kernel, for axes in the order NHWC, HWIO, NHWC. It turns other orders
into that one, but not in the body of a loop; there the weight gradient that `lax`
derives is a hundred times slower. Here all three are written in that order, and as a
matrix product where windows do not overlap. Other platforms get what `lax` derives.

Figures in `experiments/benchmarks/convolutions.py`.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype
from jax import Array, lax
from jax.typing import ArrayLike, DTypeLike

from jaxgen._checks import check_axes, check_in

Pair = tuple[int, int]
Padding = str | Sequence[Pair]
Bilinear = Callable[["Window", Array, Array], Array]

ORDER = ("NHWC", "HWIO", "NHWC")


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
    window = _window(size, kernel, strides, pads)
    return (_output_with_jvp if jvp else _output)(window, x, kernel)


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
    window = _window(sizes, kernel, strides, pads)
    turned = jnp.flip(kernel, (0, 1)).swapaxes(2, 3)
    return (_image_with_jvp if jvp else _image)(window, x, turned)


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


class Window(NamedTuple):
    """How a kernel moves over an image; each field is `(vertical, horizontal)`."""

    size: Pair  # of the image
    kernel: Pair
    strides: Pair
    pads: tuple[Pair, Pair]  # negative where the image is cropped

    @property
    def positions(self) -> Pair:
        """How many there are."""
        rows, columns = (
            (n + sum(pads) - k) // s + 1 for n, k, s, pads in zip(*self, strict=True)
        )
        return rows, columns

    @property
    def is_disjoint(self) -> bool:
        """Whether no pixel is seen from two positions."""
        axes = zip(self.kernel, self.strides, self.positions, strict=True)
        return all(k <= s or num == 1 for k, s, num in axes)


class _Form(NamedTuple):
    """One way to compute the three functions; `g` is shaped as the output."""

    output: Bilinear  # of x, kernel
    image: Bilinear  # the gradient: of g, kernel
    kernel: Bilinear  # the gradient: of x, g


def _operands(
    function: str, x: ArrayLike, kernel: ArrayLike, padding: Padding
) -> tuple[Array, Array]:
    check_axes(function, "[B, H, W, C]", x=x)
    check_axes(function, "[KH, KW, C, O]", kernel=kernel)
    if isinstance(padding, str):
        check_in(function, "padding", padding, ("SAME", "VALID"))
    dtype = jnp.result_type(x, kernel)
    return jnp.asarray(x, dtype), jnp.asarray(kernel, dtype)


def _window(
    size: Sequence[int], kernel: Array, strides: Sequence[int], pads: Sequence[Pair]
) -> Window:
    (height, width), (down, right) = size, strides
    (top, bottom), (left, right_pad) = pads
    return Window(
        (height, width),
        (kernel.shape[0], kernel.shape[1]),
        (down, right),
        ((top, bottom), (left, right_pad)),
    )


def _spread_pads(kernel: int, stride: int, padding: str) -> Pair:
    """What `lax.conv_transpose` means by "SAME" and "VALID" along one axis."""
    if padding == "VALID":
        return kernel - 1, max(kernel, stride) - 1
    low = kernel - 1 if stride >= kernel else (kernel + stride - 1) // 2
    return low, kernel + stride - 2 - low


# The forms


def _derived(output: Bilinear) -> _Form:
    """The gradients as JAX derives them."""

    def image(window: Window, g: Array, kernel: Array) -> Array:
        shape = (g.shape[0], *window.size, kernel.shape[2])
        x = jax.ShapeDtypeStruct(shape, g.dtype)
        return jax.linear_transpose(lambda x: output(window, x, kernel), x)(g)[0]

    def kernel(window: Window, x: Array, g: Array) -> Array:
        shape = (*window.kernel, x.shape[3], g.shape[3])
        kernel = jax.ShapeDtypeStruct(shape, g.dtype)
        return jax.linear_transpose(lambda k: output(window, x, k), kernel)(g)[0]

    return _Form(output, image, kernel)


def _lax_output(window: Window, x: Array, kernel: Array) -> Array:
    return lax.conv_general_dilated(
        x, kernel, window.strides, window.pads, dimension_numbers=ORDER
    )


def _ordered_image(window: Window, g: Array, kernel: Array) -> Array:
    axes = zip(*window, window.positions, strict=True)
    return lax.conv_general_dilated(
        g,
        jnp.flip(kernel, (0, 1)).swapaxes(2, 3),
        (1, 1),
        [(k - 1 - low, n - (num - 1) * s - 1 + low) for n, k, s, (low, _), num in axes],
        lhs_dilation=window.strides,
        dimension_numbers=ORDER,
    )


def _ordered_kernel(window: Window, x: Array, g: Array) -> Array:
    axes = zip(*window, window.positions, strict=True)
    gradient = lax.conv_general_dilated(
        x.transpose(3, 1, 2, 0),  # channels as examples, examples as channels
        g.transpose(1, 2, 0, 3),
        (1, 1),
        [(low, (num - 1) * s + k - n - low) for n, k, s, (low, _), num in axes],
        rhs_dilation=window.strides,
        dimension_numbers=ORDER,
    )
    return gradient.transpose(1, 2, 0, 3)


def _product_output(window: Window, x: Array, kernel: Array) -> Array:
    patches = (_tiles if window.is_disjoint else _patches)(window, x)
    y = patches.reshape(-1, patches.shape[3]) @ kernel.reshape(-1, kernel.shape[3])
    return y.reshape(*patches.shape[:3], -1)


def _tiles(window: Window, x: Array) -> Array:
    """Patches that do not overlap: `[B, H', W', KH KW C]`."""
    batch, channels = x.shape[0], x.shape[3]
    (rows, columns), (height, width) = window.positions, window.kernel
    # Where there is only one position, the stride says nothing.
    down = max(height, window.strides[0]) if rows > 1 else height
    right = max(width, window.strides[1]) if columns > 1 else width
    x = _padded(window, x, (rows * down, columns * right))
    x = x.reshape(batch, rows, down, columns, right, channels)
    x = x[:, :, :height, :, :width].transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(batch, rows, columns, -1)


def _patches(window: Window, x: Array) -> Array:
    """What the kernel sees at each position: `[B, H', W', KH KW C]`."""
    (height, width), strides = window.kernel, window.strides
    spans = [(n - 1) * s + 1 for n, s in zip(window.positions, strides, strict=True)]
    x = _padded(window, x, (spans[0] + height - 1, spans[1] + width - 1))
    return jnp.concatenate(
        [
            x[:, i : i + spans[0] : strides[0], j : j + spans[1] : strides[1]]
            for i in range(height)
            for j in range(width)
        ],
        axis=-1,
    )


def _padded(window: Window, x: Array, size: Pair) -> Array:
    """Zeros before as the window wants them, and as many after as make up the size."""
    axes = zip(size, window.size, window.pads, strict=True)
    pads = [(low, total - n - low, 0) for total, n, (low, _) in axes]
    return lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *pads, (0, 0, 0)])


_LAX = _derived(_lax_output)
_PRODUCT = _derived(_product_output)
_ORDERED = _Form(_lax_output, _ordered_image, _ordered_kernel)


# Each of the three, for all platforms


def _by_platform(
    window: Window, a: Array, b: Array, *, cpu: Bilinear, default: Bilinear
) -> Array:
    """Chosen when the program is lowered, which may be for another machine."""
    return lax.platform_dependent(
        a,
        b,
        cpu=functools.partial(cpu, window),
        default=functools.partial(default, window),
    )


def _choice(window: Window) -> _Form:
    return _PRODUCT if window.is_disjoint else _ORDERED


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _output(window: Window, x: Array, kernel: Array) -> Array:
    cpu = _choice(window).output
    return _by_platform(window, x, kernel, cpu=cpu, default=_LAX.output)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _image(window: Window, g: Array, kernel: Array) -> Array:
    cpu = _choice(window).image
    return _by_platform(window, g, kernel, cpu=cpu, default=_LAX.image)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _kernel(window: Window, x: Array, g: Array) -> Array:
    cpu = _choice(window).kernel
    return _by_platform(window, x, g, cpu=cpu, default=_LAX.kernel)


Residuals = tuple[Array, Array]


def _keep(function: Any) -> Callable[..., tuple[Array, Residuals]]:
    return lambda window, a, b: (function(window, a, b), (a, b))


def _output_gradients(window: Window, kept: Residuals, ct: Array) -> Residuals:
    x, kernel = kept
    return _image(window, ct, kernel), _kernel(window, x, ct)


def _image_gradients(window: Window, kept: Residuals, ct: Array) -> Residuals:
    g, kernel = kept
    return _output(window, ct, kernel), _kernel(window, ct, g)


def _kernel_gradients(window: Window, kept: Residuals, ct: Array) -> Residuals:
    x, g = kept
    return _image(window, g, ct), _output(window, x, ct)


_output.defvjp(_keep(_output), _output_gradients)
_image.defvjp(_keep(_image), _image_gradients)
_kernel.defvjp(_keep(_kernel), _kernel_gradients)

_output_with_jvp = functools.partial(
    _by_platform, cpu=_PRODUCT.output, default=_LAX.output
)
_image_with_jvp = functools.partial(
    _by_platform, cpu=_PRODUCT.image, default=_LAX.image
)
