"""Flows of a table's rows, in data units: some columns are modelled, some are given."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxgen import columns
from jaxgen.columns import Column
from jaxgen.losses import flow as losses
from jaxgen.models import flow_bijectors
from jaxgen.models.base import (
    Aux,
    Batch,
    LogLikelihood,
    Model,
    Player,
    example_keys,
    normal_prior,
)
from jaxgen.models.flow_config import FlowConfig

NUM_CONTEXTS = 1024  # rows whose context is kept, for samples that are given none


def of_rows(config: FlowConfig) -> Model:
    """The model of rows `[B, C]`, the columns in the order of the table.

    A condition is `[B, K]`, values of the context columns; by default those in the row.
    """
    flow, (modelled, given) = flow_bijectors.table_flow(config), _places(config)

    def init(key: Array, batch: Batch) -> Any:
        x = batch["x"]
        params = flow.init(key, x[:, modelled], _told(config, x[:, given]))
        if not len(given):  # an array of no values cannot be stored
            return {"flow": {"bijector": params}}
        contexts = jnp.resize(x[:, given], (NUM_CONTEXTS, len(given)))
        return {"flow": {"bijector": params, "contexts": contexts}}

    def latent(params: Any, x: Array, keys: Array, condition: Any) -> Any:
        values, to_latent, _ = bound(config, params, x, keys, condition)
        return to_latent(values)

    def objective(
        params: Any, extra: Any, batch: Batch, key: Array, progress: Array
    ) -> tuple[Array, Aux]:
        del extra, progress
        z, log_det = latent(params, batch["x"], example_keys(key, batch), None)
        loss = losses.negative_log_likelihood(z, log_det)
        return loss * batch.get("weight", 1.0), Aux({})

    def generate(params: Any, z: Array, keys: Array, condition: Any = None) -> Array:
        x, _, _ = drawn(config, params, z, keys, condition)
        return columns.rounded(config.columns or (), x)

    def log_likelihood(
        params: Any, x: Array, keys: Array, condition: Any = None, *, num_samples: int
    ) -> LogLikelihood:
        del num_samples
        z, log_det = latent(params, x, keys, condition)
        nats = -losses.negative_log_likelihood(z, log_det)
        return LogLikelihood(nats=nats, kind="exact")

    return Model(
        init=lambda key, batch: (init(key, batch), ()),
        players=(Player("flow", objective),),
        prior=normal_prior((len(modelled),)),
        generate=generate,
        encode=lambda params, x, keys, condition=None: latent(
            params, x, keys, condition
        )[0],
        log_likelihood=log_likelihood,
        density="other",
    )


def bound(
    config: FlowConfig, params: Any, x: Array, keys: Array, condition: Any
) -> tuple[Array, Any, Any]:
    """Modelled columns as the chain takes them, and its two ways at their context."""
    chain, (modelled, given) = flow_bijectors.table_flow(config), _places(config)
    told = _told(config, x[:, given] if condition is None else condition)
    params = params["flow"]["bijector"]
    return (
        columns.spread(_chosen(config, modelled), x[:, modelled], keys),
        lambda x: chain.to_latent(params, x, told),
        lambda z: chain.to_data(params, z, told),
    )


def drawn(
    config: FlowConfig, params: Any, z: Array, keys: Array, condition: Any
) -> tuple[Array, Array, Array]:
    """Rows `[B, C]` at latents z, their log density `[B]` in nats, and their context.

    A context that is not given is that of a training row, drawn by the sample's key.
    """
    modelled, given = _places(config)
    if condition is None and not len(given):
        condition = jnp.zeros((len(z), 0))
    if condition is None:
        rows = params["flow"]["contexts"]
        chosen = jax.vmap(lambda key: jax.random.randint(key, (), 0, len(rows)))(keys)
        condition = rows[chosen]
        names = [column.name for column in _chosen(config, given)]
        for name, value in config.sampling.context(config.columns).items():
            condition = condition.at[:, names.index(name)].set(value)
    values, log_det = flow_bijectors.table_flow(config).to_data(
        params["flow"]["bijector"], z, _told(config, condition)
    )
    x = jnp.concatenate([values, condition], axis=1)
    x = x[:, np.argsort(np.concatenate([modelled, given]))]
    return x, -losses.standard_normal_nll(z) - log_det, condition


def _places(config: FlowConfig) -> tuple[np.ndarray, np.ndarray]:
    """Of the columns that are modelled, and of those that are given."""
    is_context = np.array([c.is_context for c in config.columns or ()], bool)
    return np.flatnonzero(~is_context), np.flatnonzero(is_context)


def _chosen(config: FlowConfig, places: np.ndarray) -> list[Column]:
    every = list(config.columns or ())
    return [every[i] for i in places]


def _told(config: FlowConfig, context: Array) -> Array | None:
    _, given = _places(config)
    return columns.features(_chosen(config, given), context) if len(given) else None
