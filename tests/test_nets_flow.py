"""Networks of flows: what may see what, nothing dead, cached sampling as the naive one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen import bijectors
from jaxgen.nets import flow as nets
from jaxgen.nets.conditioning import Told
from jaxgen.verify.cases import randomised

KEY = jax.random.key(0)
AFFINE = bijectors.affine()


def made(bijector, x, condition=None, deviation=0.3):
    params = bijector.init(KEY, x, condition)
    return randomised(params, jax.random.key(1), deviation)


def dependence(function, x):
    """Largest |d output / d input| over the batch, `[outputs, inputs]`."""
    one = lambda x: function(x[None])[0].ravel()
    matrix = jax.jit(jax.vmap(jax.jacfwd(one)))(x)
    return np.abs(matrix).max(0).reshape(matrix.shape[1], -1)


@pytest.mark.parametrize("dim", [1, 2, 5])
@pytest.mark.parametrize(("is_told", "num_waves"), [(False, 3), (True, 0), (True, 2)])
def test_masked_networks_see_what_is_before_and_all_of_it(dim, is_told, num_waves):
    x = jax.random.normal(KEY, (16, dim))
    told = jax.random.normal(KEY, (16, 3)) if is_told else None
    network = nets.network(nets.MaskedMLP(2, 12, num_blocks=2, num_waves=num_waves))
    params = network.init(KEY, x, told)
    np.testing.assert_array_equal(network.apply(params, x, told), 0)
    params = randomised(params, KEY)
    assert network.apply(params, x, told).shape == (16, 2 * dim)
    first = None if told is None else told[:1]
    seen = dependence(lambda x: network.apply(params, x, first), x)
    before = np.arange(dim)[:, None] > np.arange(dim)[None]
    np.testing.assert_array_equal(seen > 1e-6, np.tile(before, (2, 1)))
    if is_told:
        heard = dependence(lambda c: network.apply(params, x[:1], c), told)
        assert np.all(heard > 1e-6)


@pytest.mark.parametrize("num_waves", [0, 3])
@pytest.mark.parametrize("shape", [(0,), (3,), (2, 4)])
def test_dense_networks_take_any_axes_and_start_at_zero(shape, num_waves):
    h = jax.random.normal(KEY, (5, *shape))
    told = jax.random.normal(KEY, (5, 2))
    network = nets.network(nets.MLP(6, hidden=8, num_waves=num_waves))
    params = network.init(KEY, h, told)
    out = network.apply(params, h, told)
    assert out.shape == (5, *shape[:-1], 6)
    np.testing.assert_array_equal(out, 0)
    out = network.apply(randomised(params, KEY), h, told)
    assert np.ptp(out[:, ..., 0]) > 1e-3  # by the condition where there is nothing else


def test_waves_are_sines_beside_the_value_they_are_of():
    x = jax.random.normal(KEY, (4, 2, 3))
    waves = nets.Waves(5)
    params = waves.init(KEY, x)
    seen = waves.apply(params, x).reshape(4, 2, 3, 6)
    np.testing.assert_array_equal(seen[..., 0], x)
    turns = params["params"]["turns"]
    angle = np.multiply.outer(np.asarray(x), turns["kernel"][0]) + np.asarray(
        turns["bias"]
    )
    np.testing.assert_allclose(seen[..., 1:], np.sin(angle), rtol=0, atol=1e-5)
    many = nets.Waves(20_000).init(KEY, x)["params"]["turns"]
    assert np.std(many["kernel"]) == pytest.approx(6.0, rel=0.02)
    assert np.mean(many["bias"]) == pytest.approx(np.pi, rel=0.02)
    assert not nets.Waves(0).init(KEY, x)


def transformer(**options):
    options = {"width": 16, "head_width": 8, "num_classes": 3, "length": 5, **options}
    return nets.CausalTransformer(num_outputs=4, **options)


def test_the_transformer_sees_the_blocks_before_and_all_of_them():
    x = jax.random.normal(KEY, (8, 5, 2))
    network = nets.causal_network(transformer())
    params = network.init(KEY, x, jnp.zeros(8, int))
    np.testing.assert_array_equal(network.apply(params, x, jnp.zeros(8, int)), 0)
    params = randomised(params, KEY)
    seen = dependence(lambda x: network.apply(params, x, jnp.ones(1, int)), x)
    block = np.arange(5)
    before = block.repeat(4)[:, None] > block.repeat(2)[None]
    np.testing.assert_array_equal(seen > 1e-6, before)
    out = network.apply(params, x, jnp.zeros(8, int))
    other = network.apply(params, x, jnp.full(8, 2))
    assert np.all(np.abs(out - other).max((0, 2)) > 1e-4)  # the first block too
    np.testing.assert_array_equal(
        network.apply(params, x, None), network.apply(params, x, jnp.full(8, 3))
    )


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (nets.TokenTransformer(4, width=8, num_layers=1, num_classes=3), (5, 2)),
        (nets.ConvNetwork(4, width=8, num_classes=3), (3, 3, 2)),
    ],
    ids=["tokens", "convolutions"],
)
def test_networks_of_couplings_hear_the_class_and_all_of_what_is_kept(module, shape):
    network = nets.network(module)
    x = jax.random.normal(KEY, (2, *shape))
    params = randomised(network.init(KEY, x, jnp.zeros(2, int)), KEY)
    apply = jax.jit(network.apply)
    out = [np.asarray(apply(params, x, jnp.full(2, label))) for label in range(4)]
    for i in range(4):
        for j in range(i):
            assert np.all(np.abs(out[i] - out[j]).max(-1) > 1e-5)
    np.testing.assert_allclose(network.apply(params, x, None), out[3], atol=1e-5)
    moved = apply(params, x.at[:, -1].add(1.0), jnp.full(2, 3))
    assert np.all(np.abs(moved - out[3]).max((0, -1)).reshape(shape[0], -1)[0] > 1e-6)


def test_planes_that_do_not_come_are_zeros():
    net, planes = Told(8, planes=(2, 3, 2)), jax.random.normal(KEY, (4, 2, 3, 2))
    params = randomised(net.init(KEY, 4, 6, planes), KEY)
    apply = jax.jit(lambda planes: net.apply(params, 4, 6, planes))
    np.testing.assert_allclose(apply(None), apply(0 * planes), atol=1e-6)
    moved = apply(planes.at[1, 1, 2, 1].add(1.0)) != apply(planes)
    np.testing.assert_array_equal(np.any(moved, axis=(1, 2)), [0, 1, 0, 0])


def test_a_place_is_told_most_of_the_planes_where_it_is():
    """Of 16x16 planes in 8x8 places: what is near is told in the same way everywhere."""
    net = Told(8, planes=(16, 16, 1))
    params = net.init(KEY, 1, 64, jnp.zeros((1, 16, 16, 1)))
    whole = params["params"]["planes"]
    whole.update(jax.tree.map(jnp.zeros_like, dict(whole)))  # only what is near

    def told(row, column):
        planes = jnp.zeros((1, 16, 16, 1)).at[0, row, column].set(1.0)
        change = net.apply(params, 1, 64, planes) - net.apply(params, 1, 64, None)
        return np.asarray(change).reshape(8, 8, 8)

    at = told(8, 6)  # in place (4, 3)
    seen = np.abs(at).max(axis=-1) > 1e-7
    near = np.abs(np.arange(8) - 4) <= 3, np.abs(np.arange(8) - 3) <= 3
    np.testing.assert_array_equal(seen, near[0][:, None] & near[1][None])
    moved = told(8, 8)  # a place to the right
    np.testing.assert_allclose(moved[:, 2:7], at[:, 1:6], rtol=0, atol=1e-5)


def test_planes_are_also_told_turned_where_blocks_come_from_the_last():
    network = transformer(length=4, planes=PLANES.shape[1:], is_turned=True)
    params = network.init(KEY, jnp.zeros((3, 4, 2)), PLANES)
    around = jax.jit(lambda p, planes: network.apply(p, 3, planes, method="around"))

    def exchanged(kernel):  # of planes as they are, and turned
        rows = kernel.reshape(-1, 2, PLANES.shape[-1], kernel.shape[-1])
        return rows[:, ::-1].reshape(kernel.shape)

    told = params["params"]["told"]
    other = dict(told)
    for name in ("near_input", "planes_0"):
        other[name] = dict(told[name], kernel=exchanged(told[name]["kernel"]))
    other = {"params": {**params["params"], "told": other}}
    turned = around(params, PLANES[:, ::-1, ::-1])
    np.testing.assert_allclose(around(other, PLANES), turned, rtol=0, atol=1e-5)
    assert np.abs(around(params, PLANES) - turned).max() > 0.01


PLANES = jax.random.normal(KEY, (3, 4, 4, 2))


@pytest.mark.parametrize(
    ("label", "options"),
    [
        (jnp.array([0, 2, 1]), {}),
        (PLANES, {"length": 4, "planes": PLANES.shape[1:]}),
        (PLANES, {"length": 4, "planes": PLANES.shape[1:], "is_turned": True}),
    ],
    ids=["classes", "planes", "planes turned"],
)
def test_sampling_with_the_memory_is_sampling_without(label, options):
    network = nets.causal_network(transformer(**options))
    x = jax.random.normal(KEY, (3, options.get("length", 5), 2))
    flow = bijectors.chain(
        bijectors.causal(network, bijectors.told(AFFINE)),
        bijectors.reverse(axis=1),
        bijectors.causal(network, bijectors.told(AFFINE)),
    )
    params = made(flow, x, label)
    z, log_det = jax.jit(flow.to_latent)(params, x, label)
    back, log_det_back = jax.jit(flow.to_data)(params, z, label)
    np.testing.assert_allclose(back, x, atol=2e-3)
    np.testing.assert_allclose(log_det_back, -log_det, atol=1e-3)

    def naive(params, z):
        x = jnp.zeros_like(z)
        for t in range(z.shape[1]):
            raw = network.apply(params, x, label).reshape(3, -1, 2, 2)
            x = x.at[:, t].set(AFFINE.to_data(raw, z)[0][:, t])
        return x

    cached, _ = jax.jit(bijectors.causal(network, bijectors.told(AFFINE)).to_data)(
        params[0], z, label
    )
    np.testing.assert_allclose(
        cached, jax.jit(naive)(params[0]["network"], z), rtol=1e-4, atol=1e-4
    )
    assert np.abs(cached - z).max() > 0.1


def test_the_memory_is_read_in_order():
    """A step at t sees what steps before t have written, and nothing after."""
    x = jax.random.normal(KEY, (2, 5, 2))
    network = nets.causal_network(transformer(num_layers=1))
    params = randomised(network.init(KEY, x, None), KEY)
    expected = network.apply(params, x, None)
    told, *kept = network.memory(params, x, None)
    memory = told, *(a + 7.0 for a in kept)  # what is not written yet
    step = jax.jit(network.step)
    last = jnp.zeros_like(x[:, 0])
    for t in range(5):
        raw, memory = step(params, memory, last, t)
        np.testing.assert_allclose(raw, expected[:, t], rtol=1e-4, atol=1e-5)
        last = x[:, t]
