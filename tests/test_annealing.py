"""Annealed importance sampling against the linear-Gaussian model and known moments."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from arrays import normal

from jaxgen import annealing
from jaxgen.verify import linear_gaussian

# x simulated with known z: what the reverse run wants.
NUM, NUM_CHAINS = 1000, 4
Z = normal(NUM, 2, seed=1)
X = np.float32(
    Z @ linear_gaussian.W.T
    + linear_gaussian.BIAS
    + linear_gaussian.SIGMA * normal(NUM, 4, seed=2)
)
LOG_P = linear_gaussian.exact_log_prob(X)


def split(num, seed=0):
    return jax.random.split(jax.random.key(seed), num)


def at(x):
    return lambda z: linear_gaussian.log_likelihood(z, x)


@functools.cache
def both(num_temperatures):
    """Forward and reverse log p(x) minus the truth, `[NUM]` each, of 4 chains."""

    @jax.jit
    def run(keys, x, z):
        knobs = {"num_temperatures": num_temperatures, "num_leapfrog": 4}
        lower = annealing.annealed_importance(
            at(x), keys, latent_shape=(2,), num_chains=NUM_CHAINS, **knobs
        )
        exact = jnp.broadcast_to(z, (NUM_CHAINS, *z.shape))
        upper = annealing.reverse_annealed_importance(at(x), keys, exact, **knobs)
        return lower.log_likelihood, upper.log_likelihood

    return tuple(np.float64(e) - LOG_P for e in run(split(NUM), X, Z))


def error(values):
    return values.std(ddof=1) / np.sqrt(len(values))


# ---- the estimates


def test_annealed_importance_is_exact_within_its_error_at_many_temperatures():
    got = jax.jit(
        lambda keys, x: annealing.annealed_importance(
            at(x),
            keys,
            latent_shape=(2,),
            num_chains=64,
            num_temperatures=300,
            num_leapfrog=4,
        )
    )(split(20), X[:20])
    off = np.abs(np.asarray(got.log_likelihood) - LOG_P[:20])
    assert (got.standard_error < 0.1).all()
    assert (off < 4 * got.standard_error).all()
    assert (got.ess > 32).all()


def test_annealed_importance_weights_have_the_mean_p():
    # One x for all: with 3 temperatures the transitions are far from equilibrium.
    x = np.tile(X[:1], (20_000, 1))
    got = jax.jit(
        lambda keys, x: annealing.annealed_importance(
            at(x),
            keys,
            latent_shape=(2,),
            num_chains=2,
            num_temperatures=3,
            num_leapfrog=2,
        )
    )(split(20_000), x)
    ratio = np.exp(np.float64(got.log_likelihood) - LOG_P[0])
    assert error(ratio) < 0.02  # the test can tell
    assert abs(ratio.mean() - 1) < 4 * error(ratio)


def test_reverse_annealed_importance_weights_have_the_mean_one_over_p():
    size, x = 20_000, np.tile(X[:1], (20_000, 1))
    std = 1 / np.sqrt(linear_gaussian.PRECISION)
    z = linear_gaussian.posterior_mean(x) + std * normal(2, size, 2, seed=3)
    got = jax.jit(
        lambda keys, x, z: annealing.reverse_annealed_importance(
            at(x), keys, z, num_temperatures=8, num_leapfrog=2, schedule="linear"
        )
    )(split(size), x, np.float32(z))
    ratio = np.exp(LOG_P[0] - np.float64(got.log_likelihood))
    assert error(ratio) < 0.04
    assert abs(ratio.mean() - 1) < 4 * error(ratio)


def test_bounds_enclose_the_truth():
    lower, upper = both(10)
    assert lower.mean() + 3 * error(lower) < 0
    assert upper.mean() - 3 * error(upper) > 0


def test_gap_shrinks_with_the_number_of_temperatures():
    wide, narrow = (upper - lower for lower, upper in map(both, (10, 60)))
    assert narrow.mean() + 3 * error(wide - narrow) < wide.mean() / 2
    assert 3 * error(narrow) < narrow.mean() < 0.3


def test_one_temperature_is_importance_sampling_from_the_prior():
    @functools.partial(jax.jit, static_argnums=0)
    def run(num_leapfrog, x):
        return annealing.annealed_importance(
            at(x),
            split(3),
            latent_shape=(2,),
            num_chains=20_000,
            num_temperatures=1,
            num_leapfrog=num_leapfrog,
        )

    got = run(1, X[:3])
    assert (got.standard_error < 0.1).all()
    assert (np.abs(got.log_likelihood - LOG_P[:3]) < 4 * got.standard_error).all()
    chex.assert_trees_all_equal(got, run(7, X[:3]))


def test_chains_outside_the_support_have_no_weight():
    def inside(z):
        return jnp.where(z[:, 0] < 1, 0.0, -jnp.inf)

    got = jax.jit(
        lambda keys: annealing.annealed_importance(
            inside,
            keys,
            latent_shape=(1,),
            num_chains=4000,
            num_temperatures=4,
            num_leapfrog=3,
        )
    )(split(3))
    expected = np.full(3, scipy.stats.norm.logcdf(1))
    np.testing.assert_allclose(got.log_likelihood, expected, atol=0.03)
    np.testing.assert_allclose(got.ess / 4000, np.exp(expected), atol=0.03)


# ---- form


SMALL = {"num_temperatures": 6, "num_leapfrog": 3}


def at_last(x):
    """For a latent `[1, 2]` of two axes."""
    return lambda z: at(x)(z[:, 0])


def small(keys, x, z):
    fn = at_last(x)
    return (
        annealing.annealed_importance(
            fn, keys, latent_shape=(1, 2), num_chains=5, **SMALL
        ),
        annealing.reverse_annealed_importance(fn, keys, z, **SMALL),
    )


def test_jit_equals_eager_in_one_trace():
    z = normal(5, 6, 1, 2)
    chex.clear_trace_counter()
    compiled = jax.jit(chex.assert_max_traces(small, n=1))
    compiled(split(6, 1), X[6:12], z)
    forward, _ = compiled(split(6), X[:6], z)
    eager = annealing.annealed_importance(
        at_last(X[:6]), split(6), latent_shape=(1, 2), num_chains=5, **SMALL
    )
    chex.assert_trees_all_close(forward, eager, rtol=1e-4, atol=1e-4)


def test_examples_are_independent_and_keep_their_order():
    order, z, keys = np.array([3, 0, 5, 1, 4, 2]), normal(5, 6, 1, 2), split(6)
    run = jax.jit(small)
    whole = run(keys, X[:6], z)
    permuted = run(keys[order], X[:6][order], z[:, order])
    chex.assert_trees_all_close(
        permuted, jax.tree.map(lambda a: a[order], whole), rtol=1e-4, atol=1e-4
    )
    other = run(keys, np.concatenate([X[:5], X[5:6] + 1]), z)
    chex.assert_trees_all_close(
        *(jax.tree.map(lambda a: a[:5], result) for result in (other, whole)),
        rtol=1e-4,
        atol=1e-4,
    )
    assert (other[0].log_likelihood[5] != whole[0].log_likelihood[5]).all()
    assert len(np.unique(run(keys, X[:1].repeat(6, 0), z)[0].log_likelihood)) == 6


@pytest.mark.parametrize("schedule", ["linear", "sigmoid"])
def test_betas_rise_from_zero_to_one(schedule):
    betas = np.asarray(annealing._betas(1000, schedule))
    assert (betas[0], betas[500], betas[1000], len(betas)) == (0, 0.5, 1, 1001)
    changes = np.diff(betas)
    assert (changes > 0).all()
    at_ends = changes[[0, -1]] / changes[500]
    expected = {"linear": 1.0, "sigmoid": 0.0707}[schedule]  # s'(4) / s'(0)
    np.testing.assert_allclose(at_ends, [expected] * 2, rtol=0.02)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (
            {"keys": jax.random.key(0)},
            r"annealed_importance: keys must be \[B\], got shape \(\)",
        ),
        ({"num_chains": 0}, r"annealed_importance: num_chains must be positive, got 0"),
        ({"num_temperatures": 0}, r"num_temperatures must be positive, got 0"),
        ({"num_leapfrog": 0}, r"num_leapfrog must be positive, got 0"),
        ({"schedule": "linaer"}, r"unknown schedule 'linaer'; did you mean 'linear'"),
        (
            {"log_likelihood_fn": lambda z: z},
            r"log_likelihood_fn\(z\) must be \[B\] = \(4,\), got shape \(4, 2\); sum",
        ),
    ],
)
def test_annealed_importance_names_wrong_arguments(plain_errors, change, match):
    arguments = {"log_likelihood_fn": at(X[:4]), "keys": split(4), "latent_shape": (2,)}
    with pytest.raises(ValueError, match=match):
        annealing.annealed_importance(**{**arguments, **change})


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"z": Z[:4]}, r"z must be \[C, B, ...\] with B = 4, got shape \(4, 2\)"),
        ({"z": Z[0]}, r"reverse_annealed_importance: z must be .* got shape \(2,\)"),
        ({"keys": jax.random.key(0)}, r"keys must be \[B\], got shape \(\)"),
        ({"num_leapfrog": 0}, r"num_leapfrog must be positive, got 0"),
        ({"num_temperatures": -1}, r"num_temperatures must be positive, got -1"),
    ],
)
def test_reverse_annealed_importance_names_wrong_arguments(plain_errors, change, match):
    arguments = {"log_likelihood_fn": at(X[:4]), "keys": split(4), "z": Z[None, :4]}
    with pytest.raises(ValueError, match=match):
        annealing.reverse_annealed_importance(**{**arguments, **change})


# ---- Hamiltonian Monte Carlo


def evaluated(log_likelihood_fn):
    def chains(z):
        values, pullback = jax.vjp(jax.vmap(log_likelihood_fn), z)
        return annealing._Chains(z, values, *pullback(jnp.ones_like(values)))

    return chains


def test_hmc_leaves_the_standard_normal_and_a_tempered_posterior_as_they_are():
    # The second likelihood is N(z; 2, 1 / 3) up to a constant: at beta = 0.5 the
    # density is N(z; 1.2, 1 / 2.5). Steps so long that many proposals are rejected.
    size = 20_000
    for beta, mean, std in ((0.0, 0.0, 1.0), (0.5, 1.2, 2.5**-0.5)):
        chains_at = evaluated(lambda z: -1.5 * jnp.square(z[:, 0] - 2))
        chains = chains_at(mean + std * normal(size, 1, 1, seed=4))
        transition = jax.jit(functools.partial(annealing._hmc, chains_at, 3))
        step_size = jnp.full(1, 1.5 * std)
        for number in range(3):
            chains, chance = transition(split(1, number), chains, beta, step_size)
        z = np.ravel(chains.z)
        assert 0.5 < chance.mean() < 0.95
        assert abs(z.mean() - mean) < 4 * std / np.sqrt(size)
        assert abs(z.var() / std**2 - 1) < 4 * np.sqrt(2 / size)
        assert scipy.stats.kstest(z, scipy.stats.norm(mean, std).cdf).pvalue > 1e-3
        chex.assert_trees_all_close(chains, chains_at(chains.z), rtol=1e-5)


def test_hmc_forgets_where_it_began():
    chains_at = evaluated(lambda z: 0 * z[:, 0])
    transition = jax.jit(functools.partial(annealing._hmc, chains_at, 10))
    chains = chains_at(jnp.full((20_000, 1, 1), 3.0))
    for number in range(20):  # 10 steps of 2 pi / 10 are one whole turn
        chains, _ = transition(split(1, number), chains, 0.0, jnp.full(1, 0.628))
    z = np.ravel(chains.z)
    assert abs(z.mean()) < 0.05
    assert abs(z.var() - 1) < 0.05


def test_pilot_run_adapts_the_step_sizes_of_every_example_to_the_acceptance():
    x = jnp.array([0.0, 0.0, 0.0])
    sigma = jnp.array([1.0, 0.1, 0.01])
    chains_at = evaluated(lambda z: -0.5 * jnp.square((x - z[:, 0]) / sigma))
    hmc = functools.partial(annealing._hmc, chains_at, 5)
    betas, first = annealing._betas(100, "linear"), jnp.full((99, 3), 0.5)
    start = chains_at(normal(100, 3, 1))
    anneal = jax.jit(functools.partial(annealing._anneal, hmc), static_argnums=4)
    _, steps = anneal(split(3), betas, first, start, annealing.GAIN)
    std = 1 / np.sqrt(1 + 1 / sigma**2)
    exact = chains_at(std[:, None] * normal(2000, 3, 1, seed=6))
    _, chance = jax.jit(hmc)(split(3, 1), exact, 1.0, steps[-1])
    np.testing.assert_allclose(chance.mean(0), np.full(3, 0.65), atol=0.08)
    _, same = anneal(split(3), betas, first, start, 0.0)
    np.testing.assert_array_equal(same, first)
