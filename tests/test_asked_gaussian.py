"""Trained models against the exact posterior: a Gaussian of which a linear part is seen."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxgen import tasks
from jaxgen.models import diffusion
from jaxgen.train import answering, update

SIDE, SPREAD = 8, 0.1
TASK = tasks.enlarge(2)
NUM, QUESTIONS = 100, 4
STEPS = 1000  # of training; with 8,000 it is 400 answers that cannot tell the two apart
DIRECTIONS = 4  # of the posterior, those of the greatest variance


def covariance() -> np.ndarray:
    """Of pixels that are alike where they are near each other."""
    places = np.stack(np.meshgrid(*2 * [np.arange(SIDE)]), axis=-1).reshape(-1, 2)
    squares = ((places[:, None] - places[None]) ** 2).sum(-1)
    return SPREAD**2 * np.exp(-squares / 4)


def operator() -> np.ndarray:
    """What `TASK` sees, as a matrix `[16, 64]`."""
    units = jnp.eye(SIDE**2).reshape(-1, SIDE, SIDE, 1)
    return np.asarray(see(units)).T.astype(np.float64)


def see(x):
    """The block means of images, `[B, 16]`."""
    keys = jax.random.split(jax.random.key(0), len(x))
    return TASK.split(x, keys)[0][:, ::2, ::2, 0].reshape(len(x), -1)


def posterior(y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean `[64]` and covariance of x given A x = y."""
    prior, a = covariance(), operator()
    gain = prior @ a.T @ np.linalg.inv(a @ prior @ a.T)
    return 0.5 + gain @ (y - 0.5), prior - gain @ a @ prior


def draw(key, num):
    factor = jnp.asarray(np.linalg.cholesky(covariance()), jnp.float32)
    rows = 0.5 + jax.random.normal(key, (num, SIDE**2)) @ factor.T
    return rows.reshape(num, SIDE, SIDE, 1)


def trained(model, *, steps, batch_size, rate):
    """Averaged parameters, from examples that are new at each update."""
    optimizers = {
        p.name: optax.adam(optax.cosine_decay_schedule(rate, steps))
        for p in model.players
    }

    def prepare(batch, key):
        x = draw(key, len(batch["x"]))
        condition, x = TASK.split(x, jax.random.split(key, len(x)))
        return {"x": x, "condition": condition}

    blank = {"x": jnp.zeros((batch_size, SIDE, SIDE, 1))}
    advance = update.make_update(
        model, optimizers, num_steps=steps, ema_half_life=0.02, prepare=prepare
    )
    first = prepare(blank, jax.random.key(1))
    state = update.init_state(model, optimizers, jax.random.key(0), first)

    @jax.jit
    def whole(state):
        body = lambda _, state: advance(state, blank, jax.random.key(2))[0]
        return jax.lax.fori_loop(0, steps, body, state)

    return whole(state).averages[0]


def small_diffusion(planes):
    config = diffusion.DiffusionConfig(widths=(16,), blocks=1, patch=1)
    return diffusion.make_diffusion(
        diffusion.resolve(config, (SIDE, SIDE, 1), None, num_planes=planes)[0]
    )


@pytest.mark.slow
def test_a_trained_diffusion_draws_from_the_exact_posterior():
    """Mean and variance along the posterior's widest directions, within 3 standard errors."""
    model = small_diffusion(TASK.num_planes(1))
    params = trained(model, steps=STEPS, batch_size=64, rate=3e-3)
    asked = draw(jax.random.key(3), QUESTIONS)
    condition, _ = TASK.split(asked, jax.random.split(jax.random.key(4), QUESTIONS))
    answer = answering.to_condition(model, TASK)
    found = answering.several(
        answer, params, [np.asarray(condition)], NUM, seed=5, at_once=NUM
    )
    told = []
    for answers, y in zip(found, np.asarray(see(asked), np.float64), strict=True):
        mean, spread = posterior(y)
        variances, directions = np.linalg.eigh(spread)
        along = (answers.reshape(NUM, -1) - mean) @ directions[:, -DIRECTIONS:]
        expected = variances[-DIRECTIONS:]
        told.append(along.mean(axis=0) / np.sqrt(expected / NUM))
        told.append((along.var(axis=0, ddof=1) / expected - 1) / np.sqrt(2 / (NUM - 1)))
    errors = np.abs(told)
    print(f"at most {errors.max():.2f} standard errors, {errors.mean():.2f} each")
    assert errors.max() < 3
    # The unconditional spread is far from it.
    off = np.diag(covariance()).sum() / np.trace(posterior(y)[1]) - 1
    assert off / np.sqrt(2 / (NUM - 1)) > 10
