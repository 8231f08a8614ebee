"""Power-function averages against their closed form; mixtures against quadrature."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen import averaging


def profile(times, step, gamma):
    """The weight of each moment, in closed form."""
    inside = (gamma + 1) * times**gamma / step ** (gamma + 1)
    return np.where(times <= step, inside, 0.0)


def tracked(values, width):
    """The average after each update, in float64."""
    gamma, average, record = averaging.width_to_gamma(width), 0.0, []
    for step, value in enumerate(values, start=1):
        average += -np.expm1((gamma + 1) * np.log1p(-1 / max(step, 1 + 1e-12))) * (
            value - average
        )
        record.append(average)
    return np.array(record)


@pytest.mark.parametrize(
    ("width", "gamma"), [(0.05, 16.972), (0.10, 6.937), (0.15, 3.558)]
)
def test_width_to_gamma_has_the_known_values_and_an_inverse(width, gamma):
    found = averaging.width_to_gamma(width)
    np.testing.assert_allclose(found, gamma, atol=5e-4)
    np.testing.assert_allclose(averaging.gamma_to_width(found), width, rtol=1e-9)


@pytest.mark.parametrize("width", [0.0, -0.1, 0.28, float("nan")])
def test_width_to_gamma_refuses_what_no_average_has(width):
    with pytest.raises(ValueError, match=r"width must be in \(0, 0.28\)"):
        averaging.width_to_gamma(width)


@pytest.mark.parametrize("width", [0.05, 0.1, 0.15])
def test_power_average_of_time_is_its_closed_form_and_has_the_width(width):
    gamma, num = averaging.width_to_gamma(width), 2000
    times = np.arange(1.0, num + 1)
    share = jax.jit(averaging.power_weight, static_argnums=1)(jnp.asarray(times), gamma)
    share = np.asarray(share, np.float64)
    kept = np.append(np.cumprod((1 - share)[::-1])[::-1][1:], 1.0)
    weights = share * kept  # of each update in the last average
    np.testing.assert_allclose(weights.sum(), 1, rtol=1e-5)
    mean = weights @ times / num
    np.testing.assert_allclose(mean, (gamma + 1) / (gamma + 2), rtol=1 / num)
    spread = np.sqrt(weights @ np.square(times / num - mean))
    np.testing.assert_allclose(spread, width, rtol=1e-3)


def test_power_weight_is_one_at_first_and_is_not_rounded_away_late():
    gamma = averaging.width_to_gamma(0.1)
    assert averaging.power_weight(1, gamma) == 1
    late = np.float32(averaging.power_weight(jnp.int32(3_000_000), gamma))
    exact = -np.expm1((gamma + 1) * np.log1p(-1 / 3e6))
    np.testing.assert_allclose(late, exact, rtol=1e-6)


def test_half_life_weight_is_the_plain_mean_and_then_forgets_half():
    steps = jnp.arange(1, 200)
    weights = np.asarray(averaging.half_life_weight(steps, 20.0), np.float64)
    np.testing.assert_allclose(weights[:20], 1 / np.arange(1, 21), rtol=1e-6)
    np.testing.assert_allclose(np.prod(1 - weights[100:120]), 0.5, rtol=1e-4)


def test_updated_moves_every_leaf_and_keeps_its_dtype():
    old = {"a": jnp.zeros(2, jnp.bfloat16), "b": (jnp.ones(3),)}
    new = {"a": jnp.ones(2, jnp.bfloat16), "b": (jnp.full(3, 5.0),)}
    mixed = jax.jit(averaging.updated)(old, new, jnp.float32(0.25))
    np.testing.assert_allclose(mixed["a"].astype(jnp.float32), 0.25)
    np.testing.assert_allclose(mixed["b"][0], 2.0)
    assert mixed["a"].dtype == jnp.bfloat16


@pytest.mark.parametrize("width", [0.06, 0.08, 0.12])
def test_posthoc_rebuilds_an_average_that_was_not_kept(width):
    rng = np.random.default_rng(0)
    num, every, widths = 2000, 100, (0.05, 0.1)
    values = np.cumsum(rng.normal(size=num)) + 0.02 * np.arange(num)
    kept = {w: tracked(values, w) for w in widths}
    stored = [(t, w) for t in range(every, num + 1, every) for w in widths]
    mixture = averaging.posthoc(stored, num, width)
    rebuilt = sum(
        x * kept[w][t - 1] for x, (t, w) in zip(mixture.weights, stored, strict=True)
    )
    exact = tracked(values, width)[-1]
    between = abs(kept[0.05][-1] - kept[0.1][-1])
    assert abs(rebuilt - exact) < 3e-3 * between  # measured: up to 1.3e-3
    assert mixture.error < 3e-3


def test_posthoc_is_the_least_squares_fit_and_tells_its_error():
    stored = [(30, 0.1), (60, 0.05), (100, 0.1), (100, 0.2)]
    mixture = averaging.posthoc(stored, 100, 0.14)
    times = (np.arange(200_000) + 0.5) * (100 / 200_000)
    basis = np.stack(
        [profile(times, t, averaging.width_to_gamma(w)) for t, w in stored]
    )
    wanted = profile(times, 100, averaging.width_to_gamma(0.14))
    expected = np.linalg.lstsq(basis.T, wanted)[0]
    weights = expected / expected.sum()
    np.testing.assert_allclose(mixture.weights, weights, atol=1e-5)
    rest = np.linalg.norm(expected @ basis - wanted) / np.linalg.norm(wanted)
    np.testing.assert_allclose(mixture.error, rest, rtol=1e-3)
    assert mixture.error > 1e-3


def test_posthoc_of_a_stored_average_is_that_one():
    mixture = averaging.posthoc([(50, 0.05), (100, 0.05), (100, 0.1)], 100, 0.1)
    np.testing.assert_allclose(mixture.weights, [0, 0, 1], atol=1e-9)
    assert mixture.error < 1e-6


@pytest.mark.parametrize("stored", [[], [(10, 0.1), (21, 0.1)]])
def test_posthoc_refuses_what_is_not_there_yet(stored):
    with pytest.raises(ValueError, match="stored must hold averages of steps up to 20"):
        averaging.posthoc(stored, 20, 0.1)
