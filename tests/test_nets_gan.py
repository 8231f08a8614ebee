"""Generators and discriminators: shapes of any size, resampling, one example at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.losses import penalties
from jaxgen.nets import gan

SIZES = [
    (8, 8, 1),
    (28, 28, 1),
    (64, 64, 3),
    (7, 9, 3),
    (5, 4, 1),
    (3, 3, 1),
    (1, 1, 2),
]


def pair(name, shape, num_classes):
    if name == "dcgan":
        generator = gan.DCGANGenerator(shape, 8, num_classes)
        return generator, gan.DCGANDiscriminator(8, num_classes)
    patch = 2 if name == "patched" else 1
    generator = gan.ResidualGenerator(shape, 8, 2, patch, num_classes)
    return generator, gan.ResidualDiscriminator(8, 2, patch, num_classes)


@pytest.mark.parametrize("num_classes", [0, 3])
@pytest.mark.parametrize("shape", SIZES)
@pytest.mark.parametrize("name", ["residual", "patched", "dcgan"])
def test_networks_take_images_of_any_size(name, shape, num_classes):
    generator, discriminator = pair(name, shape, num_classes)
    z, label = jnp.zeros((2, 5)), jnp.zeros(2, jnp.int32)
    key = jax.random.key(0)
    x, _ = jax.eval_shape(generator.init_with_output, key, z, label)
    assert x.shape == (2, *shape)
    logits, _ = jax.eval_shape(discriminator.init_with_output, key, x, label)
    assert logits.shape == (2,)


def test_sides_halve_to_four_pixels():
    assert gan.sides(28, 28) == [(28, 28), (14, 14), (7, 7), (4, 4)]
    assert gan.sides(9, 4) == [(9, 4), (5, 2), (3, 1)]
    assert gan.sides(4, 3) == [(4, 3)]


@pytest.mark.parametrize("size", [(6, 8), (5, 7), (1, 2)])
def test_resampling_keeps_constants_and_lines(size):
    height, width = size
    ones = jnp.ones((1, height, width, 2))
    np.testing.assert_allclose(gan.halved(ones), 1.0, rtol=1e-6)
    np.testing.assert_allclose(gan.doubled(ones), 1.0, rtol=1e-6)
    assert gan.doubled(ones).shape == (1, 2 * height, 2 * width, 2)
    line = jnp.arange(16.0).reshape(1, 1, 16, 1)
    np.testing.assert_allclose(
        gan.halved(line)[0, 0, 1:-1, 0], 2 * np.arange(1, 7) + 0.5, rtol=1e-6
    )
    np.testing.assert_allclose(
        gan.doubled(line)[0, 0, 1:-1, 0], np.arange(30) / 2 + 0.25, rtol=1e-6
    )


def test_halving_weighs_four_neighbours_by_1_3_3_1():
    spike = jnp.zeros((1, 1, 8, 1)).at[0, 0, 3].set(8.0)
    np.testing.assert_allclose(gan.halved(spike)[0, 0, :, 0], [0, 3, 1, 0], atol=1e-6)


def filled(net, *given):
    """Random parameters: what starts at zero would hide what it does."""
    params = jax.eval_shape(net.init, jax.random.key(0), *given)["params"]
    leaves, form = jax.tree.flatten(params)
    rng = np.random.default_rng(1)
    leaves = [jnp.asarray(0.3 * rng.standard_normal(a.shape), a.dtype) for a in leaves]
    return jax.tree.unflatten(form, leaves)


@pytest.mark.parametrize("name", ["residual", "dcgan", "dense"])
def test_discriminators_judge_each_example_by_itself(name):
    shape = (8, 8, 1)
    x = jax.random.normal(jax.random.key(2), (3, *shape))
    net = pair(name, shape, 0)[1]
    if name == "dense":
        net, x = gan.RowDiscriminator(8, 2), x[:, 0, :, 0]
    params = filled(net, x)
    critic = lambda x: net.apply({"params": params}, x)
    penalties.check_uncoupled("test", critic, x)
    logits = critic(x)
    assert len(set(np.asarray(logits).tolist())) == 3
    np.testing.assert_allclose(critic(x[1:2]), logits[1:2], rtol=1e-4)


@pytest.mark.parametrize("name", ["residual", "dcgan"])
def test_generators_make_each_example_by_itself(name):
    net = pair(name, (8, 8, 1), 0)[0]
    z = jax.random.normal(jax.random.key(2), (3, 5))
    params = filled(net, z)
    whole = net.apply({"params": params}, z)
    assert np.abs(whole[0] - whole[1]).max() > 1e-3
    alone = net.apply({"params": params}, z[1:2])
    np.testing.assert_allclose(alone, whole[1:2], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["residual", "dcgan"])
def test_both_networks_hear_the_class(name):
    generator, discriminator = pair(name, (5, 6, 1), 3)
    z, label = jnp.ones((3, 5)), jnp.arange(3)
    x = generator.apply({"params": filled(generator, z, label)}, z, label)
    assert np.abs(x[0] - x[1]).max() > 1e-3
    assert np.abs(x[1] - x[2]).max() > 1e-3
    same = jnp.repeat(x[:1], 3, axis=0)
    params = filled(discriminator, same, label)
    logits = discriminator.apply({"params": params}, same, label)
    assert len(set(np.round(np.asarray(logits), 4).tolist())) == 3


def agree(net, reference, shape):
    """A network with classes and random parameters, and what it should compute."""
    rng, label = np.random.default_rng(2), jnp.array([2, 0, 1])
    given = jnp.asarray(rng.standard_normal((3, *shape)), jnp.float32)
    params = filled(net, given, label)
    found = jax.jit(net.apply)({"params": params}, given, label)
    truth = jax.jit(reference)(params, given, label)
    np.testing.assert_allclose(found, truth, rtol=1e-4, atol=1e-3)
    return found


def convolved(x, p, **options):
    """By lax; where it is to spread x, it is told so by `lhs_dilation`."""
    numbers = ("NHWC", "HWIO", "NHWC")
    y = jax.lax.conv_general_dilated(
        x, p["kernel"], dimension_numbers=numbers, **options
    )
    return y + p["bias"][None, None, None]


def begun(p, z, label):
    """The smallest image of a generator."""
    told = jnp.concatenate([z, p["label"]["embedding"][label]], axis=1)
    told = told @ p["input"]["kernel"] + p["input"]["bias"][None]
    return p["basis"][None] * told[:, None, None]


def judged(p, h, label):
    """A discriminator's logit of features, with the projection of a class."""
    logit = h @ p["output"]["kernel"][:, 0]
    return logit + jnp.sum(h * p["label"]["embedding"][label], axis=1)


def leaky(h):
    return jnp.where(h > 0, h, 0.2 * h)


def test_dcgan_is_what_lax_computes():
    """Of odd sides: 7x6 <- 4x3 in the generator."""
    generator, discriminator = pair("dcgan", (7, 6, 2), 3)

    def image(p, z, label):
        h = begun(p, z, label)
        h = jax.nn.relu(h / jnp.sqrt(jnp.mean(h**2, -1, keepdims=True) + 1e-8))
        spread = {"lhs_dilation": (2, 2), "padding": [(2, 2)] * 2}
        return convolved(h, p["stage_0"], window_strides=(1, 1), **spread)[:, :7, :6]

    def logit(p, x, label):
        h = convolved(x, p["stage_0"], window_strides=(2, 2), padding="SAME")
        return judged(p, leaky(h).reshape(3, -1), label)

    found = agree(generator, image, (5,))
    assert float(found.min()) < 0 < float(found.max())
    agree(discriminator, logit, (7, 6, 2))


def test_residual_networks_are_what_lax_computes():
    """One block a stage, patches of 2x2: 15x14 pixels, 8x7 places, then 4x4."""

    def dense(p, h):
        return h @ p["kernel"] + p["bias"][None, None, None]

    def block(p, h):
        r = leaky(dense(p["narrow"], h))
        r = leaky(convolved(r, p["conv"], window_strides=(1, 1), padding="SAME"))
        return h + r @ p["wide"]["kernel"]

    def image(p, z, label):
        h = block(p["stage_1_0"], begun(p, z, label)) @ p["narrowed_0"]["kernel"]
        h = dense(p["output"], block(p["stage_0_0"], gan.doubled(h)[:, :8, :7]))
        h = h.reshape(3, 8, 7, 2, 2).transpose(
            0, 1, 3, 2, 4
        )  # (row, column) of a square
        return h.reshape(3, 16, 14, 1)[:, :15]

    def logit(p, x, label):
        h = jnp.pad(x, [(0, 0), (0, 1), (0, 0), (0, 0)]).reshape(3, 8, 2, 7, 2)
        h = h.transpose(0, 1, 3, 2, 4).reshape(3, 8, 7, 4)
        h = gan.halved(block(p["stage_0_0"], dense(p["input"], h)))
        h = block(p["stage_1_0"], h @ p["widened_1"]["kernel"])
        return judged(p, jnp.sum(h * p["basis"][None], axis=(1, 2)), label)

    agree(gan.ResidualGenerator((15, 14, 1), 8, 1, 2, 3), image, (5,))
    agree(gan.ResidualDiscriminator(8, 1, 2, 3), logit, (15, 14, 1))


def test_first_weights_of_blocks_shrink_by_the_fourth_root_of_their_number():
    init = jax.jit(gan.Block(16).init)
    params = init(jax.random.key(0), jnp.zeros((1, 4, 4, 64)))["params"]
    for name, inputs in (("narrow", 64), ("conv", 9 * 32)):
        spread = np.std(params[name]["kernel"])
        np.testing.assert_allclose(spread, (2 / 16**0.5 / inputs) ** 0.5, rtol=0.05)


def test_residual_blocks_are_the_identity_at_first():
    h = jax.random.normal(jax.random.key(0), (2, 4, 4, 8))
    out, _ = gan.Block(4).init_with_output(jax.random.key(1), h)
    np.testing.assert_array_equal(out, h)
