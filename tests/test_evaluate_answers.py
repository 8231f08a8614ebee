"""Several answers to a condition, against closed forms and planted faults."""

import math

import numpy as np
import pytest
from scipy import integrate, special, stats

from jaxgen.evaluate import answers, modes

SIGMA = 0.3


def mean_of_chi(dim):
    return math.sqrt(2) * math.exp(
        special.gammaln((dim + 1) / 2) - special.gammaln(dim / 2)
    )


def least_of_chi(dim, num):
    """The mean of the smallest of `num` lengths of N(0, I_dim), by quadrature."""
    return integrate.quad(lambda r: stats.chi(dim).sf(r) ** num, 0, np.inf)[0]


def gaussian(num=4000, num_answers=5, shape=(2, 3, 1)):
    noise = np.random.default_rng(0).standard_normal((num, num_answers, *shape))
    return SIGMA * noise, np.zeros((num, *shape))


def within(interval, expected):
    """Within four standard errors."""
    error = (interval.high - interval.value) / 1.959964
    assert abs(interval.value - expected) < 4 * error
    assert error < 0.02 * expected


@pytest.mark.parametrize("num_answers", [1, 2, 5])
@pytest.mark.parametrize("shape", [(1,), (2, 3, 1)])
def test_errors_of_gaussian_answers(num_answers, shape):
    told = answers.errors(*gaussian(20_000, num_answers, shape))
    dim = math.prod(shape)
    scale = SIGMA / math.sqrt(dim)
    within(told.best, scale * least_of_chi(dim, num_answers))
    within(told.of_mean, scale * mean_of_chi(dim) / math.sqrt(num_answers))
    if num_answers == 1:
        assert told.diversity == (0, 0, 0)
    else:
        within(told.diversity, math.sqrt(2) * scale * mean_of_chi(dim))


def test_errors_by_hand():
    given = np.zeros((2, 3, 2, 2, 1))
    given[0, :, 0, 0, 0] = (0.4, 0.6, 0.8)
    truth = np.zeros((2, 2, 2, 1))
    truth[0, 0, 0, 0] = 1.0
    told = answers.errors(given, truth)
    np.testing.assert_allclose(told.best.value, (0.2 / 2 + 0) / 2)
    np.testing.assert_allclose(told.of_mean.value, (0.4 / 2 + 0) / 2)
    np.testing.assert_allclose(told.diversity.value, (0.2 + 0.4 + 0.2) / 3 / 2 / 2)
    # Two values 0.1 and 0: standard error 0.05, cut off at 0.
    np.testing.assert_allclose(told.best, (0.05, 0.0, 0.05 + 1.959964 * 0.05))
    alone = answers.errors(given[:1], truth[:1])
    np.testing.assert_allclose(alone.best, 0.1)


def test_errors_of_hidden_pixels_alone():
    given, truth = gaussian(300, 4, (4, 4, 3))
    mask = np.zeros((300, 4, 4, 1))
    mask[:, 1:3, :, 0] = 1
    told = answers.errors(given, truth, mask)
    expected = answers.errors(given[:, :, 1:3], truth[:, 1:3])
    np.testing.assert_allclose(told, expected, rtol=1e-12)
    given[:, :, 0], truth[:, 3] = 1e6, -1e6  # what is seen does not count
    np.testing.assert_allclose(answers.errors(given, truth, mask), expected, rtol=1e-12)
    # Masks of unlike sizes: each example is a mean over its own hidden pixels.
    mask[::2, 1] = 0
    halves = [
        answers.errors(given[::2, :, 2:3], truth[::2, 2:3]).best.value,
        answers.errors(given[1::2, :, 1:3], truth[1::2, 1:3]).best.value,
    ]
    told = answers.errors(given, truth, mask)
    np.testing.assert_allclose(told.best.value, np.mean(halves))


def test_errors_do_not_depend_on_the_order():
    given, truth = gaussian(50, 4)
    order = np.random.default_rng(1).permutation(50)
    swapped = answers.errors(given[order][:, ::-1], truth[order])
    np.testing.assert_allclose(swapped, answers.errors(given, truth), rtol=1e-12)


def test_errors_say_what_is_wrong():
    given, truth = gaussian(5, 2)
    with pytest.raises(ValueError, match=r"answers must be \[N, K, ...\] and truth"):
        answers.errors(given, truth[:4])
    with pytest.raises(ValueError, match=r"got \(5, 2\) and \(5, 2, 3, 1\)"):
        answers.errors(given[:, :, 0, 0, 0], truth)
    with pytest.raises(ValueError, match=r"mask must be \[5, 2, 3, 1\], got \(2, 3, 1"):
        answers.errors(given, truth, np.ones((2, 3, 1)))
    with pytest.raises(ValueError, match="mask hides nothing of a truth"):
        answers.errors(given, truth, np.zeros((5, 2, 3, 1)))


P = np.array([0.1, 0.2, 0.3, 0.4])


def drawn(num=5000, num_answers=8, probabilities=P, seed=0):
    rng = np.random.default_rng(seed)
    return rng.choice(len(probabilities), (num, num_answers), p=probabilities)


def test_modes_of_perfect_answers():
    told = answers.of_modes(drawn(), P)
    assert told["none_share"].value == 0
    assert told["recall"] == 1
    assert told["modes"] == 4
    within(told["recall_per_condition"], told["expected_recall_per_condition"])
    expected = np.mean([1 - 0.9**8, 1 - 0.8**8, 1 - 0.7**8, 1 - 0.6**8])
    np.testing.assert_allclose(told["expected_recall_per_condition"], expected)
    np.testing.assert_allclose(told["standard_errors"], np.sqrt(P * (1 - P) / 40_000))
    assert np.all(np.abs(told["shares"] - P) < 4 * np.array(told["standard_errors"]))
    np.testing.assert_allclose(
        told["largest_deviation"], np.abs(told["shares"] - P).max()
    )


def test_modes_p_value_is_even_under_the_truth():
    values = [
        answers.of_modes(drawn(200, 5, seed=seed), P)["p_value"] for seed in range(300)
    ]
    assert stats.kstest(values, "uniform").pvalue > 1e-3


def test_modes_find_planted_faults():
    labels = drawn()
    lost = answers.of_modes(np.where(labels == 0, 3, labels), P)
    assert lost["recall"] == 0.75
    assert lost["p_value"] < 1e-9
    np.testing.assert_allclose(lost["largest_deviation"], 0.1, atol=0.01)
    even = answers.of_modes(drawn(probabilities=np.full(4, 0.25)), P)
    assert even["recall"] == 1
    assert even["p_value"] < 1e-9
    np.testing.assert_allclose(even["largest_deviation"], 0.15, atol=0.01)
    np.testing.assert_allclose(
        even["reverse_kl"], np.sum(0.25 * np.log(0.25 / P)), rtol=0.05
    )
    labels[:, ::4] = -1  # a quarter is of no mode, the rest as it should be
    none = answers.of_modes(labels, P)
    np.testing.assert_allclose(none["none_share"].value, 0.25)
    assert none["p_value"] > 1e-3
    same = np.repeat(drawn(5000, 1), 8, axis=1)  # one answer to each condition
    collapsed = answers.of_modes(same, P)
    assert collapsed["recall"] == 1
    np.testing.assert_allclose(collapsed["recall_per_condition"].value, 0.25)


def test_modes_by_hand():
    told = answers.of_modes(np.array([[0, 0], [1, -1]]), np.array([0.5, 0.5]))
    assert told["none_share"].value == 0.25
    np.testing.assert_allclose(told["shares"], [2 / 3, 1 / 3])
    np.testing.assert_allclose(told["recall_per_condition"].value, 0.5)
    np.testing.assert_allclose(told["expected_recall_per_condition"], 0.75)
    chi = (2 - 1.5) ** 2 / 1.5 * 2
    np.testing.assert_allclose(told["p_value"], stats.chi2.sf(chi, 1))


def test_modes_of_no_answer_at_all():
    told = answers.of_modes(np.full((3, 2), -1), P)
    assert told["none_share"].value == 1
    assert told["recall"] == told["recall_per_condition"].value == 0
    assert told["shares"] is told["p_value"] is None


def test_modes_say_what_is_wrong():
    with pytest.raises(ValueError, match="positive and sum to 1"):
        answers.of_modes(drawn(3), 2 * P)
    with pytest.raises(ValueError, match="positive and sum to 1"):
        answers.of_modes(drawn(3), np.array([0.0, 1.0]))
    for wrong in (np.array([[4]]), np.array([[-2]]), np.array([1]), np.zeros((0, 2))):
        with pytest.raises(ValueError, match=r"labels must be \[N, K\] in -1 .. 3"):
            answers.of_modes(wrong, P)


def test_modes_of_labels_with_probabilities():
    labels = np.array([0, 0, 1, 2])
    told = modes.of_labels(labels, 3, np.array([0.5, 0.25, 0.25]))
    assert told["modes"] == 3
    np.testing.assert_allclose(told["reverse_kl"], 0, atol=1e-15)
    even = modes.of_labels(labels, 3)
    np.testing.assert_allclose(even["reverse_kl"], np.log(3) - 1.5 * np.log(2))
