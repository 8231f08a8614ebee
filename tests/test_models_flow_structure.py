"""What the flow family is made of: who hears the class, what an untrained flow is."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_models_flow import (
    IMAGES,
    KEY,
    SHAPE,
    keys_of,
    made,
    resolved,
    some,
    with_params,
)

from jaxgen.columns import Column
from jaxgen.models import flow

CLASSES = {"conditional": True, "num_classes": 3}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["jet", "glow"])
def test_every_network_of_images_hears_the_class_and_that_there_is_none(name):
    _, model, params = with_params(resolved(**{**IMAGES[name], "depth": 1}, **CLASSES))
    x = jax.random.uniform(jax.random.key(3), (2, *SHAPE))
    encode = jax.jit(model.encode)
    z = [encode(params, x, keys_of(2), jnp.full(2, label)) for label in range(4)]
    for i in range(4):
        for j in range(i):
            assert np.all(np.abs(z[i] - z[j]).max((1, 2, 3)) > 1e-3), (i, j)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tarflow_flipped", "jet"])
def test_every_patch_of_an_image_is_told_of_every_other(name):
    """Blocks from both ends, and layers mixed in between; in jet every value is."""
    _, model, params = made(name)
    x = jax.random.uniform(jax.random.key(3), (8, *SHAPE))
    one = lambda x: model.encode(params, x[None], keys_of(1))[0].ravel()
    slope = np.abs(jax.jit(jax.vmap(jax.jacrev(one)))(x)).max(0)
    if name != "jet":  # rows of patches, rows in them, columns of patches, columns
        slope = slope.reshape(2, 2, 2, 2, 2, 2, 2, 2).max((1, 3, 5, 7))
    assert np.all(slope > 1e-6)


@pytest.mark.parametrize("net", some(["autoregressive", "coupling"], "coupling"))
def test_every_value_of_a_row_is_told_of_every_other(net):
    columns = tuple(Column(name=f"c{i}") for i in range(3))
    x = jax.random.normal(KEY, (64, 3))
    _, model, params = with_params(
        resolved((3,), columns=columns, net=net, depth=2), x=x
    )
    one = lambda x: model.encode(params, x[None], keys_of(1))[0]
    slope = jax.jit(jax.vmap(jax.jacrev(one)))(x)
    assert np.all(np.abs(slope).max(0) > 1e-6)


def test_an_untrained_jet_is_a_normal_in_the_middle_of_the_range():
    """z is a rotation of 2 x - 1."""
    model = flow.make_flow(resolved(**IMAGES["jet"]))
    x = jax.random.uniform(KEY, (16, *SHAPE))
    params, _ = model.init(KEY, {"x": x})
    nats = model.log_likelihood(params, x, keys_of(16), num_samples=1).nats
    squares = np.square(2 * np.asarray(x) - 1).sum((1, 2, 3))
    expected = -0.5 * squares - 8 * np.log(2 * np.pi) + 16 * np.log(2)
    np.testing.assert_allclose(nats, expected, rtol=1e-4)


@pytest.mark.slow
def test_an_untrained_glow_standardises_what_it_is_begun_with():
    model = flow.make_flow(resolved(**IMAGES["glow"]))
    x = 0.3 + 0.1 * jax.random.normal(KEY, (64, *SHAPE))
    params, _ = jax.jit(model.init)(KEY, {"x": x})
    z = jax.jit(model.encode)(params, x, keys_of(64))
    assert np.std(z) == pytest.approx(1, abs=1e-3)
    assert np.mean(z) == pytest.approx(0, abs=1e-3)


@pytest.mark.slow
def test_guided_samples_come_back_and_a_network_is_guided_from_none_to_the_class():
    sampling = flow.Sampling(guidance=2.0)
    config, model, params = with_params(
        resolved(**IMAGES["tarflow_published"], **CLASSES, sampling=sampling)
    )
    keys, label = keys_of(6), jnp.arange(6) % 3
    x, log_prob = jax.jit(functools.partial(flow.sample_and_log_prob, config))(
        params, keys, label
    )
    likelihood = jax.jit(functools.partial(model.log_likelihood, num_samples=1))
    nats = likelihood(params, x, keys, label).nats
    np.testing.assert_allclose(log_prob, nats, rtol=1e-3, atol=1e-2)


@pytest.mark.slow
def test_samples_have_the_class_that_is_asked_for_or_each_its_own():
    params = made("jet", **CLASSES)[2]

    def images(sampling, condition=None):
        config = resolved(**IMAGES["jet"], **CLASSES, sampling=sampling)
        draw = jax.jit(functools.partial(flow.sample_and_log_prob, config))
        return draw(params, keys_of(24), condition)[0]

    plain, last = flow.Sampling(), flow.Sampling(label=2)
    of = [images(plain, jnp.full(24, label)) for label in range(3)]
    np.testing.assert_allclose(images(last), of[2], atol=1e-5)
    own = np.stack([np.abs(images(plain) - x).max((1, 2, 3)) for x in of])
    assert np.all(own.min(0) < 1e-5)
    assert set(own.argmin(0)) == {0, 1, 2}


def test_noise_is_in_units_of_half_the_range():
    clean, noisy = (
        flow.make_flow(resolved(**IMAGES["jet"], noise=noise)) for noise in (0.0, 0.2)
    )
    params = made("jet")[2]
    x, keys = jax.random.uniform(KEY, (4, *SHAPE)), keys_of(4)
    eps = jax.vmap(lambda key: jax.random.normal(key, SHAPE))(keys)
    likelihood = jax.jit(functools.partial(clean.log_likelihood, num_samples=1))
    expected = likelihood(params, x + 0.1 * eps, keys).nats
    likelihood = jax.jit(functools.partial(noisy.log_likelihood, num_samples=1))
    np.testing.assert_allclose(likelihood(params, x, keys).nats, expected, rtol=1e-4)


@pytest.mark.parametrize(("depth", "num_told"), [(1, 2), (2, 4)])
def test_blocks_that_go_both_ways_are_told_planes_turned_besides(depth, num_told):
    config, _ = flow.resolve(
        flow.FlowConfig(width=8, depth=depth), (4, 4, 1), None, num_planes=1
    )
    batch = {"x": jnp.zeros((2, 4, 4, 1)), "condition": jnp.zeros((2, 4, 4, 1))}
    init = flow.make_flow(config).init
    params, _ = jax.eval_shape(init, jax.random.key(0), batch)
    kernels = [
        leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
        if "near_input" in str(path) and "kernel" in str(path)
    ]
    assert [kernel.shape[-2] for kernel in kernels] == [2 * 2 * num_told]
