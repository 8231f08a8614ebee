"""Splines at their knots and edges; densities that integrate to one; closed forms."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import interpolate, stats

from jaxgen import bijectors
from jaxgen.losses import flow as losses
from jaxgen.verify.cases import CASES, made, mlp, random_params, randomised

KEY = jax.random.key(0)
pytestmark = pytest.mark.usefixtures("x64")
BOUND = 3.0


def random_spline(
    *, num_bins=6, periodic=False, seed=0, deviation=1.5, dtype=jnp.float64
):
    num = 3 * num_bins - (not periodic)
    raw = deviation * jax.random.normal(jax.random.key(seed), (num, 1), dtype)
    return raw, bijectors.spline(raw, bound=BOUND, periodic=periodic)


def values(spline, x):
    y, log_slope = jax.vmap(lambda x: bijectors.evaluate(spline, x[None]))(x)
    return y[:, 0], log_slope[:, 0]


def inverses(spline, y):
    x, log_slope = jax.vmap(lambda y: bijectors.invert(spline, y[None]))(y)
    return x[:, 0], log_slope[:, 0]


@pytest.mark.parametrize("periodic", [False, True])
@pytest.mark.parametrize("num_bins", [1, 2, 8])
def test_zeros_are_the_identity(num_bins, periodic):
    spline = bijectors.spline(
        jnp.zeros((3 * num_bins - (not periodic), 1)), bound=BOUND, periodic=periodic
    )
    x = jnp.linspace(-5, 5, 101)
    for got, log_slope in values(spline, x), inverses(spline, x):
        np.testing.assert_allclose(got, x, atol=1e-9)
        np.testing.assert_allclose(log_slope, 0, atol=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_it_goes_through_its_knots_with_their_slopes_and_rises(seed):
    _, spline = random_spline(seed=seed)
    knots, heights, slopes = (np.asarray(a)[:, 0] for a in spline)
    got, log_slope = values(spline, jnp.asarray(knots[1:-1]))
    np.testing.assert_allclose(got, heights[1:-1], rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(np.exp(log_slope), slopes[1:-1], rtol=1e-9)
    # From the left too: the slope is continuous, and 1 at both ends.
    left, log_slope = values(spline, jnp.asarray(np.nextafter(knots[1:], -np.inf)))
    np.testing.assert_allclose(left, heights[1:], rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(np.exp(log_slope), slopes[1:], rtol=1e-6)
    np.testing.assert_array_equal(slopes[[0, -1]], 1)
    np.testing.assert_array_equal(knots[[0, -1]], [-BOUND, BOUND])
    np.testing.assert_array_equal(heights[[0, -1]], [-BOUND, BOUND])
    y, log_slope = values(spline, jnp.linspace(-4, 4, 4001))
    assert np.all(np.diff(y) > 0)
    # The slope is the derivative: its integral is the rise.
    x = np.linspace(-BOUND, BOUND, 20001)
    _, log_slope = values(spline, jnp.asarray(x))
    area = interpolate.CubicSpline(x, np.exp(log_slope)).integrate(-BOUND, BOUND)
    assert area == pytest.approx(2 * BOUND, abs=1e-4)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(jnp.float64, 1e-9), (jnp.float32, 3e-5)]
)
def test_inverse_at_knots_edges_and_extremes(dtype, tolerance):
    _, spline = random_spline(seed=3, dtype=dtype)
    inner = np.asarray(spline.x)[:, 0]
    edges = np.concatenate(
        [f(inner, np.full_like(inner, to)) for f in [np.nextafter] for to in (-9, 9)]
    )
    x = np.concatenate([inner, edges, [0, 1e-6, -1e-6, 10, -1e3, 1e3]]).astype(dtype)
    y, log_slope = values(spline, jnp.asarray(x))
    back, log_slope_back = inverses(spline, y)
    np.testing.assert_allclose(back, x, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(log_slope + log_slope_back, 0, atol=100 * tolerance)


def test_gradients_of_its_parameters_are_finite_far_outside_and_zero_there():
    raw, _ = random_spline()

    def loss(raw, x):
        y, log_slope = bijectors.evaluate(bijectors.spline(raw, bound=BOUND), x[None])
        return jnp.sum(y**2 - log_slope)

    for x in -1e200, -1e8, -BOUND, 0.3, BOUND, 1e8, 1e200:
        by_raw, by_x = jax.grad(loss, argnums=(0, 1))(raw, jnp.asarray(x))
        assert np.all(np.isfinite(by_raw))
        assert np.isfinite(by_x)
        # At an end: by the rounding of what cancels.
        assert (np.abs(by_raw).max() > 1e-9) == (abs(x) < BOUND)
        assert not np.any(by_raw) or abs(x) <= BOUND


def test_extreme_parameters_stay_a_spline():
    for scale in 1e2, 1e4, -1e4:
        _, spline = random_spline(deviation=scale)
        x = jnp.linspace(-BOUND, BOUND, 501)
        y, log_slope = values(spline, x)
        assert np.all(np.isfinite(log_slope))
        assert np.all(np.diff(y) >= 0)
        assert np.all(np.diff(spline.x[:, 0]) > 0)
        assert np.all(np.diff(spline.y[:, 0]) > 0)
        assert np.all(spline.slope > 0)


@pytest.mark.parametrize("deviation", [5.0, 30.0])
def test_inverses_of_steep_splines_stay_in_their_bin_in_float32(deviation):
    """Where a square root's argument is less than zero by rounding, too."""
    raw = deviation * jax.random.normal(KEY, (17, 2000), jnp.float32)
    spline = bijectors.spline(raw, bound=BOUND)
    knots = np.asarray(spline.y)
    y = [np.nextafter(knots[1:], np.float32(-9)), knots, 0.3 * knots[:-1]]
    y[2] += np.float32(0.7) * knots[1:]
    invert = jax.jit(jax.vmap(bijectors.invert, (None, 0)))
    for number, values in enumerate(y):
        x, log_slope = invert(spline, jnp.asarray(values))
        assert x.dtype == jnp.float32
        assert np.all(np.isfinite(log_slope))
        if number != 1:
            assert np.all(x >= spline.x[:-1] - 1e-6)
            assert np.all(x <= spline.x[1:] + 1e-6)


@pytest.mark.parametrize("ends", [{}, {"periodic": True}, {"free_ends": True}])
def test_ends_are_where_they_were_and_have_their_own_slopes(ends):
    """An angle of exactly minus the half, a pixel of exactly 0."""
    num = 12 + {"periodic": 0, "free_ends": 1}.get(next(iter(ends), ""), -1)
    spline = bijectors.spline(jax.random.normal(KEY, (num, 1)), bound=BOUND, **ends)
    x = jnp.array([-BOUND, BOUND])
    slopes = np.asarray(spline.slope)[[0, -1], 0]
    assert np.all(np.abs(slopes - 1) > 0.1) == bool(ends)
    for way, sign in (values, 1), (inverses, -1):
        y, log_slope = way(spline, x)
        np.testing.assert_allclose(y, x, rtol=1e-12)
        np.testing.assert_allclose(log_slope, sign * np.log(slopes), atol=1e-9)
    slope = jax.vmap(jax.grad(lambda x: bijectors.evaluate(spline, x[None])[0][0]))(x)
    np.testing.assert_allclose(slope, slopes, rtol=1e-9)


@pytest.mark.parametrize("ends", [{}, {"periodic": True}, {"free_ends": True}])
def test_slopes_are_in_units_of_the_bins_beside_them(ends):
    """A raw slope of 0 is the geometric mean, at a free end that of its own bin."""
    raw = jax.random.normal(KEY, (8, 1))
    more = {"periodic": 0, "free_ends": 1}.get(next(iter(ends), ""), -1)
    raw = jnp.concatenate([raw, jnp.zeros((4 + more, 1))])
    spline = bijectors.spline(raw, bound=BOUND, **ends)
    mean = np.diff(spline.y[:, 0]) / np.diff(spline.x[:, 0])
    inner = np.sqrt(mean[:-1] * mean[1:])
    first, last = (mean[0], mean[-1]) if "free_ends" in ends else (1.0, 1.0)
    if "periodic" in ends:
        first = last = np.sqrt(mean[0] * mean[-1])
    np.testing.assert_allclose(spline.slope[:, 0], [first, *inner, last], rtol=1e-9)
    steep = bijectors.spline(raw.at[8:].set(1e9), bound=BOUND, **ends).slope[:, 0]
    limit = np.exp(6.0) * np.array([first, *inner, last])
    free = slice(None) if ends else slice(1, -1)
    np.testing.assert_allclose(steep[free], limit[free], rtol=1e-6)


def test_a_periodic_spline_has_one_slope_at_both_ends():
    raw, spline = random_spline(periodic=True, seed=2)
    assert spline.slope[0, 0] == spline.slope[-1, 0] != 1
    assert raw.shape == (18, 1)
    with pytest.raises(ValueError, match="P = 3 K -1"):
        bijectors.spline(jnp.zeros((18, 1)), bound=BOUND)
    with pytest.raises(ValueError, match=r"P = 3 K \+0"):
        bijectors.spline(jnp.zeros((17, 1)), bound=BOUND, periodic=True)


def log_density(flow, params, x, condition=None):
    z, log_det = flow.to_latent(params, x, condition)
    return -losses.negative_log_likelihood(z, log_det)


ONE_DIMENSION = {
    "spline": (CASES["one_dimension"].bijector, -12, 12),
    "conditional": (CASES["one_dimension_of_condition"].bijector, -12, 12),
    "softplus": (
        bijectors.chain(bijectors.softplus(), CASES["one_dimension"].bijector),
        0,
        25,
    ),
    "logit": (
        bijectors.chain(bijectors.logit(-1, 3), CASES["one_dimension"].bijector),
        -1,
        3,
    ),
    "circular": (
        bijectors.chain(
            bijectors.elementwise(
                bijectors.rational_quadratic(bound=2.0, periodic=True)
            ),
            bijectors.circular(2.0),
        ),
        -2,
        2,
    ),
}


@pytest.mark.parametrize("name", ONE_DIMENSION)
def test_densities_of_one_dimension_integrate_to_one(name):
    flow, low, high = ONE_DIMENSION[name]
    # Tanh-sinh: nodes crowd where a density in a range may grow at the ends.
    t = np.linspace(-3.5, 3.5, 20001)
    share = np.tanh(np.pi / 2 * np.sinh(t))
    weight = np.pi / 2 * np.cosh(t) / np.cosh(np.pi / 2 * np.sinh(t)) ** 2
    x = low + (high - low) * (1 + share) / 2
    keep = (x > low) & (x < high)
    for seed in range(3):
        told = jnp.full((keep.sum(), 2), float(seed)) if name == "conditional" else None
        params = flow.init(KEY, jnp.asarray(x[keep, None]), told)
        params = randomised(params, jax.random.key(seed), 0.5)
        params = jax.tree.map(lambda a: 0.6 * a, params)
        p = np.exp(log_density(flow, params, jnp.asarray(x[keep, None]), told))
        total = np.sum(p * weight[keep]) * (t[1] - t[0]) * (high - low) / 2
        assert total == pytest.approx(1, abs=1e-4), seed


@pytest.mark.parametrize(
    "name", ["coupling_rqs", "autoregressive_rqs", "autoregressive_affine"]
)
def test_densities_of_two_dimensions_integrate_to_one_for_every_condition(name):
    transform = (
        bijectors.affine() if "affine" in name else bijectors.rational_quadratic()
    )
    if "coupling" in name:
        layer = bijectors.coupling(mlp(transform.num_params), transform, num_kept=1)
    else:
        layer = bijectors.autoregressive(made(2, transform.num_params), transform)
    flow = bijectors.scan_chain(
        bijectors.chain(layer, bijectors.invertible_linear()), 2
    )
    side = np.linspace(-9, 9, 361)
    x = jnp.asarray(np.stack(np.meshgrid(side, side), -1).reshape(-1, 2))
    told = jnp.zeros((len(x), 2))
    params = randomised(flow.init(KEY, x[:8], told[:8]), KEY, 0.2)
    params = jax.tree.map(lambda a: 0.4 * a, params)  # bins wider than the grid
    density = jax.jit(lambda told: jnp.exp(log_density(flow, params, x, told)))
    for condition in 0.0, 1.5:
        total = np.sum(density(told + condition)) * (side[1] - side[0]) ** 2
        assert total == pytest.approx(1, abs=1e-3), condition


def test_samples_follow_the_density():
    flow, params = CASES["autoregressive_rqs"].bijector, None
    case = CASES["autoregressive_rqs"]
    params = random_params(case)
    told = jnp.ones((4000, 2))
    z = jax.random.normal(KEY, (4000, 4))
    x, log_det = flow.to_data(params, z, told)
    # What comes back is normal, and both ways tell one density.
    again, log_det_back = flow.to_latent(params, x, told)
    np.testing.assert_allclose(log_det, -log_det_back, atol=1e-8)
    assert (
        min(stats.kstest(np.asarray(again[:, i]), "norm").pvalue for i in range(4))
        > 1e-3
    )
    # The first value depends on nothing but the condition: its histogram is known.
    edges = np.linspace(-6, 6, 2001)
    rows = jnp.zeros((len(edges), 4)).at[:, 0].set(edges)
    first = flow.to_latent(params, rows, jnp.ones((len(edges), 2)))[0][:, 0]
    cdf = lambda x: stats.norm.cdf(np.interp(x, edges, first))
    assert stats.kstest(np.asarray(x[:, 0]), cdf).pvalue > 1e-3


def test_gibbs_bound_is_met_by_the_truth_and_by_nothing_else():
    """E_p log q <= -H(p): a banana, whose entropy is known, and flows around it."""
    rng = np.random.default_rng(0)
    eps = rng.normal(size=(40000, 2))
    x = jnp.asarray(np.stack([eps[:, 0], eps[:, 0] ** 2 + 0.5 * eps[:, 1]], 1))
    entropy = 1 + math.log(2 * math.pi) + math.log(0.5)

    def apply(params, h, condition):
        first = h[:, :1]
        shift = jnp.concatenate([0 * first, (1 + params[0]) * first**2 + params[1]], 1)
        told = 3 * math.atanh(math.log(0.5) / 3) * (1 + params[2])
        scale = jnp.concatenate([0 * first, told + 0 * first], 1)
        return jnp.concatenate([shift, scale], 1)

    network = bijectors.Network(lambda key, h, condition: jnp.zeros(3), apply)
    flow = bijectors.autoregressive(network, bijectors.affine())
    for params in jnp.concatenate(
        [jnp.zeros((1, 3)), 0.1 * jnp.eye(3), -0.1 * jnp.eye(3)]
    ):
        log_q = np.asarray(log_density(flow, params, x))
        error = log_q.std() / math.sqrt(len(x))
        if np.all(params == 0):
            assert log_q.mean() == pytest.approx(-entropy, abs=4 * error)
        assert log_q.mean() < -entropy + 4 * error
