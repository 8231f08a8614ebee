"""Trains diffusion to enlarge Gaussian images, of which all is known; see test_posterior.

A process of its own, as the tests' own compiles what runs slowly. Squares of 2x2 pixels are
independent; a block mean is seen of each, and the other three directions are asked.
"""

import dataclasses
import functools
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen import tasks
from jaxgen.models import diffusion
from jaxgen.models.diffusion_config import DiffusionConfig, Sampling
from jaxgen.train import answering, config, update

SIDE, BATCH = 8, 64
MEAN, STD = 0.5, 0.1
# Neighbours agree, of left and right more than of above and below.
CORRELATIONS = np.kron([[1, 0.2], [0.2, 1]], [[1, 0.6], [0.6, 1]])
TASK = tasks.enlarge(2)


def squares(x):
    """`[..., H, W, 1]` -> `[..., squares, 4]`."""
    rows = x.reshape(*x.shape[:-3], SIDE // 2, 2, SIDE // 2, 2)
    return np.moveaxis(rows, -3, -2).reshape(*x.shape[:-3], -1, 4)


def images(key, num):
    """Of the Gaussian, `[num, H, W, 1]`."""
    root = jnp.asarray(np.linalg.cholesky(CORRELATIONS), jnp.float32)
    noise = jax.random.normal(key, (num, SIDE // 2, SIDE // 2, 4))
    x = MEAN + STD * noise @ root.T
    x = x.reshape(num, SIDE // 2, SIDE // 2, 2, 2)
    return x.swapaxes(2, 3).reshape(num, SIDE, SIDE, 1)


def trained(model, train, seed):
    """The average of the parameters after training."""
    optimizers = {p.name: config.make_optimizer(train) for p in model.players}

    def batch(key):
        draw, split = jax.random.split(key)
        condition, x = TASK.split(images(draw, BATCH), jax.random.split(split, BATCH))
        return {"x": x, "condition": condition}

    key = jax.random.key(seed)
    state = update.init_state(model, optimizers, key, batch(key))
    step = update.make_update(
        model,
        optimizers,
        num_steps=train.steps,
        ema_half_life=train.ema_half_life,
        prepare=lambda raw, key: batch(key),
    )

    @functools.partial(jax.jit, donate_argnums=0)
    def one(state):
        return step(state, batch(key), key)[0]

    for _ in range(train.steps):
        state = one(state)
    return state.averages[0]


def main(steps, num_answers, seed):
    """Prints how far answers to one question are from the exact posterior.

    Along each of the three directions that are not seen `mean` and `variance`, in standard
    errors over all answers and squares; and `seen`, the most that a block mean is off.
    """
    model_config, _ = diffusion.resolve(
        DiffusionConfig(
            net="unet",
            widths=(32,),
            blocks=1,
            attention_side=4,
            sampling=Sampling(num_steps=40, sampler="heun"),
        ),
        (SIDE, SIDE, 1),
        None,
        num_planes=TASK.num_planes(1),
    )
    model = diffusion.make_diffusion(model_config)
    train = dataclasses.replace(
        config.default("diffusion").train, steps=steps, batch_size=BATCH
    )
    params = trained(model, train, seed)
    truth = images(jax.random.key(seed + 1), 1)
    condition, _ = TASK.split(truth, jax.random.split(jax.random.key(0), 1))
    answers = answering.several(
        answering.to_condition(model, TASK),
        params,
        [np.asarray(condition)],
        num_answers,
        seed=seed,
        at_once=100,
    )[0]
    covariance = STD**2 * CORRELATIONS
    seen = np.full((1, 4), 0.25)
    gain = covariance @ seen.T / (seen @ covariance @ seen.T)
    left = covariance - gain @ seen @ covariance
    values, vectors = np.linalg.eigh(left)
    y = squares(np.asarray(truth, np.float64))[0] @ seen.T
    mean = MEAN + (y - MEAN) @ gain.T
    off = (squares(answers.astype(np.float64)) - mean) @ vectors[:, 1:]
    off = off.reshape(-1, 3) / np.sqrt(values[1:])
    errors = {
        "mean": off.mean(axis=0) * np.sqrt(len(off)),
        "variance": (np.square(off).mean(axis=0) - 1) * np.sqrt(len(off) / 2),
        "seen": np.abs(squares(answers) @ seen.T - y).max(keepdims=True),
    }
    print(json.dumps({name: array.ravel().tolist() for name, array in errors.items()}))


if __name__ == "__main__":
    main(*(int(told) for told in sys.argv[1:]))
