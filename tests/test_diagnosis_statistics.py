"""The statistics of a diagnosis against closed forms."""

import math

import numpy as np
import pytest

from jaxgen.evaluate.diagnosis import posteriors, variance

NUM = 4000


def linear_gaussian(slopes, sigma, num=NUM, seed=0):
    """x = slopes z + sigma eps, one number a variable, and its exact posterior.

    For z ~ N(0, 1): Q(z given x) = N(s x / (s^2 + sigma^2), sigma^2 / (s^2 + sigma^2)).
    """
    slopes, rng = np.asarray(slopes, np.float64), np.random.default_rng(seed)
    x = slopes * rng.standard_normal((num, len(slopes)))
    x = x + sigma * rng.standard_normal(x.shape)
    share = slopes**2 + sigma**2
    mu = slopes * x / share
    log_var = np.broadcast_to(np.log(sigma**2 / share), mu.shape)
    z = mu + np.exp(0.5 * log_var) * rng.standard_normal(mu.shape)
    return x, mu, log_var, z


def test_active_counts_the_variables_that_the_data_move():
    # Var mu_j = s^2 / (s^2 + sigma^2): 0.99, 0.5, 0.001, 0.
    _, mu, _, _ = linear_gaussian([10, 1, 0.0316, 0], 1.0)
    np.testing.assert_array_equal(posteriors.active(mu), [True, True, False, False])


def test_variance_law_is_one_of_an_exact_posterior_used_or_not():
    _, mu, log_var, _ = linear_gaussian([10, 1, 0.1, 0], 1.0)
    law = posteriors.variance_law(mu, log_var)
    # Var mu_j has the relative error sqrt(2 / N) = 0.022; nothing of the unused one.
    np.testing.assert_allclose(law, 1.0, atol=0.09)
    assert law[3] == pytest.approx(1.0, abs=1e-12)


def test_variance_law_takes_the_variance_not_the_deviation():
    log_var = np.array([[math.log(0.04)], [math.log(0.36)]])
    law = posteriors.variance_law(np.array([[1.0], [3.0]]), log_var)
    np.testing.assert_allclose(law, 1.0 + 0.2)


def test_mutual_information_is_that_of_a_gaussian_channel():
    """I = (1/2) sum log(1 + s^2 / sigma^2) nats, where log N is far above."""
    slopes = [1.0, 0.5, 0.0]
    _, mu, log_var, z = linear_gaussian(slopes, 1.0)
    told = posteriors.mutual_information(z, mu, log_var)
    exact = 0.5 * sum(math.log(1 + s**2) for s in slopes)
    assert told.nats == pytest.approx(exact, abs=0.05)
    assert told.ceiling == pytest.approx(math.log(NUM))


def test_mutual_information_is_0_of_one_posterior_and_log_n_of_separate_ones():
    rng = np.random.default_rng(1)
    z, same = rng.standard_normal((50, 3)), np.zeros((50, 3))
    told = posteriors.mutual_information(z, same, same)
    assert told.nats == pytest.approx(0.0, abs=1e-12)
    apart = 100.0 * np.arange(50)[:, None] + same
    told = posteriors.mutual_information(apart + 0.1 * z, apart, same - 4.0)
    assert told.nats == pytest.approx(math.log(50), abs=1e-12)


def test_mutual_information_does_not_depend_on_chunks(monkeypatch):
    _, mu, log_var, z = linear_gaussian([1.0, 0.5], 1.0, num=70)
    whole = posteriors.mutual_information(z, mu, log_var)
    monkeypatch.setattr(posteriors.distances, "PAIRS", 9 * 70)
    parts = posteriors.mutual_information(z, mu, log_var)
    assert parts.nats == pytest.approx(whole.nats, abs=1e-12)


def test_total_correlation_is_that_of_a_gaussian():
    """-(1/2) log det of the correlations, whatever the scales and places."""
    correlation = np.array([[1, 0.8, 0.0], [0.8, 1, -0.3], [0.0, -0.3, 1]])
    rng, factor = np.random.default_rng(2), np.linalg.cholesky(correlation)
    z = rng.standard_normal((NUM, 3)) @ factor.T * [1, 20, 0.1] + [3, 0, -5]
    exact = -0.5 * math.log(np.linalg.det(correlation))
    assert posteriors.total_correlation(z) == pytest.approx(exact, abs=0.03)


def test_total_correlation_of_independent_draws_is_their_bias():
    """About L (L - 1) / 4 N."""
    z = np.random.default_rng(3).standard_normal((500, 20))
    told = posteriors.total_correlation(np.concatenate([z, np.ones((500, 1))], axis=1))
    assert told == pytest.approx(20 * 19 / (4 * 500), rel=0.25)


def test_total_correlation_refuses_fewer_draws_than_variables():
    with pytest.raises(ValueError, match="more draws than variables, got 5 of 5"):
        posteriors.total_correlation(np.random.default_rng(0).standard_normal((5, 5)))


@pytest.mark.parametrize("function", ["variance_law", "mutual_information"])
def test_unlike_shapes_are_refused(function):
    arrays = [np.zeros((4, 2))] * (function == "mutual_information")
    with pytest.raises(ValueError, match="must have the same shape"):
        getattr(posteriors, function)(*arrays, np.zeros((4, 2)), np.zeros((4, 3)))


def test_variance_loss_of_conditional_means_is_what_the_law_expects():
    """E[x | z] of x = s z + sigma eps keeps s^2 / (s^2 + sigma^2) of the variance."""
    x, mu, _, _ = linear_gaussian([2.0, 1.0], 1.0)
    slopes = np.array([2.0, 1.0])
    rebuilt = mu * slopes  # E[x | mu], which is a shrunk x
    told = variance.variance_loss(x, rebuilt)
    shares = slopes**2 / (slopes**2 + 1)
    np.testing.assert_allclose(told.by_number, shares**2, rtol=1e-9)
    kept = np.sum(shares**2 * (slopes**2 + 1)) / np.sum(slopes**2 + 1)
    assert told.ratio == pytest.approx(kept, rel=0.02)


def test_variance_loss_of_the_best_guess_from_a_draw_meets_the_expected_ratio():
    """Of E[x | z] at the true z: Var = s^2, MSE = sigma^2, of Var x = s^2 + sigma^2."""
    rng, s, sigma = np.random.default_rng(4), 1.0, 0.5
    z = rng.standard_normal((NUM, 4))
    told = variance.variance_loss(s * z + sigma * rng.standard_normal(z.shape), s * z)
    assert told.ratio == pytest.approx(1 / 1.25, abs=0.02)
    assert told.expected == pytest.approx(1 / 1.25, abs=0.02)
    perfect = variance.variance_loss(z, z)
    assert (perfect.ratio, perfect.expected) == (1.0, 1.0)


def test_by_number_is_not_a_number_where_data_never_vary():
    x = np.stack([np.arange(4.0), np.ones(4)], axis=1)
    told = variance.by_number(x, 2 * x)
    assert told[0] == pytest.approx(4.0)
    assert math.isnan(told[1])
    assert variance.ratio(x, 2 * x) == pytest.approx(4.0)


def test_data_all_alike_are_refused():
    with pytest.raises(ValueError, match="x must vary, got 3 examples all alike"):
        variance.variance_loss(np.ones((3, 2)), np.zeros((3, 2)))


def test_spectrum_of_white_noise_is_flat_at_its_variance():
    noise = 0.5 * np.random.default_rng(5).standard_normal((400, 12, 8, 2))
    told = variance.spectrum(noise + np.arange(8.0)[:, None])  # the mean is taken off
    np.testing.assert_allclose(told.power, 0.25, rtol=0.12)
    assert np.all(np.diff(told.frequency) > 0)
    np.testing.assert_allclose(
        told.frequency[:2], [0, 1 / 12]
    )  # rings of the longer side
    # Parseval: no power is lost between the rings.
    whole = np.sum(told.power * told.counts) / np.sum(told.counts)
    assert whole == pytest.approx(noise.var(axis=0).mean(), rel=1e-9)


def test_spectrum_of_a_wave_is_at_its_frequency():
    rng = np.random.default_rng(6)
    phase = rng.uniform(0, 2 * np.pi, (2000, 1, 1, 1))
    across = np.arange(16.0)[None, None, :, None]
    told = variance.spectrum(
        np.sin(2 * np.pi * across * 3 / 16 + phase) + np.zeros((1, 16, 1, 1))
    )
    assert told.frequency[np.argmax(told.power)] == pytest.approx(3 / 16, abs=0.02)
    share = (told.power * told.counts)[3] / np.sum(told.power * told.counts)
    assert share > 0.99


def test_fine_ratio_sees_a_blur_that_the_variance_hardly_does():
    rng = np.random.default_rng(7)
    x = rng.standard_normal((500, 16, 16, 1))
    blurred = 0.5 * (x + np.roll(x, 1, axis=2))
    told = variance.fine_ratio(variance.spectrum(x), variance.spectrum(blurred))
    # |1 + exp(i w)|^2 / 4 = cos^2(w / 2), averaged over frequencies of 0.25 and more.
    up = np.abs(np.fft.fftfreq(16))
    fine = np.rint(np.hypot(up[:, None], up[None]) * 16) / 16 >= 0.25
    kept = np.broadcast_to(np.cos(np.pi * up) ** 2, (16, 16))[fine].mean()
    assert told == pytest.approx(kept, rel=0.06)
    still = variance.spectrum(np.ones((3, 8, 8, 1)))
    assert variance.fine_ratio(still, still) is None
