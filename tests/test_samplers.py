"""Samplers against the exact flow, DDPM's own formulas and data known in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen import samplers, schedules
from jaxgen.verify.gaussians import Gaussian, Mixture, grid, side_by_side

SCHEDULES = {name: make() for name, make in schedules.SCHEDULES.items()}
EVERY_SCHEDULE = pytest.mark.parametrize(
    "name",
    [
        "edm",
        "rectified_flow",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("cosine", "ddpm", "ve")),
    ],
)
GAUSSIAN = Gaussian.random(3)
MIXTURE = Mixture(np.array([0.3, 0.7]), np.array([[-1.0], [0.8]]), np.array([0.2, 0.4]))


def sample(name, denoise, x, keys=None, *, schedule, times, **knobs):
    """One sampler, compiled."""

    def run(x, keys, times):
        sampler = samplers.SAMPLERS[name]
        return sampler(denoise, x, keys, schedule=schedule, times=times, **knobs)

    return jax.jit(run)(x, keys, times)


def images(*shape, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


def keys_of(num, seed=0):
    return jax.random.split(jax.random.key(seed), num)


@EVERY_SCHEDULE
def test_solvers_have_their_order_on_a_gaussian_and_a_mixture(name, x64):
    schedule = SCHEDULES[name]
    denoise = side_by_side(GAUSSIAN.denoise(schedule), 3, MIXTURE.denoise(schedule))
    solvers = {"euler": 1, "heun": 2, "dpmpp_2m": 2}
    start, end = grid(schedule, 2)
    noise = np.random.default_rng(1).normal(size=(6, 4))
    x = 0.3 * schedule.alpha(start) + schedule.sigma(start) * noise
    exact = jnp.concatenate(
        [
            GAUSSIAN.flow(schedule, x[:, :3], start, end),
            MIXTURE.flow(schedule, x[:, 3:], start, end),
        ],
        1,
    )

    @jax.jit
    def errors(times):
        options = {"schedule": schedule, "times": times, "clean": False}
        ends = [samplers.SAMPLERS[s](denoise, x, None, **options).x for s in solvers]
        return jnp.stack([jnp.abs(end - exact).max(0) for end in ends])

    coarse, fine = (errors(grid(schedule, num)) for num in (129, 257))
    orders = np.log2(coarse / fine)
    parts = np.stack([orders[:, :3].max(1), orders[:, 3]], 1)
    assert (parts > np.array(list(solvers.values()))[:, None] - 0.1).all(), parts
    assert (fine < np.array([[0.02], [5e-4], [5e-4]])).all(), fine


@pytest.mark.parametrize(
    ("sampler", "num_channels", "name"),
    [
        ("ddpm", 1, "edm"),
        ("ddim", 2, "cosine"),
        ("euler", 3, "ve"),
        ("heun", 1, "edm"),
        ("heun", 2, "rectified_flow"),
        ("dpmpp_2m", 3, "ddpm"),
        ("stochastic", 3, "edm"),
    ],
)
def test_samplers_return_the_images_of_an_empirical_denoiser(
    sampler, num_channels, name
):
    data = images(5, 4, 4, num_channels)
    schedule = SCHEDULES[name]
    denoise = Mixture.points(data).denoise(schedule)
    x = 50 * np.random.default_rng(2).normal(size=(32, 4, 4, num_channels))
    times = grid(schedule, 24)
    x = np.float32(x) * schedule.alpha(times[0])
    chain = sample(
        sampler, denoise, x, keys_of(32), schedule=schedule, times=times, keep=True
    )
    far = jnp.abs(chain.x[:, None] - data[None]).max((2, 3, 4))
    assert (far.min(1) == 0).all()
    assert len(set(np.argmin(far, 1).tolist())) > 1
    assert chain.x0.shape == (24, *x.shape)
    np.testing.assert_array_equal(chain.x0[-1], chain.x)
    if sampler != "stochastic":
        first = jax.jit(denoise)(x, times[0])
        np.testing.assert_allclose(chain.x0[0], first, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sampler", sorted(samplers.SAMPLERS))
def test_samplers_go_from_alpha_0_to_sigma_0(sampler):
    name = "cosine" if sampler in ("ddpm", "heun") else "rectified_flow"
    data, schedule = images(5, 6), SCHEDULES[name]
    times = schedules.uniform_times(20, end=0.0)
    assert schedule.alpha(times)[0] == 0
    assert schedule.sigma(times)[-1] == 0

    exact = Mixture.points(data).denoise(schedule)

    def denoise(x, t):
        return jnp.where(t > 0, exact(x, jnp.maximum(t, 1e-3)), jnp.nan)

    x = np.random.default_rng(3).normal(size=(16, 6)).astype(np.float32)
    chain = sample(
        sampler, denoise, x, keys_of(16), schedule=schedule, times=times, clean=False
    )
    far = jnp.abs(chain.x[:, None] - data[None]).max(2).min(1)
    np.testing.assert_allclose(far, 0, atol=1e-6)


def test_samplers_count_their_calls():
    schedule, calls = SCHEDULES["edm"], []

    def denoise(x, t):
        jax.debug.callback(lambda t: calls.append(float(t)), t)
        return 0.5 * x

    expected = {"ddpm": 7, "dpmpp_2m": 7, "heun": 13, "stochastic": 13}
    for name, clean in [*((name, True) for name in expected), ("heun", False)]:
        calls.clear()
        options = {"schedule": schedule, "times": grid(schedule, 7), "clean": clean}
        sample(name, denoise, jnp.ones((2, 3)), keys_of(2), **options)
        jax.effects_barrier()
        assert len(calls) == expected[name] - (not clean), name


def affine(sampler, schedule, here, there, *, num=1, **knobs):
    """One step of a sampler for fixed estimates: (of x, of x0, its noise `[num]`)."""

    def step(x, x0):
        return samplers.SAMPLERS[sampler](
            lambda x, t: jnp.full_like(x, x0),
            jnp.full((num, 1), x),
            keys_of(num),
            schedule=schedule,
            times=jnp.stack([here, there]),
            clean=False,
            **knobs,
        ).x[:, 0]

    new = step(0.0, 0.0)
    return (step(1.0, 0.0) - new)[0], (step(0.0, 1.0) - new)[0], new


def all_steps(schedule, times, *cases, num=1):
    """For each (sampler, knobs) `affine` of every step, `[steps]` and `[steps, num]`."""

    def each(here, there):
        return [
            affine(s, schedule, here, there, num=num, **knobs) for s, knobs in cases
        ]

    return jax.jit(jax.vmap(each))(times[:-1], times[1:])


def test_ddpm_has_the_posterior_of_ddpm_at_all_1000_steps(x64):
    betas = np.linspace(1e-4, 0.02, 1000)
    kept = np.cumprod(1 - betas)
    before, after, beta = kept[:-1], kept[1:], betas[1:]
    of_x0 = beta * np.sqrt(before) / (1 - after)
    of_x = (1 - before) * np.sqrt(1 - beta) / (1 - after)
    small = beta * (1 - before) / (1 - after)
    np.testing.assert_allclose(of_x0 + of_x * np.sqrt(after), np.sqrt(before))
    np.testing.assert_allclose(of_x**2 * (1 - after) + small, 1 - before)

    cases = [("ddpm", {"variance": variance}) for variance in ("small", "large")]
    times = schedules.respaced_times(1000)
    both = all_steps(schedules.DDPM(), times, *cases, num=2000)
    for got, expected in zip(both, (small, beta), strict=True):
        np.testing.assert_allclose(got[0][::-1], of_x, rtol=1e-8)
        np.testing.assert_allclose(got[1][::-1], of_x0, rtol=1e-8)
        # The noise is the same in all of them but for its scale: judge it all at once.
        scaled = got[2][::-1] / np.sqrt(expected)[:, None]
        np.testing.assert_allclose(scaled, scaled[:1] * np.ones((999, 1)), rtol=1e-6)
        assert abs(np.mean(scaled[0])) < 5 / np.sqrt(2000)
        assert abs(np.var(scaled[0]) - 1) < 5 * np.sqrt(2 / 2000)


@EVERY_SCHEDULE
def test_ddim_keeps_the_marginals_for_every_eta(name, x64):
    schedule, times = SCHEDULES[name], grid(SCHEDULES[name], 12)
    alpha, sigma = schedule.alpha(times), schedule.sigma(times)
    etas = (0.0, 0.3, 1.0)
    cases = [("ddim", {"eta": eta}) for eta in etas]
    *family, ddpm = all_steps(schedule, times, *cases, ("ddpm", {}))
    ratio = (alpha[:-1] * sigma[1:] / (alpha[1:] * sigma[:-1])) ** 2
    new = sigma[1:] ** 2 * (1 - ratio)
    for eta, (of_x, of_x0, noise) in zip(etas, family, strict=True):
        np.testing.assert_allclose(noise, eta * ddpm[2], rtol=1e-7)
        np.testing.assert_allclose(of_x * alpha[:-1] + of_x0, alpha[1:])
        variance = of_x**2 * sigma[:-1] ** 2 + eta**2 * new
        np.testing.assert_allclose(variance, sigma[1:] ** 2)
    for got, expected in zip(family[-1], ddpm, strict=True):
        np.testing.assert_allclose(got, expected)


@EVERY_SCHEDULE
def test_ddim_without_noise_is_the_first_order_of_dpmpp(name, x64):
    schedule, times = SCHEDULES[name], grid(SCHEDULES[name], 12)
    alpha, sigma = schedule.alpha(times), schedule.sigma(times)
    gained = np.diff(np.log(alpha / sigma))
    expected = sigma[1:] / sigma[:-1], -alpha[1:] * np.expm1(-gained)
    cases = [(sampler, {}) for sampler in ("ddim", "euler", "dpmpp_2m")]
    for got in all_steps(schedule, times, *cases):
        np.testing.assert_allclose(got[0], expected[0])
        np.testing.assert_allclose(got[1], expected[1])
        assert not got[2].any()
