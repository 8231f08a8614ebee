"""Every bijector against autodiff: log-determinants, round trips, structure."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxgen import bijectors, verify
from jaxgen.verify.cases import CASES, data, made, mlp, random_params, randomised
from jaxgen.verify.flow import check

KEY = jax.random.key(0)
pytestmark = pytest.mark.usefixtures("x64")


def jacobian(way, params, x, condition):
    def one(x, condition):
        condition = None if condition is None else condition[None]
        return way(params, x[None], condition)[0].ravel()

    matrix = jax.vmap(jax.jacfwd(one))(x, condition)
    return matrix.reshape(x.shape[0], x[0].size, x[0].size)


@pytest.mark.parametrize("name", CASES)
def test_log_determinants_are_those_of_the_jacobians_both_ways(name):
    verify.require(check(CASES[name]))


@pytest.mark.parametrize("name", CASES)
def test_cases_are_not_the_identity(name):
    """Of which nothing could be seen."""
    case = CASES[name]
    x, condition = data(case, jax.random.key(1))
    z, log_det = jax.jit(case.bijector.to_latent)(random_params(case), x, condition)
    assert log_det.shape == (3,)
    if not case.is_identity:
        assert np.max(np.abs(z.ravel() - x.ravel())) > 0.05
        assert np.ptp(log_det) > 1e-3 or np.max(np.abs(log_det)) > 0.05
    else:
        np.testing.assert_array_equal(np.sort(z.ravel()), np.sort(x.ravel()))
        back, _ = case.bijector.to_data(random_params(case), z, condition)
        np.testing.assert_array_equal(back, x)
        np.testing.assert_array_equal(log_det, 0)


@pytest.mark.parametrize("name", CASES)
def test_latents_come_back_and_examples_do_not_mix(name):
    case = CASES[name]
    params = random_params(case)
    x, condition = data(case, jax.random.key(2))
    z, _ = case.bijector.to_latent(params, x, condition)
    z = 0.7 * z  # not the latent of any data that was seen
    to_latent, to_data = map(jax.jit, case.bijector[1:])
    x, _ = to_data(params, z, condition)
    again, _ = to_latent(params, x, condition)
    np.testing.assert_allclose(again, z, rtol=1e-9, atol=1e-8)
    for scale in _scales(case):
        far, _ = to_data(params, scale * z, condition)
        again, _ = to_latent(params, far, condition)
        np.testing.assert_allclose(
            again, scale * z, rtol=1e-9, atol=1e-8 * max(0.1, scale)
        )
    assert np.all((x >= case.low - 0.06) & (x <= case.high + 0.06))
    for function, value in (to_latent, x), (to_data, z):
        whole = function(params, value, condition)
        told = None if condition is None else condition[1:2]
        alone = function(params, value[1:2], told)
        for a, b in zip(whole, alone, strict=True):
            np.testing.assert_allclose(a[1:2], b, rtol=1e-10, atol=1e-10)


def _scales(case):
    """What z is multiplied by: the ends of a range are too near for float64 far out."""
    if np.isfinite(case.high):
        return [1e-6]
    return [1e-6, 10.0] if np.isfinite(case.low) else [1e-6, 10.0, 1e3]


@pytest.mark.parametrize("name", CASES)
def test_float32_stays_and_keeps_its_accuracy(name):
    case = CASES[name]
    # Milder: the rounding of z grows by the slope of the way back.
    params = jax.tree.map(lambda a: 0.3 * a, random_params(case, jnp.float32))
    x, condition = data(case, jax.random.key(3), dtype=jnp.float32)
    z, log_det = jax.jit(case.bijector.to_latent)(params, x, condition)
    back, log_det_back = jax.jit(case.bijector.to_data)(params, z, condition)
    assert {a.dtype for a in (z, log_det, back, log_det_back)} == {jnp.dtype("float32")}
    size = 1 + max(np.abs(x).max(), np.abs(z).max())
    np.testing.assert_allclose(back, x, rtol=0, atol=3e-5 * size)
    np.testing.assert_allclose(log_det + log_det_back, 0, atol=1e-4 * size)


@pytest.mark.parametrize(
    "name", [n for n, c in CASES.items() if not np.isfinite(c.high)]
)
def test_gradients_are_finite_far_outside(name):
    case = CASES[name]
    params = random_params(case)
    x, condition = data(case, jax.random.key(4))

    @functools.partial(jax.grad, argnums=(0, 1))
    def gradient(params, x):
        z, log_det = case.bijector.to_latent(params, x, condition)
        return jnp.sum(z**2) - jnp.sum(log_det)

    jitted = jax.jit(gradient)
    for scale in 1e-6, 10.0, 1e3:
        gradients = jitted(params, scale * x)
        assert all(np.all(np.isfinite(g)) for g in jax.tree.leaves(gradients)), scale


AUTOREGRESSIVE = ["autoregressive_affine", "autoregressive_rqs"]
CAUSAL = ["causal_affine", "causal_rqs"]


@pytest.mark.parametrize("name", AUTOREGRESSIVE + CAUSAL)
def test_autoregressive_jacobians_are_triangular_without_dead_entries(name):
    case = CASES[name]
    params = random_params(case)
    x, condition = data(case, jax.random.key(5), batch=8)
    matrix = jax.jit(jacobian, static_argnums=0)(
        case.bijector.to_latent, params, x, condition
    )
    assert np.all(np.diagonal(matrix, axis1=1, axis2=2) > 0)
    matrix = np.abs(matrix).max(0)
    width = case.shape[-1] if name in CAUSAL else 1
    block = np.arange(matrix.shape[0]) // width
    before = block[:, None] > block[None]
    allowed = before | np.eye(len(block), dtype=bool)
    assert np.all(matrix[~allowed] == 0)
    assert np.all(matrix[allowed] > 1e-6)


def test_inverted_exchanges_the_ways():
    flow, z = bijectors.softplus(), jnp.array([[-1.0, 2.0]])
    other = bijectors.inverted(flow)
    for a, b in zip(other.to_latent((), z), flow.to_data((), z), strict=True):
        np.testing.assert_array_equal(a, b)
    x = jnp.array([[0.1, 3.0]])
    for a, b in zip(other.to_data((), x), flow.to_latent((), x), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_checkerboard_begins_with_white():
    expected = [[1, 0, 1], [0, 1, 0]]
    np.testing.assert_array_equal(bijectors.checkerboard(2, 3)[..., 0], expected)


@pytest.mark.parametrize(
    "transform",
    [bijectors.affine(), bijectors.rational_quadratic(num_bins=3)],
    ids=["affine", "splines"],
)
def test_parameters_in_half_precision_are_used_in_full(transform):
    raw = jax.random.normal(KEY, (9, transform.num_params, 2), jnp.bfloat16)
    x = jax.random.normal(KEY, (9, 2), jnp.float32)
    z, log_slope = transform.to_latent(raw, x)
    back, log_slope_back = transform.to_data(raw, z)
    assert {a.dtype for a in (z, log_slope, back, log_slope_back)} == {x.dtype}
    np.testing.assert_allclose(back, x, atol=1e-4)
    np.testing.assert_allclose(log_slope_back, -log_slope, atol=1e-4)
    whole = transform.to_latent(raw.astype(jnp.float32), x)
    np.testing.assert_array_equal((z, log_slope), whole)


def test_the_scale_of_an_affine_map_is_bounded():
    bounded = bijectors.affine(max_log_scale=2.0)
    raw = jnp.array([[[0.0, 0.0, 0.0], [-1e6, 1e-3, 1e6]]])
    x = jnp.ones((1, 3))
    for log_slope in bounded.to_latent(-raw, x)[1], bounded.to_data(raw, x)[1]:
        np.testing.assert_allclose(log_slope, [[-2, 1e-3, 2]], rtol=1e-5)


def test_couplings_leave_what_they_keep_bit_for_bit():
    x = jax.random.normal(KEY, (4, 5))
    case = CASES["coupling_affine"]
    params = random_params(case)
    z, _ = case.bijector.to_latent(params, x)
    np.testing.assert_array_equal(z[:, :2], x[:, :2])
    assert np.all(np.asarray(z[:, 2:]) != np.asarray(x[:, 2:]))
    mask = bijectors.checkerboard(4, 3)
    image = jax.random.normal(KEY, (2, 4, 3, 1))
    flow = bijectors.masked_coupling(mlp(2), bijectors.affine(), mask)
    params = randomised(flow.init(KEY, image), KEY)
    z, _ = flow.to_latent(params, image)
    np.testing.assert_array_equal(z[:, mask], image[:, mask])
    assert np.all(np.asarray(z[:, ~mask]) != np.asarray(image[:, ~mask]))
    # What changes is not seen, so that z is affine in it: three points on a line.
    at = [
        flow.to_latent(params, jnp.where(mask[None], image, c))[0][:, ~mask]
        for c in (0.0, 1.0, 3.0)
    ]
    np.testing.assert_allclose(at[2] - at[0], 3 * (at[1] - at[0]), rtol=1e-9)
    assert mask.shape == (4, 3, 1)
    assert mask[0, 0, 0]
    assert not mask[0, 1, 0]


def test_affine_autoregression_is_a_multivariate_normal():
    """With a linear network: z = A (x - b), so x is normal; SciPy knows its density."""
    dim = 3
    lower = np.tril(np.random.default_rng(0).normal(size=(dim, dim)), -1)
    shift, log_scale = np.array([0.3, -1.0, 2.0]), np.array([0.2, -0.4, 0.1])

    def apply(params, h, condition):
        # shift_i = b_i + sum_j L_ij x_j
        raw_scale = 3.0 * np.arctanh(log_scale / 3.0)
        told = jnp.stack(
            [shift[None] + h @ lower.T, jnp.broadcast_to(raw_scale[None], h.shape)], 1
        )
        return told.reshape(h.shape[0], -1)

    network = bijectors.Network(lambda *_: (), apply)
    flow = bijectors.autoregressive(network, bijectors.affine())
    x = jax.random.normal(KEY, (6, dim)) * 2
    z, log_det = flow.to_latent((), x)
    got = stats.norm.logpdf(z).sum(1) + log_det
    # x = L x + b + s z
    inverse = np.linalg.inv(np.eye(dim) - lower)
    factor = inverse @ np.diag(np.exp(log_scale))
    expected = stats.multivariate_normal(inverse @ shift, factor @ factor.T).logpdf(x)
    np.testing.assert_allclose(got, expected, rtol=1e-10)


def test_linear_begins_as_a_rotation_and_counts_every_pixel():
    x = jax.random.normal(KEY, (2, 3, 5, 4))
    flow = bijectors.invertible_linear()
    params = flow.init(KEY, x)
    z, log_det = flow.to_latent(params, x)
    np.testing.assert_allclose(log_det, 0, atol=1e-12)
    np.testing.assert_allclose((z**2).sum(-1), (x**2).sum(-1), rtol=1e-10)
    matrix = flow.to_latent(params, jnp.eye(4))[0]
    assert np.abs(matrix - np.eye(4)).max() > 0.1
    params = randomised(params, KEY)
    matrix = flow.to_latent(params, jnp.eye(4))[0]
    _, log_det = flow.to_latent(params, x)
    np.testing.assert_allclose(log_det, 15 * np.linalg.slogdet(matrix)[1], rtol=1e-10)


def test_linear_keeps_its_order_whatever_decays():
    x = jax.random.normal(KEY, (4, 6))
    flow = bijectors.invertible_linear()
    params = flow.init(KEY, x)
    decayed = params | {k: 0.5 * params[k] for k in ("order", "sign")}
    np.testing.assert_array_equal(
        flow.to_latent(params, x)[0], flow.to_latent(decayed, x)[0]
    )
    gradients = jax.grad(lambda p: jnp.sum(flow.to_latent(p, x)[0] ** 3))(params)
    assert np.all(gradients["order"] == 0)
    assert np.all(gradients["sign"] == 0)
    for name in "lower", "upper", "log_diagonal":
        assert np.any(gradients[name] != 0)


def test_actnorm_standardises_what_it_is_begun_with_and_survives_a_constant():
    x = jax.random.normal(KEY, (50, 4, 4, 3)) * jnp.array([[[[2.0, 0.1, 0.0]]]]) + 7.0
    flow = bijectors.actnorm()
    params = flow.init(KEY, x)
    z, log_det = flow.to_latent(params, x)
    np.testing.assert_allclose(z.mean((0, 1, 2)), 0, atol=1e-10)
    np.testing.assert_allclose(z.std((0, 1, 2)), [1, 1, 0], atol=1e-10)
    assert np.all(np.isfinite(log_det))
    # In a chain each sees what those before it make, and so does each of a scan.
    layer = bijectors.chain(bijectors.invertible_linear(), flow)
    for deep in bijectors.chain(layer, layer), bijectors.scan_chain(layer, 2):
        params = deep.init(KEY, x)
        z, _ = deep.to_latent(params, x)
        np.testing.assert_allclose(z.mean((0, 1, 2)), 0, atol=1e-8)
        assert np.all(np.isfinite(z))


def test_scan_chain_is_a_chain_with_stacked_params():
    case = CASES["scan_chain"]
    params = random_params(case)
    x, condition = data(case, jax.random.key(6))
    z, log_det = case.bijector.to_latent(params, x, condition)
    layer = CASES["chain"].bijector  # the same layer, and a reversal
    total = 0
    for i in range(3):
        own = jax.tree.map(lambda a, i=i: a[i], params)
        x, part = layer.to_latent((own, ()), x, condition)
        x, total = x[:, ::-1], total + part
    np.testing.assert_allclose(z, x, rtol=1e-12)
    np.testing.assert_allclose(log_det, total, rtol=1e-12)


def test_multi_scale_keeps_every_value():
    flow = bijectors.chain(
        bijectors.squeeze(), bijectors.split(bijectors.flatten(2, 2, 2))
    )
    x = jnp.arange(16.0).reshape(1, 4, 4, 1)
    z, log_det = flow.to_latent(flow.init(KEY, x), x)
    assert z.shape == (1, 16)
    assert sorted(z[0].tolist()) == list(range(16))
    np.testing.assert_array_equal(log_det, 0)
    # A square of pixels becomes the channels of one.
    np.testing.assert_array_equal(
        bijectors.squeeze().to_latent((), x)[0][0, 0, 0], [0, 1, 4, 5]
    )


def test_circular_wraps_and_is_uniform_under_the_prior():
    flow = bijectors.circular(2.0)
    z = jax.random.normal(KEY, (20000, 1))
    x, _ = flow.to_data((), z)
    assert stats.kstest(np.asarray(x[:, 0]), stats.uniform(-2, 4).cdf).pvalue > 1e-3
    inside = jnp.array([[0.5], [-1.9]])
    np.testing.assert_allclose(
        flow.to_latent((), inside + 4.0)[0], flow.to_latent((), inside)[0], rtol=1e-9
    )
    for edge in -2.0, 2.0:
        z, log_det = flow.to_latent((), jnp.array([[edge]]))
        assert np.all(np.isfinite(z))
        assert np.all(np.isfinite(log_det))


BAD = {
    "at least one": lambda x: bijectors.chain(),
    "depth must be positive": lambda x: bijectors.scan_chain(bijectors.reverse(), 0),
    "num_kept must be from 0 to 3": lambda x: bijectors.coupling(
        mlp(2), bijectors.affine(), num_kept=4
    ).init(KEY, x),
    "network's output must be": lambda x: (
        flow := bijectors.coupling(mlp(5), bijectors.affine(), num_kept=2)
    ).to_latent(flow.init(KEY, x), x),
    "must be .B, D.": lambda x: bijectors.autoregressive(
        made(4, 2), bijectors.affine()
    ).init(KEY, x[:, None]),
    "order must hold each of": lambda x: bijectors.permutation([0, 0, 1]),
    "x must have 3 values": lambda x: bijectors.permutation([2, 0, 1]).to_latent((), x),
    "multiples of 2": lambda x: bijectors.squeeze().to_latent((), x[:, None, :3, None]),
    "even number of channels": lambda x: bijectors.split(
        bijectors.flatten(1)
    ).to_latent((), x[:, :3]),
    "end it with flatten": lambda x: bijectors.split(bijectors.reverse()).to_latent(
        (), x[:, None]
    ),
    "low must be below high": lambda x: bijectors.logit(1.0, 0.0),
    "margin must be in": lambda x: bijectors.logit(margin=0.5),
    "max_log_scale must be positive": lambda x: bijectors.affine(max_log_scale=0.0),
    "num_bins must be positive": lambda x: bijectors.rational_quadratic(num_bins=0),
}


@pytest.mark.parametrize("message", BAD)
def test_mistakes_are_told(message):
    x = jax.random.normal(KEY, (2, 4))
    with pytest.raises(ValueError, match=message):
        BAD[message](x)
