"""Known densities: they integrate to one, and their draws are theirs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen import targets

TOYS = {**targets.TOYS, "grid": targets.grid}


@pytest.mark.parametrize("name", TOYS)
def test_toys_integrate_to_one_and_are_sampled_as_their_density_says(name):
    target = TOYS[name]()
    draws = target.sample(jax.random.key(0), 40_000)
    low, high = np.min(draws, 0) - 0.5, np.max(draws, 0) + 0.5
    edges = [np.linspace(low[i], high[i], 601, dtype=np.float32) for i in range(2)]
    middles = [(e[1:] + e[:-1]) / 2 for e in edges]
    places = np.stack(np.meshgrid(*middles, indexing="ij"), -1).reshape(-1, 2)
    density = jax.jit(lambda x: jnp.exp(target.log_prob(x)))
    values = np.concatenate(
        [density(part) for part in np.array_split(places, 40)]
    ).reshape(600, 600)
    area = np.prod([e[1] - e[0] for e in edges])
    np.testing.assert_allclose(values.sum() * area, 1, atol=3e-3)
    # Both as histograms of 12 x 12 cells.
    cells = values.reshape(12, 50, 12, 50).sum((1, 3)) * area
    counts, _, _ = np.histogram2d(
        *np.asarray(draws).T, bins=[e[::50].astype(np.float64) for e in edges]
    )
    error = np.abs(counts / len(draws) - cells)
    assert np.all(error < 5 * np.sqrt(cells / len(draws)) + 1e-3)
    assert target.dim == 2


@pytest.mark.parametrize("dim", [2, 5])
@pytest.mark.parametrize("name", targets.CHAINS)
def test_chains_have_the_entropy_they_say(name, dim):
    target = targets.CHAINS[name](dim)
    x = target.sample(jax.random.key(1), 200_000)
    nats = np.asarray(target.log_prob(x), np.float64)
    error = nats.std() / np.sqrt(len(nats))
    assert abs(nats.mean() + target.entropy) < 5 * error + 1e-4
    if dim == 2:  # and integrate to one
        wide = 1.1 * np.abs(x).max()
        line = np.linspace(-wide, wide, 3000, dtype=np.float32)
        fine = np.sinh(line / wide * 6) / np.sinh(6) * wide
        step = np.gradient(fine)
        total = 0.0
        for a, width in zip(fine[::3], np.gradient(fine[::3]), strict=True):
            row = np.stack([np.full_like(fine, a), fine], 1)
            total += width * np.sum(np.exp(target.log_prob(row)) * step)
        np.testing.assert_allclose(total, 1, atol=5e-3)


def test_the_chain_of_gaussians_has_its_correlation():
    x = targets.gaussian_chain(4).sample(jax.random.key(2), 100_000)
    expected = 0.9 ** np.abs(np.subtract.outer(range(4), range(4)))
    np.testing.assert_allclose(np.cov(x.T), expected, atol=0.03)


def test_no_model_is_better_than_the_truth():
    """The Gibbs bound: E_p[log q] <= -H(p), for wider, narrower and shifted q."""
    truth = targets.ring()
    x = truth.sample(jax.random.key(3), 20_000)
    p = np.asarray(truth.log_prob(x), np.float64)
    for other in (targets.ring(deviation=0.3), targets.ring(7), targets.moons()):
        q = np.asarray(other.log_prob(x), np.float64)
        error = (p - q).std() / np.sqrt(len(p))
        assert (p - q).mean() > 4 * error
