"""The variational bound of data whose density and best denoiser are known."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen import schedules
from jaxgen.losses import diffusion

STD = 0.5
X = np.array([[-0.9], [0.1], [0.4], [1.2]])
COPIES = 256
KEYS = jax.random.split(jax.random.key(2), 4)
LEARNED = schedules.LearnedGamma.init(
    jax.random.key(3), log_snr_max=11.0, log_snr_min=-5.0
)
CASES = {**{n: make() for n, make in schedules.SCHEDULES.items()}, "learned": LEARNED}


def bound(schedule, x, keys, **options):
    """The bound of N(0, STD^2), by the best denoiser; the mean of COPIES of each."""

    def denoise(x_t, t):
        alpha, sigma = schedule.alpha(t)[:, None], schedule.sigma(t)[:, None]
        return alpha * STD**2 / (alpha**2 * STD**2 + sigma**2) * x_t

    options = {"num_samples": 200, "sigma_data": STD, **options}
    function = functools.partial(
        diffusion.variational_bound, denoise, schedule=schedule, **options
    )
    many = jax.vmap(lambda key: jax.random.split(key, COPIES))(keys).reshape(-1)
    terms = jax.jit(function)(np.repeat(x, COPIES, axis=0), many)
    means = [np.asarray(field).reshape(-1, COPIES).mean(1) for field in terms]
    means[-1] /= np.sqrt(COPIES)
    return diffusion.BoundTerms(*map(jnp.asarray, means))


def ends(schedule):
    """Where log_snr is 11 and -5."""
    first, last = np.asarray(schedule.inverse(np.array([11.0, -5.0])))
    return max(float(first), 0.0), min(float(last), 1.0)


def check_equal(terms, nats):
    off = np.abs(terms.total - nats)
    assert np.all(off < 4 * terms.standard_error), off
    assert np.all(terms.standard_error < 0.15)


@pytest.mark.parametrize("name", sorted(CASES))
def test_bound_of_gaussian_data_is_its_density_on_every_schedule(name):
    exact = 0.5 * np.log(2 * np.pi * STD**2) + 0.5 * X[:, 0] ** 2 / STD**2
    with jax.enable_x64(True):
        schedule = CASES[name]
        check_equal(bound(schedule, X, KEYS, ends=ends(schedule)), exact)
        if name in ("learned", "cosine"):
            in_time = bound(schedule, X, KEYS, ends=ends(schedule), uniform_in="time")
            check_equal(in_time, exact)


def test_bound_of_learned_gamma_does_not_depend_on_the_curve_but_its_error_does():
    steep = dataclasses.replace(
        LEARNED, heights=LEARNED.heights + 3, centres=0.2 * LEARNED.centres
    )
    in_time = {"uniform_in": "time"}
    terms = [bound(s, X, KEYS, **in_time) for s in (LEARNED, steep)]
    both = terms[0].standard_error + terms[1].standard_error
    assert np.all(np.abs(terms[0].total - terms[1].total) < 4 * both)
    assert np.all(np.abs(terms[0].standard_error / terms[1].standard_error - 1) > 0.05)


def test_bound_in_discrete_time_is_its_sum_and_falls_with_the_number_of_steps():
    schedule, totals = schedules.GeometricVE(0.01, 20.0), []
    for num_steps in (3, 6, 12, 24):
        terms = bound(schedule, X, KEYS, num_steps=num_steps)
        t = np.arange(num_steps + 1) / num_steps
        variance = (0.01 * 2000**t) ** 2
        gain = STD**2 / (STD**2 + variance[1:])
        error = ((1 - gain) * X) ** 2 + gain**2 * variance[1:]
        exact = 0.5 * np.sum((1 / variance[:-1] - 1 / variance[1:]) * error, axis=1)
        off = np.abs(terms.diffusion - exact)
        assert np.all(off < 4 * terms.standard_error)
        totals.append(exact + terms.prior + terms.reconstruction)
    assert np.all(np.diff(totals, axis=0) < 0)
    density = 0.5 * np.log(2 * np.pi * STD**2) + 0.5 * X[:, 0] ** 2 / STD**2
    assert np.all(totals[-1] > density)


def test_bound_of_gaussian_data_from_a_standard_prior_is_the_golden_number():
    with jax.enable_x64(True):
        schedule = schedules.LearnedGamma.init(
            jax.random.key(0), log_snr_max=14.0, log_snr_min=-5.0
        )
        x = STD * np.array([[-1.0], [1.0]])  # Of second moment STD^2, exactly.
        terms = bound(schedule, x, KEYS[:2], sigma_data=1.0)
        assert np.mean(terms.standard_error) < 0.05
        error = 4 * np.mean(terms.standard_error)
        np.testing.assert_allclose(np.mean(terms.total), 0.725799, atol=error)
        rest = np.mean(terms.prior + terms.reconstruction)
        least, most = np.exp(14.0), np.exp(-5.0)
        diffused = 0.5 * (np.log1p(STD**2 * least) - np.log1p(STD**2 * most))
        np.testing.assert_allclose(rest + diffused, 0.725799, atol=2e-6)


def test_bound_is_of_each_example_alone_in_any_event_shape():
    schedule = CASES["ve"]
    images = np.random.default_rng(0).normal(size=(4, 2, 3, 1)).astype(np.float32)

    def denoise(x_t, t):
        return x_t / (1 + jnp.expand_dims(schedule.sigma(t), (1, 2, 3)) ** 2)

    evaluate = functools.partial(
        diffusion.variational_bound, denoise, schedule=schedule, num_samples=3
    )
    whole = evaluate(images, KEYS)
    part = evaluate(images[2:3], KEYS[2:3])
    for field, alone in zip(whole, part, strict=True):
        assert field.shape == (4,)
        np.testing.assert_allclose(field[2:3], alone, rtol=1e-4)
    assert np.all(np.isfinite(whole.standard_error))
    single = diffusion.variational_bound(
        denoise, images, KEYS, schedule=schedule, num_samples=1
    )
    assert np.all(np.isinf(single.standard_error))


# ---- discrete data


LEVELS = np.array([-1.0, 0.0, 1.0])
PROBABILITIES = np.array([0.5, 0.3, 0.2])


def test_bound_of_discrete_data_is_above_its_entropy_and_tight():
    schedule = schedules.GeometricVE(0.1, 50.0)

    def denoise(x_t, t):
        precision = schedule.sigma(t)[:, None] ** -2
        logits = (
            np.log(PROBABILITIES)[None] - 0.5 * precision * (x_t - LEVELS[None]) ** 2
        )
        return jnp.sum(jax.nn.softmax(logits) * LEVELS[None], axis=1, keepdims=True)

    evaluate = functools.partial(
        diffusion.variational_bound,
        denoise,
        schedule=schedule,
        num_samples=500,
        sigma_data=float(np.sqrt(PROBABILITIES @ LEVELS**2)),
        levels=LEVELS,
    )
    copies = 512
    x = np.repeat(LEVELS[:, None], copies, axis=0)
    terms = jax.jit(evaluate)(x, jax.random.split(KEYS[0], len(x)))
    totals, errors = (
        np.asarray(field).reshape(3, copies).mean(1)
        for field in (terms.total, terms.standard_error)
    )
    entropy = -PROBABILITIES @ np.log(PROBABILITIES)
    error = np.sqrt(PROBABILITIES**2 @ errors**2 / copies)
    gap = PROBABILITIES @ totals - entropy
    assert error < 0.01
    assert -4 * error < gap < 0.01 + 4 * error


def test_levels_reconstruction_equals_its_formula_and_sums_to_one():
    x = np.float32([[-1, 0], [1, 1], [0, -1]])
    keys = KEYS[:3]
    got = diffusion.levels_reconstruction(x, keys, log_snr=0.7, levels=LEVELS)
    eps = np.stack([jax.random.normal(key, (2,)) for key in keys])
    x_0 = x + np.exp(-0.35) * eps
    odds = np.exp(-0.5 * np.exp(0.7) * (x_0[..., None] - LEVELS) ** 2)
    probabilities = odds / odds.sum(-1, keepdims=True)
    picked = np.take_along_axis(probabilities, (x[..., None] + 1).astype(int), -1)
    np.testing.assert_allclose(got, -np.log(picked[..., 0]).sum(1), rtol=1e-5)
    # Without any signal all nine images are as likely: exp(-got) is 1 / 9 for each.
    blind = diffusion.levels_reconstruction(x, keys, log_snr=-40.0, levels=LEVELS)
    np.testing.assert_allclose(np.exp(-blind), 1 / 9, rtol=1e-5)
    clear = diffusion.levels_reconstruction(x, keys, log_snr=9.0, levels=LEVELS)
    np.testing.assert_allclose(clear, 0, atol=1e-6)


# ---- messages


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (
            {"schedule": CASES["ddpm"]},
            r"variational_bound: log_snr must be finite at the ends, got inf at t = 0.0",
        ),
        (
            {"schedule": CASES["cosine"], "ends": (0.1, 1.0)},
            r"log_snr must be finite at the ends, got -inf at t = 1.0 of Cosine",
        ),
        ({"ends": (1.0, 0.0)}, r"variational_bound: ends must rise within \[0, 1\]"),
        ({"num_samples": 0}, r"variational_bound: num_samples must be positive"),
        ({"num_steps": 0}, r"variational_bound: num_steps must be positive"),
        ({"uniform_in": "times"}, r"unknown uniform_in 'times'; did you mean 'time'"),
    ],
)
def test_bound_names_wrong_arguments(plain_errors, options, match):
    options = {"schedule": CASES["ve"], "num_samples": 2, **options}
    with pytest.raises(ValueError, match=match):
        diffusion.variational_bound(lambda x, t: x, X, KEYS, **options)
