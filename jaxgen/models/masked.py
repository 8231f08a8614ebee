"""Masked diffusion of text: hidden bytes are told in any order, until all are seen.

The prior is one point, a text of which nothing is seen, and sampling tells it byte by
byte; a text of which a part is seen is a point on the way, so filling in is sampling too.
The likelihood is a bound, the mean over all orders. With `--order causal` the same
network tells each byte from those before it: its likelihood is exact, and it fills in
nothing but what comes last.

An example is a window of a text, `[L]` bytes; a latent has `HIDDEN` where nothing is seen.

References:
    Sahoo et al. 2024 (MDLM), arXiv:2406.07524. Shi et al. 2024 (MD4), arXiv:2406.04329.
    Ou et al. 2024 (any order), arXiv:2406.03736. Austin et al. 2021 (D3PM),
    arXiv:2107.03006.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jax import Array

from jaxgen._checks import UserError, check_at_least, check_finite_options
from jaxgen.losses import diffusion as levels
from jaxgen.losses import masked as losses
from jaxgen.models.base import (
    Aux,
    Batch,
    Curve,
    LogLikelihood,
    Model,
    Player,
    example_keys,
    indexed_keys,
)
from jaxgen.nets.tokens import TokenTransformer
from jaxgen.samplers import masked as samplers

NUM_VALUES = 256
HIDDEN = NUM_VALUES  # of a latent: this byte is not seen
NAME = "predictor"
NUM_SHARES = 12  # of the curve


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """How a trained model is sampled; may be chosen anew at any time."""

    num_steps: int | None = None
    """Steps in which hidden bytes are told; by default one by one, which is exact. Fewer are
    faster, and what is told in one step is not told of each other. Of --order any."""
    temperature: float = 1.0
    """Below 1 likely bytes are drawn more often; 0 takes the likeliest."""

    def __post_init__(self):
        check_finite_options(self)
        check_at_least(self, 1, "num_steps")
        check_at_least(self, 0, "temperature")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskedConfig:
    """Options of masked diffusion of text."""

    order: Literal["any", "causal"] = "any"
    """In which bytes are told: any order, by masked diffusion; or causal, each from those
    before it, by the same network (an autoregressive transformer)."""
    hides: Literal["number", "share"] = "number"
    """How training hides bytes: so many of them, or each with a probability; the loss is the
    same bound, and varies more by share."""
    width: int = 128
    """Channels of the transformer."""
    depth: int = 4
    """Layers of the transformer."""
    head_width: int = 32
    """Channels of an attention head."""
    compute: Literal["float32", "bfloat16"] = "float32"
    """Precision inside the network; parameters, losses and optimizer are float32."""
    remat: bool = False
    """Save memory: compute each layer of the network again for its gradient."""
    sampling: Sampling = Sampling()
    shape: Annotated[tuple[int, ...] | None, tyro.conf.Suppress] = None

    def __post_init__(self):
        check_at_least(self, 4, "width", "head_width")
        check_at_least(self, 1, "depth")
        if self.order == "causal" and self.sampling.num_steps is not None:
            raise UserError("--num-steps is for --order any: causal tells byte by byte")


def resolve(
    config: MaskedConfig,
    shape: tuple[int, ...],
    transform: str | None,
    num_classes: int | None = None,
    columns: Any = None,
    num_planes: int = 0,
) -> tuple[MaskedConfig, str]:
    """Takes the length of the windows from the data, and refuses what is no text."""
    del num_classes, num_planes
    if len(shape) != 1 or columns is not None:
        raise UserError("masked models texts: --data text:pydoc, or text:FILE")
    if transform not in (None, "bytes"):
        raise UserError(f"masked models bytes: --transform bytes, not {transform}")
    return dataclasses.replace(config, shape=tuple(shape)), "bytes"


def make_masked(config: MaskedConfig) -> Model:
    """Binds a resolved config to the contract of `jaxgen.models.base.Model`."""
    if config.shape is None:
        raise ValueError("masked: config.shape is None: call resolve(config, ...)")
    shape, in_any = config.shape, config.order == "any"

    def init(key: Array, batch: Batch) -> Any:
        x = _tokens(batch["x"][:1])
        return {NAME: _network(config).init(key, x, jnp.zeros(x.shape, bool))["params"]}

    def infill(params: Any, x: Array, hidden: Array, keys: Array) -> Array:
        return samplers.revealed(
            _predict(config, params),
            _tokens(x),
            hidden,
            keys,
            num_steps=config.sampling.num_steps or shape[0],
            temperature=config.sampling.temperature,
            order="random" if in_any else "left_to_right",
        )

    def generate(params: Any, z: Array, keys: Array, condition: Any = None) -> Array:
        del condition
        return infill(params, z, z == HIDDEN, keys)

    def prior(keys: Array, params: Any = None) -> Array:
        del params
        return jnp.full((len(keys), *shape), HIDDEN, jnp.int32)

    return Model(
        init=lambda key, batch: (init(key, batch), ()),
        players=(
            Player(NAME, _objective(config), units={"bits_per_byte": "bits a byte"}),
        ),
        prior=prior,
        generate=generate,
        log_likelihood=_log_likelihood(config),
        curves=(_by_share(config) if in_any else _by_place(config),),
        infill=infill if in_any else None,
    )


def _objective(config: MaskedConfig) -> Callable[..., tuple[Array, Aux]]:
    length = math.prod(config.shape or ())

    def objective(
        params: Any, extra: Any, batch: Batch, key: Array, progress: Array
    ) -> tuple[Array, Aux]:
        del extra, progress
        x, keys = _tokens(batch["x"]), example_keys(key, batch)
        predict = _predict(config, params)
        if config.order == "causal":
            loss = _causal_nll(predict, x)
        else:
            index = batch.get("index", jnp.arange(len(x), dtype=jnp.int32))
            # A key that no example has.
            level = levels.stratified_levels(jax.random.fold_in(key, 2**31 - 1), index)
            loss = _sample_of_bound(config, predict, x, keys, level)
        return loss, Aux({"bits_per_byte": loss / (length * math.log(2))})

    return objective


def _sample_of_bound(
    config: MaskedConfig, predict: losses.Predict, x: Array, keys: Array, level: Array
) -> Array:
    """One sample of the bound for each example, `[B]` nats, from levels in [0, 1)."""
    length = x.shape[1]
    if config.hides == "number":
        number = losses.number_at(level, length=length)
        hidden = losses.hidden_by_number(keys, number, length=length)
        nll = losses.cross_entropy(x, predict(x, hidden))
        return losses.bound_by_number(nll, hidden)
    share = 1 - level  # above 0
    hidden = losses.hidden_by_share(keys, share, length=length)
    nll = losses.cross_entropy(x, predict(x, hidden))
    return losses.bound_by_share(nll, hidden, share)


def _log_likelihood(config: MaskedConfig) -> Callable[..., LogLikelihood]:
    def log_likelihood(
        params: Any, x: Array, keys: Array, condition: Any = None, *, num_samples: int
    ) -> LogLikelihood:
        del condition
        x, predict = _tokens(x), _predict(config, params)
        if config.order == "causal":
            return LogLikelihood(nats=-_causal_nll(predict, x), kind="exact")
        bound = losses.any_order_bound(predict, x, keys, num_samples=num_samples)
        return LogLikelihood(
            nats=-bound.nats, kind="bound", standard_error=bound.standard_error
        )

    return log_likelihood


def _by_share(config: MaskedConfig) -> Curve:
    """What a hidden byte costs, by how many are hidden beside it."""
    length = math.prod(config.shape or ())
    numbers = np.unique(np.geomspace(1, length, NUM_SHARES).round().astype(np.int32))

    def lines(params: Any, x: Array) -> tuple[Array, dict[str, Array]]:
        x, predict = _tokens(x), _predict(config, params)

        def bits(number: Array) -> Array:
            keys = indexed_keys(jax.random.key(0), jnp.arange(len(x)))
            num = jnp.broadcast_to(number, keys.shape)
            hidden = losses.hidden_by_number(keys, num, length=length)
            nll = losses.cross_entropy(x, predict(x, hidden))
            return jnp.mean(losses.bound_by_number(nll, hidden)) / length / math.log(2)

        told = jax.lax.map(bits, jnp.asarray(numbers))
        return jnp.asarray(numbers / length), _with_frequencies(told, x)

    return Curve(
        "bits of a hidden byte by the share that is hidden, on test texts",
        "share hidden",
        "bits",
        lines,
    )


def _by_place(config: MaskedConfig) -> Curve:
    """What a byte costs, by how many come before it."""
    length = math.prod(config.shape or ())

    def lines(params: Any, x: Array) -> tuple[Array, dict[str, Array]]:
        x, predict = _tokens(x), _predict(config, params)
        nll = losses.cross_entropy(x, predict(x, jnp.ones(x.shape, bool)))
        told = jnp.mean(nll, axis=0) / math.log(2)
        return jnp.arange(1, length + 1), _with_frequencies(told, x)

    return Curve("bits of a byte by its place, on test texts", "place", "bits", lines)


def _with_frequencies(told: Array, x: Array) -> dict[str, Array]:
    """Beside the network, what bytes would cost by how frequent they are."""
    share = jnp.bincount(x.ravel(), length=NUM_VALUES) / x.size
    entropy = -jnp.sum(jax.scipy.special.xlogy(share, share)) / math.log(2)
    return {"network": told, "by frequency alone": jnp.full_like(told, entropy)}


def _causal_nll(predict: losses.Predict, x: Array) -> Array:
    nll = losses.cross_entropy(x, predict(x, jnp.ones(x.shape, bool)))
    return jnp.sum(nll, axis=1)


def _predict(config: MaskedConfig, params: Any) -> losses.Predict:
    """The network with these parameters, its outputs in float32."""
    own = params[NAME]
    if config.compute != "float32":
        own = jax.tree.map(lambda a: a.astype(config.compute), own)

    def predict(tokens: Array, hidden: Array) -> Array:
        logits: Any = _network(config).apply({"params": own}, tokens, hidden)
        return logits.astype(jnp.float32)

    return predict


def _network(config: MaskedConfig) -> TokenTransformer:
    return TokenTransformer(
        NUM_VALUES,
        config.width,
        config.depth,
        config.head_width,
        is_causal=config.order == "causal",
        remat=config.remat,
    )


def _tokens(x: Array) -> Array:
    return jnp.asarray(x).astype(jnp.int32)
