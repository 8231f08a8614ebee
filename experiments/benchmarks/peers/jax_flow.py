"""jaxgen's side of normalizing flows: bijectors, by its own update and dispatch."""

import functools
from pathlib import Path
from typing import Any

import cases
import flow_cases
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxgen import bijectors, data
from jaxgen.losses import flow as losses
from jaxgen.models.base import Aux, Model, Player
from jaxgen.nets import flow as nets
from jaxgen.train import config as configs
from jaxgen.train import parallel, update
from jaxgen.train.session import num_parameters


def flow(case: flow_cases.FlowCase) -> bijectors.Bijector:
    """The layers as one loop, the order of the values reversed after each."""
    spline = bijectors.rational_quadratic(num_bins=case.num_bins, bound=case.bound)
    transform = spline if case.net == "spline" else bijectors.affine()
    if case.net == "maf":
        net = nets.MaskedMLP(transform.num_params, hidden=case.hidden)
        layer = bijectors.autoregressive(nets.network(net), transform)
    else:
        kept = case.dim // 2
        net = nets.MLP(transform.num_params * (case.dim - kept), hidden=case.hidden)
        layer = bijectors.coupling(nets.network(net), transform, num_kept=kept)
    return bijectors.scan_chain(
        bijectors.chain(layer, bijectors.reverse()), case.num_layers
    )


def model(bijector: bijectors.Bijector) -> Model:
    """Of one player, whose loss is the negative log-likelihood."""

    def objective(
        params: Any, extra: Any, batch: Any, key: Array, progress: Array
    ) -> tuple[Array, Aux]:
        del extra, key, progress
        z, log_det = bijector.to_latent(params["flow"], batch["x"])
        return losses.negative_log_likelihood(z, log_det), Aux({})

    return Model(
        init=lambda key, batch: ({"flow": bijector.init(key, batch["x"])}, ()),
        players=(Player("flow", objective),),
        prior=lambda keys: keys,
        generate=lambda params, z, keys, condition=None: z,
    )


class Side:
    """`advance(updates)` in whole dispatches of `quantum`.

    Args:
        case: What is trained.
        side: `jaxgen`.
        folder: Not used: the data are made from a seed.
    """

    def __init__(self, case: flow_cases.FlowCase, side: str, folder: Path):
        del side, folder
        train = configs.TrainConfig(
            learning_rate=cases.LEARNING_RATE,
            schedule="constant",
            warmup=0.0,
            beta1=cases.BETAS[0],
            beta2=cases.BETAS[1],
            weight_decay=0.0,
        )
        bijector = flow(case)
        bound = model(bijector)
        optimizers = {"flow": configs.make_optimizer(train)}
        self._layout = parallel.Layout("sharded", 1, batch_size=case.batch_size)
        x = jnp.asarray(case.examples())
        state = update.init_state(bound, optimizers, jax.random.key(0), {"x": x})
        self.num_parameters = num_parameters(state.params)
        self.checked = _densities(bijector, state.params["flow"], x)
        self._state = self._layout.place(state)
        self._resident = self._layout.place_resident({"x": x})
        self._key, self._step = jax.random.key(1), 0
        self._indices = functools.partial(
            data.batch_indices, 0, num_examples=len(x), batch_size=case.batch_size
        )
        self._program = self._layout.compile(
            update.make_update(bound, optimizers, num_steps=1),
            lambda resident, item: {"x": resident["x"][item]},
            (self._state, self._resident, self._item(0), self._key),
            0,
        )
        self.quantum = self._program.num_steps
        self.advance(flow_cases.TRAINED_UPDATES)
        self.settings = {
            "steps_per_dispatch": self.quantum,
            "jax": jax.__version__,
            "loss": float(self._loss[-1]),
        }

    def advance(self, updates: int) -> None:
        """So many updates, a multiple of `quantum`, and one wait."""
        for _ in range(updates // self.quantum):
            items = [self._item(self._step + i) for i in range(self.quantum)]
            self._step += self.quantum
            self._state, metrics = self._program.run(
                self._state,
                self._resident,
                self._layout.place_items(items, self.quantum),
                np.int32(self.quantum),
                self._key,
            )
            self._loss = metrics["loss/flow"]
        jax.block_until_ready(self._state)

    def _item(self, step: int) -> np.ndarray:
        return self._indices(step).astype(np.int32)


def _densities(bijector: bijectors.Bijector, params: Any, x: Array) -> dict[str, Any]:
    """Of parameters moved away from the identity that they begin as."""
    leaves, form = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(2), len(leaves))
    moved = [
        leaf + 0.05 * jax.random.normal(key, leaf.shape, leaf.dtype)
        for key, leaf in zip(keys, leaves, strict=True)
    ]
    params, x = form.unflatten(moved), x[: flow_cases.CHECKED_EXAMPLES]
    z, log_det = bijector.to_latent(params, x)
    one = lambda x: bijector.to_latent(params, x[None])[0][0]  # noqa: E731
    told = -losses.negative_log_likelihood(z, log_det)
    jacobians = jax.jit(jax.vmap(jax.jacrev(one)))(x)
    return flow_cases.densities(*(np.asarray(a) for a in (told, z, jacobians)))
