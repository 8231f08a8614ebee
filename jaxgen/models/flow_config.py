"""Options of the flow family, and how those left open follow from the data."""

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Literal

import tyro

from jaxgen._checks import (
    UserError,
    check_at_least,
    check_class_options,
    check_finite_options,
    check_told,
    unknown,
)
from jaxgen.columns import Column, misfit

IMAGE_NETS = ("tarflow", "jet", "glow")
TABLE_NETS = ("autoregressive", "coupling")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """How a trained flow is sampled; may be chosen anew at any time."""

    label: int | None = None
    """The class of the samples; by default each sample draws its own."""
    guidance: float = 1.0
    """What tarflow is told, w for class and 1 - w for none: 1 is the model."""
    temperature: float = 1.0
    """Standard deviation of the latent: below 1 samples are more alike."""
    given: tuple[str, ...] = ()
    """Values of context columns, NAME=VALUE; those not given are drawn from the data."""

    def __post_init__(self):
        check_finite_options(self)
        if self.temperature < 0 or self.guidance < 0:
            raise UserError("--temperature and --guidance must not be negative")

    def context(self, columns: Sequence[Column] | None) -> dict[str, float]:
        """The values of `--given`, by the names of context columns.

        Raises:
            UserError: for a name that is none, or a value that its column cannot have.
        """
        contexts = {c.name: c for c in columns or () if c.is_context}
        names = list(contexts)
        if self.given and not names:
            raise UserError("--given is for a table with context columns: --columns")
        values = {}
        for entry in self.given:
            name, _, value = entry.rpartition("=")
            if name not in names:
                raise UserError(f"--given: {unknown('context column', name, names)}")
            try:
                values[name] = float(value)
            except ValueError:
                raise UserError(f"--given {name}: {value!r} is not a number") from None
            if (wanted := misfit(contexts[name], values[name])) is not None:
                raise UserError(f"--given {name}: {value} is not {wanted}")
        return values


@dataclasses.dataclass(frozen=True, kw_only=True)
class FlowConfig:
    """Options of the flow family; None leaves the choice to the data."""

    net: Literal["tarflow", "jet", "glow", "autoregressive", "coupling"] | None = None
    """Images: tarflow (causal transformers over patches, the best density), jet
    (transformer couplings, fast both ways), glow (convolutions, multi-scale). Tables:
    autoregressive (the best density) or coupling (fast both ways)."""
    elements: Literal["splines", "affine"] | None = None
    """How a value changes, given the others: by rational-quadratic splines or an affine
    map; by default splines, and affine for jet and glow."""
    within: Literal["autoregressive", "independent"] = "autoregressive"
    """Whether tarflow tells the values of a patch of each other. The published TarFlow has
    --within independent --elements affine --depth 8."""
    depth: int | None = None
    """Blocks of tarflow (every other one from the last patch to the first), couplings of
    jet, couplings a level of glow, layers of a table's flow; by default 1, 12, 8, 5."""
    width: int | None = None
    """Channels of the networks; by default 128, 64 for glow and tables."""
    layers: int | None = None
    """Layers of each transformer; by default 2, and 1 in jet; blocks of two layers in the
    networks of tables and patches, by default 1."""
    patch: int | None = None
    """Side of tarflow's and jet's patches; by default 2 up to 16 pixels, 4 above."""
    bins: int = 8
    """Bins of a spline."""
    waves: int | None = None
    """Sines of each value, of learned frequencies, that a table's networks see besides it;
    by default 16."""
    noise: float = 0.0
    """Standard deviation of Gaussian noise, in units of half the range of a pixel, in place
    of the uniform one: samples are then denoised by Tweedie's formula and look better, but
    the likelihood is one of noisy images. Published: 0.05 to 0.1."""
    conditional: bool = False
    """Tell the networks the class, where the data have labels."""
    label_dropout: float = 0.1
    """Share of the examples whose class is not told, for guidance."""
    sampling: Sampling = Sampling()
    num_classes: Annotated[int | None, tyro.conf.Suppress] = None
    shape: Annotated[tuple[int, ...] | None, tyro.conf.Suppress] = None
    columns: Annotated[tuple[Column, ...] | None, tyro.conf.Suppress] = None
    num_planes: Annotated[int, tyro.conf.Suppress] = 0

    def __post_init__(self):
        check_finite_options(self)
        check_at_least(self, 1, "depth", "layers", "patch", "bins")
        check_at_least(self, 4, "width")
        if self.waves is not None and self.waves < 0:
            raise UserError(f"--waves must not be negative, got {self.waves}")
        if self.noise < 0:
            raise UserError(f"--noise must not be negative, got {self.noise}")
        if not 0 <= self.label_dropout < 1:
            raise UserError(
                f"--label-dropout is a share in [0, 1), got {self.label_dropout}"
            )
        self._check_sampling()

    def _check_sampling(self) -> None:
        check_class_options(self)
        sampling = self.sampling
        if sampling.guidance != 1 and self.net not in (None, "tarflow"):
            raise UserError("--guidance is for --net tarflow")
        if self.shape is not None:
            sampling.context(self.columns)


def resolve(
    config: FlowConfig,
    shape: tuple[int, ...],
    transform: str | None,
    num_classes: int | None = None,
    columns: tuple[Column, ...] | None = None,
    num_planes: int = 0,
) -> tuple[FlowConfig, str]:
    """Fills what was left to the data, and refuses what does not fit together."""
    is_table = columns is not None
    nets, what = (TABLE_NETS, "tables") if is_table else (IMAGE_NETS, "images")
    net = config.net or nets[0]
    if net not in nets:
        raise UserError(f"--net {net} is not for {what}: {', '.join(nets)} are")
    if is_table and (config.noise or config.conditional):
        raise UserError("--noise and --conditional are for images")
    if config.waves and not is_table:
        raise UserError("--waves is for tables")
    check_told(config.conditional, num_classes, num_planes)
    fitting = "none" if is_table else "levels" if config.noise else "dequantise"
    transform = fitting if transform is None else transform
    if transform != fitting:
        raise UserError(
            f"a flow with --noise {config.noise} models {what} made by --transform "
            f"{fitting}, not {transform}"
        )
    depths = {"tarflow": 1, "jet": 12, "glow": 8}
    resolved = dataclasses.replace(
        config,
        net=net,
        elements=config.elements or ("affine" if net in ("jet", "glow") else "splines"),
        depth=config.depth or depths.get(net, 5),
        width=config.width or (128 if net in ("tarflow", "jet") else 64),
        layers=config.layers or (2 if net == "tarflow" else 1),
        patch=_patch(config, net, shape),
        waves=config.waves if config.waves is not None else 16 * is_table,
        num_classes=num_classes if config.conditional else None,
        shape=tuple(shape),
        columns=columns,
        num_planes=num_planes,
    )
    return resolved, transform


def _patch(config: FlowConfig, net: str, shape: tuple[int, ...]) -> int | None:
    if net in TABLE_NETS:
        return config.patch
    height, width, channels = shape
    if net == "glow":
        if channels < 2 and (height % 2 or width % 2):
            raise UserError(
                f"--net glow needs even sides for grey images, got {height}x{width}: "
                "--image-size, or --net tarflow"
            )
        return config.patch
    largest = config.patch or (2 if max(height, width) <= 16 else 4)
    fitting = [p for p in range(1, largest + 1) if height % p == 0 == width % p]
    if config.patch not in (None, fitting[-1]):
        raise UserError(
            f"--patch {config.patch} does not divide images of {height}x{width}: "
            f"{', '.join(map(str, fitting))} would, or --image-size"
        )
    if net == "jet" and fitting[-1] ** 2 * channels < 2:
        raise UserError(
            f"--net jet needs patches of two values at least, and none divides grey "
            f"images of {height}x{width}: --image-size, or --net tarflow"
        )
    return fitting[-1]
