"""Samplers with noise: moments carried exactly, step by step; keys, programs, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen import samplers, schedules
from jaxgen.verify.gaussians import Gaussian, grid

EDM, FLOW, DDPM = schedules.EDM(), schedules.RectifiedFlow(), schedules.DDPM()
KNOBS = {
    "ddpm": {},
    "ddim": {"eta": 0.6},
    "stochastic": {"churn_max": np.inf, "churn_min": 0.0, "noise_scale": 1.0},
}
LINE = Gaussian(np.zeros(1), np.eye(1), np.array([0.5]))


def keys_of(num, seed=0):
    return jax.random.split(jax.random.key(seed), num)


def linear_steps(name, denoise, schedule, *grids, **knobs):
    """For each grid (A, c) of x' = A x + c z in each step, for a linear denoiser, D = 1.

    z is read off a step of DDPM that knows no data, whose c has a formula.
    """

    def step(here, there, x, name=name, denoise=denoise, knobs=knobs):
        options = {"schedule": schedule, "times": jnp.stack([here, there])}
        x, keys = jnp.full((1, 1), x), keys_of(1)
        chain = samplers.SAMPLERS[name](
            denoise, x, keys, clean=False, **options, **knobs
        )
        return chain.x[0, 0]

    @jax.jit
    def read(here, there):
        first, second = here[0], there[0]
        alpha = schedule.alpha(first) / schedule.alpha(second)
        sigma = schedule.sigma(first) / schedule.sigma(second)
        std = schedule.sigma(second) * jnp.sqrt(1 - (alpha / sigma) ** 2)
        z = step(first, second, 0.0, "ddpm", lambda x, t: jnp.zeros_like(x), {}) / std
        each = jax.vmap(step, (0, 0, None))
        still, moved = (each(here, there, x) for x in (0.0, 1.0))
        return moved - still, still / z

    here, there = (
        np.concatenate([g[s] for g in grids]) for s in (np.s_[:-1], np.s_[1:])
    )
    ends = np.cumsum([len(g) - 1 for g in grids])[:-1]
    return list(zip(*(np.split(a, ends) for a in read(here, there)), strict=True))


def carried(steps, variance):
    """The variance after all steps."""
    for gain, noise in zip(*steps, strict=True):
        variance = gain**2 * variance + noise**2
    return float(variance)


def variance_at(schedule, t):
    return 0.25 * schedule.alpha(t) ** 2 + schedule.sigma(t) ** 2


@pytest.mark.parametrize(
    ("name", "schedule"),
    [
        ("ddpm", EDM),
        ("ddim", FLOW),
        ("stochastic", FLOW),
        pytest.param("ddpm", DDPM, marks=pytest.mark.slow),
        pytest.param("stochastic", DDPM, marks=pytest.mark.slow),
        pytest.param("stochastic", schedules.Cosine(), marks=pytest.mark.slow),
    ],
)
def test_samplers_with_noise_come_to_the_data_as_steps_get_shorter(name, schedule, x64):
    gaps = []
    for num in (33, 129):
        # As far as noise of 0.4, where all of the sampler matters.
        times, knobs = grid(schedule, num)[: round(0.75 * num)], KNOBS[name]
        if name == "stochastic":  # A chain of two times at a time: see `linear_steps`.
            knobs = {**knobs, "churn": 2 * 5 / num}
        (steps,) = linear_steps(name, LINE.denoise(schedule), schedule, times, **knobs)
        assert (abs(steps[1]) > 0).all()
        ratio = carried(steps, variance_at(schedule, times[0]))
        ratio = ratio / variance_at(schedule, times[-1])
        gaps.append(0.5 * (ratio - 1 - np.log(ratio)))
    assert gaps[0] < (1e-4 if name == "stochastic" else 0.01), gaps
    # A variance that is wrong by 1 / N is a KL divergence of 1 / N^2.
    assert gaps[1] < gaps[0] / 8, gaps


def test_the_noise_of_steps_and_examples_is_independent():
    # So the variance of many samples is that carried through the steps.
    times, num = grid(EDM, 33), 8192
    with jax.enable_x64():
        (steps,) = linear_steps("ddpm", LINE.denoise(EDM), EDM, times)
        expected = carried(steps, variance_at(EDM, times[0]))
    start = jax.vmap(jax.random.normal)(keys_of(num, 1))[:, None]
    x = start * np.sqrt(variance_at(EDM, times[0]))
    got = jax.jit(
        lambda x, keys: samplers.ddpm(
            LINE.denoise(EDM), x, keys, schedule=EDM, times=times, clean=False
        )
    )(x, keys_of(num))
    assert abs(got.x.var() / expected - 1) < 5 * np.sqrt(2 / num)


def test_stochastic_without_churn_is_heun_bit_for_bit():
    denoise = Gaussian.random(3).denoise(FLOW)
    x = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)

    def run(name, **knobs):
        options = {"schedule": FLOW, "times": grid(FLOW, 9), **knobs}
        sampler = samplers.SAMPLERS[name]
        return jax.jit(lambda x: sampler(denoise, x, keys_of(4), **options).x)(x)

    heun = run("heun")
    np.testing.assert_array_equal(run("stochastic", churn=0.0), heun)
    none = run("stochastic", churn_min=1e3, churn_max=1e4)
    np.testing.assert_array_equal(none, heun)
    assert (run("stochastic") != heun).all()


def test_replacing_what_is_known_is_biased_even_with_the_exact_score(x64):
    # Prior N(0, [[1, rho], [rho, 1]]) and x_1 = 1.5: means and variances of x_2 by 200
    # steps, where x_1 is replaced by its noised value. In closed form .75 / .75 etc.
    table = {0.5: (0.398, 0.787), 0.9: (0.920, 0.298), 0.99: (1.295, 0.057)}
    times = schedules.karras_times(EDM, 200)
    sigma = np.append(EDM.sigma(times), 0)
    basis = np.array([[1, 1], [1, -1]]) / np.sqrt(2)
    priors = [Gaussian(np.zeros(2), basis, np.sqrt([1 + r, 1 - r])) for r in table]
    gains = ancestral_gains([prior.denoise(EDM) for prior in priors], times)
    for (rho, (mean, variance)), gain in zip(table.items(), gains, strict=True):
        at, spread = 0.0, sigma[0] ** 2
        for i, (known, own) in enumerate(gain):
            at = known * 1.5 + own * at
            new = sigma[i + 1] ** 2 * (1 - sigma[i + 1] ** 2 / sigma[i] ** 2)
            spread = known**2 * sigma[i] ** 2 + own**2 * spread + new
        np.testing.assert_allclose((at, spread), (mean, variance), atol=0.03)
        assert abs(at - 1.5 * rho) > 0.1


def ancestral_gains(denoisers, times):
    """What x_2 after each step of DDPM has of x_1 and of x_2 before, `[N, 2]` each."""
    x, keys = jnp.eye(3, 2, -1), jnp.broadcast_to(keys_of(1), 3)

    def moved(denoise, pair):
        # One noise for all: it drops out of the difference.
        options = {"schedule": EDM, "times": pair, "clean": False}
        x_2 = samplers.ddpm(denoise, x, keys, **options).x[:, 1]
        return x_2[1:] - x_2[0]

    @jax.jit
    def read(pairs):
        every = [jax.vmap(lambda p, d=d: moved(d, p))(pairs) for d in denoisers]
        return [
            jnp.append(gains, denoise(x[1:], times[-1])[None, :, 1], 0)
            for gains, denoise in zip(every, denoisers, strict=True)
        ]

    return [np.asarray(a) for a in read(jnp.stack([times[:-1], times[1:]], 1))]


@pytest.mark.parametrize("name", sorted(KNOBS))
def test_a_sample_does_not_depend_on_the_batch_it_is_in(name):
    x = 50 * np.random.default_rng(0).normal(size=(5, 2, 2, 1)).astype(np.float32)
    data, keys = Gaussian.random(4), keys_of(5)

    def run(x, keys):
        options = {"schedule": EDM, "times": grid(EDM, 9), **KNOBS[name]}
        return samplers.SAMPLERS[name](data.denoise(EDM), x, keys, **options).x

    whole, part = jax.jit(run)(x, keys), jax.jit(run)(x[1:3], keys[1:3])
    np.testing.assert_allclose(whole[1:3], part, rtol=1e-5, atol=1e-6)
    other = run(x, keys[::-1])  # Not compiled as a whole: the same in the middle.
    np.testing.assert_allclose(other[2], whole[2], rtol=1e-5, atol=1e-6)
    assert (abs(other[:2] - whole[:2]) > 1e-4).any((1, 2, 3)).all()


@pytest.mark.parametrize("name", sorted(samplers.SAMPLERS))
def test_the_program_does_not_grow_with_the_steps(name):
    def program(num):
        def run(x, keys, times):
            return samplers.SAMPLERS[name](
                lambda x, t: 0.5 * x, x, keys, schedule=EDM, times=times, keep=True
            )

        shapes = np.ones((2, 3), np.float32), keys_of(2), grid(EDM, num)
        return str(jax.make_jaxpr(run)(*shapes)).count("\n")

    assert program(10) == program(1000)


def test_samplers_keep_float32_under_a_bfloat16_network():
    def denoise(x, t):
        return (0.5 * x).astype(jnp.bfloat16)

    x, options = jnp.ones((2, 3)), {"schedule": EDM, "times": grid(EDM, 5)}
    for name, sampler in samplers.SAMPLERS.items():
        chain = jax.eval_shape(
            lambda x, s=sampler: s(denoise, x, keys_of(2), **options), x
        )
        assert chain.x.dtype == jnp.float32, name


def test_invert_follows_the_flow_to_the_noise_and_euler_leads_back(x64):
    data = Gaussian.random(3)
    drawn = data.scale * np.random.default_rng(2).normal(size=(4, 3))
    x, errors = data.mean + drawn @ data.basis.T, []
    for num in (129, 257):
        times = grid(FLOW, num)[::-1]
        options = {"schedule": FLOW}
        noise = samplers.invert(data.denoise(FLOW), x, times=times, **options)
        back = samplers.euler(
            data.denoise(FLOW), noise, times=times[::-1], clean=False, **options
        ).x
        exact = data.flow(FLOW, jnp.asarray(x), times[0], times[-1])
        errors.append([abs(noise - exact).max(), abs(back - x).max()])
    np.testing.assert_allclose(np.log2(np.divide(*errors)), 1, atol=0.1)
    assert np.max(errors) < 0.1


def test_guided_is_affine_and_the_same_for_eps_v_and_score():
    first, second = Gaussian.random(3, seed=1), Gaussian.random(3, seed=2)
    c, u = first.denoise(DDPM), second.denoise(DDPM)
    x, t = jax.random.normal(jax.random.key(0), (4, 3)), jnp.float32(0.4)
    alpha, sigma = float(DDPM.alpha(t)), float(DDPM.sigma(t))

    def mixed(w):
        return samplers.guided(c, u, guidance=w)(x, t)

    np.testing.assert_allclose(mixed(0.0), u(x, t), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(mixed(1.0), c(x, t), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        mixed(3.0), 3 * mixed(1.0) - 2 * mixed(0.0), rtol=1e-4, atol=1e-5
    )
    views = {  # An affine view of x_0 and back: eps, v and the score.
        "eps": (lambda x0: (x - alpha * x0) / sigma, lambda e: (x - sigma * e) / alpha),
        "v": (
            lambda x0: (alpha * x - x0) / sigma,
            lambda v: alpha * x - sigma * v,
        ),
        "score": (
            lambda x0: (alpha * x0 - x) / sigma**2,
            lambda s: (x + sigma**2 * s) / alpha,
        ),
    }
    for there, back in views.values():
        view = there(u(x, t)) + 3 * (there(c(x, t)) - there(u(x, t)))
        np.testing.assert_allclose(back(view), mixed(3.0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "knobs", "match"),
    [
        ("ddim", {"eta": 1.5}, r"eta must be in \[0, 1\], got 1.5; 1 is ddpm"),
        ("ddim", {"eta": -0.1}, r"eta must be in \[0, 1\], got -0.1"),
        ("ddpm", {"variance": "smal"}, "did you mean 'small'"),
        ("ddpm", {"keys": None}, r"keys must be \[B\], one per example, got None"),
        ("stochastic", {"churn": -1.0}, "churn must not be negative, got -1.0"),
        ("euler", {"times": np.zeros(0)}, "times must be"),
        ("euler", {"times": np.float32(0.5)}, r"times must be \[N\], got shape"),
        ("heun", {"times": np.array([0.1, 0.9])}, "times must decrease, from noise"),
        ("heun", {"denoise": lambda x, t: x[:, :1]}, r"estimate \(2, 1\)"),
        ("dpmpp_2m", {"x": np.float32(1)}, "x must have at least 1 axes"),
    ],
)
def test_samplers_name_a_wrong_argument(name, knobs, match, plain_errors):
    arguments = {"denoise": lambda x, t: 0.5 * x, "x": jnp.ones((2, 3))}
    arguments |= {"keys": keys_of(2), "times": grid(EDM, 5), "schedule": EDM}
    with pytest.raises(ValueError, match=f"{name}: .*{match}"):
        samplers.SAMPLERS[name](**{**arguments, **knobs})
