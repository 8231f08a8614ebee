"""GAN losses at the discriminators that are known to be best, and by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from scipy import stats

from jaxgen import verify
from jaxgen.losses import gan
from jaxgen.verify.gan import AT_CHANCE, OPTIMA

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


@pytest.mark.parametrize("name", gan.GAMES)
def test_each_pays_what_is_worked_out_by_hand(name, x64):
    for paid, truth in zip(gan.GAMES[name](REAL, FAKE), BY_HAND[name], strict=True):
        np.testing.assert_allclose(paid, truth, rtol=1e-12)
    logit, discriminator, generator = AT_CHANCE[name]
    paid = gan.GAMES[name](jnp.full(2, logit), jnp.full(2, logit))
    np.testing.assert_allclose(paid.discriminator, discriminator, atol=1e-12)
    np.testing.assert_allclose(paid.generator, generator, atol=1e-12)


@pytest.mark.parametrize("name", gan.GAMES)
def test_the_known_discriminator_is_the_best_and_pays_the_divergence(name):
    verify.require(verify.gan_loss(gan.GAMES[name], optimum=OPTIMA.get(name)))


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


def test_logits_of_other_forms_are_told(plain_errors):
    with pytest.raises(
        ValueError, match=r"hinge: fake must be \[B\], got shape \(3, 1"
    ):
        gan.hinge(jnp.zeros(3), jnp.zeros((3, 1)))
    with pytest.raises(ValueError, match="real and fake must have the same shape"):
        gan.relativistic(jnp.zeros(3), jnp.zeros(2))
    assert gan.hinge(jnp.zeros(3, jnp.bfloat16), jnp.zeros(3)).generator.dtype == "f4"
