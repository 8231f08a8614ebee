"""Convolutions against `lax` and Flax, and what they are lowered to."""

import re
from collections import Counter

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export, lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxgen.nets.conv import Conv, ConvTranspose, conv, conv_transpose
from jaxgen.nets.conv_forms import ORDER

# size, kernel, strides, padding
CASES = [
    ((6, 5), (3, 3), (1, 1), "SAME"),
    ((6, 5), (3, 3), (2, 2), "SAME"),
    ((7, 8), (4, 4), (2, 2), "SAME"),
    ((7, 8), (5, 3), (1, 2), "SAME"),
    ((8, 7), (3, 4), (2, 2), "VALID"),
    ((8, 7), (4, 4), (2, 2), ((1, 1), (1, 1))),
    ((5, 6), (3, 3), (1, 1), ((0, 2), (3, 1))),
    ((5, 6), (1, 1), (1, 1), "SAME"),
    ((5, 6), (1, 1), (2, 2), "SAME"),
    ((5, 6), (2, 2), (2, 2), "SAME"),
    ((5, 6), (3, 3), (4, 3), "VALID"),
    ((4, 4), (4, 4), (1, 1), "VALID"),
    ((5, 6), (1, 1), (1, 1), ((1, 0), (0, 2))),
]


def _lax_conv(x, kernel, *, strides=(1, 1), padding="SAME"):
    return lax.conv_general_dilated(
        x, kernel, strides, padding, dimension_numbers=ORDER
    )


def _lax_conv_transpose(x, kernel, *, strides=(1, 1), padding="SAME"):
    return lax.conv_transpose(x, kernel, strides, padding, dimension_numbers=ORDER)


PAIRS = {"conv": (conv, _lax_conv), "transpose": (conv_transpose, _lax_conv_transpose)}


def _arrays(size, kernel, channels=3, features=2, batch=3):
    keys = jax.random.split(jax.random.key(0))
    x = jax.random.normal(keys[0], (batch, *size, channels))
    return x, jax.random.normal(keys[1], (*kernel, channels, features))


def _gradients(function, **options):
    """`(x, kernel) -> (value, gradients)` of something nonlinear."""

    def loss(x, kernel):
        y = function(x, kernel, **options)
        return jnp.sum(jnp.tanh(y)), y

    return jax.value_and_grad(loss, (0, 1), has_aux=True)


def _penalty(function, **options):
    """Gradients of the norms of both gradients: two derivatives, of all three."""

    def norms(x, kernel):
        _, (dx, dkernel) = _gradients(function, **options)(x, kernel)
        return jnp.sum(jnp.sin(dx)) + jnp.sum(jnp.cos(dkernel))

    return jax.grad(norms, (0, 1))


def _assert_equal(ours, theirs, arguments):
    both = jax.jit(
        lambda *arguments: (ours(*arguments), theirs(*arguments)),
        compiler_options={"xla_backend_optimization_level": 0},  # compiles faster
    )
    for a, b in zip(*map(jax.tree.leaves, both(*arguments)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10 * (1 + np.abs(b).max()))


@pytest.mark.parametrize("kind", PAIRS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_conv_equals_lax_in_value_and_gradient(kind, case):
    size, kernel, strides, padding = case
    options = {"strides": strides, "padding": padding}
    with jax.enable_x64(True):
        arguments = _arrays(size, kernel)
        _assert_equal(*(_gradients(f, **options) for f in PAIRS[kind]), arguments)


@pytest.mark.parametrize(("batch", "num_parts"), [(16, 2), (32, 4), (40, 1)])
def test_conv_splits_a_batch_into_parts_for_the_gradient_of_its_kernel(
    batch, num_parts
):
    arguments = _arrays((16, 16), (3, 3), channels=1, batch=batch)
    lowered = jax.jit(_gradients(conv)).lower(*arguments).as_text()
    assert lowered.count("stablehlo.convolution") == 2 + num_parts
    with jax.enable_x64(True):
        arguments = _arrays((16, 16), (3, 3), channels=1, batch=batch)
        _assert_equal(_gradients(conv), _gradients(_lax_conv), arguments)


@pytest.mark.slow
@pytest.mark.parametrize("kind", PAIRS)
@pytest.mark.parametrize("case", [CASES[1], CASES[9]], ids=str)
def test_conv_equals_lax_in_second_order(kind, case):
    size, kernel, strides, padding = case
    options = {"strides": strides, "padding": padding}
    with jax.enable_x64(True):
        arguments = _arrays(size, kernel, channels=1)
        _assert_equal(*(_penalty(f, **options) for f in PAIRS[kind]), arguments)


@pytest.mark.parametrize("kind", PAIRS)
def test_conv_with_jvp_equals_lax_forwards_and_then_backwards(kind):
    ours, theirs = PAIRS[kind]

    def directional(function, **options):
        def loss(x, kernel):
            along = lambda x: function(x, kernel, strides=(2, 2), **options)
            return jnp.sum(jnp.sin(jax.jvp(along, (x,), (jnp.cos(x),))[1]))

        return jax.value_and_grad(loss, (0, 1))

    with jax.enable_x64(True):
        arguments = _arrays((5, 6), (3, 3))
        _assert_equal(directional(ours, jvp=True), directional(theirs), arguments)


def test_conv_refuses_jvp_where_the_caller_did_not_ask_for_it():
    x, kernel = _arrays((5, 6), (3, 3))
    with pytest.raises(TypeError, match="jvp"):
        jax.jvp(lambda x: conv(x, kernel), (x,), (x,))


@pytest.mark.parametrize("axes", [(None, 0), (0, None), (0, 0)])
def test_conv_under_vmap_equals_each_and_is_not_grouped_on_cpu(axes):
    x, kernel = _arrays((6, 5), (3, 3))
    arguments = tuple(
        a if axis is None else jnp.stack([a, -2 * a])
        for a, axis in zip((x, kernel), axes, strict=True)
    )
    together = jax.jit(jax.vmap(_gradients(conv), axes))
    lowered = together.lower(*arguments).as_text()
    assert set(re.findall(r"group_count = \d+", lowered)) == {"group_count = 1"}
    results = together(*arguments)
    for i in range(2):
        each = (a[i] if a.ndim > 4 else a for a in arguments)
        expected = _gradients(_lax_conv)(*each)
        for a, b in zip(*map(jax.tree.leaves, (results, expected)), strict=True):
            np.testing.assert_allclose(a[i], b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (((4, 4, 3), (3, 3, 3, 2)), {}, r"x must be \[B, H, W, C\]"),
        (((1, 4, 4, 3), (3, 3, 2)), {}, r"kernel must be \[KH, KW, C, O\]"),
        (((1, 4, 4, 3), (3, 3, 3, 2)), {"padding": "same"}, "unknown padding 'same'"),
    ],
)
@pytest.mark.parametrize("function", [conv, conv_transpose])
def test_conv_names_the_wrong_argument(function, arguments, options, message):
    with pytest.raises(ValueError, match=message):
        function(*map(jnp.zeros, arguments), **options)


# What it is lowered to


def _step(conv, conv_transpose, *, penalty=True):
    """A train step's gradient, with a gradient penalty or without, of every layer."""

    def critic(kernels, x):
        h = jnp.tanh(conv(x, kernels["first"]))
        h = jnp.tanh(conv(h, kernels["down"], strides=(2, 2)))
        h = conv_transpose(h, kernels["up"], strides=(2, 2))
        return jnp.sum(jnp.tanh(conv(h, kernels["point"])) ** 2)

    def loss(kernels, x):
        if not penalty:
            return critic(kernels, x)
        slopes = jax.grad(critic, 1)(kernels, x)
        return critic(kernels, x) + jnp.sum(slopes**2)

    kernels = {
        "first": jnp.ones((3, 3, 3, 4)),
        "down": jnp.ones((4, 4, 4, 4)),
        "up": jnp.ones((3, 3, 4, 4)),
        "point": jnp.ones((1, 1, 4, 2)),
    }
    return jax.jit(jax.grad(loss)), (kernels, jnp.ones((32, 8, 8, 3)))


def _convolutions(lowered: str) -> Counter[str]:
    """The windows, orders and shapes of a program's convolutions."""
    lines = [line for line in lowered.splitlines() if "stablehlo.convolution" in line]
    return Counter(re.sub(r"%[\w#]+|loc\(.*\)", "", line).strip() for line in lines)


@pytest.mark.parametrize("penalty", [False, True])
@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_conv_is_laxs_own_on_accelerators(platform, penalty):
    def convolutions(conv, conv_transpose):
        step, arguments = _step(conv, conv_transpose, penalty=penalty)
        exported = export.export(step, platforms=[platform])(*arguments)
        return _convolutions(exported.mlir_module())

    theirs = convolutions(_lax_conv, _lax_conv_transpose)
    # A kernel turned round, or a gradient of a gradient, may order its axes otherwise.
    assert convolutions(conv, conv_transpose).total() == theirs.total()
    if not penalty:
        assert convolutions(conv, _lax_conv_transpose) == theirs


def test_conv_has_the_fast_order_of_axes_on_cpu():
    step, arguments = _step(conv, conv_transpose)
    convolutions = _convolutions(step.lower(*arguments).as_text())
    assert convolutions
    for line in convolutions:
        assert "[b, 0, 1, f]x[0, 1, i, o]->[b, 0, 1, f]" in line


@pytest.mark.parametrize(
    ("size", "kernel", "strides"),
    [((6, 5), (1, 1), (2, 2)), ((6, 5), (2, 2), (2, 2)), ((4, 4), (4, 4), (1, 1))],
)
def test_conv_is_a_matrix_product_where_windows_do_not_overlap(size, kernel, strides):
    step = jax.jit(_gradients(conv, strides=strides, padding="VALID"))
    lowered = step.lower(*_arrays(size, kernel)).as_text()
    assert "stablehlo.convolution" not in lowered
    assert lowered.count("stablehlo.dot_general") == 3


def test_conv_gathers_no_batch_over_devices():
    step, (kernels, x) = _step(conv, conv_transpose)
    x = jax.random.normal(jax.random.key(0), x.shape)
    mesh = Mesh(np.array(jax.devices()), ("data",))
    everywhere, split = NamedSharding(mesh, P()), NamedSharding(mesh, P("data"))
    sharded = jax.jit(step, in_shardings=(everywhere, split), out_shardings=everywhere)
    compiled = sharded.lower(kernels, x).compile()
    moved = re.findall(
        r" (all-gather|all-to-all|collective-permute|all-reduce)", compiled.as_text()
    )
    assert set(moved) == {"all-reduce"}
    placed = jax.device_put(kernels, everywhere), jax.device_put(x, split)
    by_pmap = jax.pmap(
        lambda kernels, x: lax.psum(step(kernels, x), "data"), "data", in_axes=(None, 0)
    )(kernels, x.reshape(8, 4, *x.shape[1:]))
    expected = step(kernels, x)
    for name, gradient in compiled(*placed).items():
        close = {"rtol": 1e-4, "atol": 1e-4 * float(jnp.abs(expected[name]).max())}
        np.testing.assert_allclose(gradient, expected[name], **close)
        np.testing.assert_allclose(by_pmap[name][0], expected[name], **close)


# Layers


@pytest.mark.parametrize("dtype", [None, jnp.bfloat16])
@pytest.mark.parametrize(
    ("ours", "theirs"), [(Conv, nn.Conv), (ConvTranspose, nn.ConvTranspose)]
)
def test_layers_have_the_parameters_and_values_of_flax(ours, theirs, dtype):
    x, _ = _arrays((6, 5), (3, 3))
    options = {"strides": (2, 2), "dtype": dtype}
    layers = [layer(4, (3, 3), **options) for layer in (ours, theirs)]
    params = [layer.init(jax.random.key(1), x) for layer in layers]
    jax.tree.map(np.testing.assert_array_equal, *params)
    assert params[0]["params"]["kernel"].dtype == jnp.float32
    a, b = (layer.apply(params[0], x) for layer in layers)
    assert a.dtype == b.dtype == (dtype or jnp.float32)
    np.testing.assert_allclose(
        np.float32(a), np.float32(b), rtol=1e-5 if dtype is None else 2e-2, atol=1e-5
    )


@pytest.mark.parametrize("layer", [Conv, ConvTranspose])
def test_layers_name_themselves_as_flax_and_take_its_options(layer):
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = layer(4, (3, 3), use_bias=False, padding="VALID")(x)
            return layer(2, (1, 1), kernel_init=nn.initializers.zeros)(x)

    params = Net().init(jax.random.key(0), jnp.ones((1, 5, 5, 3)))["params"]
    name = layer.__name__
    assert set(params[f"{name}_0"]) == {"kernel"}
    assert set(params[f"{name}_1"]) == {"kernel", "bias"}
    assert not params[f"{name}_1"]["kernel"].any()
