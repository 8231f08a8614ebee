"""The patch transformer: what every patch sees, places, skips, depth, sizes that fit."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_nets_denoisers import KEY, applied

from jaxgen.nets.attention import Attention
from jaxgen.nets.transformer import Transformer, places
from jaxgen.verify.cases import randomised


def network(**knobs):
    knobs = {"width": 16, "depth": 4, "head_width": 8, "has_interval": True, **knobs}
    return Transformer(num_classes=2, **knobs)


@functools.cache
def made():
    """A small network, three images for it and its first parameters."""
    x = jax.random.normal(jax.random.key(1), (3, 4, 6, 2))
    params = jax.jit(network().init)(jax.random.key(2), x, jnp.zeros(3))["params"]
    return network(), x, params


def test_attention_equals_flax_where_queries_and_keys_are_normalised():
    h = jax.random.normal(jax.random.key(0), (2, 5, 12))
    ours = Attention(head_width=4)
    params = jax.jit(randomised)(
        jax.jit(ours.init)(jax.random.key(1), h)["params"], KEY
    )
    flax = jax.tree.map(np.asarray, params)
    names = ("query", "key", "value")
    kernels = np.split(flax["qkv"]["kernel"], 3, axis=-1)
    biases = np.split(flax["qkv"]["bias"], 3)
    peer = {
        name: {"kernel": k.reshape(12, 3, 4), "bias": b.reshape(3, 4)}
        for name, k, b in zip(names, kernels, biases, strict=True)
    }
    peer["out"] = {
        **flax["output"],
        "kernel": flax["output"]["kernel"].reshape(3, 4, 12),
    }
    peer |= {"query_ln": flax["q"], "key_ln": flax["k"]}
    expected = _peer_attention(peer, h)
    np.testing.assert_allclose(
        applied(ours, {"params": params}, h), expected, rtol=1e-4
    )


def _peer_attention(peer, h):
    """The same in numpy, float64, one head at a time."""

    def normalised(x, norm):
        x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)
        return x * norm["scale"] + norm["bias"]

    total = np.zeros(h.shape) + peer["out"]["bias"]
    for head in range(3):
        q, k, v = (
            np.asarray(h, np.float64) @ peer[name]["kernel"][:, head]
            + peer[name]["bias"][head]
            for name in ("query", "key", "value")
        )
        q, k = normalised(q, peer["query_ln"]), normalised(k, peer["key_ln"])
        weights = np.exp(q @ k.swapaxes(1, 2) / 2.0)
        weights = weights / weights.sum(-1, keepdims=True)
        total = total + weights @ v @ peer["out"]["kernel"][head]
    return total


@pytest.mark.parametrize("channels", [5, 16, 100])
def test_attention_takes_any_number_of_channels(channels):
    h, key = jnp.ones((2, 3, channels)), jax.random.key(0)
    outputs, _ = jax.eval_shape(Attention().init_with_output, key, h)
    assert outputs.shape == h.shape


@pytest.mark.slow
def test_transformer_sees_every_pixel_from_every_pixel():
    net, x, params = made()
    variables = {"params": jax.jit(randomised)(params, KEY)}
    size = x[0].size
    nudges = np.concatenate([np.zeros((1, size)), 0.1 * np.eye(size)])
    nudged = x[:1] + nudges.reshape(size + 1, *x.shape[1:]).astype(np.float32)
    outputs = np.asarray(applied(net, variables, nudged, jnp.ones(size + 1)))
    effects = np.abs(outputs[1:] - outputs[:1])
    assert effects.min() > 0.0
    assert np.median(effects) > 1e-3 * effects.max()


@pytest.mark.parametrize("shift", [(2, 0), (0, 2), (2, 2)])
def test_transformer_hears_the_place_of_a_patch(shift):
    """Without `place` the outputs of moved patches are the moved outputs."""
    net, x, params = made()
    params = jax.jit(randomised)(params, KEY)
    blind = {**params, "place": jax.tree.map(jnp.zeros_like, params["place"])}
    for variables, same in (({"params": blind}, True), ({"params": params}, False)):
        outputs = applied(net, variables, x, jnp.ones(3))
        moved = applied(net, variables, jnp.roll(x, shift, (1, 2)), jnp.ones(3))
        assert np.allclose(moved, jnp.roll(outputs, shift, (1, 2)), atol=1e-4) == same


@pytest.mark.parametrize("sides", [(1, 1), (7, 14), (64, 64)])
def test_places_differ_and_name_the_row_first(sides):
    rows, columns = sides
    grid = np.asarray(places(rows, columns)).reshape(rows, columns, 64)
    flat = grid.reshape(-1, 64)
    distances = np.sum((flat[:200, None] - flat[None]) ** 2, axis=-1)
    np.fill_diagonal(distances, np.inf)
    assert distances.min() > 1e-2
    np.testing.assert_array_equal(grid[:, :1, :32] + 0 * grid[..., :32], grid[..., :32])
    np.testing.assert_array_equal(grid[:1, :, 32:] + 0 * grid[..., 32:], grid[..., 32:])


def scaled(half, layer):
    """The parameters of one half with one layer's changed."""
    size = len(half["mlp"]["kernel"])
    factors = np.where(np.arange(size) == layer, 1.5, 1.0).astype(np.float32)
    return jax.tree.map(
        lambda p: p * factors.reshape((size,) + (1,) * (p.ndim - 1)), half
    )


def test_first_layer_reaches_the_last_by_its_own_skip():
    """With every merge blind to h, the last layer hears the first layer only."""
    net, x, params = made()
    # In numpy: a jax program for each shape would take most of the time.
    params = jax.tree.map(np.array, jax.jit(randomised)(params, KEY))
    params["second"]["skip"]["kernel"][:, : net.width] = 0.0
    base = applied(net, {"params": params}, x, jnp.ones(3))
    for half, layer in (("first", 0), ("first", 1), ("second", 0), ("second", 1)):
        changed = {**params, half: scaled(params[half], layer)}
        outputs = applied(net, {"params": changed}, x, jnp.ones(3))
        assert np.any(outputs != base) == (
            (half, layer) in {("first", 0), ("second", 1)}
        )


def test_transformer_program_does_not_grow_with_depth():
    x, noise = jnp.ones((2, 4, 6, 2)), jnp.ones(2)

    def lines(depth):
        net = network(depth=depth)

        def loss(variables):
            return jnp.sum(applied(net, variables, x, noise))

        variables = jax.eval_shape(net.init, jax.random.key(0), x, noise)
        return len(jax.jit(jax.grad(loss)).lower(variables).as_text().splitlines())

    assert lines(4) == lines(16)


def test_transformer_layers_differ_at_first():
    _, _, params = made()
    kernel = np.asarray(params["first"]["attention"]["qkv"]["kernel"])
    assert kernel.shape[0] == 2
    assert not np.any(kernel[0] == kernel[1])


@pytest.mark.slow
def test_transformer_learns_in_every_parameter():
    """Zero gates and a zero output keep no parameter from its gradient for long."""
    net, x, params = made()

    @jax.jit
    def gradients(params):
        def loss(params):
            told = (jnp.ones(3), jnp.arange(3), jnp.full(3, 0.5))
            return jnp.mean((applied(net, {"params": params}, x, *told) - x) ** 2)

        return jax.grad(loss)(params)

    for _ in range(4):
        params = jax.tree.map(lambda p, g: p - 0.1 * g, params, gradients(params))
    dead = [
        jax.tree_util.keystr(path)
        for path, g in jax.tree_util.tree_leaves_with_path(gradients(params))
        if not np.any(g)
    ]
    assert dead == []


@pytest.mark.slow
def test_transformer_tangent_is_the_derivative():
    # The waves of the noise level are fast: the third derivative is about 1e7.
    with jax.enable_x64(True):
        _, x, params = made()
        net = network(remat=True)
        params = jax.tree.map(
            lambda p: p.astype(jnp.float64), jax.jit(randomised)(params, KEY)
        )
        x = x.astype(jnp.float64)
        f = functools.partial(applied, net, {"params": params})
        at = (x, jnp.full(3, 0.3, jnp.float64))
        tangent = (jnp.cos(x), jnp.ones(3, jnp.float64))
        _, given = jax.jvp(f, at, tangent)
        ahead, behind = (
            f(*(a + s * 1e-6 * d for a, d in zip(at, tangent, strict=True)))
            for s in (1, -1)
        )
        np.testing.assert_allclose(given, (ahead - behind) / 2e-6, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "patch", "fit"),
    [
        ((30, 28, 1), 4, "got 30 x 28; 28 x 28 or 32 x 28 would fit"),
        ((9, 13, 1), 2, "got 9 x 13; 8 x 12 or 10 x 14 would fit"),
        ((1, 4, 1), 2, "got 1 x 4; 2 x 4 would fit"),
    ],
)
def test_transformer_names_the_sizes_that_fit(shape, patch, fit):
    with pytest.raises(ValueError, match=fit):
        network(patch=patch).init(jax.random.key(0), jnp.ones((1, *shape)), jnp.ones(1))


@pytest.mark.parametrize("depth", [0, 3])
def test_transformer_wants_two_halves(depth):
    with pytest.raises(ValueError, match=f"even and at least 2, got {depth}"):
        network(depth=depth).init(
            jax.random.key(0), jnp.ones((1, 4, 4, 1)), jnp.ones(1)
        )
