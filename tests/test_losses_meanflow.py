"""MeanFlow against the closed flow of Gaussian data; arXiv:2505.13447, 2512.02012."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.losses import meanflow

MEAN = np.array([[0.4, -1.0, 0.0]])
STD = np.array([[0.5, 0.05, 2.0]])


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def variance(t):
    """Of x_t in each coordinate, `[B, 3]`."""
    t = jnp.reshape(t, (-1, 1))
    return (1 - t) ** 2 * STD**2 + t**2


def exact(x, t, r):
    """u of N(MEAN, STD^2): (x - Phi(x, t, r)) / (t - r), without the division."""
    s, e = jnp.reshape(t, (-1, 1)), jnp.reshape(r, (-1, 1))
    y = x - (1 - s) * MEAN
    rise = (1 + STD**2) * (s + e) - 2 * STD**2
    return y * rise / (variance(t) + jnp.sqrt(variance(t) * variance(r))) - MEAN


def flow_map(x, t, r):
    s, e = np.reshape(t, (-1, 1)), np.reshape(r, (-1, 1))
    gain = np.sqrt(variance(r) / variance(t))
    return (1 - e) * MEAN + gain * (x - (1 - s) * MEAN)


def true_velocity(x, t):
    """E[eps - x_0 | x_t = x] by the denoiser."""
    s = np.reshape(t, (-1, 1))
    x0 = MEAN + (1 - s) * STD**2 / variance(t) * (x - (1 - s) * MEAN)
    return (x - (1 - s) * x0) / s - x0


def points(num=50):
    rng = np.random.default_rng(0)
    t = rng.uniform(0.05, 1, num)
    return (
        jnp.array(rng.normal(size=(num, 3))),
        jnp.array(t),
        jnp.array(t * rng.random(num)),
    )


def pairs(num):
    rng = np.random.default_rng(1)
    return jnp.array(MEAN + STD * rng.normal(size=(num, 3))), jnp.array(
        rng.normal(size=(num, 3))
    )


def test_the_oracle_is_the_flow_and_its_own_velocity():
    x, t, r = points()
    np.testing.assert_allclose(
        exact(x, t, r), (x - flow_map(x, t, r)) / (t - r)[:, None], atol=1e-9
    )
    np.testing.assert_allclose(exact(x, t, t), true_velocity(x, t), atol=1e-9)


def test_total_derivative_obeys_the_identity_and_gives_back_u():
    x, t, r = points()
    v = true_velocity(x, t)
    u, rate = meanflow.total_derivative(exact, v, x, t, r)
    np.testing.assert_allclose(v - (t - r)[:, None] * rate, u, atol=1e-9)
    np.testing.assert_allclose(u, exact(x, t, r), atol=1e-12)
    assert float(jnp.max(jnp.abs(u - v))) > 0.1  # where r < t they differ


def test_instantaneous_velocity_of_the_exact_u_is_v():
    x, t, r = points()
    for earlier in (r, t, 0 * t):
        v = meanflow.instantaneous_velocity(exact, x, t, earlier)
        np.testing.assert_allclose(v, true_velocity(x, t), atol=1e-9)


def network(params, x, t, r):
    """Any smooth function, its coordinates mixed."""
    s, e = jnp.reshape(t, (-1, 1)), jnp.reshape(r, (-1, 1))
    return jnp.sin(x @ params["a"] + s * params["b"] + e**2 * params["c"]) + s * e * x


def parameters():
    rng = np.random.default_rng(2)
    return {
        "a": jnp.array(rng.normal(size=(3, 3))),
        "b": jnp.array(rng.normal(size=(1, 3))),
        "c": jnp.array(rng.normal(size=(1, 3))),
    }


def test_total_derivative_is_the_difference_along_the_flow():
    x, t, r = points()
    params, step = parameters(), 1e-5
    v = network(params, x, t, t)
    _, rate = meanflow.total_derivative(
        lambda *args: network(params, *args), v, x, t, r
    )
    ahead, behind = (network(params, x + h * v, t + h, r) for h in (step, -step))
    np.testing.assert_allclose(rate, (ahead - behind) / (2 * step), atol=1e-8)


@pytest.mark.parametrize(("t", "r"), [(0.6, 0.0), (0.8, 0.5), (0.3, 0.3), (1.0, 0.0)])
def test_mean_flow_error_is_lowest_at_the_exact_u(t, r):
    num = 20_000
    (x0, eps), t, r = pairs(num), jnp.full(num, t), jnp.full(num, r)
    error = np.asarray(meanflow.mean_flow_error(exact, x0, eps, t, r))
    passing = t[:1, None]  # Var[eps - x_0 | x_t] of two jointly normal numbers
    covariance = passing - (1 - passing) * STD**2
    floor = jnp.sum(1 + STD**2 - covariance**2 / variance(t[:1]))
    assert abs(error.mean() - floor) < 4 * error.std() / np.sqrt(num)
    for bend in (lambda x: 0.1 + 0 * x, lambda x: 0.1 * jnp.sin(x), lambda x: -0.1 * x):
        other = meanflow.mean_flow_error(
            lambda x, t, r, bend=bend: exact(x, t, r) + bend(x), x0, eps, t, r
        )
        worse = np.asarray(other) - error
        assert worse.mean() > 4 * worse.std() / np.sqrt(num)


def test_mean_flow_error_moves_u_alone():
    """du/dt and its direction are constants for the gradient."""
    params, (x0, eps) = parameters(), pairs(40)
    _, t, r = points(40)
    x = (1 - t)[:, None] * x0 + t[:, None] * eps
    v = network(params, x, t, t)
    _, rate = meanflow.total_derivative(
        lambda *args: network(params, *args), v, x, t, r
    )

    def expected(params):
        moving = network(params, x, t, r) + (t - r)[:, None] * rate
        return jnp.sum((moving - (eps - x0)) ** 2)

    def found(params):
        u = lambda *args: network(params, *args)
        return jnp.sum(meanflow.mean_flow_error(u, x0, eps, t, r))

    np.testing.assert_allclose(found(params), expected(params), rtol=1e-12)
    for name, gradient in jax.grad(found)(params).items():
        np.testing.assert_allclose(gradient, jax.grad(expected)(params)[name])


def test_mean_flow_loss_weighs_the_error_and_not_its_gradient_twice():
    params, (x0, eps) = parameters(), pairs(5)
    _, t, r = points(5)

    def both(params):
        u = lambda *args: network(params, *args)
        loss = meanflow.mean_flow_loss(u, x0, eps, t, r, power=0.75, offset=0.1)
        return loss, meanflow.mean_flow_error(u, x0, eps, t, r)

    loss, error = both(params)
    weight = (error + 0.1) ** -0.75
    np.testing.assert_allclose(loss, weight * error, rtol=1e-12)
    gradient = jax.jacrev(both)(params)
    for name in params:
        moved = weight.reshape(5, 1, 1) * gradient[1][name]
        np.testing.assert_allclose(gradient[0][name], moved, rtol=1e-9, atol=1e-12)


def test_mean_flow_loss_has_finite_gradients_at_the_ends_and_at_no_error():
    params, (x0, eps) = parameters(), pairs(4)
    t, r = jnp.array([0.0, 1.0, 1.0, 0.5]), jnp.array([0.0, 0.0, 1.0, 0.5])
    loss = lambda p: jnp.sum(
        meanflow.mean_flow_loss(lambda *a: network(p, *a), x0, eps, t, r)
    )
    for leaf in jax.tree.leaves(jax.grad(loss)(params)):
        assert jnp.all(jnp.isfinite(leaf))
    assert jnp.isfinite(jax.grad(lambda e: meanflow.adaptive(e).sum())(jnp.zeros(1)))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_mean_flow_loss_takes_images_compiled_and_each_example_alone(dtype):
    rng = np.random.default_rng(3)
    x0, eps = (jnp.array(rng.normal(size=(6, 2, 2, 1)), dtype) for _ in range(2))
    t, r = jnp.linspace(0.2, 1, 6, dtype=dtype), jnp.linspace(0, 0.7, 6, dtype=dtype)

    def u(x, t, r):
        return jnp.cos(x + jnp.flip(x, 1)) * (t - r * t).reshape(-1, 1, 1, 1)

    loss = meanflow.mean_flow_loss(u, x0, eps, t, r)
    assert loss.shape == (6,)
    assert loss.dtype == dtype
    compiled = jax.jit(lambda *a: meanflow.mean_flow_loss(u, *a))(x0, eps, t, r)
    np.testing.assert_allclose(loss, compiled, rtol=1e-5)
    order = jnp.array([3, 0, 5])
    alone = meanflow.mean_flow_loss(u, x0[order], eps[order], t[order], r[order])
    np.testing.assert_allclose(alone, loss[order], rtol=1e-5)


def test_mean_flow_sample_of_the_exact_u_is_the_flow_in_one_step_or_many():
    z, t, _ = points()
    one = meanflow.mean_flow_sample(exact, z, times=jnp.array([1.0, 0.0]))
    np.testing.assert_allclose(one, MEAN + STD * z, atol=1e-12)
    # Shortcut: two steps are one; consistency: the end is the same from every place.
    for times in ([1.0, 0.5, 0.0], [1.0, 0.9, 0.35, 0.1, 0.0]):
        many = meanflow.mean_flow_sample(exact, z, times=jnp.array(times))
        np.testing.assert_allclose(many, one, atol=1e-12)
        on_the_way = flow_map(z, np.ones(50), np.full(50, times[1]))
        rest = meanflow.mean_flow_sample(exact, on_the_way, times=jnp.array(times[1:]))
        np.testing.assert_allclose(rest, one, atol=1e-12)
    back = meanflow.mean_flow_sample(exact, one, times=jnp.array([0.0, 1.0]))
    np.testing.assert_allclose(back, z, atol=1e-10)


@pytest.mark.parametrize("share", [0.0, 0.25, 0.75, 1.0])
def test_mean_flow_times_are_two_ordered_logit_normals_and_the_share_is_equal(share):
    num = 200
    grid = jnp.arange(num) / num
    u1, u2 = (a.ravel() for a in jnp.meshgrid(grid + 0.5 / num, grid + 0.3 / num))
    t, r = meanflow.mean_flow_times(u1, u2, share)
    equal = np.asarray(t == r)
    assert abs(equal.mean() - share) < 1e-3
    assert np.all(r <= t)
    assert np.all((t > 0) & (t < 1))
    median = jax.nn.sigmoid(-0.4)
    for part in (equal, ~equal):
        if part.any():  # both draws, or one of them, below the median
            np.testing.assert_allclose(np.mean(t[part] < median), 0.25, atol=0.02)
    if share < 1:
        np.testing.assert_allclose(np.mean(r[~equal] < median), 0.75, atol=0.02)
    spread = jnp.std(jax.scipy.special.logit(jnp.stack([t, r])[:, ~equal]))
    assert share == 1 or abs(spread - 1) < 0.03


def test_mean_flow_times_are_finite_at_the_ends_of_the_unit_interval():
    u = jnp.array([0.0, 0.999999])
    t, r = meanflow.mean_flow_times(u, u[::-1], mean=0.0, std=2.0)
    assert np.all((r >= 0) & (t <= 1))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: meanflow.mean_flow_times(jnp.zeros(1), jnp.zeros(1), 1.5), "share_equal"),
        (lambda: meanflow.mean_flow_times(jnp.zeros(1), jnp.zeros(1), std=0.0), "std must"),
        (lambda: meanflow.adaptive(jnp.zeros(1), offset=0.0), "offset must be positive"),
        (
            lambda: meanflow.mean_flow_sample(exact, jnp.zeros((1, 3)), times=jnp.ones(1)),
            "times must be at least two, got 1",
        ),
        (
            lambda: meanflow.instantaneous_velocity(
                lambda x, t, r: x[:, :1], jnp.zeros((1, 3)), jnp.ones(1), jnp.ones(1)
            ),
            "must have the same shape",
        ),
    ],
)  # fmt: skip
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
