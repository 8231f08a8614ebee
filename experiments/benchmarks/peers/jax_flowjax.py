"""flowjax's side of normalizing flows: its premade flows and the step of `fit_to_data`.

`flowjax` calls that step once a batch, as the library's own loop does. `flowjax-scan`
does as many updates as jaxgen in one compiled call, which the library does not offer.
"""

# pyright: reportMissingImports=false

from pathlib import Path
from typing import Any

import cases
import equinox as eqx
import flow_cases
import jax
import jax.numpy as jnp
import numpy as np
import optax
import paramax
from flowjax import bijections, distributions, flows
from flowjax.train import losses, train_utils
from jax import Array

STEPS_PER_CALL = 64  # of flowjax-scan


def flow(case: flow_cases.FlowCase) -> Any:
    """Its layers are one loop as well."""
    options = {
        "base_dist": distributions.StandardNormal((case.dim,)),
        "flow_layers": case.num_layers,
        "nn_width": case.hidden,
        "nn_depth": 3,
        "nn_activation": jax.nn.silu,
    }
    if case.net == "maf":
        return flows.masked_autoregressive_flow(jax.random.key(0), **options)
    if case.net == "spline":
        options["transformer"] = bijections.RationalQuadraticSpline(
            knots=case.num_bins - 1, interval=case.bound
        )
    return flows.coupling_flow(jax.random.key(0), **options)


class Side:
    """`advance(updates)`.

    Args:
        case: What is trained.
        side: `flowjax` or `flowjax-scan`.
        folder: Not used.
    """

    def __init__(self, case: flow_cases.FlowCase, side: str, folder: Path):
        del folder
        dist = flow(case)
        self._x, self._batch_size = jnp.asarray(case.examples()), case.batch_size
        self.checked = _densities(dist, self._x)
        is_fixed = lambda leaf: isinstance(leaf, paramax.NonTrainable)  # noqa: E731
        self._params, self._static = eqx.partition(
            dist, eqx.is_inexact_array, is_leaf=is_fixed
        )
        self.num_parameters = sum(a.size for a in jax.tree.leaves(self._params))
        self._optimizer = optax.adam(
            cases.LEARNING_RATE, b1=cases.BETAS[0], b2=cases.BETAS[1]
        )
        self._opt_state = self._optimizer.init(self._params)
        self._loss_fn, self._key = losses.MaximumLikelihoodLoss(), jax.random.key(1)
        self._batches = self._endless()
        is_scan = side == "flowjax-scan"
        self.quantum = STEPS_PER_CALL if is_scan else 1
        self._many = self._scan() if is_scan else self._one
        self.advance(flow_cases.TRAINED_UPDATES)
        self.settings = {
            "steps_per_dispatch": self.quantum,
            "jax": jax.__version__,
            "loss": float(np.ravel(self._loss)[-1]),
        }

    def advance(self, updates: int) -> None:
        """So many updates and one wait."""
        for _ in range(updates // self.quantum):
            self._params, self._opt_state, self._loss = self._many(
                self._params, self._opt_state
            )
        jax.block_until_ready(self._params)

    def _one(self, params: Any, opt_state: Any) -> Any:
        return train_utils.step(
            params,
            self._static,
            next(self._batches),
            optimizer=self._optimizer,
            opt_state=opt_state,
            loss_fn=self._loss_fn,
            key=self._key,
        )

    def _scan(self) -> Any:
        """The step's body, of the same functions, in a loop of XLA."""
        rng = np.random.default_rng(1)
        shape = self.quantum, self._batch_size

        def step(carry: Any, indices: Array) -> Any:
            params, opt_state = carry
            loss, grads = jax.value_and_grad(self._loss_fn)(
                params, self._static, self._x[indices]
            )
            updates, opt_state = self._optimizer.update(grads, opt_state, params)
            return (eqx.apply_updates(params, updates), opt_state), loss

        scan = jax.jit(
            lambda params, opt_state, indices: jax.lax.scan(
                step, (params, opt_state), indices
            ),
            donate_argnums=(0, 1),
        )

        def many(params: Any, opt_state: Any) -> Any:
            indices = rng.integers(len(self._x), size=shape, dtype=np.int32)
            (params, opt_state), loss = scan(params, opt_state, indices)
            return params, opt_state, loss

        return many

    def _endless(self) -> Any:
        """Batches of a shuffled epoch, as `fit_to_data` makes them."""
        key = jax.random.key(2)
        while True:
            key, own = jax.random.split(key)
            shuffled = (jax.random.permutation(own, self._x),)
            (batches,) = train_utils.get_batches(shuffled, self._batch_size)
            yield from batches


def _densities(dist: Any, x: Array) -> dict[str, Any]:
    dist, x = paramax.unwrap(dist), x[: flow_cases.CHECKED_EXAMPLES]
    z = jax.vmap(dist.bijection.inverse)(x)
    jacobians = jax.jit(jax.vmap(jax.jacrev(dist.bijection.inverse)))(x)
    told = dist.log_prob(x)
    return flow_cases.densities(*(np.asarray(a) for a in (told, z, jacobians)))
