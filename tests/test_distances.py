"""Distances between features, two-sample tests and copying, against known answers."""

from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from jaxgen.evaluate import distances, intervals, memorisation, two_sample

GOLDEN = np.load(Path(__file__).with_name("golden_distances.npz"), allow_pickle=False)
DISTANCES = {
    "frechet": distances.frechet_distance,
    "kernel": lambda a, b: distances.kernel_distance(a, b).value,
    "rbf_mmd": lambda a, b: distances.rbf_mmd(a, b).value,
    "sliced": distances.sliced_wasserstein,
}
TAKING_TWO = DISTANCES | {
    "kernel": distances.kernel_distance,
    "rbf_mmd": distances.rbf_mmd,
    "shares": distances.precision_recall_density_coverage,
    "c2st": two_sample.c2st,
    "authentic": memorisation.authentic,
}


def normal(num, dims, seed=0):
    return np.random.default_rng(seed).normal(size=(num, dims))


def with_moments(x, mean, covariance):
    """Examples moved so that their sample mean and covariance are exactly these."""
    x = x - x.mean(axis=0)
    whitened = x @ np.linalg.inv(np.linalg.cholesky(np.cov(x, rowvar=False)).T)
    return whitened @ np.linalg.cholesky(covariance).T + mean


@pytest.mark.parametrize("name", ["frechet", "kernel", "rbf_mmd"])
def test_distance_equals_torch_fidelity(name):
    found = DISTANCES[name](GOLDEN["real"], GOLDEN["fake"])
    np.testing.assert_allclose(found, GOLDEN[name], rtol=1e-10)


def test_shares_equal_prdc_and_torch_fidelity():
    told = distances.precision_recall_density_coverage(
        GOLDEN["real"], GOLDEN["fake"], k=4
    )
    for name, value in told._asdict().items():
        np.testing.assert_allclose(value, GOLDEN[name], rtol=1e-12, err_msg=name)
    for name in ("precision", "recall"):
        np.testing.assert_allclose(
            getattr(told, name), GOLDEN[f"torch_fidelity_{name}"], rtol=1e-6
        )
    assert told.precision != told.recall


@pytest.mark.parametrize("method", ["neighbours", "logistic"])
def test_c2st_classifies_as_scikit_learn(method):
    real, fake = GOLDEN["real"], GOLDEN["fake"]
    fitted, tried = (
        np.concatenate([real[s], fake[s]]) for s in (slice(30), slice(30, 60))
    )
    centre, scale = fitted.mean(axis=0), fitted.std(axis=0)
    predict = getattr(two_sample, f"_{method}")
    found = predict(
        (fitted - centre) / scale, np.arange(60) >= 30, (tried - centre) / scale, 15
    )
    np.testing.assert_array_equal(found, GOLDEN[method])


def test_vendi_score_equals_that_of_scikit_learns_cosines_and_knows_its_ends():
    np.testing.assert_allclose(
        two_sample.vendi_score(GOLDEN["real"]), GOLDEN["vendi"], rtol=1e-10
    )
    rows = np.repeat(np.eye(5), 4, axis=0)
    np.testing.assert_allclose(two_sample.vendi_score(rows), 5)
    np.testing.assert_allclose(two_sample.vendi_score(np.ones((9, 3))), 1)
    # Features that are all zero are one more direction, not nothing.
    np.testing.assert_allclose(
        two_sample.vendi_score(np.concatenate([rows, np.zeros((4, 5))])), 6
    )


def test_frechet_of_a_set_and_itself_is_0_where_it_is_singular_too():
    x = 1000 * normal(40, 30) + 5e4
    assert distances.frechet_distance(x, x) <= 1e-12 * np.sum(x.var(axis=0))
    few = x[:10]
    with pytest.warns(UserWarning, match="10 samples in 30 dimensions"):
        found = distances.frechet_distance(few, few[::-1])
    assert found <= 1e-12 * np.sum(few.var(axis=0))


def test_frechet_of_gaussians_is_the_closed_form():
    rng = np.random.default_rng(3)
    a, b = rng.normal(size=(2, 4, 4))
    turn, _ = np.linalg.qr(rng.normal(size=(4, 4)))
    first, second = np.diag([1.0, 4.0, 9.0, 0.25]), np.diag([4.0, 1.0, 1.0, 1.0])
    mean = np.array([1.0, 0.0, -2.0, 0.0])
    x = with_moments(normal(50, 4, 1), np.zeros(4), turn @ first @ turn.T)
    y = with_moments(normal(70, 4, 2), mean, turn @ second @ turn.T)
    # Covariances that commute: |mu|^2 + sum (s - t)^2 = 5 + 1 + 1 + 4 + 0.25.
    np.testing.assert_allclose(distances.frechet_distance(x, y), 11.25)
    # And those that do not: 2 tr (S T)^1/2 by the eigenvalues of S T.
    first, second = a @ a.T, b @ b.T
    x = with_moments(x, np.zeros(4), first)
    y = with_moments(y, np.zeros(4), second)
    roots = np.sqrt(np.linalg.eigvals(first @ second).real)
    expected = np.trace(first + second) - 2 * roots.sum()
    np.testing.assert_allclose(distances.frechet_distance(x, y), expected)


def test_frechet_with_few_samples_warns_and_is_what_torch_fidelity_says():
    with pytest.warns(UserWarning, match="singular.*precision, recall.*hold"):
        found = distances.frechet_distance(GOLDEN["few_real"], GOLDEN["few_fake"])
    np.testing.assert_allclose(found, GOLDEN["frechet_few"], rtol=1e-6)


def test_sliced_wasserstein_of_a_shift_and_of_unlike_counts():
    x = normal(30, 5)
    found = distances.sliced_wasserstein(x, x + 0.3, num_directions=4000)
    assert abs(found - 3 * 5 * 0.09) < 4 * 1.35 * np.sqrt(8 / 7 / 4000)
    # Twelve of x and eight of y are as 24 and 24, each of x twice, each of y thrice.
    x, y = x[:12], normal(8, 5, 1)
    np.testing.assert_allclose(
        distances.sliced_wasserstein(x, y),
        distances.sliced_wasserstein(np.repeat(x, 2, axis=0), np.repeat(y, 3, axis=0)),
        rtol=1e-12,
    )


@pytest.mark.parametrize("name", DISTANCES)
def test_distance_is_symmetric_and_knows_no_order(name):
    x, y = normal(40, 3), 1.5 * normal(50, 3, 1)
    value = DISTANCES[name](x, y)
    np.testing.assert_allclose(DISTANCES[name](y, x), value, rtol=1e-10)
    np.testing.assert_allclose(DISTANCES[name](x[::-1], y[::-1]), value, rtol=1e-10)


@pytest.mark.parametrize("name", TAKING_TWO)
def test_result_does_not_depend_on_the_chunks(name, monkeypatch):
    x, y = normal(40, 3), 1.5 * normal(50, 3, 1)
    whole = TAKING_TWO[name](x, y)
    monkeypatch.setattr(distances, "PAIRS", 7 * 50)
    monkeypatch.setattr(distances, "DIRECTIONS_AT_ONCE", 7)
    for a, b in zip(np.ravel(TAKING_TWO[name](x, y)), np.ravel(whole), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10)


@pytest.mark.parametrize("function", ["kernel_distance", "rbf_mmd"])
def test_standard_error_of_a_kernel_is_the_jackknifes(function, monkeypatch):
    x, y = normal(9, 3), normal(7, 3, 1) + 1
    scale = np.concatenate([x, y]).var(axis=0).sum()
    kernels = {
        "kernel_distance": lambda a, b: (a @ b / 3 + 1) ** 3,
        "rbf_mmd": lambda a, b: np.exp(-np.sum((a - b) ** 2) / (2 * scale)),
    }
    table = [[kernels[function](a, b) for b in (*x, *y)] for a in (*x, *y)]
    table, is_x = np.array(table), np.arange(16) < 9

    def value(kept):
        parts = [
            np.ix_(kept & a, kept & b) for a in (is_x, ~is_x) for b in (is_x, ~is_x)
        ]
        xx, xy, _, yy = (table[p] for p in parts)
        within = [(k.sum() - np.trace(k)) / (len(k) * (len(k) - 1)) for k in (xx, yy)]
        return sum(within) - 2 * xy.mean()

    without = np.array([value(np.arange(16) != i) for i in range(16)])
    variance = sum((s.sum() - 1) * without[s].var() for s in (is_x, ~is_x))
    found = getattr(distances, function)(x, y)
    np.testing.assert_allclose(found.value, value(np.ones(16, bool)), rtol=1e-10)
    np.testing.assert_allclose(found.standard_error, np.sqrt(variance), rtol=1e-8)


def test_precision_and_recall_are_not_swapped():
    data = normal(200, 2)
    narrow = distances.precision_recall_density_coverage(data, 0.2 * normal(200, 2, 1))
    assert narrow.precision == 1
    assert max(narrow.recall, narrow.coverage) < 0.4
    wide = distances.precision_recall_density_coverage(data, 5 * normal(200, 2, 1))
    assert wide.recall > 0.9
    assert wide.precision < 0.5
    far = np.concatenate([0.5 * data[:190], data[:10] + 100])
    assert distances.precision_recall_density_coverage(data, far).density < 2


def test_shares_of_a_set_and_itself_and_of_a_single_point():
    x = normal(60, 6) + 1e4  # far from the origin, where squares cancel
    same = distances.precision_recall_density_coverage(x, x, k=3)
    np.testing.assert_allclose(same, 1, rtol=1e-12)
    collapsed = np.repeat(x[:1], 60, axis=0)
    told = distances.precision_recall_density_coverage(x, collapsed, k=3)
    assert (told.precision, told.recall) == (1, 0)
    assert told.coverage < 0.2


def test_c2st_is_calibrated_and_finds_what_differs():
    p = [
        two_sample.c2st(normal(40, 2, 2 * i), normal(60, 2, 2 * i + 1), seed=i).p_value
        for i in range(200)
    ]
    assert 0.01 < np.mean(np.array(p) <= 0.05) < 0.1
    shifted = two_sample.c2st(
        normal(300, 2), normal(300, 2, 1) + 1.5, method="logistic"
    )
    # Bayes: Phi(|shift| / 2), the shift being 1.5 in both.
    bayes = stats.norm.cdf(1.5 * np.sqrt(2) / 2)
    assert abs(shifted.accuracy - bayes) < 4 * np.sqrt(bayes * (1 - bayes) / 300)
    assert shifted.p_value == 1 / 1001
    ring = normal(300, 2)
    ring /= np.linalg.norm(ring, axis=1, keepdims=True)
    assert two_sample.c2st(ring, 0.7 * normal(300, 2, 1)).accuracy > 0.7


def test_c2st_p_value_is_that_of_permuted_labels():
    x, y = normal(30, 2), normal(30, 2, 1) + 0.5
    told = two_sample.c2st(x, y, seed=4)
    rng = np.random.default_rng(4)
    a, b = (z[rng.permutation(30)] for z in (x, y))
    fitted = np.concatenate([a[:15], b[:15]])
    tried = np.concatenate([a[15:], b[15:]])
    centre, scale = fitted.mean(axis=0), fitted.std(axis=0)
    label = np.arange(30) >= 15
    guess = two_sample._neighbours(
        (fitted - centre) / scale, label, (tried - centre) / scale, 15
    )
    assert told.accuracy == np.mean(guess == label)
    rng = np.random.default_rng(0)
    chance = [np.mean(guess == rng.permutation(label)) for _ in range(4000)]
    share = np.mean(np.array(chance) >= told.accuracy - 1e-12)
    error = np.sqrt(share * (1 - share) * (1 / 1000 + 1 / 4000))
    assert abs(told.p_value - share) < 4 * error + 1e-3


@pytest.mark.parametrize("name", TAKING_TWO)
def test_features_that_are_not_finite_or_do_not_fit_are_refused(name):
    x = normal(10, 3)
    x[4, 1], x[7, 0] = np.nan, np.inf
    with pytest.raises(ValueError, match="NaN or infinity in 2 of 10 examples"):
        TAKING_TWO[name](x, normal(10, 3, 1))
    with pytest.raises(
        ValueError, match=r"\[N, D\] of one D, got \(10, 3\), \(10, 4\)"
    ):
        TAKING_TWO[name](normal(10, 3), normal(10, 4))
    with pytest.raises(ValueError, match="at least 2 examples, got 1"):
        TAKING_TWO[name](normal(10, 3), normal(1, 3))


def test_shares_refuse_more_neighbours_than_there_are():
    with pytest.raises(ValueError, match="k = 5 with 5 and 9 examples"):
        distances.precision_recall_density_coverage(normal(5, 2), normal(9, 2))


def test_mann_whitney_z_equals_scipys():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 9, 30), rng.integers(2, 12, 40)  # with ties
    expected = stats.mannwhitneyu(
        a, b, use_continuity=False, method="asymptotic"
    ).pvalue
    z = memorisation.mann_whitney_z(a, b)
    assert z < 0
    np.testing.assert_allclose(2 * stats.norm.sf(-z), expected)


def test_authentic_by_hand():
    train = np.array([[0.0], [1.0], [5.0]])
    fake = np.array([[0.5], [-2.0], [1.2], [8.0], [9.5]])
    # Nearest: 0 (0.5 of 1), 0 (2 of 1), 1 (0.2 of 1), 5 (3 of 4), 5 (4.5 of 4).
    expected = [False, True, False, False, True]
    np.testing.assert_array_equal(memorisation.authentic(fake, train), expected)


@pytest.mark.parametrize(
    ("copied", "verdict"),
    [
        (0.0, "no copying shown"),
        (0.2, "copying shown: 2"),
        (1.0, "copying shown: 100 %"),
    ],
)
@pytest.mark.parametrize("seed", range(3))
def test_copying_is_found_between_its_controls(copied, verdict, seed):
    train, held_out = normal(600, 4, seed), normal(400, 4, seed + 10)
    fake = normal(400, 4, seed + 20)
    num = round(400 * copied)
    fake[:num] = train[:num] + 1e-3 * normal(num, 4, seed + 30)
    told = memorisation.judge_copying(held_out, fake, train)
    assert told["verdict"].startswith(verdict)
    assert told["copying_z"]["copy_cat"] < -8
    assert abs(told["copying_z"]["held_out"]) < 4
    assert told["authentic_share"]["copy_cat"] == 0
    assert told["near_share"]["copy_cat"] == 1
    pairs = told["nearest_pairs"]
    assert len(pairs) == 16
    if copied:
        assert all(p["sample"] == p["train"] for p in pairs)
        away = np.linalg.norm(fake[pairs[0]["sample"]] - train[pairs[0]["train"]])
        np.testing.assert_allclose(pairs[0]["distance"], away)


def test_copies_of_rows_that_repeat_in_data_are_still_near():
    train = np.repeat(normal(50, 3), 2, axis=0)
    told = memorisation.judge_copying(train[::2], train[::2], train)
    assert told["near_share"]["copy_cat"] == told["near_share"]["held_out"] == 1


def test_intervals_cover_what_they_say():
    rng = np.random.default_rng(0)
    held = [intervals.of_share(rng.random(50) < 0.1) for _ in range(400)]
    assert 0.92 < np.mean([i.low <= 0.1 <= i.high for i in held]) < 0.99
    assert intervals.of_count(0, 50).low == 0
    assert 0.05 < intervals.of_count(0, 50).high < 0.1
    # Of a mean the jackknife is the textbook's error, about; its interval Student's t.
    held = [intervals.jackknife(np.mean, rng.normal(size=100)) for _ in range(400)]
    assert 0.92 < np.mean([i.low <= 0 <= i.high for i in held]) < 0.98
    difference = [
        intervals.jackknife(lambda a, b: a.mean() - b.mean(), x[:60], x[60:])
        for x in rng.normal(size=(400, 100))
    ]
    assert 0.92 < np.mean([i.low <= 0 <= i.high for i in difference]) < 0.98
