"""One update for any number of players.

For each player in order: the gradient of its objective with respect to its own
parameters (all else frozen), its optimizer, and the next player sees the result. With
two players that is alternating GAN training; with one it is ordinary training.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from jaxgen import averaging
from jaxgen.models.base import Batch, Model, Params, Player


class TrainState(NamedTuple):
    """Everything a checkpoint holds besides the config.

    There is no key (it is `fold_in(seed, step)`) and no data position (the batch is a
    function of (seed, step)).

    Attributes:
        step: int32 scalar, the number of updates done.
        params: {player name: pytree}.
        averages: Moving averages of `params`, each of its form.
        opt_state: {player name: optimizer state}.
        extra: What is carried but not differentiated; `()` when there is none.
        best: Of early stopping, the first average at its lowest validation loss so far;
            `()` without. The update passes it on.
    """

    step: Array
    params: Params
    averages: tuple[Params, ...]
    opt_state: dict[str, Any]
    extra: Any
    best: Params

    @property
    def ema(self) -> Params:
        """The first average of the parameters."""
        return self.averages[0]

    @property
    def chosen(self) -> Params:
        """The parameters to use."""
        return self.ema if self.best == () else self.best


Optimizers = Mapping[str, optax.GradientTransformation]
Update = Callable[[TrainState, Batch, Array], tuple[TrainState, dict[str, Array]]]


def init_state(
    model: Model,
    optimizers: Optimizers,
    key: Array,
    batch: Batch,
    *,
    num_averages: int = 1,
    keeps_best: bool = False,
) -> TrainState:
    """The state before the first update.

    Args:
        model: The family bound to its config.
        optimizers: {player name: optax transformation}.
        key: For the initial parameters.
        batch: One prepared batch, for its shapes (and data-dependent initialisation).
        num_averages: How many averages of the parameters are kept, at least one.
        keeps_best: Whether training stops early.
    """
    params, extra = model.init(key, batch)
    check_players(model, params, optimizers)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        # Copies: the state is donated, and no buffer may be donated twice.
        averages=tuple(jax.tree.map(jnp.copy, params) for _ in range(num_averages)),
        opt_state={
            p.name: optimizers[p.name].init(params[p.name]) for p in model.players
        },
        extra=extra,
        best=jax.tree.map(jnp.copy, params) if keeps_best else (),
    )


def make_update(
    model: Model,
    optimizers: Optimizers,
    *,
    num_steps: int,
    ema_half_life: float = 0.0,
    ema_widths: Sequence[float] = (),
    prepare: Callable[[Batch, Array], Batch] = lambda batch, key: batch,
    num_parts: int = 1,
    axis_name: str | None = None,
) -> Update:
    """Builds the update that serves every family.

    Gradients are sums over examples divided by their number in the global batch, so that
    neither `num_parts` nor the devices of `axis_name` change what is computed.

    Args:
        model: The family bound to its config.
        optimizers: {player name: optax transformation}.
        num_steps: Length of the run; objectives see `progress = step / num_steps`.
        ema_half_life: Half-life of the parameter average as a fraction of the run;
            0 keeps no average (`ema` is then a copy of `params`).
        ema_widths: Instead of the half-life, the widths of the power-function averages
            of `jaxgen.averaging`, one for each that the state holds.
        prepare: `(raw batch, key) -> batch`, from the stored bytes to `x` in [0, 1].
        num_parts: Gradient accumulation: into how many parts the batch is cut, one
            after the other, for memory's sake.
        axis_name: Of the enclosing `jax.pmap` or `jax.shard_map`, over whose devices
            the batch is split; its `index` must then be the global position.

    Returns:
        `update(state, batch, key) -> (state, metrics)`: pure, not compiled. `key` is
        the run's key; the step is folded in here. Losses and terms in the metrics are
        means over the unmasked examples, in nats; `gradient_norms/<player>` is `[L]`,
        one norm per leaf of the player's parameters, before clipping.
    """
    check_splittable(model, num_parts, axis_name)
    averages = _averages(ema_half_life * num_steps, ema_widths)

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
                    player,
                    optimizers[player.name],
                    state,
                    (batch, turn_key, progress),
                    num_parts,
                    axis_name,
                )
            if shared := metrics.keys() & terms.keys():
                raise ValueError(
                    f"make_update: two players have the metric {sorted(shared)}; "
                    "put the player's name into its terms."
                )
            metrics.update(terms)
        state = state._replace(step=state.step + 1, averages=averages(state))
        return state, metrics

    return update


def _turn(
    player: Player,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    given: tuple[Batch, Array, Array],
    num_parts: int,
    axis_name: str | None,
) -> tuple[TrainState, dict[str, Array]]:
    """One player's update, everybody else's parameters frozen."""
    batch, key, progress = given
    share = _shares(batch, num_parts, axis_name)

    def part_of_mean_loss(own: Any, part: Batch) -> tuple[Array, Any]:
        params = {**state.params, player.name: own}
        loss, aux = player.objective(params, state.extra, part, key, progress)
        terms = {name: share(term, part) for name, term in aux.metrics.items()}
        extra = state.extra if aux.extra is None else aux.extra
        return share(loss, part), (terms, extra)

    own = state.params[player.name]
    gradient = jax.value_and_grad(part_of_mean_loss, has_aux=True)
    ((loss, (terms, extra)), grads) = _over_parts(
        lambda part: gradient(own, part), batch, num_parts
    )
    if axis_name is not None:
        loss, terms, grads = jax.lax.psum((loss, terms, grads), axis_name)
        extra = jax.tree.map(
            lambda e: jax.lax.pmean(e, axis_name) if _is_float(e) else e, extra
        )
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


def _shares(
    batch: Batch, num_parts: int, axis_name: str | None
) -> Callable[[Array, Batch], Array]:
    """`share(values, part)`: what a part adds to the mean over the whole batch."""
    count = jnp.float32(batch["x"].shape[0])
    if "mask" in batch:
        count = jnp.sum(batch["mask"] > 0).astype(jnp.float32)
    num_shares = num_parts
    if axis_name is not None:
        count = jax.lax.psum(count, axis_name)
        num_shares = num_parts * jax.lax.axis_size(axis_name)

    def share(values: Array, part: Batch) -> Array:
        if values.ndim == 0:
            return values / num_shares
        if "mask" in part:  # what stands at padding, even NaN, has no effect
            values = jnp.where(part["mask"] > 0, values, 0)
        return jnp.sum(values) / jnp.maximum(count, 1)

    return share


def _over_parts(f: Callable[[Batch], Any], batch: Batch, num_parts: int) -> Any:
    """`f` summed over equal parts of a batch, but its carried `extra` averaged."""
    if num_parts == 1:
        return f(batch)
    index = jnp.arange(batch["x"].shape[0], dtype=jnp.int32)
    # Strided, so that a batch that is split over devices stays where it is.
    parts = {
        name: a.reshape(-1, num_parts, *a.shape[1:]).swapaxes(0, 1)
        for name, a in {"index": index, **batch}.items()
    }

    def add(total: Any, part: Batch) -> tuple[Any, None]:
        ((loss, (terms, extra)), grads) = f(part)
        extra = jax.tree.map(lambda e: e / num_parts if _is_float(e) else e, extra)
        (old_loss, (old_terms, old_extra)), old_grads = total
        extra = jax.tree.map(
            lambda old, new: old + new if _is_float(new) else new, old_extra, extra
        )
        loss, terms, grads = jax.tree.map(
            jnp.add, (old_loss, old_terms, old_grads), (loss, terms, grads)
        )
        return ((loss, (terms, extra)), grads), None

    shapes = jax.eval_shape(f, {name: a[0] for name, a in parts.items()})
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    return jax.lax.scan(add, zeros, parts)[0]


def _is_float(leaf: Array) -> bool:
    return jnp.issubdtype(leaf.dtype, jnp.floating)


def _averages(
    half_life: float, widths: Sequence[float]
) -> Callable[[TrainState], tuple[Params, ...]]:
    """The averages after an update, from a state that has the step before it."""
    if not widths and not half_life:
        return lambda state: (jax.tree.map(jnp.copy, state.params),)
    gammas = [averaging.width_to_gamma(width) for width in widths]

    def averages(state: TrainState) -> tuple[Params, ...]:
        step = state.step + 1
        weights = [averaging.power_weight(step, gamma) for gamma in gammas]
        if not gammas:
            weights = [averaging.half_life_weight(step, half_life)]
        return tuple(
            averaging.updated(average, state.params, weight)
            for average, weight in zip(state.averages, weights, strict=True)
        )

    return averages


def check_players(model: Model, params: Params, optimizers: Optimizers) -> None:
    """Raises ValueError unless players, parameters and optimizers have one set of names."""
    names = {player.name for player in model.players}
    for what, found in (("params", set(params)), ("optimizers", set(optimizers))):
        if names != found:
            raise ValueError(
                f"make_update: {what} has the players {sorted(found)}, the model has "
                f"{sorted(names)}; give each player exactly one entry."
            )


def check_splittable(model: Model, num_parts: int, axis_name: str | None) -> None:
    """Raises ValueError where a loss that couples its examples would be split."""
    coupled = [p.name for p in model.players if p.couples_examples]
    if coupled and (num_parts > 1 or axis_name is not None):
        raise ValueError(
            f"make_update: the loss of {coupled} depends on the whole batch, which "
            "gradient accumulation and pmap would cut into pieces."
        )
