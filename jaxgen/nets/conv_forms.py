"""The three functions of a convolution: its output and its two gradients.

A convolution is linear in the image and in the kernel, so its two gradients are functions
of the same kind, and the gradients of each of the three are the other two. Written
so, derivatives of every order (a gradient penalty's too) stay among the three.

XLA:CPU has one fast kernel, for axes in the order NHWC, HWIO, NHWC. It turns other orders
into that one, but not in the body of a loop; there the kernel gradient that `lax`
derives is a hundred times slower. Here all three are written in that order, and as a
matrix product where windows do not overlap. Other platforms get what `lax` derives.

Figures in `experiments/benchmarks/convolutions.py`.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

Pair = tuple[int, int]
Bilinear = Callable[["Window", Array, Array], Array]

ORDER = ("NHWC", "HWIO", "NHWC")


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
    image_gradient: Bilinear  # of g, kernel
    kernel_gradient: Bilinear  # of x, g


def make_window(
    size: Sequence[int], kernel: Array, strides: Sequence[int], pads: Sequence[Pair]
) -> Window:
    """A window of the kernel's size; as plain numbers, since it must be hashable."""
    (height, width), (down, right) = size, strides
    (top, bottom), (left, right_pad) = pads
    return Window(
        (height, width),
        (kernel.shape[0], kernel.shape[1]),
        (down, right),
        ((top, bottom), (left, right_pad)),
    )


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
    pads = [(low, (num - 1) * s + k - n - low) for n, k, s, (low, _), num in axes]

    def part(x: Array, g: Array) -> Array:
        return lax.conv_general_dilated(
            x.transpose(3, 1, 2, 0),  # channels as examples, examples as channels
            g.transpose(1, 2, 0, 3),
            (1, 1),
            pads,
            rhs_dilation=window.strides,
            dimension_numbers=ORDER,
            preferred_element_type=jnp.promote_types(g.dtype, jnp.float32),
        )

    num = _num_parts(*g.shape[:3])
    x, g = (a.reshape(-1, num, *a.shape[1:]) for a in (x, g))
    gradient = sum(
        (part(x[:, i], g[:, i]) for i in range(1, num)), part(x[:, 0], g[:, 0])
    )
    return gradient.transpose(1, 2, 0, 3).astype(g.dtype)


def _num_parts(batch: int, rows: int, columns: int) -> int:
    """Into how many parts a batch is split, as the whole would not fit in caches.

    A part takes every second or fourth example, and eights of them, so that devices
    which share the batch have as many of each part and need not exchange any.
    """
    for num in (4, 2):
        if batch % (8 * num) == 0 and batch * rows * columns >= 1024 * num:
            return num
    return 1


def _product_output(window: Window, x: Array, kernel: Array) -> Array:
    patches = (_tiles if window.is_disjoint else _patches)(window, x)
    y = patches.reshape(-1, patches.shape[3]) @ kernel.reshape(-1, kernel.shape[3])
    return y.reshape(*patches.shape[:3], -1)


def _tiles(window: Window, x: Array) -> Array:
    """Patches that do not overlap: `[B, H', W', KH KW C]`."""
    batch, channels = x.shape[0], x.shape[3]
    (rows, columns), (height, width) = window.positions, window.kernel
    down, right = map(max, window.kernel, window.strides)
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


def _one_by_one(function: Bilinear) -> Bilinear:
    """Under `jax.vmap` over both arrays, a loop: grouped convolutions are slower."""

    def looped(window: Window, a: Array, b: Array) -> Array:
        single = jax.custom_batching.custom_vmap(functools.partial(function, window))

        @single.def_vmap
        def _(size: int, batched: list[bool], a: Array, b: Array) -> Any:
            if all(batched):
                return lax.map(lambda pair: single(*pair), (a, b)), True
            axes = [0 if is_batched else None for is_batched in batched]
            return jax.vmap(functools.partial(function, window), axes)(a, b), True

        return single(a, b)

    return looped


_LAX = _derived(_lax_output)
_PRODUCT = _derived(_product_output)
_ORDERED = _Form(*map(_one_by_one, (_lax_output, _ordered_image, _ordered_kernel)))


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
def output(window: Window, x: Array, kernel: Array) -> Array:
    """`x [B, H, W, C], kernel [KH, KW, C, O] -> [B, H', W', O]`."""
    cpu = _choice(window).output
    return _by_platform(window, x, kernel, cpu=cpu, default=_LAX.output)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def image_gradient(window: Window, g: Array, kernel: Array) -> Array:
    """`g [B, H', W', O], kernel -> [B, H, W, C]`: also a transposed convolution."""
    cpu = _choice(window).image_gradient
    return _by_platform(window, g, kernel, cpu=cpu, default=_LAX.image_gradient)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def kernel_gradient(window: Window, x: Array, g: Array) -> Array:
    """`x, g -> [KH, KW, C, O]`."""
    cpu = _choice(window).kernel_gradient
    return _by_platform(window, x, g, cpu=cpu, default=_LAX.kernel_gradient)


def _keep(function: Any) -> Callable[..., tuple[Array, tuple[Array, Array]]]:
    return lambda window, a, b: (function(window, a, b), (a, b))


def _of_output(window: Window, kept: tuple[Array, Array], g: Array) -> Any:
    x, kernel = kept
    return image_gradient(window, g, kernel), kernel_gradient(window, x, g)


def _of_image_gradient(window: Window, kept: tuple[Array, Array], x: Array) -> Any:
    g, kernel = kept
    return output(window, x, kernel), kernel_gradient(window, x, g)


def _of_kernel_gradient(
    window: Window, kept: tuple[Array, Array], kernel: Array
) -> Any:
    x, g = kept
    return image_gradient(window, g, kernel), output(window, x, kernel)


output.defvjp(_keep(output), _of_output)
image_gradient.defvjp(_keep(image_gradient), _of_image_gradient)
kernel_gradient.defvjp(_keep(kernel_gradient), _of_kernel_gradient)


def output_with_jvp(window: Window, x: Array, kernel: Array) -> Array:
    """`output` without a rule of its own for derivatives."""
    return _by_platform(window, x, kernel, cpu=_PRODUCT.output, default=_LAX.output)


def image_gradient_with_jvp(window: Window, g: Array, kernel: Array) -> Array:
    """`image_gradient` without a rule of its own for derivatives."""
    form = _PRODUCT.image_gradient
    return _by_platform(window, g, kernel, cpu=form, default=_LAX.image_gradient)
