"""jaxgen's side of a GAN: an update of both players, as `jaxgen train` does it."""

from pathlib import Path
from typing import Any

import cases
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax_side import run_config

from jaxgen import data
from jaxgen.bench import throughput
from jaxgen.models import gan
from jaxgen.models.base import Player, example_keys
from jaxgen.train import assembly
from jaxgen.train.session import Session, bind, num_parameters, resolve

Turn = tuple[Player, Array]


class Side:
    """`advance(updates)` in whole dispatches; `checked`, the first updates' losses.

    Args:
        case: What is trained.
        side: `jaxgen`.
        folder: Where `reference.npz` is written for the others: images, batch, z of each
            player's turn, parameters.
    """

    def __init__(self, case: cases.Case, side: str, folder: Path):
        del side  # torch has several
        model = gan.GANConfig(
            net="dcgan" if case.net == "dcgan" else "residual",
            width=case.widths[0],
            latent_dim=case.latent_dim,
            patch=2,
            blocks=cases.GAN_BLOCKS,
            gamma_decay=1.0,
        )
        config = run_config(case, "gan", model)
        dataset = data.open_dataset(config.data)
        session = bind(resolve(config, dataset))
        (state,) = assembly.first_states([session], dataset)
        self.num_parameters = num_parameters(state.params)
        images = dataset.train.take(np.arange(dataset.train.num_examples))["x"]
        players = session.model.players * cases.CHECKED_UPDATES
        turns = list(
            zip(players, jax.random.split(jax.random.key(0), len(players)), strict=True)
        )
        batch = np.arange(case.batch_size)
        raw = {"x": jnp.asarray(images[batch])}
        prepared = data.prepare(raw, jax.random.key(0), transform=case.transform)
        params = {
            jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf)
            for path, leaf in jax.tree.leaves_with_path(state.params)
        }
        np.savez(
            folder / "reference.npz",
            allow_pickle=False,
            images=images,
            batch=batch,
            z=np.stack([_z(session, *turn, prepared) for turn in turns]),
            gamma=np.float32(session.config.model.gamma * images[0].size),
            **params,
        )
        self.checked = {"losses": _losses(session, state, prepared, turns)}
        self._runner = throughput.Runner(session, dataset)
        self.quantum = self._runner.program.num_steps
        self.settings = {"steps_per_dispatch": self.quantum, "jax": jax.__version__}

    def advance(self, updates: int) -> None:
        """So many updates, a multiple of `quantum`, and one wait."""
        self._runner.repeat(updates // self.quantum)


def _z(session: Session, player: Player, key: Array, batch: Any) -> np.ndarray:
    """What a player's objective draws for itself; the losses agree only if it is."""
    num = {"discriminator": 3, "generator": 2}[player.name]

    def one(key: Array) -> Array:
        return jax.random.split(jax.random.split(key, num)[0])[1]

    return np.asarray(session.model.prior(jax.vmap(one)(example_keys(key, batch))))


def _losses(session: Session, state: Any, batch: Any, turns: list[Turn]) -> list[float]:
    """Of the players in turn, from one batch."""
    params, opt_state = dict(state.params), dict(state.opt_state)
    losses = []
    for player, key in turns:
        name = player.name

        def mean_loss(own: Any, key: Array = key, player: Any = player) -> Array:
            everything = {**params, player.name: own}
            loss, _ = player.objective(everything, (), batch, key, jnp.zeros(()))
            return jnp.mean(loss)

        loss, grads = jax.jit(jax.value_and_grad(mean_loss))(params[name])
        changes, opt_state[name] = session.optimizers[name].update(
            grads, opt_state[name], params[name]
        )
        params[name] = optax.apply_updates(params[name], changes)
        losses.append(float(loss))
    return losses
