"""The chains of bijectors that a flow is made of, for images and for tables."""

import math
from typing import Any

from jaxgen import bijectors, columns
from jaxgen.bijectors import Bijector
from jaxgen.models.flow_config import FlowConfig
from jaxgen.nets import flow as nets

TABLE_BOUND = 5.0  # of splines, on values of variance 1
FREE_BOUND = 3.0  # on images, in units of half their range, where they may be noisy


def image_flow(config: FlowConfig) -> Bijector:
    """From images `[B, H, W, C]` in [0, 1] to a latent N(0, I) of the same shape."""
    make = {"tarflow": _tarflow, "jet": _jet, "glow": _glow}[str(config.net)]
    return bijectors.chain(bijectors.rescale(2.0, -1.0), make(config))


def table_flow(config: FlowConfig) -> Bijector:
    """From rows `[B, D]` in data units to a latent N(0, I), told their context's features.

    One value alone has a coupling that keeps none.
    """
    modelled = [c for c in config.columns or () if not c.is_context]
    dim = len(modelled)
    sizes = int(config.width or 1), int(config.layers or 1), config.waves or 0
    element = _element(config, TABLE_BOUND)
    if config.net == "autoregressive" and dim > 1:
        network = nets.network(nets.MaskedMLP(element.num_params, *sizes))
        layer = bijectors.autoregressive(network, element)
    else:
        kept = dim // 2
        module = nets.MLP(element.num_params * (dim - kept), *sizes)
        layer = bijectors.coupling(nets.network(module), element, num_kept=kept)
    mixed = bijectors.chain(layer, bijectors.invertible_linear())
    return bijectors.chain(
        columns.to_line(modelled), bijectors.scan_chain(mixed, int(config.depth or 1))
    )


def _tarflow(config: FlowConfig) -> Bijector:
    """Causal transformers over patches, every other one from the last to the first.

    Splines map the range of a pixel onto itself, block after block, and what is then
    about uniform becomes normal.
    """
    to_sequence, back, length, size = _patches(config)
    depth = int(config.depth or 1)
    in_range = config.elements == "splines" and not config.noise
    element = _element(config, FREE_BOUND)
    if in_range:
        element = bijectors.rational_quadratic(
            num_bins=config.bins, bound=1.0, free_ends=True
        )
    num_outputs, block = element.num_params * size, bijectors.told(element)
    if config.within == "autoregressive" and size > 1:
        num_outputs = int(config.width or 1)
        module = nets.MaskedMLP(element.num_params, hidden=2 * num_outputs)
        block = bijectors.autoregressive(nets.network(module), element)
    transformer = _transformer(
        nets.CausalTransformer,
        num_outputs,
        config,
        length=length,
        is_turned=depth > 1,
    )
    network = nets.causal_network(transformer, guidance=config.sampling.guidance)
    one = bijectors.causal(network, block)
    if depth > 1:
        flipped = bijectors.chain(one, bijectors.reverse(axis=1))
        one = bijectors.scan_chain(flipped, depth)
    parts = [to_sequence, one]
    if in_range:
        parts.append(bijectors.circular(1.0))
    return bijectors.chain(*parts, back)


def _jet(config: FlowConfig) -> Bijector:
    """Couplings of the channels of patches, mixed in between."""
    to_sequence, back, _, size = _patches(config)
    element, kept = _element(config, FREE_BOUND), size // 2
    num_outputs = element.num_params * (size - kept)
    module = _transformer(nets.TokenTransformer, num_outputs, config)
    layer = bijectors.chain(
        bijectors.invertible_linear(),
        bijectors.coupling(nets.network(module), element, num_kept=kept),
    )
    return bijectors.chain(
        to_sequence,
        bijectors.scan_chain(layer, int(config.depth or 1)),
        back,
    )


def _glow(config: FlowConfig) -> Bijector:
    """Squeezed as often as both sides are even and above 4, half split off each time."""
    shape = height, width, channels = _shape(config)
    sizes = []
    while not sizes or (height % 2 == 0 == width % 2 and min(height, width) > 4):
        even = height % 2 == 0 == width % 2
        side = 2 if even else 1
        height, width, channels = height // side, width // side, channels * side**2
        sizes.append((side, (height, width, channels)))
        channels //= 2
    element = _element(config, FREE_BOUND)

    def level(number: int) -> Bijector:
        side, size = sizes[number]
        kept = size[2] // 2
        module = nets.ConvNetwork(
            element.num_params * (size[2] - kept),
            width=int(config.width or 1),
            num_classes=config.num_classes or 0,
            planes=_planes(config),
        )
        step = bijectors.chain(
            bijectors.actnorm(),
            bijectors.invertible_linear(),
            bijectors.coupling(nets.network(module), element, num_kept=kept),
        )
        steps = bijectors.scan_chain(step, int(config.depth or 1))
        last = number == len(sizes) - 1
        rest = bijectors.flatten(*size) if last else bijectors.split(level(number + 1))
        return bijectors.chain(bijectors.squeeze(side), steps, rest)

    return bijectors.chain(level(0), bijectors.reshape((math.prod(shape),), shape))


def _patches(config: FlowConfig) -> tuple[Bijector, Bijector, int, int]:
    """From images to a sequence of patches `[B, T, C]`, the way back, T and C."""
    (height, width, channels), patch = _shape(config), int(config.patch or 1)
    grid = height // patch, width // patch, patch * patch * channels
    length, size = grid[0] * grid[1], grid[2]
    squeezed, reshaped = (
        bijectors.squeeze(patch),
        bijectors.reshape(grid, (length, size)),
    )
    back = bijectors.inverted(reshaped), bijectors.inverted(squeezed)
    return bijectors.chain(squeezed, reshaped), bijectors.chain(*back), length, size


def _shape(config: FlowConfig) -> tuple[int, int, int]:
    height, width, channels = config.shape or (1, 1, 1)
    return height, width, channels


def _element(config: FlowConfig, bound: float) -> bijectors.Transform:
    if config.elements == "affine":
        return bijectors.affine()
    return bijectors.rational_quadratic(num_bins=config.bins, bound=bound)


def _planes(config: FlowConfig) -> tuple[int, ...]:
    """The shape of what is told beside an image; one plane says whether it is."""
    if not config.num_planes:
        return ()
    return (*_shape(config)[:2], config.num_planes + 1)


def _transformer(module: Any, num_outputs: int, config: FlowConfig, **more: int) -> Any:
    return module(
        num_outputs=num_outputs,
        width=int(config.width or 1),
        num_layers=int(config.layers or 1),
        num_classes=config.num_classes or 0,
        planes=_planes(config),
        **more,
    )
