"""The contract of the families.

A generative model is a known prior P(z), a generator x = G(z), and a way to train G.
The families differ only in that last part, so one record of pure functions holds them
all, and one update (`jaxgen.train.update.make_update`) trains them all.

Data `x` is float32 in [0, 1], `[B, H, W, C]`, as `jaxgen.data.prepare` makes it; rows of a
table are float32 `[B, C]` in their own units, texts int32 `[B, L]`, a number a byte.
A batch is a dict: `x`; where there are any `label`, `condition`, `mask` (`[B]`, 1 for an
example, 0 for padding); and `index` (`[B]`, the position in the GLOBAL batch). Noise
belongs to the example: objectives draw it with `example_keys`, never with one key for
the whole batch, so that the numbers are the same however the batch is split. The other
functions of a model take one key per example for the same reason.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

NUM_LINES = 3  # of metrics.jsonl, for which a collapse must last
Params = Any  # {player name: pytree of arrays}
Batch = dict[str, Array]


class Aux(NamedTuple):
    """What an objective says besides its loss.

    Attributes:
        metrics: Named terms, each `[B]` (averaged with the mask) or a scalar.
        extra: The new carried, undifferentiated state; None leaves it as it is.
    """

    metrics: dict[str, Array]
    extra: Any = None


class Player(NamedTuple):
    """One network with one optimizer and one objective.

    Attributes:
        name: Its key in `params`, and in the optimizers.
        objective: `(params, extra, batch, key, progress) -> (loss [B], Aux)`.
            `params` holds all players; the update differentiates only this player's
            part. `progress` is the fraction of the run done, in [0, 1): schedules of a
            loss (warm-up of beta, say) are functions of it.
        updates_per_step: How often it is updated before the next player's turn.
        couples_examples: Whether an example's loss depends on the others of its batch,
            so that the batch may not be cut into parts.
        least_examples: That a batch must have.
        unit: Of the loss, where it is not nats.
        units: Of terms whose unit is another, by what their names begin with.
    """

    name: str
    objective: Callable[..., tuple[Array, Aux]]
    updates_per_step: int = 1
    couples_examples: bool = False
    least_examples: int = 1
    unit: str = "nats"
    units: Mapping[str, str] = MappingProxyType({})


class Curve(NamedTuple):
    """A figure of a model for its report.

    Attributes:
        caption: What it shows.
        xlabel: The horizontal axis, logarithmic.
        ylabel: The vertical axis.
        lines: `(params, x [N, H, W, C]) -> (positions [P], {name: values [P]})`.
    """

    caption: str
    xlabel: str
    ylabel: str
    lines: Callable[..., tuple[Array, dict[str, Array]]]


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("nats", "standard_error", "ess", "step_error", "class_log_prob"),
    meta_fields=("kind",),
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class LogLikelihood:
    """Per-example log-likelihood and how far it is to be believed.

    Attributes:
        nats: `[B]`.
        kind: "exact", a lower "bound", or an "estimate".
        standard_error: `[B]` Monte Carlo error in nats, or None if there is none.
        ess: `[B]` effective sample size of importance sampling, or None.
        step_error: `[B]` error of a numerical integration in nats, or None.
        class_log_prob: `[B, K]` log P(class given x) in nats, of a model of classes that
            was given none, or None.
    """

    nats: Array
    kind: Literal["exact", "bound", "estimate"]
    standard_error: Array | None = None
    ess: Array | None = None
    step_error: Array | None = None
    class_log_prob: Array | None = None


class Observation(NamedTuple):
    """p(x given z) of a model, as annealed importance sampling asks for it.

    Attributes:
        log_prob: `(params, x [B, ...], z [B, ...], log_sigma) -> [B]` nats, constants
            included, differentiable in z. The chains take z for N(0, I): where P(z) is
            another density, log P(z) - log N(z; 0, I) is added.
        sample: `(params, z, keys [B], log_sigma) -> x`, a draw of p(x given z).
        density: Of what, as in `Model`: "continuous" images are dequantised ones.
        is_fitted: Whether the model says no p(x given z) of its own and log_sigma, a
            scalar, is to be fitted to training data. Otherwise both ignore it.
    """

    log_prob: Callable[..., Array]
    sample: Callable[..., Array]
    density: Literal["discrete", "continuous", "other"]
    is_fitted: bool = False


class Model(NamedTuple):
    """A family bound to a config: pure functions, no state.

    Attributes:
        init: `(key, batch) -> (params, extra)`, params being {player name: pytree}.
        players: In the order of their updates.
        prior: `(keys [B], params=None) -> z [B, ...]`; z[i] is a function of keys[i] alone,
            and of the parameters where the prior is learned, which it then needs.
        generate: `(params, z, keys, condition=None) -> x`, in [0, 1].
        encode: `(params, x, keys, condition=None) -> z`, or None.
        log_likelihood: `(params, x, keys, condition=None, *, num_samples) ->
            LogLikelihood`, or None. `num_samples` is the effort of an estimate (K of
            importance sampling, probes of a trace); exact models ignore it.
        density: What the likelihood is a density of: "discrete" levels (bits/dim is
            NLL / (D ln 2)), "continuous" data in [0, 1] (8 bits/dim more), or "other"
            data, of which there are no bits/dim.
        observation: p(x given z), where there is one.
        views: Further pictures of a model for its report, as pairs of a caption and
            `(params, x [N, H, W, C]) -> images [rows, columns, H, W, C]`.
        curves: Further figures of a model for its report.
        collapse: `the last NUM_LINES lines of metrics.jsonl -> evidence that the
            training has collapsed, or None`, where that is looked for. The lines then
            have the figures of `jaxgen.train.health`.
        answer: `(params, z, keys, operator, y, *, method, ...) -> x`, samples of x given that
            y = A x of `jaxgen.operators` is seen, by a model that was not trained for it;
            or None. y is in the space of the data, `[B, h, w, c]`.
        infill: `(params, x [B, L], hidden [B, L], keys) -> x`, texts with what is hidden
            drawn given the rest, which stays as it is; or None.
    """

    init: Callable[..., tuple[Params, Any]]
    players: tuple[Player, ...]
    prior: Callable[..., Array]
    generate: Callable[..., Array]
    encode: Callable[..., Array] | None = None
    log_likelihood: Callable[..., LogLikelihood] | None = None
    density: Literal["discrete", "continuous", "other"] = "discrete"
    observation: Observation | None = None
    views: tuple[tuple[str, Callable[..., Array]], ...] = ()
    curves: tuple[Curve, ...] = ()
    collapse: Callable[[Sequence[Mapping[str, Any]]], str | None] | None = None
    answer: Callable[..., Array] | None = None
    infill: Callable[..., Array] | None = None


def example_keys(key: Array, batch: Batch) -> Array:
    """One key per example, `[B]`: `fold_in(key, position in the global batch)`.

    The position is `batch["index"]`, or 0..B-1 where the batch is the global batch.
    """
    index = batch.get("index", jnp.arange(batch["x"].shape[0], dtype=jnp.int32))
    return indexed_keys(key, index)


def indexed_keys(key: Array, index: Array) -> Array:
    """`fold_in(key, i)` for every i of `index`."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, index)


def sample_keys(key: Array, index: Array) -> tuple[Array, Array]:
    """Keys for `prior` and for `generate` of the samples numbered `index`, `[N]` each.

    They differ: a `generate` that draws noise must not draw z again.
    """
    prior, generate = jax.random.split(key)
    return indexed_keys(prior, index), indexed_keys(generate, index)


def normal_prior(shape: tuple[int, ...]) -> Callable[..., Array]:
    """N(0, I) over `shape`, as a prior of a `Model`."""

    def prior(keys: Array, params: Params = None) -> Array:
        del params
        return jax.vmap(lambda key: jax.random.normal(key, shape))(keys)

    return prior
