"""A small network that tells the class of an image."""

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from jaxgen.nets.conv import Conv


class LeNet(nn.Module):
    """3x3 convolutions, each halved by maxima over 2x2 pixels, then two dense layers.

    Attributes:
        num_classes: Of the output.
        channels: Of each convolution.
        hidden: Width of the first dense layer.

    References:
        After LeCun, Bottou, Bengio & Haffner 1998, "Gradient-based learning applied to
        document recognition", with smaller kernels, relu and maxima.
    """

    num_classes: int
    channels: Sequence[int] = (16, 32, 64)
    hidden: int = 128

    def __call__(self, x: Array) -> Array:
        """`[B, H, W, C]` in [0, 1] `-> [B, num_classes]` logits; 8x8 pixels or more."""
        return self.features_and_logits(x)[1]

    @nn.compact
    def features_and_logits(self, x: Array) -> tuple[Array, Array]:
        """As `__call__`, and before the logits what they are made of: `[B, hidden]`."""
        h = x
        for channels in self.channels:
            h = nn.relu(_halved(Conv(channels, (3, 3))(h)))
        h = nn.relu(nn.Dense(self.hidden)(h.reshape(h.shape[0], -1)))
        return h, nn.Dense(self.num_classes)(h)


def _halved(h: Array) -> Array:
    """Maxima over 2x2 pixels, an odd last row or column left out.

    Of slices: the gradient of a windowed maximum is slow on XLA:CPU.
    """
    rows, columns = h.shape[1] // 2 * 2, h.shape[2] // 2 * 2
    h = jnp.maximum(h[:, 0:rows:2], h[:, 1:rows:2])
    return jnp.maximum(h[:, :, 0:columns:2], h[:, :, 1:columns:2])
