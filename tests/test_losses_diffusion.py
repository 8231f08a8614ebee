"""Targets, weights and levels: Gaussian data, where the best denoiser is known."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxgen import schedules
from jaxgen.losses import diffusion

KEY = jax.random.key(0)
MEAN = np.array([0.3, -0.2, 0.5])
TURN, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))
STDS = np.array([0.2, 0.7, 1.5])
COVARIANCE = TURN @ np.diag(STDS**2) @ TURN.T


def best_denoiser(x_t, alpha, sigma):
    """E[x_0 | x_t] of N(MEAN, COVARIANCE), for x_t `[B, 3]`, alpha and sigma `[B]`."""
    alpha, sigma = alpha[:, None], sigma[:, None]
    gain = alpha * STDS[None] ** 2 / (alpha**2 * STDS[None] ** 2 + sigma**2)
    return MEAN[None] + (gain * ((x_t - alpha * MEAN[None]) @ TURN)) @ TURN.T


def noisy(num, seed=0):
    """x0, eps `[N, 3]`, alpha, sigma `[N]`: Gaussian data on the cosine schedule."""
    rng = np.random.default_rng(seed)
    x0 = MEAN + (rng.normal(size=(num, 3)) * STDS) @ TURN.T
    t = rng.uniform(0.1, 0.9, num)
    schedule = schedules.Cosine()
    alpha, sigma = np.asarray(schedule.alpha(t)), np.asarray(schedule.sigma(t))
    return x0, rng.normal(size=(num, 3)), alpha, sigma


def truth(target, x0, eps, alpha, sigma, sigma_data):
    """The targets by their definitions."""
    alpha, sigma = np.reshape(alpha, (-1, 1)), np.reshape(sigma, (-1, 1))
    x_t = alpha * x0 + sigma * eps
    if target == "edm":
        # Karras et al., table 1, of x_t / alpha at noise sigma / alpha.
        noise, x = sigma / alpha, x_t / alpha
        skip = sigma_data**2 / (noise**2 + sigma_data**2)
        out = noise * sigma_data / np.sqrt(noise**2 + sigma_data**2)
        return (x0 - skip * x) / out
    return {
        "x0": x0,
        "eps": eps,
        "v": (alpha * eps - sigma * x0) / np.hypot(alpha, sigma),
        "velocity": eps - x0,
    }[target]


# ---- targets


@pytest.mark.parametrize("target", diffusion.TARGETS)
def test_targets_follow_their_definitions_both_ways(target):
    with jax.enable_x64(True):
        x0, eps, _, _ = noisy(6)
        alpha = np.array([1e-3, 0.3, 0.6, 0.8, 1.0, 1.0])
        sigma = np.array([1.0, 1.2, 0.8, 0.6, 1e-4, 80.0])
        x_t = diffusion.noised(x0, eps, alpha, sigma)
        goal = truth(target, x0, eps, alpha, sigma, 0.6)
        scales = {"target": target, "sigma_data": 0.6}
        got = diffusion.from_x0(x0, x_t, alpha, sigma, **scales)
        np.testing.assert_allclose(got, goal, rtol=1e-8, atol=1e-8)
        back = diffusion.to_x0(goal, x_t, alpha, sigma, **scales)
        np.testing.assert_allclose(back, x0, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("target", diffusion.TARGETS)
@pytest.mark.parametrize(("alpha", "sigma"), [(0.0, 1.0), (1.0, 0.0)])
def test_to_x0_is_exact_at_the_ends(target, alpha, sigma):
    if target == "eps" and alpha == 0:
        return
    x0, eps, _, _ = noisy(4)
    x_t = alpha * x0 + sigma * eps
    # F = (sigma x_0 / sigma_data - alpha sigma_data eps) / sqrt(...), where it is 0 / 0.
    edm = x0 / 0.6 if alpha == 0 else -eps
    goal = edm if target == "edm" else truth(target, x0, eps, alpha, sigma, 0.6)
    got = diffusion.to_x0(goal, x_t, alpha, sigma, target=target, sigma_data=0.6)
    np.testing.assert_allclose(got, x0, rtol=1e-5, atol=1e-5)


def test_scores_are_those_of_gaussian_data():
    with jax.enable_x64(True):
        x0, eps, alpha, sigma = noisy(5)
        x_t = diffusion.noised(x0, eps, alpha, sigma)

        def log_density(x, alpha, sigma):
            covariance = alpha**2 * COVARIANCE + sigma**2 * np.eye(3)
            return jax.scipy.stats.multivariate_normal.logpdf(
                x, alpha * MEAN, covariance
            )

        score = jax.vmap(jax.grad(log_density))(x_t, alpha, sigma)
        x0_hat = best_denoiser(x_t, alpha, sigma)
        np.testing.assert_allclose(
            diffusion.x0_to_score(x0_hat, x_t, alpha, sigma), score, rtol=1e-9
        )
        np.testing.assert_allclose(
            diffusion.score_to_x0(score, x_t, alpha, sigma), x0_hat, rtol=1e-9
        )


def test_edm_input_and_target_have_unit_variance():
    sigma_data = float(np.sqrt(np.trace(COVARIANCE) / 3))
    rng = np.random.default_rng(1)
    x0 = (rng.normal(size=(100_000, 3)) * STDS) @ TURN.T
    eps = rng.normal(size=x0.shape)
    for alpha, sigma in ((1.0, 0.01), (1.0, 80.0), (0.6, 0.8), (0.0, 1.0)):
        x_t = alpha * x0 + sigma * eps
        scale = diffusion.edm_input_scale(alpha, sigma, sigma_data=sigma_data)
        goal = diffusion.from_x0(
            x0, x_t, alpha, sigma, target="edm", sigma_data=sigma_data
        )
        np.testing.assert_allclose(np.mean((scale * x_t) ** 2), 1, rtol=0.02)
        np.testing.assert_allclose(np.mean(goal**2), 1, rtol=0.02)


def test_eps_without_signal_is_refused(plain_errors):
    x = np.zeros((2, 3))
    with pytest.raises(
        ValueError, match=r"to_x0: alpha must not be 0 for target 'eps'"
    ):
        diffusion.to_x0(x, x, np.array([0.5, 0.0]), 1.0, target="eps")
    with pytest.raises(ValueError, match=r"to_x0: alpha must not be 0"):
        diffusion.score_to_x0(x, x, 0.0, 1.0)
    with pytest.raises(ValueError, match=r"from_x0: sigma must not be 0 for .* 'v'"):
        diffusion.from_x0(x, x, 1.0, 0.0, target="v")
    for name in ("cosine", "rectified_flow"):
        schedule = schedules.SCHEDULES[name]()
        match = r"check_target: alpha must not be 0 for target 'eps' at t = 1.0 of "
        with pytest.raises(ValueError, match=match):
            diffusion.check_target(schedule, "eps")
        diffusion.check_target(schedule, "eps", start=0.999)
        diffusion.check_target(schedule, "edm")
    for name in ("ddpm", "edm", "ve"):
        diffusion.check_target(schedules.SCHEDULES[name](), "eps")
    learned = schedules.LearnedGamma.init(KEY)
    jax.jit(lambda s: diffusion.check_target(s, "eps"))(learned)


# ---- weights


def test_simple_weight_is_the_squared_error_of_the_target():
    with jax.enable_x64(True):
        x0, eps, alpha, sigma = noisy(50)
        x0_hat = x0 + np.random.default_rng(3).normal(size=x0.shape)
        for target in diffusion.TARGETS:
            # Schedules on which alpha^2 + sigma^2 is 1, and on which it is not.
            others = {"velocity": 1 - sigma, "v": np.ones_like(sigma)}
            a, s = others.get(target, alpha), sigma
            x_t = diffusion.noised(x0, eps, a, s)
            goal, got = (
                diffusion.from_x0(x, x_t, a, s, target=target, sigma_data=0.6)
                for x in (x0, x0_hat)
            )
            loss = diffusion.denoising_loss(
                x0,
                x0_hat,
                2 * np.log(a / s),
                weighting="simple",
                target=target,
                sigma_data=0.6,
            )
            expected = np.sum(np.square(goal - got), axis=1)
            np.testing.assert_allclose(loss, expected, rtol=1e-9)


def test_weights_by_their_formulas():
    log_snr = np.linspace(-9, 9, 19)
    snr = np.exp(log_snr)
    with jax.enable_x64(True):
        weight = diffusion.loss_weight
        got = weight(log_snr, weighting="min_snr", gamma=3.0)
        np.testing.assert_allclose(got, np.minimum(snr, 3), rtol=1e-12)
        got = weight(log_snr, weighting="edm", target="v", sigma_data=0.5)
        noise = np.exp(-0.5 * log_snr)
        np.testing.assert_allclose(got, (noise**2 + 0.25) / (0.5 * noise) ** 2)
        got = weight(log_snr, weighting="vlb")
        np.testing.assert_allclose(got, 0.5 * snr)
        got = weight(log_snr, weighting="sigmoid", bias=-1.0)
        # On the error of eps it is sigmoid(bias - log_snr) / 2.
        np.testing.assert_allclose(got / snr, 0.5 / (1 + np.exp(log_snr + 1)))


COMBINATIONS = [
    *itertools.product(["simple"], diffusion.TARGETS),
    *itertools.product(["min_snr", "edm", "sigmoid", "vlb"], ["eps"]),
]


def test_losses_are_least_at_the_best_denoiser_and_known_there():
    x0, eps, alpha, sigma = noisy(40_000)
    x_t = alpha[:, None] * x0 + sigma[:, None] * eps
    best = best_denoiser(x_t, alpha, sigma)
    log_snr = 2 * np.log(alpha / sigma)
    variance = alpha[:, None] ** 2 * STDS**2 + sigma[:, None] ** 2
    floor = np.sum(STDS**2 * sigma[:, None] ** 2 / variance, axis=1)
    worse = {
        "shifted": best + 0.05,
        "shrunk": MEAN + 0.9 * (best - MEAN),
        "noisy": best + 0.05 * np.sin(20 * x_t),
    }
    for weighting, target in COMBINATIONS:
        options = {"weighting": weighting, "target": target, "sigma_data": 0.6}
        loss = np.asarray(diffusion.denoising_loss(x0, best, log_snr, **options))
        weight = np.asarray(diffusion.loss_weight(log_snr, **options))
        off = loss - weight * floor
        assert abs(off.mean()) < 4 * off.std() / np.sqrt(off.size), (weighting, target)
        for name, changed in worse.items():
            more = diffusion.denoising_loss(x0, changed, log_snr, **options) - loss
            assert more.mean() > 4 * more.std() / np.sqrt(more.size), (weighting, name)


# ---- levels


def test_levels_are_uniform_each_by_itself():
    keys = jax.random.split(KEY, 2000)
    index = np.array([0, 3, 1_000_003])
    draws = {
        "stratified": lambda key: diffusion.stratified_levels(key, index % 8, 8),
        "golden": lambda key: diffusion.stratified_levels(key, index),
        "antithetic": lambda key: diffusion.antithetic_levels(key, index),
    }
    for name, draw in draws.items():
        levels = np.asarray(jax.jit(jax.vmap(draw))(keys))
        for column in levels.T:
            assert scipy.stats.kstest(column, "uniform").pvalue > 1e-3, name
    levels = diffusion.uniform_levels(keys)
    assert scipy.stats.kstest(levels, "uniform").pvalue > 1e-3
    np.testing.assert_array_equal(diffusion.uniform_levels(keys[5:9]), levels[5:9])


@pytest.mark.parametrize("num", [1, 7, 128])
def test_stratified_levels_are_one_in_each_stratum(num):
    draw = jax.jit(lambda key: diffusion.stratified_levels(key, jnp.arange(num), num))
    for seed in range(20):
        levels = np.asarray(draw(jax.random.key(seed)))
        np.testing.assert_array_equal(np.sort(np.floor(levels * num)), np.arange(num))
        assert np.all((levels >= 0) & (levels < 1))


def test_golden_levels_do_not_depend_on_the_cut_and_are_evenly_spread():
    start = 5_000_000  # A float32 product would have lost the fraction.
    index = np.arange(start, start + 256)
    whole = np.asarray(diffusion.stratified_levels(KEY, index))
    parts = [diffusion.stratified_levels(KEY, part) for part in np.split(index, 4)]
    np.testing.assert_array_equal(whole, np.concatenate(parts))
    assert np.all((whole >= 0) & (whole < 1))
    for num in (16, 64, 256):
        discrepancy = scipy.stats.kstest(whole[:num], "uniform").statistic
        assert discrepancy < 2.5 * np.log2(num) / num / 2
    np.testing.assert_allclose(np.diff(whole) % 1, (np.sqrt(5) - 1) / 2, atol=1e-6)


def test_antithetic_levels_come_in_pairs():
    levels = np.asarray(diffusion.antithetic_levels(KEY, np.arange(8)))
    np.testing.assert_allclose(levels[::2] + levels[1::2], 1, atol=2e-7)
    np.testing.assert_array_equal(
        diffusion.antithetic_levels(KEY, np.arange(4, 8)), levels[4:]
    )
    assert len(set(levels)) == 8


def test_noise_distributions_equal_scipy():
    u = np.linspace(0.001, 0.999, 99)
    with jax.enable_x64(True):
        sigma = diffusion.log_normal_sigma(u, mean=-1.0, std=1.4)
        expected = scipy.stats.lognorm.ppf(u, 1.4, scale=np.exp(-1.0))
        np.testing.assert_allclose(sigma, expected, rtol=1e-9)
        t = diffusion.logit_normal_time(u, mean=0.5, std=0.8)
        logit = np.log(t / (1 - t))
        np.testing.assert_allclose(scipy.stats.norm.cdf(logit, 0.5, 0.8), u, rtol=1e-9)
    ends = np.float32([0, 1 - 2**-24])
    assert np.all(np.isfinite(np.log(diffusion.log_normal_sigma(ends))))
    assert np.all(np.abs(diffusion.logit_normal_time(ends) - 0.5) < 0.5)


# ---- messages


X = np.zeros((4, 3), np.float32)
LOG_SNR = np.zeros(4, np.float32)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (
            lambda: diffusion.to_x0(X, X, 1.0, 1.0, target="epsilon"),
            r"to_x0: unknown target 'epsilon'; did you mean 'eps'\?",
        ),
        (
            lambda: diffusion.to_x0(X, X[:2], 1.0, 1.0, target="v"),
            r"to_x0: prediction and x_t must have the same shape",
        ),
        (
            lambda: diffusion.to_x0(X, X, LOG_SNR[:3], 1.0, target="v"),
            r"to_x0: alpha must be a scalar or \[B\] = \(4,\), got shape \(3,\)",
        ),
        (
            lambda: diffusion.loss_weight(LOG_SNR, weighting="minsnr"),
            r"loss_weight: unknown weighting 'minsnr'; did you mean 'min_snr'\?",
        ),
        (
            lambda: diffusion.loss_weight(LOG_SNR, weighting="edm", sigma_data=0.0),
            r"loss_weight: sigma_data must be positive",
        ),
        (
            lambda: diffusion.denoising_loss(X, X, LOG_SNR[:2], weighting="vlb"),
            r"denoising_loss: error and log_snr must have the same shape",
        ),
        (
            lambda: diffusion.stratified_levels(KEY, np.arange(4), 0),
            r"stratified_levels: num must be positive",
        ),
        (
            lambda: diffusion.log_normal_sigma(LOG_SNR, std=0.0),
            r"log_normal_sigma: std must be positive",
        ),
    ],
)
def test_diffusion_losses_name_wrong_arguments(plain_errors, call, match):
    with pytest.raises(ValueError, match=match):
        call()
