"""Models trained on densities that are known, and how far from the truth flows end.

Data are drawn anew for every step, so nothing can be learnt by heart.
"""

import dataclasses
import functools
import time
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen import targets
from jaxgen.columns import Column
from jaxgen.models import flow
from jaxgen.models.base import Model
from jaxgen.train import config as configs
from jaxgen.train import update

AT_ONCE = 50  # updates in one program run, at most
NUM_TEST = 100_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """How a flow is trained."""

    steps: int = 2000
    """Updates."""
    batch_size: int = 512
    """Fresh examples an update."""
    depth: int = 3
    """Layers of the flow."""
    width: int = 64
    """Channels of its networks."""
    layers: int = 1
    """Blocks of two layers in each of them."""
    bins: int = 16
    """Bins of its splines."""
    waves: int = 16
    """Sines of each value that the networks see besides it."""
    learning_rate: float = 1e-2
    """Peak learning rate."""
    seed: int = 0
    """Of everything."""


def fit(
    target: targets.Target,
    options: Options,
    *,
    net: Literal["autoregressive", "coupling"] = "autoregressive",
) -> tuple[Any, Any, float]:
    """Trains a flow; the model's config, its averaged parameters, and the seconds."""
    config, _ = flow.resolve(
        flow.FlowConfig(
            net=net,
            depth=options.depth,
            width=options.width,
            layers=options.layers,
            bins=options.bins,
            waves=options.waves,
        ),
        (target.dim,),
        None,
        None,
        columns(target),
    )
    train = configs.TrainConfig(
        steps=options.steps,
        optimizer="muon",
        schedule="linear",
        learning_rate=options.learning_rate,
        clip_norm=1.0,
    )
    params, seconds = train_on_fresh(
        flow.make_flow(config),
        train,
        target,
        batch_size=options.batch_size,
        seed=options.seed,
    )
    return config, params, seconds


def columns(target: targets.Target) -> tuple[Column, ...]:
    """Of a table of draws from a density."""
    x = np.asarray(target.sample(jax.random.key(2**20), 10_000))
    return tuple(
        Column(name=f"x{i}", mean=float(x[:, i].mean()), deviation=float(x[:, i].std()))
        for i in range(target.dim)
    )


def train_on_fresh(
    model: Model,
    train: configs.TrainConfig,
    target: targets.Target,
    *,
    batch_size: int,
    seed: int,
) -> tuple[Any, float]:
    """The averaged parameters after training on draws that are fresh at every step.

    Args:
        model: Of rows of the target.
        train: Steps, optimizer and average.
        target: What is drawn from.
        batch_size: Examples a step.
        seed: Of everything.

    Returns:
        The parameters, and the seconds that it took with compiling.
    """
    optimizers = {p.name: configs.make_optimizer(train) for p in model.players}
    advance = update.make_update(
        model, optimizers, num_steps=train.steps, ema_half_life=train.ema_half_life
    )
    at_once = next(n for n in range(AT_ONCE, 0, -1) if train.steps % n == 0)

    @functools.partial(jax.jit, donate_argnums=0)
    def several(state: Any, key: jax.Array) -> Any:
        def one(state: Any, _: None) -> tuple[Any, None]:
            fresh = jax.random.fold_in(key, state.step)
            batch = {"x": target.sample(fresh, batch_size)}
            return advance(state, batch, key)[0], None

        return jax.lax.scan(one, state, None, at_once)[0]

    began, key = time.perf_counter(), jax.random.key(seed)
    state = jax.jit(functools.partial(update.init_state, model, optimizers))(
        key, {"x": target.sample(jax.random.key(2**20), 1000)}
    )
    for _ in range(train.steps // at_once):
        state = several(state, key)
    jax.block_until_ready(state)
    return state.ema, time.perf_counter() - began


def distance(target: targets.Target, config: Any, params: Any) -> dict[str, float]:
    """Entropy, NLL and their difference in nats, on the same fresh draws."""
    log_prob = jax.jit(lambda params, x: _nats(config, params, x))
    true = jax.jit(target.log_prob)
    x = target.sample(jax.random.key(2**21), NUM_TEST).reshape(100, -1, target.dim)
    p = np.concatenate([np.asarray(true(part), np.float64) for part in x])
    q = np.concatenate([np.asarray(log_prob(params, part), np.float64) for part in x])
    return {
        "entropy": -p.mean() if target.entropy is None else target.entropy,
        "nll": -q.mean(),
        "distance": float((p - q).mean()),
        "distance_se": float((p - q).std() / np.sqrt(len(p))),
    }


def _nats(config: Any, params: Any, x: jax.Array) -> jax.Array:
    likelihood: Any = flow.make_flow(config).log_likelihood
    keys = jax.random.split(jax.random.key(0), len(x))
    return likelihood(params, x, keys, num_samples=1).nats


def draw(
    axes: Any, name: str, target: targets.Target, config: Any, params: Any
) -> None:
    """A row of the figure: data, density, samples, the grid carried over."""
    model, keys = flow.make_flow(config), jax.random.split(jax.random.key(1), 4000)
    data = np.asarray(target.sample(jax.random.key(3), 4000))
    samples = np.asarray(model.generate(params, model.prior(keys, params), keys))
    middle, half = (data.max(0) + data.min(0)) / 2, (data.max(0) - data.min(0)).max()
    low, high = middle - 0.55 * half, middle + 0.55 * half
    side = [np.linspace(low[i], high[i], 300, dtype=np.float32) for i in range(2)]
    places = jnp.asarray(np.stack(np.meshgrid(*side), -1).reshape(-1, 2))
    nats = _nats(config, params, places)
    extent = (low[0], high[0], low[1], high[1])
    for axis, points in ((axes[0], data), (axes[2], samples)):
        axis.plot(*points.T, ".", ms=1, alpha=0.5, color="#1d5fb4", mew=0)
    density = np.exp(np.asarray(nats)).reshape(300, 300)
    axes[1].imshow(density, origin="lower", extent=extent, cmap="magma")
    line, along = np.linspace(-2.4, 2.4, 13), np.linspace(-2.4, 2.4, 400)
    for fixed in line:
        for order in (1, -1):
            z = np.stack([np.full_like(along, fixed), along][::order], 1)
            key = jax.random.split(jax.random.key(0), len(z))
            curve = model.generate(params, jnp.asarray(z, jnp.float32), key)
            axes[3].plot(*np.asarray(curve).T, lw=0.5, color="#c2410c")
    for axis in axes:
        axis.set(xlim=extent[:2], ylim=extent[2:], xticks=[], yticks=[], aspect=1)
    axes[0].set_ylabel(name.replace("_", " "))
