"""How near convolutions and their gradients come to a matrix product, in a loop too.

    python -m experiments.benchmarks.convolutions

For each layer and each of forward, image gradient and kernel gradient: milliseconds of
`lax` outside a loop and of `jaxgen.nets.conv` outside and in a loop, and FLOP/s of the last
as a fraction of a square product's. Medians of interleaved runs.

On 2 shared cores of an AMD EPYC (family 25, model 17), jax 0.10.2, 2.5 minutes: 3x3 layers
of 128 channels or more at 67 to 104 % of the product, 64 channels at 42 to 89 %,
stride 2 from 64 channels at 35 to 78 %. In a loop, against `lax` outside: the kernel gradient
takes 0.36 to 1.04 of the time, the others 0.51 to 1.17. `lax` in a loop, timed by itself
on four of the layers: its kernel gradient takes 83 to 230 times as long, the image's
2.3 to 5.5.
"""

import functools
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxgen.nets.conv import conv
from jaxgen.nets.conv_forms import ORDER

LAYERS = [  # batch, height = width, channels, features, kernel, stride
    (64, 32, 64, 64, 3, 1),
    (16, 32, 128, 128, 3, 1),
    (64, 16, 64, 64, 3, 1),
    (128, 16, 128, 128, 3, 1),
    (64, 16, 256, 256, 3, 1),
    (64, 8, 128, 128, 3, 1),
    (64, 8, 256, 256, 3, 1),
    (32, 8, 512, 512, 3, 1),
    (64, 28, 1, 32, 3, 1),
    (64, 32, 32, 3, 3, 1),
    (64, 32, 3, 64, 4, 2),
    (64, 32, 64, 128, 3, 2),
    (64, 16, 128, 256, 4, 2),
    (64, 32, 64, 64, 1, 1),
    (64, 16, 256, 128, 1, 1),
    (64, 16, 64, 128, 2, 2),
]
ROUNDS = 7
LOOP = 2


def plain(x: Array, kernel: Array, *, strides: tuple[int, int]) -> Array:
    return lax.conv_general_dilated(x, kernel, strides, "SAME", dimension_numbers=ORDER)


def parts(convolve: Callable[..., Array], stride: int) -> dict[str, Callable[..., Any]]:
    """Forward and the two gradients, each of `(x, kernel, g)`."""
    function = functools.partial(convolve, strides=(stride, stride))
    return {
        "forward": lambda x, kernel, g: function(x, kernel),
        "image": lambda x, kernel, g: jax.vjp(lambda x: function(x, kernel), x)[1](g),
        "kernel": lambda x, kernel, g: jax.vjp(lambda k: function(x, k), kernel)[1](g),
    }


def repeated(part: Callable[..., Any], *, in_loop: bool) -> Callable[..., Any]:
    """`LOOP` evaluations, each needing the one before."""

    def body(_: Any, arguments: tuple[Array, ...]) -> tuple[Array, ...]:
        y = lax.optimization_barrier(jax.tree.leaves(part(*arguments))[0])
        return tuple(a + 1e-20 * y.ravel()[0] for a in arguments)

    def run(*arguments: Array) -> tuple[Array, ...]:
        if in_loop:
            return lax.fori_loop(0, LOOP, body, arguments)
        for i in range(LOOP):
            arguments = body(i, arguments)
        return arguments

    return jax.jit(run)


def medians(programs: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Milliseconds of each, in turns, after one run to compile."""
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for turn in range(ROUNDS + 1):
        for name, program in programs.items():
            began = time.perf_counter()
            jax.block_until_ready(program())
            if turn:
                seconds[name].append(time.perf_counter() - began)
    return {name: 1e3 * statistics.median(times) for name, times in seconds.items()}


def main() -> None:
    square = jnp.ones((1024, 1024))
    product = jax.jit(jnp.matmul)
    sys.stdout.write(f"{'':36}{'lax':>8}{'ours':>8}{'in loop':>8}{'of peak':>8}\n")
    for layer in LAYERS:
        batch, size, channels, features, width, stride = layer
        x = jnp.ones((batch, size, size, channels))
        kernel = jnp.ones((width, width, channels, features))
        g = plain(x, kernel, strides=(stride, stride))
        flops = 2 * g.size * width**2 * channels
        theirs, ours = parts(plain, stride), parts(conv, stride)
        for name in ours:
            runs = {
                "lax": repeated(theirs[name], in_loop=False),
                "ours": repeated(ours[name], in_loop=False),
                "in loop": repeated(ours[name], in_loop=True),
            }
            programs: dict[str, Callable[[], Any]] = {
                key: functools.partial(run, x, kernel, g) for key, run in runs.items()
            }
            programs["square"] = functools.partial(product, square, square)
            ms = medians(programs)
            peak = 2 * 1024**3 / ms.pop("square")
            times = "".join(f"{ms[key] / LOOP:8.1f}" for key in ms)
            share = flops * LOOP / ms["in loop"] / peak
            sys.stdout.write(f"{layer!s:28}{name:8}{times}{share:8.0%}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
