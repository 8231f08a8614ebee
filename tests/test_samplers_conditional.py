"""Answers of a Gaussian of which a linear part is seen: the exact posterior is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen import operators, samplers, schedules
from jaxgen.verify.gaussians import Gaussian, grid

EDM, COSINE = schedules.EDM(), schedules.Cosine()
SIZE = 2, 2, 3
HIDDEN = jnp.zeros((1, *SIZE[:2], 1)).at[0, :, 1].set(1)
OPERATORS = {
    "luma": operators.luma(),
    "mask": operators.mask(HIDDEN),
    "block_mean": operators.block_mean(2),
}
CORRELATED = Gaussian.random(12)
ALIKE = Gaussian(CORRELATED.mean, CORRELATED.basis, np.full(12, 0.6))  # 0.36 I
SEEN = 1.5


def keys_of(num, seed=0):
    return jax.random.split(jax.random.key(seed), num)


def posterior(gaussian, operator, y, noise_std=0.0):
    """Mean `[D]` and covariance `[D, D]` given y of one example, and A as a matrix."""
    units = jnp.eye(12).reshape(12, *SIZE)
    a = np.asarray(operator.apply(units), np.float64).reshape(12, -1).T
    s, y = gaussian.covariance, np.asarray(y, np.float64).reshape(-1)
    gain = s @ a.T @ np.linalg.pinv(a @ s @ a.T + noise_std**2 * np.eye(len(a)))
    return gaussian.mean + gain @ (y - a @ gaussian.mean), s - gain @ a @ s


def seen_of(operator, num):
    """y of an image that is far from the mean, and the same for all `num`."""
    image = jnp.asarray(np.random.default_rng(4).normal(size=(1, *SIZE)))
    return jnp.broadcast_to(
        operator.apply(image), (num, *operator.apply(image).shape[1:])
    )


def ends(gaussian, guide, schedule, noise_std):
    """The sampler as an affine map of its first noise: matrix and offset, by operator."""
    times = grid(schedule, 97)
    units = jnp.concatenate([jnp.zeros((1, 12)), jnp.eye(12)]).reshape(13, *SIZE)
    options = {"schedule": schedule, "noise_std": noise_std}

    @jax.jit
    def run(x):
        found = {}
        for name, operator in OPERATORS.items():
            denoise = guide(
                gaussian.denoise(schedule), operator, seen_of(operator, 13), **options
            )
            chain = samplers.heun(
                denoise, x, schedule=schedule, times=times, clean=False
            )
            found[name] = chain.x.reshape(13, 12)
        return found

    found = run(units)
    return {
        n: (np.asarray(x[1:] - x[:1]).T, np.asarray(x[0])) for n, x in found.items()
    }


@pytest.mark.parametrize(
    ("method", "schedule", "noise_std"),
    [
        ("pseudo_inverse", EDM, 0.0),
        ("pseudo_inverse", COSINE, 0.3),
        ("moments", COSINE, 0.0),
        ("moments", EDM, 0.3),
    ],
    ids=str,
)
def test_guidance_leads_to_the_exact_posterior(method, schedule, noise_std, x64):
    """PiGDM for one variance in all directions, moments for any Gaussian."""

    def by_pseudo_inverse(denoise, operator, y, **options):
        return samplers.pseudo_inverse_guided(
            denoise, operator, y, scale=0.6, **options
        )

    def by_moments(denoise, operator, y, **options):
        return samplers.moment_guided(denoise, operator, y, iterations=8, **options)

    guide, gaussian = {
        "pseudo_inverse": (by_pseudo_inverse, ALIKE),
        "moments": (by_moments, CORRELATED),
    }[method]
    first, last = grid(schedule, 97)[[0, -1]]
    found = ends(gaussian, guide, schedule, noise_std)
    for name, (map_, offset) in found.items():
        operator = OPERATORS[name]
        mean, covariance = posterior(
            gaussian, operator, seen_of(operator, 1), noise_std
        )
        alpha, sigma = (float(f(first)) for f in (schedule.alpha, schedule.sigma))
        begun = alpha**2 * covariance + sigma**2 * np.eye(12)
        end_alpha, end_sigma = (
            float(f(last)) for f in (schedule.alpha, schedule.sigma)
        )
        ended = end_alpha**2 * covariance + end_sigma**2 * np.eye(12)
        np.testing.assert_allclose(
            map_ @ (alpha * mean) + offset, end_alpha * mean, atol=2e-3, err_msg=name
        )
        np.testing.assert_allclose(
            map_ @ begun @ map_.T, ended, atol=2e-3, err_msg=name
        )


def pair(c):
    """N(0, [[1, c], [c, 1]]), as images of one pixel above another."""
    basis = np.array([[1, 1], [1, -1]]) / np.sqrt(2)
    return Gaussian(np.zeros(2), basis, np.sqrt([1 + c, 1 - c]))


UPPER = operators.mask(jnp.array([0.0, 1.0]).reshape(1, 2, 1, 1))


def answers(method, c, num, num_steps=100, schedule=EDM, **options):
    """x_2 of samples of which x_1 = 1.5 is seen, `[num]`, and x_1."""
    times = grid(schedule, num_steps)
    denoise = pair(c).denoise(schedule)
    y = jnp.broadcast_to(jnp.array([SEEN, 7.0]).reshape(1, 2, 1, 1), (num, 2, 1, 1))
    keys, noise = keys_of(num), keys_of(num, seed=1)
    x = jax.vmap(lambda key: jax.random.normal(key, (2, 1, 1)))(noise)
    x = jnp.float32(schedule.sigma(times[0])) * x
    given = {"operator": UPPER, "y": y}

    @jax.jit
    def run(x, keys):
        common = {"schedule": schedule, "times": times}
        if method in ("moment_guided", "pseudo_inverse_guided"):
            guide = getattr(samplers, method)
            guided = guide(denoise, UPPER, y, schedule=schedule, **options)
            return samplers.ddpm(guided, x, keys, **common).x
        return getattr(samplers, method)(
            denoise, x, keys, **given, **common, **options
        ).x

    found = np.asarray(run(x, keys), np.float64).reshape(num, 2)
    return found[:, 1], found[:, 0]


def of_replacement(c, resamples, num_steps=100):
    """Mean and variance of x_2 by hand: each step is linear, in x / alpha on any path."""
    sigmas = np.asarray(EDM.sigma(jnp.asarray(grid(EDM, num_steps))), np.float64)
    s = np.array([[1, c], [c, 1]])
    mean, variance = 0.0, 50.0**2
    for here, there in zip(sigmas[:-1] ** 2, sigmas[1:] ** 2, strict=True):
        shrink = s @ np.linalg.inv(s + here * np.eye(2))
        kept = there / here
        of = (1 - kept) * shrink[1] + kept * np.array([0, 1])
        for number in range(resamples):
            if number:
                variance += here - there
            mean = of @ [SEEN, mean]
            variance = of**2 @ [here, variance] + there * (1 - kept)
    last = s @ np.linalg.inv(s + sigmas[-1] ** 2 * np.eye(2))
    return last[1] @ [SEEN, mean], last[1] ** 2 @ [sigmas[-1] ** 2, variance]


def within(found, mean, variance, errors=3.0):
    """Whether mean and variance of samples are so within standard errors."""
    num = len(found)
    off = (found.mean() - mean) / np.sqrt(variance / num)
    off_variance = (found.var() / variance - 1) / np.sqrt(2 / num)
    return abs(off) < errors and abs(off_variance) < errors, (off, off_variance)


@pytest.mark.parametrize(
    ("c", "most", "schedule"), [(0.5, 20, EDM), (0.9, 5, schedules.RectifiedFlow())]
)
def test_replacement_has_its_known_bias_and_repaint_less(c, most, schedule):
    """Facts: true mean 0.75 and 1.35; replacement 0.402 and 0.940 in the limit."""
    limit = SEEN * (1 - np.sqrt(1 - c**2)) / c
    limit_variance = (1 - c**2) / (2 * c) * np.log((1 + c) / (1 - c))
    mean, variance = of_replacement(c, 1, 2000)
    np.testing.assert_allclose([mean, variance], [limit, limit_variance], rtol=0.01)
    distances = []
    for method, options in (("replacement", {}), ("repaint", {"resamples": most})):
        found, upper = answers(method, c, 1000, 60, schedule, **options)
        np.testing.assert_allclose(upper, SEEN, rtol=1e-6)  # A x = y
        fits, off = within(found, *of_replacement(c, most if options else 1, 60))
        assert fits, (method, off)
        distances.append(c * SEEN - found.mean())
    assert distances[0] > 0.8 * (c * SEEN - limit)
    assert abs(distances[1]) < 0.3 * distances[0]


def test_what_replacement_puts_in_place_is_noised():
    """In few steps the noise in x_1 reaches x_2: without it the variance is 0.152."""
    found, _ = answers("replacement", 0.9, 4000, 6)
    mean, variance = of_replacement(0.9, 1, 6)
    np.testing.assert_allclose(variance, 0.2156, atol=1e-4)
    fits, off = within(found, mean, variance)
    assert fits, off


def test_samples_by_moments_are_those_of_the_posterior():
    """Mean and variance within 3 standard errors, where replacement is 24 off."""
    num, c = 4000, 0.5
    found, upper = answers("moment_guided", c, num, 400)
    fits, off = within(found, c * SEEN, 1 - c**2)
    assert fits, off
    np.testing.assert_allclose(upper, SEEN, atol=1e-3)
    by_replacement, _ = of_replacement(c, 1, 400)
    assert (c * SEEN - by_replacement) / np.sqrt((1 - c**2) / num) > 20


def test_one_variance_for_all_is_wrong_of_correlated_data():
    """Told in the docs: PiGDM is off here, though less than replacement."""
    c, num = 0.5, 4000
    found, upper = answers("pseudo_inverse_guided", c, num)
    fits, _ = within(found, c * SEEN, 1 - c**2)
    assert not fits
    assert abs(found.mean() - c * SEEN) < abs(of_replacement(c, 1)[0] - c * SEEN)
    np.testing.assert_allclose(upper, SEEN, atol=1e-3)


def test_dps_steps_down_the_gradient_of_the_distance(x64):
    """By the slope along a schedule of unit norm, whatever schedule it steps along."""
    operator, size = OPERATORS["block_mean"], 0.7
    y = seen_of(operator, 3)

    @jax.jit
    def both(x):
        levels = -2 * jnp.log(jnp.array([1.5, 1.0]))
        times, vp_time = EDM.inverse(levels), COSINE.inverse(levels)[0]
        norms, denoise = jnp.hypot(1, EDM.sigma(times)), CORRELATED.denoise(EDM)
        options = {"schedule": EDM, "times": times}
        led = samplers.dps(
            denoise, norms[0] * x, keys_of(3), operator=operator, y=y, step_size=size,
            **options,
        )  # fmt: skip
        free = samplers.ddpm(denoise, norms[0] * x, keys_of(3), **options)

        def distance(x):
            missing = y - operator.apply(CORRELATED.denoise(COSINE)(x, vp_time))
            return jnp.linalg.norm(missing.reshape(3, -1), axis=1).sum()

        slope = jax.grad(distance)(x)
        # Both chains end by the estimate, which is affine in where the step ended.
        expected = denoise(x - norms[1] * size * slope, times[1]) - denoise(x, times[1])
        # The way of pseudo-inverse guidance, whose length is another.
        vp = CORRELATED.denoise(COSINE)
        guided = samplers.pseudo_inverse_guided(vp, operator, y, schedule=COSINE)
        way = guided(x, vp_time) - vp(x, vp_time)
        return led.x - free.x, expected, way.reshape(3, -1), slope.reshape(3, -1)

    x = jnp.asarray(np.random.default_rng(5).normal(size=(3, *SIZE)))
    moved, expected, way, slope = map(np.asarray, both(x))
    np.testing.assert_allclose(moved, expected, rtol=1e-6, atol=1e-9)
    cosine = (way * slope).sum(1) / np.linalg.norm(way, axis=1)
    np.testing.assert_allclose(cosine, -np.linalg.norm(slope, axis=1))


def test_dps_comes_near_y():
    _, upper = answers("dps", 0.5, 200, 100, step_size=0.3)
    _, free = answers("dps", 0.5, 200, 100, step_size=0.0)
    assert np.abs(upper - SEEN).mean() < 0.25
    assert np.abs(free - SEEN).mean() > 1


@pytest.mark.parametrize(
    "method", ["pseudo_inverse_guided", "moment_guided", "dps", "repaint"]
)
def test_an_answer_belongs_to_its_example(method):
    """From pure noise at alpha = 0, along rectified flow, to clean data."""
    schedule = schedules.RectifiedFlow()
    operator = OPERATORS["mask"]
    x = jnp.asarray(np.random.default_rng(6).normal(size=(5, *SIZE)), jnp.float32)
    y = operator.apply(x[::-1])
    times = schedules.uniform_times(4, end=0.25)

    def run(x, keys, y):
        denoise = CORRELATED.denoise(schedule)
        common = {"schedule": schedule, "times": times}
        if method.endswith("guided"):
            denoise = getattr(samplers, method)(denoise, operator, y, schedule=schedule)
            return samplers.ddpm(denoise, x, keys, **common).x
        sampler = getattr(samplers, method)
        options = {"resamples": 2} if method == "repaint" else {}
        return sampler(denoise, x, keys, operator=operator, y=y, **common, **options).x

    run = jax.jit(run)
    all_ = run(x, keys_of(5), y)
    assert np.isfinite(all_).all()
    other = jnp.array([3, 1, 1, 0, 4])
    again = run(x[other], keys_of(5)[other], y[other])
    np.testing.assert_allclose(again, all_[other], rtol=1e-5, atol=1e-6)


def test_conditional_samplers_refuse(plain_errors):
    operator, x = OPERATORS["luma"], jnp.zeros((2, *SIZE))
    denoise, t = CORRELATED.denoise(EDM), jnp.float32(0.5)
    for method in (samplers.pseudo_inverse_guided, samplers.moment_guided):
        name = method.__name__
        with pytest.raises(ValueError, match=f"{name}: y and seen must have the same"):
            method(denoise, operator, x, schedule=EDM)(x, t)
        with pytest.raises(ValueError, match="noise_std must not be negative, got -1"):
            method(denoise, operator, x, schedule=EDM, noise_std=-1.0)
    given = {"schedule": EDM, "times": jnp.array([0.5, 0.1]), "operator": operator}
    y = operator.apply(x)
    with pytest.raises(ValueError, match="repaint: resamples must be positive, got 0"):
        samplers.repaint(denoise, x, keys_of(2), y=y, resamples=0, **given)
    for method in (samplers.repaint, samplers.replacement, samplers.dps):
        with pytest.raises(ValueError, match=r"keys must be \[B\], one per example"):
            method(denoise, x, None, y=y, **given)
