"""One update for any number of players.

For each player in order: the gradient of its objective with respect to its own
parameters (all else frozen), its optimizer, and the next player sees the result. With
two players that is alternating GAN training; with one it is ordinary training.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from jaxgen import estimators
from jaxgen.models.base import Batch, Model, Params, Player


class TrainState(NamedTuple):
    """Everything a checkpoint holds besides the config.

    There is no key (it is `fold_in(seed, step)`) and no data position (the batch is a
    function of (seed, step)).

    Attributes:
        step: int32 scalar, the number of updates done.
        params: {player name: pytree}.
        ema: Exponential moving average of `params`, the parameters to use.
        opt_state: {player name: optimizer state}.
        extra: What is carried but not differentiated; `()` when there is none.
    """

    step: Array
    params: Params
    ema: Params
    opt_state: dict[str, Any]
    extra: Any


Optimizers = Mapping[str, optax.GradientTransformation]
Update = Callable[[TrainState, Batch, Array], tuple[TrainState, dict[str, Array]]]


def init_state(
    model: Model, optimizers: Optimizers, key: Array, batch: Batch
) -> TrainState:
    """The state before the first update.

    Args:
        model: The family bound to its config.
        optimizers: {player name: optax transformation}.
        key: For the initial parameters.
        batch: One prepared batch, for its shapes (and data-dependent initialisation).
    """
    params, extra = model.init(key, batch)
    check_players(model, params, optimizers)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        # A copy: the state is donated, and no buffer may be donated twice.
        ema=jax.tree.map(jnp.copy, params),
        opt_state={
            p.name: optimizers[p.name].init(params[p.name]) for p in model.players
        },
        extra=extra,
    )


def make_update(
    model: Model,
    optimizers: Optimizers,
    *,
    num_steps: int,
    ema_half_life: float = 0.0,
    prepare: Callable[[Batch, Array], Batch] = lambda batch, key: batch,
) -> Update:
    """Builds the update that serves every family.

    Args:
        model: The family bound to its config.
        optimizers: {player name: optax transformation}.
        num_steps: Length of the run; objectives see `progress = step / num_steps`.
        ema_half_life: Half-life of the parameter average as a fraction of the run;
            0 keeps no average (`ema` is then a copy of `params`).
        prepare: `(raw batch, key) -> batch`, from the stored bytes to `x` in [0, 1].

    Returns:
        `update(state, batch, key) -> (state, metrics)`: pure, not compiled. `key` is
        the run's key; the step is folded in here. Losses and terms in the metrics are
        means over the unmasked examples, in nats; `gradient_norms/<player>` is `[L]`,
        one norm per leaf of the player's parameters, before clipping.
    """
    decay = (
        0.5 ** (1.0 / max(ema_half_life * num_steps, 1e-9)) if ema_half_life else 0.0
    )

    def update(
        state: TrainState, batch: Batch, key: Array
    ) -> tuple[TrainState, dict[str, Array]]:
        key = jax.random.fold_in(key, state.step)
        batch = prepare(batch, jax.random.fold_in(key, 0))
        progress = state.step.astype(jnp.float32) / num_steps
        metrics = {}
        for number, player in enumerate(model.players, start=1):
            for repeat in range(player.updates_per_step):
                turn_key = jax.random.fold_in(jax.random.fold_in(key, number), repeat)
                state, terms = _turn(
                    player, optimizers[player.name], state, batch, turn_key, progress
                )
            if shared := metrics.keys() & terms.keys():
                raise ValueError(
                    f"make_update: two players have the metric {sorted(shared)}; "
                    "put the player's name into its terms."
                )
            metrics.update(terms)
        ema = _average(state.ema, state.params, decay, state.step)
        return state._replace(step=state.step + 1, ema=ema), metrics

    return update


def _turn(
    player: Player,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    batch: Batch,
    key: Array,
    progress: Array,
) -> tuple[TrainState, dict[str, Array]]:
    """One player's update, everybody else's parameters frozen."""

    def mean_loss(own: Any) -> tuple[Array, tuple[dict[str, Array], Any]]:
        params = {**state.params, player.name: own}
        loss, aux = player.objective(params, state.extra, batch, key, progress)
        terms = {name: _mean(term, batch) for name, term in aux.metrics.items()}
        extra = state.extra if aux.extra is None else aux.extra
        return _mean(loss, batch), (terms, extra)

    own = state.params[player.name]
    (loss, (terms, extra)), grads = jax.value_and_grad(mean_loss, has_aux=True)(own)
    updates, opt_state = optimizer.update(grads, state.opt_state[player.name], own)
    norms = jnp.stack([jnp.linalg.norm(jnp.ravel(g)) for g in jax.tree.leaves(grads)])
    state = state._replace(
        params={**state.params, player.name: optax.apply_updates(own, updates)},
        opt_state={**state.opt_state, player.name: opt_state},
        extra=extra,
    )
    return state, {
        f"loss/{player.name}": loss,
        **terms,
        f"gradient_norms/{player.name}": norms,
    }


def _mean(values: Array, batch: Batch) -> Array:
    """Mean over the unmasked examples; a scalar passes through."""
    if values.ndim == 0 or "mask" not in batch:
        return jnp.mean(values)
    return estimators.masked_mean(values, batch["mask"])


def _average(ema: Params, params: Params, decay: float, step: Array) -> Params:
    """The moving average after one update; early on it is the plain mean so far."""
    if not decay:
        return jax.tree.map(jnp.copy, params)
    weight = jnp.minimum(decay, step / (step + 1.0))
    return jax.tree.map(lambda e, p: e + (1.0 - weight) * (p - e), ema, params)


def check_players(model: Model, params: Params, optimizers: Optimizers) -> None:
    """Raises ValueError unless players, parameters and optimizers have one set of names."""
    names = {player.name for player in model.players}
    for what, found in (("params", set(params)), ("optimizers", set(optimizers))):
        if names != found:
            raise ValueError(
                f"make_update: {what} has the players {sorted(found)}, the model has "
                f"{sorted(names)}; give each player exactly one entry."
            )
