"""Networks that condition the transforms of a flow: dense, masked, causal.

Each comes as a record of plain functions that `jaxgen.bijectors` takes: the last layer
starts at zero, so that a flow starts as the identity.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxgen import bijectors
from jaxgen.nets.conditioning import Told
from jaxgen.nets.conv import Conv

ZEROS = nn.initializers.zeros


class MLP(nn.Module):
    """`(h [B, ..., K], condition [B, D] or None) -> [B, ..., num_outputs]`.

    Residual blocks of two layers after a first one, in all of which the condition takes
    part. Zero values of h (K = 0) are allowed: the condition alone speaks then.

    Attributes:
        num_outputs: Of the last layer, which starts at zero.
        hidden: Width of every layer.
        num_blocks: Residual blocks.
        num_waves: Of each value that the first layer sees; see `Waves`.
    """

    num_outputs: int
    hidden: int = 64
    num_blocks: int = 1
    num_waves: int = 0

    @nn.compact
    def __call__(self, h: Array, condition: Array | None = None) -> Array:
        """The raw parameters of transforms."""
        if h.shape[-1]:
            h = Waves(self.num_waves, name="waves")(h)
        else:  # nothing to see but a bias
            h = jnp.ones((*h.shape[:-1], 1), h.dtype)
        h = nn.Dense(self.hidden, name="input")(h)
        if condition is not None:
            told = nn.Dense(self.hidden, use_bias=False, name="condition")(condition)
            h = h + jnp.expand_dims(told, tuple(range(1, h.ndim - 1)))
        for number in range(self.num_blocks):
            r = nn.Dense(self.hidden, name=f"first_{number}")(nn.silu(h))
            h = h + nn.Dense(self.hidden, name=f"second_{number}")(nn.silu(r))
        return nn.Dense(self.num_outputs, kernel_init=ZEROS, name="output")(nn.silu(h))


class MaskedMLP(nn.Module):
    """`(x [B, D], condition) -> [B, P D]`, of value i only what is before i told.

    The order is 0 .. D - 1. Hidden unit j may see the values up to 1 + j mod (D - 1), so
    that residual connections keep the order.

    Attributes:
        num_params: P.
        hidden: Width of every layer.
        num_blocks: Residual blocks of two layers.
        num_waves: Of each value that the first layer sees; see `Waves`.

    References:
        Germain et al. 2015 (MADE), section 4, arXiv:1502.03509.
    """

    num_params: int
    hidden: int = 64
    num_blocks: int = 1
    num_waves: int = 0

    @nn.compact
    def __call__(self, x: Array, condition: Array | None = None) -> Array:
        """The raw parameters of transforms, the D of one parameter side by side."""
        dim = x.shape[-1]
        places = np.arange(1, dim + 1)
        units = 1 + np.arange(self.hidden) % max(1, dim - 1)
        if dim == 1:  # nothing is before the only one
            units = np.full(self.hidden, 2)
        seen = _mask(np.repeat(places, 1 + self.num_waves), units)
        waves = Waves(self.num_waves, name="waves")(x)
        h = _Masked(self.hidden, seen, name="input")(waves)
        if condition is not None:
            h = h + nn.Dense(self.hidden, use_bias=False, name="condition")(condition)
        for number in range(self.num_blocks):
            mask = _mask(units, units)
            r = _Masked(self.hidden, mask, name=f"first_{number}")(nn.silu(h))
            h = h + _Masked(self.hidden, mask, name=f"second_{number}")(nn.silu(r))
        after = np.tile(units[:, None] < places[None], (1, self.num_params))
        raw = _Masked(self.num_params * dim, after, zero=True, name="output")(
            nn.silu(h)
        )
        if condition is None:
            return raw
        # The first value has no unit before it: what the condition tells it goes here.
        told = nn.silu(nn.Dense(self.hidden, name="told")(condition))
        return raw + nn.Dense(
            self.num_params * dim, use_bias=False, kernel_init=ZEROS, name="told_output"
        )(told)


class Waves(nn.Module):
    """`[..., D] -> [..., D (1 + num)]`: each value x, then `sin(f x + p)` of it.

    A network that sees them learns edges and folds in few steps, which it is slow to learn
    of x alone. Frequencies f, drawn from N(0, spread^2), and phases p are learned, and the
    same for all values.

    Attributes:
        num: Waves of each value; without any it is the identity.
        spread: Standard deviation of the first frequencies, radians per unit of x.

    References:
        Tancik et al. 2020, arXiv:2006.10739; for tables Gorishniy et al. 2022,
        arXiv:2203.05556.
    """

    num: int
    spread: float = 6.0

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """The values and their waves, those of one value side by side."""
        if not self.num:
            return x
        turns = nn.Dense(
            self.num,
            kernel_init=nn.initializers.normal(self.spread),
            bias_init=nn.initializers.uniform(2 * np.pi),
            name="turns",
        )
        waves = jnp.sin(turns(x[..., None]))
        both = jnp.concatenate([x[..., None], waves], axis=-1)
        return both.reshape(*x.shape[:-1], -1)


class _Masked(nn.Module):
    """A dense layer without some of its weights."""

    features: int
    mask: np.ndarray
    zero: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        init = ZEROS if self.zero else nn.initializers.lecun_normal()
        kernel = self.param("kernel", init, self.mask.shape)
        bias = self.param("bias", ZEROS, (self.features,))
        mask = self.mask.astype(x.dtype)
        return x @ (kernel * mask) + bias[None]


def _mask(inputs: np.ndarray, outputs: np.ndarray) -> np.ndarray:
    return inputs[:, None] <= outputs[None]


class CausalTransformer(nn.Module):
    """A transformer over blocks in which block t is told of blocks before t alone.

    Attributes:
        num_outputs: Numbers that a block is told.
        length: T, how many blocks.
        width: Channels of a token.
        num_layers: Of attention and a two-layer network each.
        head_width: Channels of a head.
        num_classes: As of `Told`, and so are `planes`.
        is_turned: Whether planes are told turned by 180 degrees besides, for where blocks
            may come from the last to the first.

    References:
        Zhai et al. 2024 (TarFlow), section 2.2, arXiv:2412.06329.
    """

    num_outputs: int
    length: int
    width: int = 128
    num_layers: int = 2
    head_width: int = 32
    num_classes: int = 0
    planes: tuple[int, ...] = ()
    is_turned: bool = False

    def setup(self):
        """The layers, shared by both ways to call them."""
        normal = nn.initializers.normal(0.02)
        self.input = nn.Dense(self.width)
        self.start = self.param("start", normal, (self.width,))
        self.place = self.param("place", normal, (self.length, self.width))
        planes = self.planes
        if planes and self.is_turned:
            planes = (*planes[:2], 2 * planes[2])
        self.told = Told(self.width, self.num_classes, planes)
        self.layers = [
            _Layer(self.width, self.head_width) for _ in range(self.num_layers)
        ]
        self.norm = nn.LayerNorm()
        self.output = nn.Dense(self.num_outputs, kernel_init=ZEROS)

    def __call__(self, h: Array, condition: Array | None = None) -> Array:
        """`h [B, T, C]`, labels `[B]`, planes or None `-> [B, T, num_outputs]`."""
        before = self.input(h[:, :-1])
        start = jnp.broadcast_to(self.start[None, None], (len(h), 1, self.width))
        tokens = jnp.concatenate([start, before], axis=1)
        tokens = tokens + self.around(len(h), condition)
        places = jnp.arange(self.length)
        for layer in self.layers:
            tokens = layer(tokens, places[:, None] >= places[None])
        return self.output(self.norm(tokens))

    def around(self, batch: int, condition: Array | None) -> Array:
        """What a token has besides the block before it, `[B, T, width]`."""
        if self.planes and self.is_turned and condition is not None:
            turned = jnp.flip(condition, (1, 2))
            condition = jnp.concatenate([condition, turned], axis=-1)
        return self.place[None] + self.told(batch, self.length, condition)

    def step(
        self, memory: tuple[Array, Array, Array], last: Array, t: Array
    ) -> tuple[Array, tuple[Array, Array, Array]]:
        """What `__call__` says of block t, from block t - 1 and what was kept before."""
        around, keys, values = memory
        token = jnp.where(t == 0, self.start[None], self.input(last)) + around[:, t]
        for number, layer in enumerate(self.layers):
            token, own_keys, own_values = layer.step(
                token, keys[number], values[number], t
            )
            keys = keys.at[number].set(own_keys)
            values = values.at[number].set(own_values)
        return self.output(self.norm(token)), (around, keys, values)


class TokenTransformer(nn.Module):
    """A transformer in which every token sees all: `[B, T, K] -> [B, T, num_outputs]`.

    Attributes: those of `CausalTransformer`.

    References:
        Kolesnikov et al. 2024 (Jet), section 3, arXiv:2412.15129.
    """

    num_outputs: int
    width: int = 128
    num_layers: int = 2
    head_width: int = 32
    num_classes: int = 0
    planes: tuple[int, ...] = ()

    @nn.compact
    def __call__(self, h: Array, condition: Array | None = None) -> Array:
        """The raw parameters of transforms; labels `[B]`, planes or None."""
        normal = nn.initializers.normal(0.02)
        tokens = nn.Dense(self.width, name="input")(h)
        place = self.param("place", normal, (h.shape[1], self.width))
        told = Told(self.width, self.num_classes, self.planes, name="told")
        tokens = tokens + place[None] + told(len(h), h.shape[1], condition)
        for number in range(self.num_layers):
            layer = _Layer(self.width, self.head_width, name=f"layers_{number}")
            tokens = layer(tokens, jnp.ones((h.shape[1],) * 2, bool))
        return nn.Dense(self.num_outputs, kernel_init=ZEROS, name="output")(
            nn.LayerNorm(name="norm")(tokens)
        )


class ConvNetwork(nn.Module):
    """Three convolutions, 3x3, 1x1 and 3x3: `[B, H, W, K] -> [B, H, W, num_outputs]`.

    Attributes:
        num_outputs: Of the last one, which starts at zero.
        width: Channels between.
        num_classes: As of `Told`, and so are `planes`.

    References:
        Kingma & Dhariwal 2018 (Glow), section 3.3, arXiv:1807.03039.
    """

    num_outputs: int
    width: int = 64
    num_classes: int = 0
    planes: tuple[int, ...] = ()

    @nn.compact
    def __call__(self, h: Array, condition: Array | None = None) -> Array:
        """The raw parameters of transforms; labels `[B]`, planes or None."""
        h = Conv(self.width, (3, 3), name="input")(h)
        told = Told(self.width, self.num_classes, self.planes, name="told")
        places = h.reshape(len(h), -1, self.width)
        h = (places + told(len(places), places.shape[1], condition)).reshape(h.shape)
        h = nn.silu(Conv(self.width, (1, 1), name="middle")(nn.silu(h)))
        return Conv(self.num_outputs, (3, 3), kernel_init=ZEROS, name="output")(h)


class _Layer(nn.Module):
    """Attention to the tokens that may be seen, and a two-layer network of each."""

    width: int
    head_width: int

    def setup(self):
        self.norm_1, self.norm_2 = nn.LayerNorm(), nn.LayerNorm()
        self.qkv, self.mixed = nn.Dense(3 * self.width), nn.Dense(self.width)
        self.wide, self.narrow = nn.Dense(4 * self.width), nn.Dense(self.width)

    def __call__(self, h: Array, seen: Array) -> Array:
        """`[B, T, width]`, all tokens at once; token t sees those of `seen [T, T]`."""
        q, k, v = jnp.split(self.qkv(self.norm_1(h)), 3, axis=-1)
        h = h + self.mixed(self._attention(q, k, v, seen))
        return self._each(h)

    def step(
        self, h: Array, keys: Array, values: Array, t: Array
    ) -> tuple[Array, Array, Array]:
        """One token `[B, width]`; keys and values `[B, T, width]` of those before."""
        q, k, v = jnp.split(self.qkv(self.norm_1(h)), 3, axis=-1)
        keys, values = keys.at[:, t].set(k), values.at[:, t].set(v)
        seen = (jnp.arange(keys.shape[1]) <= t)[None]
        h = h + self.mixed(self._attention(q[:, None], keys, values, seen)[:, 0])
        return self._each(h), keys, values

    def _each(self, h: Array) -> Array:
        return h + self.narrow(nn.silu(self.wide(self.norm_2(h))))

    def _attention(self, q: Array, k: Array, v: Array, seen: Array) -> Array:
        heads = max(1, self.width // self.head_width)
        q, k, v = (a.reshape(*a.shape[:2], heads, -1) for a in (q, k, v))
        weights = jnp.einsum("bqhc,bkhc->bhqk", q, k) * q.shape[-1] ** -0.5
        weights = jnp.where(seen[None, None], weights, -jnp.inf)
        mixed = jnp.einsum("bhqk,bkhc->bqhc", nn.softmax(weights), v)
        return mixed.reshape(*mixed.shape[:2], -1)


def network(module: nn.Module) -> bijectors.Network:
    """`MLP`, `MaskedMLP` or any module of `(h, condition)` for a bijector."""

    def init(key: Array, h: Array, condition: Any) -> Any:
        return module.init(key, h, condition)["params"]

    def apply(params: Any, h: Array, condition: Any) -> Array:
        return jnp.asarray(module.apply({"params": params}, h, condition))

    return bijectors.Network(init, apply)


def causal_network(
    module: CausalTransformer, *, guidance: float = 1.0
) -> bijectors.CausalNetwork:
    """`CausalTransformer` for `bijectors.causal`.

    Its memory is what tokens are told of the condition, keys and values.

    Args:
        module: The network.
        guidance: Where a condition is given, w of what is told by u + w (c - u), from c
            of the condition and u of none; 1 is the model.
    """
    init, plain = network(module)

    def empty(params: Any, z: Array, condition: Any) -> Any:
        around = module.apply(
            {"params": params}, z.shape[0], condition, method="around"
        )
        shape = module.num_layers, z.shape[0], module.length, module.width
        around = jnp.broadcast_to(jnp.asarray(around), shape[1:])
        return around, jnp.zeros(shape, z.dtype), jnp.zeros(shape, z.dtype)

    def one(params: Any, memory: Any, last: Array, t: Array) -> Any:
        return module.apply({"params": params}, memory, last, t, method="step")

    if guidance == 1:
        return bijectors.CausalNetwork(init, plain, empty, one)

    def apply(params: Any, h: Array, condition: Any) -> Array:
        told, untold = plain(params, h, condition), plain(params, h, None)
        return untold + guidance * (told - untold)

    def memory(params: Any, z: Array, condition: Any) -> Any:
        return empty(params, z, condition), empty(params, z, None)

    def step(params: Any, memory: Any, last: Array, t: Array) -> Any:
        told, first = one(params, memory[0], last, t)
        untold, second = one(params, memory[1], last, t)
        return untold + guidance * (told - untold), (first, second)

    return bijectors.CausalNetwork(init, apply, memory, step)
