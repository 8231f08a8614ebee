"""Penalties of critics whose slopes are known; spectral norms against the SVD."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.losses import penalties

KEY = jax.random.key(0)
W = np.array([[0.5, -1.0], [2.0, 0.25]])


def keys_of(num):
    return jax.random.split(jax.random.key(1), num)


def linear(x):
    return jnp.sum(x * W[None], axis=(1, 2)) + 3.0


def two_layers(params, x):
    h = jnp.tanh(x.reshape(len(x), -1) @ params["first"])
    return h @ params["second"]


def test_a_linear_critic_has_one_slope(x64):
    x = jax.random.normal(KEY, (5, 2, 2))
    square = np.sum(W**2)
    np.testing.assert_allclose(penalties.squared_slope(linear, x), square, rtol=1e-12)
    got = penalties.slope_deviation(linear, x, 2 * x, keys_of(5))
    np.testing.assert_allclose(got, (np.sqrt(square) - 1) ** 2, rtol=1e-12)
    slope = jax.grad(
        lambda w: jnp.mean(penalties.squared_slope(lambda x: x.reshape(5, 4) @ w, x))
    )(W.ravel())
    np.testing.assert_allclose(slope, 2 * W.ravel(), rtol=1e-12)


def test_of_a_quadratic_critic_the_mean_over_gaussian_data_is_known(x64):
    """D = x'Ax/2 + b'x: E|Ax + b|^2 = tr(A S A) + |A m + b|^2."""
    rng = np.random.default_rng(0)
    a, b, m = rng.normal(size=(3, 3)), rng.normal(size=3), rng.normal(size=3)
    a = a + a.T
    root = rng.normal(size=(3, 3))
    x = m[None] + jax.random.normal(KEY, (200_000, 3)) @ root.T
    critic = lambda x: 0.5 * jnp.sum((x @ a) * x, 1) + x @ b
    got = np.asarray(penalties.squared_slope(critic, x))
    truth = np.trace(a @ root @ root.T @ a) + np.sum((a @ m + b) ** 2)
    assert got.mean() == pytest.approx(truth, abs=4 * got.std() / np.sqrt(len(got)))


def test_the_estimate_has_the_squared_slope_for_its_mean(x64):
    x = jnp.zeros((100_000, 2, 2))
    got = penalties.estimated_squared_slope(linear, x, keys_of(len(x)), deviation=0.1)
    square = np.sum(W**2)
    assert np.mean(got) == pytest.approx(square, abs=6 * square / np.sqrt(len(x)))
    assert np.std(got) == pytest.approx(np.sqrt(2) * square, rel=0.05)


@pytest.mark.parametrize("name", ["squared_slope", "slope_deviation"])
def test_second_derivatives_are_finite_differences(name, x64):
    x, other = jax.random.normal(KEY, (2, 4, 3))
    params = {
        "first": jax.random.normal(jax.random.key(2), (3, 5)),
        "second": jax.random.normal(jax.random.key(3), (5,)),
    }

    def total(params):
        critic = lambda x: two_layers(params, x)
        if name == "squared_slope":
            return jnp.mean(penalties.squared_slope(critic, x))
        return jnp.mean(penalties.slope_deviation(critic, x, other, keys_of(4)))

    slope = jax.grad(total)(params)
    forward = jax.jacfwd(total)(params)
    for leaf, size in (("first", (3, 5)), ("second", (5,))):
        np.testing.assert_allclose(slope[leaf], forward[leaf], rtol=1e-9, atol=1e-12)
        for place in np.ndindex(size):
            moved = [
                {**params, leaf: params[leaf].at[place].add(s)} for s in (1e-5, -1e-5)
            ]
            truth = (total(moved[0]) - total(moved[1])) / 2e-5
            assert float(slope[leaf][place]) == pytest.approx(float(truth), abs=1e-7)


def test_a_constant_critic_has_a_finite_gradient():
    x = jax.random.normal(KEY, (4, 3))

    def total(w):
        critic = lambda x: x @ w
        return jnp.mean(penalties.slope_deviation(critic, x, -x, keys_of(4)))

    value, slope = jax.value_and_grad(total)(jnp.zeros(3))
    assert value == 1
    np.testing.assert_array_equal(slope, 0)


def test_every_pair_has_one_place_on_the_line_between_its_two():
    """A critic x^2 / 2 has the slope x: the place itself."""
    real = jnp.stack([jnp.ones(1000), jnp.zeros(1000)], 1)
    fake = jnp.stack([jnp.zeros(1000), jnp.full(1000, 2.0)], 1)
    seen = []

    def critic(x):
        seen.append(x)
        return 0.5 * jnp.sum(x**2, axis=1)

    got = penalties.slope_deviation(critic, real, fake, keys_of(1000))
    share = jax.vmap(jax.random.uniform)(keys_of(1000))
    norm = np.hypot(1 - share, 2 * share)
    np.testing.assert_allclose(got, (norm - 1) ** 2, rtol=1e-4, atol=1e-5)
    assert np.mean(share) == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("is_traced", [False, True])
def test_a_critic_that_looks_at_the_batch_is_refused(is_traced):
    def normalised(w, x):
        h = x @ w
        return jnp.sum(
            (h - h.mean(0, keepdims=True)) / (1 + h.std(0, keepdims=True)), 1
        )

    x, w = jax.random.normal(KEY, (4, 3)), jnp.zeros((3, 2))
    penalty = lambda w, x: penalties.squared_slope(lambda x: normalised(w, x), x)
    wrapped = jax.jit(penalty) if is_traced else penalty
    with pytest.raises(
        ValueError, match="squared_slope: critic must judge each example"
    ):
        wrapped(w, x)
    # Labels and masks of the example itself couple nothing.
    labels = jnp.array([0, 1, 1, 0])
    told = jax.jit(
        lambda w, x, labels: penalties.squared_slope(
            lambda x: jnp.take_along_axis(x @ w, labels[:, None], 1)[:, 0], x
        )
    )
    with jax.debug_nans(True):  # the probe's own NaN is none of the user's
        np.testing.assert_array_equal(told(w, x, labels), 0)
    estimate = lambda x: penalties.estimated_squared_slope(
        lambda x: normalised(w, x), x, keys_of(4)
    )
    with pytest.raises(ValueError, match="estimated_squared_slope: critic"):
        estimate(x)


def test_spectral_norm_is_the_largest_singular_value(x64):
    kernel = jax.random.normal(KEY, (3, 4, 5))
    matrix = np.asarray(kernel).reshape(12, 5)
    singular = np.linalg.svd(matrix, compute_uv=False)
    u = jax.random.normal(jax.random.key(1), (5,))
    errors = []
    for num in (5, 10, 20):
        sigma, _ = penalties.spectral_norm(kernel, u, num_steps=num)
        errors.append(1 - float(sigma) / singular[0])
    rate = (singular[1] / singular[0]) ** 2
    assert 0 < errors[1] < 3 * rate**5 * errors[0]
    assert errors[2] < 3 * rate**10 * errors[1]
    # Carrying the vector goes on where the last call ended.
    carried = u
    for _ in range(20):
        sigma, carried = penalties.spectral_norm(kernel, carried)
    whole, same = penalties.spectral_norm(kernel, u, num_steps=20)
    assert float(sigma) == pytest.approx(float(whole), rel=1e-12)
    np.testing.assert_allclose(carried, same, rtol=1e-9)
    # The derivative of the largest singular value is u v'.
    many = lambda k: penalties.spectral_norm(k, u, num_steps=200)[0]
    left, _, right = np.linalg.svd(matrix, full_matrices=False)
    slope = jax.grad(many)(kernel).reshape(12, 5)
    np.testing.assert_allclose(slope, np.outer(left[:, 0], right[0]), atol=1e-8)
    np.testing.assert_array_equal(penalties.spectral_norm(0 * kernel, u)[0], 0)
    # Before that too both vectors are held fixed, and the one that came is not trained.
    once = lambda k, u: penalties.spectral_norm(k, u)[0]
    slope, none = jax.grad(once, (0, 1))(kernel, u)
    v, (_, after) = matrix @ u, penalties.spectral_norm(kernel, u)
    expected = np.outer(v / np.linalg.norm(v), after)
    np.testing.assert_allclose(slope.reshape(12, 5), expected, atol=1e-12)
    np.testing.assert_array_equal(none, 0)
