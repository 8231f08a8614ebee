"""Networks of the diffusion family: any size, the zero start, what they are told."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.nets.patches import patches, unpatched
from jaxgen.nets.rows import RowDenoiser
from jaxgen.nets.transformer import Transformer
from jaxgen.nets.unet import UNet
from jaxgen.verify.cases import randomised

KEY = jax.random.key(0)

NETS = {
    "unet": lambda **told: UNet(widths=(8, 16), num_blocks=1, **told),
    # Patches of one pixel divide every size.
    "transformer": lambda **told: Transformer(width=16, depth=4, patch=1, **told),
    "unet_patch_2": lambda **told: UNet(widths=(8,), patch=2, num_blocks=1, **told),
}

QUICK = ["transformer", "unet_patch_2", pytest.param("unet", marks=pytest.mark.slow)]


def applied(net, variables, *inputs):
    return jax.jit(net.apply)(variables, *inputs)


def made(name, shape=(8, 8, 1), **told):
    net = NETS[name](**told)
    x = jax.random.normal(jax.random.key(1), (3, *shape))
    params = jax.jit(net.init)(jax.random.key(2), x, jnp.zeros(3))["params"]
    return net, x, params


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (7, 5), (8, 8)])
def test_patches_are_undone_by_unpatched(shape, size):
    h = jax.random.normal(jax.random.key(0), (2, *shape, 3))
    small = patches(h, size)
    sides = [-(-side // size) for side in shape]
    assert small.shape == (2, *sides, 3 * size**2)
    back = unpatched(small, size)[:, : shape[0], : shape[1]]
    np.testing.assert_array_equal(back, h)


@pytest.mark.parametrize("name", QUICK)
@pytest.mark.parametrize(
    "shape", [(9, 13, 2), pytest.param((12, 8, 3), marks=pytest.mark.slow)]
)
def test_denoisers_take_any_size_and_start_at_zero(name, shape):
    net, x, params = made(name, shape)
    outputs = applied(net, {"params": params}, x, jnp.ones(3))
    assert outputs.shape == x.shape
    assert not np.any(outputs)
    assert np.all(applied(net, {"params": randomised(params, KEY)}, x, jnp.ones(3)))


@pytest.mark.parametrize("name", QUICK)
def test_denoisers_hear_noise_class_and_interval(name):
    net, x, params = made(name, num_classes=4, has_interval=True)
    variables = {"params": randomised(params, KEY)}
    apply = jax.jit(lambda *told: net.apply(variables, x, *told))
    noise, label, interval = jnp.ones(3), jnp.arange(3), jnp.full(3, 0.5)
    base = apply(noise, label, interval)
    for told in (
        (noise.at[1].set(0.9), label, interval),
        (noise, label.at[1].set(3), interval),
        (noise, label, interval.at[1].set(0.6)),
    ):
        changed = np.any(apply(*told) != base, axis=(1, 2, 3))
        np.testing.assert_array_equal(changed, [False, True, False])
    none = apply(noise, jnp.full(3, 4), jnp.zeros(3))
    np.testing.assert_array_equal(apply(noise), none)


@pytest.mark.parametrize("name", QUICK)
def test_denoisers_see_the_planes_of_their_own_example(name):
    net, x, params = made(name, num_planes=2)
    variables = {"params": randomised(params, KEY)}
    apply = jax.jit(lambda planes: net.apply(variables, x, jnp.ones(3), planes=planes))
    planes = jax.random.normal(jax.random.key(3), (3, 8, 8, 2))
    before = apply(planes)
    for number in range(2):
        moved = apply(planes.at[1, ..., number].add(1.0)) != before
        np.testing.assert_array_equal(np.any(moved, axis=(1, 2, 3)), [0, 1, 0])
    np.testing.assert_allclose(apply(None), apply(0 * planes), atol=1e-5)


def test_the_denoiser_of_rows_hears_its_noise_and_its_class():
    net = RowDenoiser(width=8, num_classes=3)
    x = jax.random.normal(jax.random.key(1), (3, 1, 1, 5))
    noise, label = jnp.ones(3), jnp.arange(3)
    params = randomised(net.init(jax.random.key(2), x, noise)["params"], KEY)
    apply = jax.jit(lambda *told: net.apply({"params": params}, x, *told))
    before = apply(noise, label)
    for told in ((noise.at[1].set(0.9), label), (noise, label.at[1].set(3))):
        moved = np.any(apply(*told) != before, axis=(1, 2, 3))
        np.testing.assert_array_equal(moved, [False, True, False])
    np.testing.assert_allclose(apply(noise), apply(noise, jnp.full(3, 3)), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", NETS)
def test_interval_adds_nothing_to_a_network_trained_without_it(name):
    net, x, params = made(name)
    params = randomised(params, KEY)
    with_interval, _, fresh = made(name, has_interval=True)
    merged = {**fresh, **params}
    merged["conditioning"] = {**fresh["conditioning"], **params["conditioning"]}
    outputs = applied(
        with_interval, {"params": merged}, x, jnp.ones(3), None, jnp.ones(3)
    )
    expected = applied(net, {"params": params}, x, jnp.ones(3))
    np.testing.assert_allclose(outputs, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", NETS)
def test_jvp_form_and_remat_change_no_value(name):
    net, x, params = made(name)
    variables = {"params": randomised(params, KEY)}
    expected = applied(net, variables, x, jnp.ones(3))
    for other in (made(name, jvp=True)[0], made(name, remat=True)[0]):
        outputs = applied(other, variables, x, jnp.ones(3))
        np.testing.assert_allclose(outputs, expected, rtol=1e-5, atol=1e-5)
    net = made(name, jvp=True)[0]
    _, tangent = jax.jvp(lambda x: applied(net, variables, x, jnp.ones(3)), (x,), (x,))
    assert np.all(np.isfinite(tangent))
