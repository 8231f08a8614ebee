"""GAN losses at the discriminators that are known to be best, and by hand."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from scipy import stats

from jaxgen.losses import gan

LOG2 = math.log(2)
SOFTPLUS = lambda x: np.logaddexp(0, x)
REAL, FAKE = np.array([0.5, -2.0, 3.0]), np.array([1.5, 0.25, -4.0])
# Each by NumPy: what the discriminator pays, and what the generator.
BY_HAND = {
    "minimax": (SOFTPLUS(-REAL) + SOFTPLUS(FAKE), -SOFTPLUS(FAKE)),
    "non_saturating": (SOFTPLUS(-REAL) + SOFTPLUS(FAKE), SOFTPLUS(-FAKE)),
    "least_squares": (((REAL - 1) ** 2 + FAKE**2) / 2, (FAKE - 1) ** 2 / 2),
    "hinge": (np.maximum(0, 1 - REAL) + np.maximum(0, 1 + FAKE), -FAKE),
    "wasserstein": (FAKE - REAL, -FAKE),
    "relativistic": (SOFTPLUS(FAKE - REAL), SOFTPLUS(REAL - FAKE)),
}
# On a line: data and samples, and the densities of both at places of a quadrature.
PLACES = np.linspace(-12, 12, 4801)
STEP = PLACES[1] - PLACES[0]
P, Q = stats.norm(0.5, 1.0).pdf(PLACES), stats.norm(-0.3, 1.4).pdf(PLACES)
MIDDLE = (P + Q) / 2
JSD = 0.5 * STEP * np.sum(P * np.log(P / MIDDLE) + Q * np.log(Q / MIDDLE))
BEST = {  # the discriminator, and what it pays
    "minimax": (np.log(P / Q), 2 * LOG2 - 2 * JSD),
    "non_saturating": (np.log(P / Q), 2 * LOG2 - 2 * JSD),
    "least_squares": (P / (P + Q), 0.5 * STEP * np.sum(P * Q / (P + Q))),
    "hinge": (np.sign(P - Q), 2 * STEP * np.sum(np.minimum(P, Q))),
}
AT_CHANCE = {  # the best discriminator where samples are data, and what both pay
    "minimax": (0.0, 2 * LOG2, -LOG2),
    "non_saturating": (0.0, 2 * LOG2, LOG2),
    "least_squares": (0.5, 0.25, 0.125),
    "hinge": (0.0, 2.0, 0.0),
    "wasserstein": (0.0, 0.0, 0.0),
    "relativistic": (0.0, LOG2, LOG2),
}


@pytest.mark.parametrize("name", gan.GAMES)
def test_each_pays_what_is_worked_out_by_hand(name, x64):
    for paid, truth in zip(gan.GAMES[name](REAL, FAKE), BY_HAND[name], strict=True):
        np.testing.assert_allclose(paid, truth, rtol=1e-12)
    logit, discriminator, generator = AT_CHANCE[name]
    paid = gan.GAMES[name](jnp.full(2, logit), jnp.full(2, logit))
    np.testing.assert_allclose(paid.discriminator, discriminator, atol=1e-12)
    np.testing.assert_allclose(paid.generator, generator, atol=1e-12)


def expected(name, logits):
    """The mean over data and samples of a discriminator's loss, which is a sum of both."""
    zeros = jnp.zeros_like(logits)
    game = gan.GAMES[name]
    both = game(zeros, zeros).discriminator
    real = game(logits, zeros).discriminator - both / 2
    fake = game(zeros, logits).discriminator - both / 2
    return STEP * jnp.sum(P * real + Q * fake)


@pytest.mark.parametrize("name", BEST)
def test_the_known_discriminator_is_the_best_and_pays_the_divergence(name, x64):
    logits, paid = BEST[name]
    assert float(expected(name, logits)) == pytest.approx(paid, rel=1e-6)
    if name != "hinge":  # which has no derivative there
        slope = jax.grad(lambda logits: expected(name, logits))(jnp.asarray(logits))
        np.testing.assert_allclose(slope, 0, atol=1e-9)
    rng = np.random.default_rng(0)
    for size in (1e-2, 0.3, 2.0):
        other = logits + size * rng.standard_normal(len(logits))
        assert float(expected(name, other)) > paid


def test_the_best_critic_of_slope_one_pays_the_distance_of_wasserstein(x64):
    """Piecewise linear critics on a grid; the best by linear programming."""
    places, rng = np.linspace(-3, 3, 61), np.random.default_rng(0)
    p, q = rng.dirichlet(np.ones(61)), rng.dirichlet(np.ones(61))
    width = places[1] - places[0]
    slopes = np.sign(
        np.cumsum(q - p)[:-1]
    )  # of the best, by Kantorovich and Rubinstein
    critic = np.concatenate([[0], np.cumsum(slopes) * width])
    paid = lambda d: p @ gan.wasserstein(d, 0 * d)[0] + q @ gan.wasserstein(0 * d, d)[0]
    differences = np.diff(np.eye(61), axis=0)
    limits = scipy.optimize.linprog(
        q - p,
        A_ub=np.concatenate([differences, -differences]),
        b_ub=np.full(120, width),
        bounds=[(0, 0)] + 60 * [(None, None)],
    )
    truth = -stats.wasserstein_distance(places, places, p, q)
    assert float(paid(jnp.asarray(critic))) == pytest.approx(truth, rel=1e-9)
    assert limits.fun == pytest.approx(truth, rel=1e-6)


def test_relativistic_sees_differences_only_and_its_players_mirror_each_other():
    real, fake = jax.random.normal(jax.random.key(0), (2, 50))
    paid = gan.relativistic(real, fake)
    moved = gan.relativistic(real + 7.0, fake + 7.0)
    for a, b in zip(paid, moved, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)
    np.testing.assert_array_equal(
        paid.generator, gan.relativistic(fake, real).discriminator
    )


@pytest.mark.parametrize("name", gan.GAMES)
def test_gradients_are_finite_differences_and_finite_far_out(name, x64):
    game, logits = gan.GAMES[name], jnp.array([REAL, FAKE])
    totals = jax.jit(lambda logits: jnp.stack([jnp.sum(p) for p in game(*logits)]))
    slope, step = jax.jacrev(totals)(logits), 1e-6
    for i, j in np.ndindex(2, 3):
        more, less = logits.at[i, j].add(step), logits.at[i, j].add(-step)
        truth = (totals(more) - totals(less)) / (2 * step)
        np.testing.assert_allclose(slope[:, i, j], truth, atol=1e-7)
    far = jnp.array([1e4, -1e4, 1e4, -1e4], jnp.float32)
    other = jnp.array([1e4, -1e4, -1e4, 1e4], jnp.float32)
    paid, back = jax.vjp(game, far, other)
    for cotangent in np.eye(2, dtype=np.float32):
        for part in back(gan.Payoff(*(jnp.full(4, c) for c in cotangent))):
            assert np.all(np.isfinite(part))
    assert np.all(np.isfinite(paid))


def test_logits_of_other_forms_are_told(plain_errors):
    with pytest.raises(
        ValueError, match=r"hinge: fake must be \[B\], got shape \(3, 1"
    ):
        gan.hinge(jnp.zeros(3), jnp.zeros((3, 1)))
    with pytest.raises(ValueError, match="real and fake must have the same shape"):
        gan.relativistic(jnp.zeros(3), jnp.zeros(2))
    assert gan.hinge(jnp.zeros(3, jnp.bfloat16), jnp.zeros(3)).generator.dtype == "f4"
