"""A transformer of tokens, told some and asked for the others, in any order or from the left.

Both are one network with the same parameters: what differs is what a place is told and
which places it hears. Where it is depends on nothing but the distances between tokens, and
near an end of a window on that: examples are windows of a text, which begin anywhere.

The first layer joins every token with its neighbours, so that what short runs of tokens
say need not be found by attention first (So et al. 2021, Primer, arXiv:2109.08668, have a
convolution in every layer).
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from jaxgen.nets.transformer import Layer

NEIGHBOURS = 8  # tokens: half of them on either side, or, causally, all before


class TokenTransformer(nn.Module):
    """`(tokens [B, L], hidden [B, L]) -> logits [B, L, V]`, the layers in one `nn.scan`.

    Attributes:
        num_tokens: V; tokens are 0 .. V - 1, and V within is "hidden".
        width: Channels of a token.
        depth: Layers.
        head_width: As in `Attention`.
        is_causal: Whether the logits of a place are made of the tokens before it, and
            `hidden` is ignored; else of all tokens that are not hidden.
        remat: Whether layers are computed again for the gradient, to save memory.
    """

    num_tokens: int
    width: int = 128
    depth: int = 4
    head_width: int = 32
    is_causal: bool = False
    remat: bool = False

    @nn.compact
    def __call__(self, tokens: Array, hidden: Array) -> Array:
        """Unnormalised log probabilities; zero before training."""
        if self.is_causal:
            tokens = jnp.pad(
                tokens[:, :-1], ((0, 0), (1, 0)), constant_values=self.num_tokens
            )
        else:
            tokens = jnp.where(hidden, self.num_tokens, tokens)
        h = nn.Embed(self.num_tokens + 1, self.width, name="embedding")(tokens)
        before = NEIGHBOURS if self.is_causal else NEIGHBOURS // 2
        h = nn.Dense(self.width, name="neighbours")(with_neighbours(h, before))
        layer = nn.remat(Layer, prevent_cse=False) if self.remat else Layer
        axes: Any = nn.broadcast
        layers = nn.scan(
            layer,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=axes,
            length=self.depth,
        )(self.head_width, self.is_causal, is_rotary=True, name="layers")
        # Nothing else is told: films are then scales, shifts and gates of each layer.
        h, _ = layers(h, jnp.ones((len(h), 1), h.dtype), None)
        h = nn.LayerNorm(name="norm")(h)
        zeros = nn.initializers.zeros
        return nn.Dense(self.num_tokens, kernel_init=zeros, name="output")(h)


def with_neighbours(h: Array, before: int) -> Array:
    """Each token of `h [B, L, C]` with `NEIGHBOURS` others, `[B, L, (1 + NEIGHBOURS) C]`.

    They stand in the order of the text, `before` of them before the token, the others
    after it; zeros where the text has ended.
    """
    length = h.shape[1]
    wide = jnp.pad(h, ((0, 0), (before, NEIGHBOURS - before), (0, 0)))
    each = [wide[:, start : start + length] for start in range(1 + NEIGHBOURS)]
    return jnp.concatenate(each, axis=-1)
