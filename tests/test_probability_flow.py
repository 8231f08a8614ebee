"""Likelihoods and codes against Gaussians, mixtures and the uniform density."""

import chex
import jax
import jax.numpy as jnp
import jax.scipy.stats.norm as normal
import numpy as np
import pytest

from jaxgen import estimators, probability_flow, schedules
from jaxgen.verify.gaussians import Gaussian, Mixture
from jaxgen.verify.gaussians import grid as sampling_grid

EDM, FLOW, DDPM = schedules.EDM(), schedules.RectifiedFlow(), schedules.DDPM()
GAUSSIAN = Gaussian.random(3, mean=0.0)
MIXTURE = Mixture(np.array([0.3, 0.7]), np.array([[-1.0], [0.8]]), np.array([0.2, 0.4]))


def grid(schedule, num):
    """From data to noise."""
    return sampling_grid(schedule, num)[::-1]


def draws(*shape, seed=0):
    return 0.7 * np.random.default_rng(seed).normal(size=shape)


def likelihood(data, schedule, x, times, *, keys=None, **knobs):
    """log_likelihood, compiled; by the exact divergence where there are no keys."""
    options = {"schedule": schedule, "exact": keys is None, **knobs}

    def run(x, keys, times):
        denoise = data.denoise(schedule)
        return probability_flow.log_likelihood(denoise, x, keys, times=times, **options)

    return jax.jit(run)(x, keys, times)


def closed_form(data, schedule, x, times, sigma_data):
    """What exact integration gives for a Gaussian, the prior being N(0, rho^2)."""
    z, dims = data.flow(schedule, x, times[0], times[-1]), data.mean.size
    variances = [data.coordinates(schedule, x, t)[1] for t in (times[0], times[-1])]
    alpha, sigma = schedule.alpha(times[-1]), schedule.sigma(times[-1])
    prior = normal.logpdf(z, 0, jnp.hypot(alpha * sigma_data, sigma))
    grown = 0.5 * jnp.log(variances[1] / variances[0])
    return prior.reshape(-1, dims).sum(1) + grown.sum(1)


@pytest.mark.parametrize(
    "schedule",
    [EDM, FLOW, pytest.param(DDPM, marks=pytest.mark.slow)],
    ids=["edm", "flow", "ddpm"],
)
def test_log_likelihood_is_that_of_a_gaussian_to_a_millionth_of_a_nat(schedule, x64):
    x, times = draws(6, 3), grid(schedule, 321)
    got = likelihood(GAUSSIAN, schedule, x, times, sigma_data=0.8)
    expected = closed_form(GAUSSIAN, schedule, x, times, 0.8)
    np.testing.assert_allclose(got.nats, expected, rtol=0, atol=1e-6)
    end = GAUSSIAN.flow(schedule, x, times[0], times[-1])
    rho = jnp.hypot(0.8 * schedule.alpha(times[-1]), schedule.sigma(times[-1]))
    np.testing.assert_allclose(got.z, end / rho, atol=1e-6)
    assert (got.probe_error == 0).all()
    truth = GAUSSIAN.log_prob(schedule, jnp.asarray(x), times[0])
    np.testing.assert_allclose(got.nats, truth, atol=0.02)


def test_log_likelihood_needs_no_steps_where_the_data_are_as_sigma_data_says(x64):
    data = Gaussian(np.zeros(4), np.eye(4), np.full(4, 0.5))
    x = draws(5, 4)
    got = likelihood(data, EDM, x, grid(EDM, 3), sigma_data=0.5)
    truth = data.log_prob(EDM, jnp.asarray(x), grid(EDM, 3)[0])
    np.testing.assert_allclose(got.nats, truth, rtol=1e-10)
    assert (got.step_error < 1e-10).all()


def test_log_likelihood_misses_the_truth_by_the_mean_that_the_prior_lacks(x64):
    data = Gaussian(np.array([0.3]), np.eye(1), np.array([0.5]))
    x, times = jnp.asarray([[1.5]]), schedules.karras_times(EDM, 65)[::-1]
    got = likelihood(data, EDM, x, times, sigma_data=0.5)
    truth = data.log_prob(EDM, x, times[0])
    expected = closed_form(data, EDM, x, times, 0.5) - truth
    np.testing.assert_allclose(got.nats - truth, expected, rtol=1e-4)
    assert 5e-3 < abs(expected[0]) < 2e-2
    centred = Gaussian(np.zeros(1), np.eye(1), np.array([0.5]))
    got = likelihood(centred, EDM, x - 0.3, times, sigma_data=0.5)
    np.testing.assert_allclose(got.nats, truth, atol=1e-9)


def test_probes_are_unbiased_where_the_jacobian_is_not_diagonal(x64):
    x, times = draws(4, 3), grid(EDM, 9)
    exact = likelihood(GAUSSIAN, EDM, x, times)
    keys = jax.random.split(jax.random.key(3), 4)
    got = likelihood(GAUSSIAN, EDM, x, times, keys=keys, num_probes=640)
    assert (got.probe_error > 0.005).all(), got.probe_error
    assert (abs(got.nats - exact.nats) < 5 * got.probe_error).all()
    np.testing.assert_allclose(got.z, exact.z, rtol=1e-12)
    fewer = likelihood(GAUSSIAN, EDM, x, times, keys=keys, num_probes=160)
    np.testing.assert_allclose(fewer.probe_error / got.probe_error, 2, rtol=0.2)


def test_the_density_integrates_to_one(x64):
    line = np.linspace(-4, 4, 401)
    got = likelihood(MIXTURE, EDM, line[:, None], grid(EDM, 65), sigma_data=0.9)
    assert abs(np.exp(got.nats).sum() * (line[1] - line[0]) - 1) < 1e-4
    truth = MIXTURE.log_prob(EDM, jnp.asarray(line[:, None]), grid(EDM, 65)[0])
    np.testing.assert_allclose(got.nats[100:300], truth[100:300], atol=0.05)

    plane = Mixture(
        np.array([0.4, 0.6]), np.array([[-0.8, 0.3], [0.6, -0.4]]), np.array([0.3, 0.5])
    )
    side = np.linspace(-3, 3, 61)
    x = np.stack(np.meshgrid(side, side), -1).reshape(-1, 2)
    got = likelihood(plane, FLOW, x, grid(FLOW, 65), sigma_data=0.8)
    assert abs(np.exp(got.nats).sum() * (side[1] - side[0]) ** 2 - 1) < 1e-4


class Uniform:
    """All values uniform on [-1, 1]: the estimate is the mean of a cut Gaussian."""

    @staticmethod
    def denoise(schedule):
        def function(x, t):
            ratio = schedule.sigma(t) / schedule.alpha(t)
            x = x / schedule.alpha(t)
            low, high = (-1 - x) / ratio, (1 - x) / ratio
            mass = normal.cdf(high) - normal.cdf(low)
            return x + ratio * (normal.pdf(low) - normal.pdf(high)) / mass

        return function


def test_the_uniform_density_has_8_bits_per_dim(x64):
    x = np.random.default_rng(0).uniform(-0.7, 0.7, (3, 2, 3, 2))
    knobs = {"sigma_data": np.sqrt(1 / 3)}
    got = likelihood(Uniform, EDM, x, grid(EDM, 129), **knobs)
    # The levels of `bits_per_dim` are in [0, 1], these in [-1, 1].
    nats = got.nats + 12 * np.log(2)
    bits = estimators.bits_per_dim(-nats, 12, kind="continuous")
    np.testing.assert_allclose(bits, 8.0, atol=5e-4)


def test_the_likelihood_of_a_sample_is_that_of_the_same_image(x64):
    data = Gaussian.random(6, seed=4, mean=0.2)
    z = np.random.default_rng(1).normal(size=(4, 1, 2, 3))
    times = grid(FLOW, 129)
    options = {"schedule": FLOW, "times": times, "sigma_data": 0.8}

    @jax.jit
    def decode(z):
        denoise = data.denoise(FLOW)
        x = probability_flow.decode(denoise, z, **options)
        there = probability_flow.decode_with_likelihood(
            denoise, z, None, exact=True, **options
        )
        return x, *there, probability_flow.encode(denoise, x, **options)

    x, again, sampled, code = decode(z)
    np.testing.assert_allclose(x, again, rtol=1e-12)
    np.testing.assert_allclose(code, z, atol=1e-5)
    scored = likelihood(data, FLOW, x, times, sigma_data=0.8)
    np.testing.assert_allclose(sampled.nats, scored.nats, atol=2e-5)
    np.testing.assert_allclose(sampled.z, z)
    np.testing.assert_allclose(scored.z, code, rtol=1e-12)
    expected = closed_form(data, FLOW, x, times, 0.8)
    np.testing.assert_allclose(sampled.nats, expected, atol=2e-5)


def test_step_error_is_no_less_than_the_error(x64):
    x = draws(16, 3)
    for num in (9, 17, 33):
        times = grid(EDM, num)
        got = likelihood(GAUSSIAN, EDM, x, times, sigma_data=0.8)
        error = abs(got.nats - closed_form(GAUSSIAN, EDM, x, times, 0.8))
        assert error.max() < got.step_error.max()
        assert np.median(error) < np.median(got.step_error)
    np.testing.assert_allclose(got.step_error.max() / error.max(), 15, rtol=0.15)


@pytest.mark.parametrize("num_channels", [1, 3])
def test_the_exact_divergence_is_that_of_the_whole_image(num_channels, x64):
    dims = 2 * num_channels
    data = Gaussian.random(dims, seed=num_channels, mean=0.0)
    x, times = draws(3, 1, 2, num_channels), grid(EDM, 65)
    got = likelihood(data, EDM, x, times, sigma_data=0.8)
    expected = closed_form(data, EDM, x, times, 0.8)
    np.testing.assert_allclose(got.nats, expected, atol=1e-3)
    assert got.z.shape == x.shape


def test_log_likelihood_refuses_times_from_noise_to_data(plain_errors):
    x, times = np.float32(draws(4, 3)), grid(EDM, 9)
    with pytest.raises(ValueError, match="log_likelihood: times must increase, from d"):
        probability_flow.log_likelihood(
            GAUSSIAN.denoise(EDM), x, None, schedule=EDM, times=times[::-1], exact=True
        )


def test_log_likelihood_starts_where_there_is_no_noise(x64):
    data = Gaussian.random(3, mean=0.0, scale=(0.5, 1.5))
    times = schedules.uniform_times(257, end=0.0)[::-1]
    x = draws(4, 3)
    got = likelihood(data, FLOW, x, times)
    truth = data.log_prob(FLOW, jnp.asarray(x), 0.0)
    np.testing.assert_allclose(got.nats, truth, atol=1e-6)


def test_log_likelihood_of_float32_is_that_of_float64():
    x, times = draws(4, 3), grid(FLOW, 65)
    single = likelihood(GAUSSIAN, FLOW, np.float32(x), times, sigma_data=0.8)
    assert single.nats.dtype == jnp.float32
    with jax.enable_x64():
        double = likelihood(GAUSSIAN, FLOW, x, times, sigma_data=0.8)
    np.testing.assert_allclose(single.nats, double.nats, atol=2e-3)


def test_log_likelihood_of_an_example_does_not_depend_on_its_batch():
    x, keys = np.float32(draws(5, 3)), jax.random.split(jax.random.key(0), 5)
    times = grid(EDM, 9)
    whole = likelihood(GAUSSIAN, EDM, x, times, keys=keys)
    part = likelihood(GAUSSIAN, EDM, x[1:3], times, keys=keys[1:3])
    assert (whole.probe_error == jnp.inf).all()  # One probe.
    chex.assert_trees_all_close(jax.tree.map(lambda a: a[1:3], whole), part, rtol=1e-4)
    eager = probability_flow.log_likelihood(
        GAUSSIAN.denoise(EDM), x, keys[::-1], schedule=EDM, times=times
    )
    middle = jax.tree.map(lambda a: a[2], (eager, whole))
    chex.assert_trees_all_close(*middle, rtol=1e-4, atol=1e-5)
    assert (eager.nats[:2] != whole.nats[:2]).all()


def test_log_likelihood_asks_for_no_forward_derivative_and_one_program():
    @jax.custom_vjp
    def half(x):
        return 0.5 * x

    half.defvjp(lambda x: (half(x), None), lambda _, g: (0.5 * g,))

    def program(num, **knobs):
        def run(x, keys):
            times, options = grid(EDM, num), {"schedule": EDM, **knobs}
            return probability_flow.log_likelihood(
                lambda x, t: half(x), x, keys, times=times, **options
            )

        keys = jax.random.split(jax.random.key(0), 2)
        return str(jax.make_jaxpr(run)(np.ones((2, 3), np.float32), keys))

    for knobs in ({"exact": True}, {"num_probes": 3}):
        sizes = {program(num, **knobs).count("\n") for num in (9, 999)}
        assert len(sizes) == 1


@pytest.mark.parametrize(
    ("knobs", "match"),
    [
        ({"num": 8}, "times must be odd in number, got 8"),
        ({"num": 1}, "N at least 2, got N = 1"),
        ({"keys": None}, r"keys must be \[B\] unless exact, got None"),
        ({"num_probes": 0}, "num_probes must be positive, got 0"),
        ({"sigma_data": 0.0}, "sigma_data must be positive, got 0.0"),
        ({"denoise": lambda x, t: x[:, :1]}, r"got x \(2, 3\), estimate \(2, 1\)"),
    ],
)
def test_log_likelihood_names_a_wrong_argument(knobs, match, plain_errors):
    knobs = {"keys": jax.random.split(jax.random.key(0), 2), "num": 9, **knobs}
    denoise = knobs.pop("denoise", lambda x, t: 0.5 * x)
    keys, times = knobs.pop("keys"), grid(EDM, knobs.pop("num"))
    with pytest.raises(ValueError, match=f"log_likelihood: .*{match}"):
        probability_flow.log_likelihood(
            denoise, jnp.ones((2, 3)), keys, schedule=EDM, times=times, **knobs
        )
