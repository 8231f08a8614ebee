"""jaxgen's side: its own update, compiled and fed as `jaxgen train` does it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import cases
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from jaxgen import data
from jaxgen.bench import throughput
from jaxgen.models import vae
from jaxgen.models.base import Aux, Model, Player
from jaxgen.nets.conv import Conv
from jaxgen.nets.patches import patches
from jaxgen.train import assembly, parallel
from jaxgen.train import config as configs
from jaxgen.train.session import Session, bind, num_parameters, resolve


class Problem(NamedTuple):
    """A case bound: `loss(own parameters, x, eps) -> scalar` is what the update lowers."""

    session: Session
    dataset: data.Dataset
    loss: Callable[[Any, Array, Array], Array]


class UNet(nn.Module):
    """3x3 convolutions and silu; down by 2x2 patches, up by nearest, with skips."""

    widths: tuple[int, ...]

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """`[B, H, W, C] -> [B, H, W, C]`."""

        def conv(width: int, h: Array) -> Array:
            return nn.silu(Conv(width, (3, 3))(h))

        h, skips = conv(self.widths[0], x), []
        for level, width in enumerate(self.widths):
            if level:
                skips.append(h)
                h = nn.Dense(width)(patches(h))
            for _ in range(2):
                h = conv(width, h)
        for skip in reversed(skips):
            h = conv(skip.shape[-1], jnp.repeat(jnp.repeat(h, 2, axis=1), 2, axis=2))
            h = conv(skip.shape[-1], jnp.concatenate([h, skip], axis=-1))
        return Conv(x.shape[-1], (3, 3))(h)


def run_config(case: cases.Case, family: str, model: Any) -> configs.RunConfig:
    """Training on scikit-learn's digits, Adam, nothing kept or averaged."""
    parallel.count_cpu_as(case.devices)
    return configs.RunConfig(
        family=family,
        model=model,
        data=data.DataConfig(
            name="digits",
            image_size=case.image_size,
            channels=case.channels,
            transform=case.transform,
        ),
        train=configs.TrainConfig(
            batch_size=case.batch_size,
            learning_rate=cases.LEARNING_RATE,
            schedule="constant",
            warmup=0.0,
            beta1=cases.BETAS[0],
            beta2=cases.BETAS[1],
            weight_decay=0.0,
            ema_half_life=0.0,
            steps_per_dispatch=case.steps_per_dispatch,
            devices=case.devices,
        ),
    )


def _vae(case: cases.Case) -> Problem:
    net = "mlp" if case.net == "mlp" else "conv"
    model = vae.VAEConfig(
        net=net,
        hidden=case.widths,
        width=case.widths[0],
        latent_dim=case.latent_dim,
        likelihood="bernoulli",
    )
    config = run_config(case, "vae", model)
    dataset = data.open_dataset(config.data)
    session = bind(resolve(config, dataset))
    resolved = session.config.model

    def loss(params: Any, x: Array, eps: Array) -> Array:
        return -jnp.mean(vae.elbo(resolved, params, x, eps).elbo)

    return Problem(session, dataset, loss)


def _unet(case: cases.Case) -> Problem:
    net = UNet(case.widths)

    def errors(params: Any, x: Array) -> Array:
        outputs = jnp.asarray(net.apply({"params": params}, x))
        return jnp.mean(jnp.square(outputs - x), axis=(1, 2, 3))

    def objective(
        params: Any, extra: Any, batch: Any, key: Array, progress: Array
    ) -> tuple[Array, Aux]:
        del extra, key, progress
        return errors(params["vae"], batch["x"]), Aux({})

    def init(key: Array, batch: Any) -> tuple[Any, Any]:
        return {"vae": net.init(key, batch["x"][:1])["params"]}, ()

    config = run_config(case, "vae", None)
    model = Model(
        init=init,
        players=(Player("vae", objective),),
        prior=lambda keys: keys,
        generate=lambda params, z, keys, condition=None: z,
    )
    session = Session(config, model, {"vae": configs.make_optimizer(config.train)})
    dataset = data.open_dataset(config.data)
    return Problem(session, dataset, lambda params, x, eps: errors(params, x).mean())


PROBLEMS = {"mlp": _vae, "conv": _vae, "unet": _unet}


class Side:
    """`advance(updates)` in whole dispatches; `checked`, the first updates' losses.

    Args:
        case: What is trained.
        side: `jaxgen`.
        folder: Where `reference.npz` is written for the others: images, batch, noise,
            parameters.
    """

    def __init__(self, case: cases.Case, side: str, folder: Path):
        del side  # torch has several
        problem = PROBLEMS[case.net](case)
        (state,) = assembly.first_states([problem.session], problem.dataset)
        self.num_parameters = num_parameters(state.params)
        reference = _reference(case, problem, state)
        np.savez(folder / "reference.npz", allow_pickle=False, **reference)
        self.checked = {"losses": _losses(problem, state, reference)}
        self._runner = throughput.Runner(problem.session, problem.dataset)
        self.quantum = self._runner.program.num_steps
        self.settings = {"steps_per_dispatch": self.quantum, "jax": jax.__version__}

    def advance(self, updates: int) -> None:
        """So many updates, a multiple of `quantum`, and one wait."""
        self._runner.repeat(updates // self.quantum)


def _reference(case: cases.Case, problem: Problem, state: Any) -> dict[str, np.ndarray]:
    source = problem.dataset.train
    if not isinstance(source, data.ArraySource):
        raise TypeError("the digits lie in memory")
    batch = np.arange(case.batch_size)
    normal = np.random.default_rng(0).normal(size=(case.batch_size, case.latent_dim))
    leaves = jax.tree.leaves_with_path(state.params["vae"])
    params = {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf)
        for path, leaf in leaves
    }
    arrays = {"images": source.arrays["x"], "batch": batch}
    return {**arrays, "eps": normal.astype(np.float32), **params}


def _losses(problem: Problem, state: Any, reference: dict[str, Any]) -> list[float]:
    optimizer = problem.session.optimizers["vae"]
    params, opt_state = state.params["vae"], state.opt_state["vae"]
    raw = {"x": jnp.asarray(reference["images"][reference["batch"]])}
    transform = problem.session.config.data.transform
    x = data.prepare(raw, jax.random.key(0), transform=transform)["x"]
    gradient = jax.jit(jax.value_and_grad(problem.loss))
    losses = []
    for _ in range(cases.CHECKED_UPDATES):
        loss, grads = gradient(params, x, jnp.asarray(reference["eps"]))
        updates, opt_state = optimizer.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
        losses.append(float(loss))
    return losses
