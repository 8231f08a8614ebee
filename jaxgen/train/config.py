"""The configuration of a run: frozen dataclasses that round-trip through JSON.

A config only chooses numbers and names from closed registries; nothing in it is code.
"""

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal

import jax
import optax
from optax import contrib

from jaxgen import averaging, models
from jaxgen._checks import UserError, check_finite_options, unknown
from jaxgen.data.config import DataConfig

VERSION = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How a run is trained; every duration is a fraction of the run."""

    steps: int = 1000
    """Updates in the whole run, at most; its durations and schedules are fractions of it."""
    batch_size: int = 128
    """Examples an update."""
    seed: int = 0
    """Fixes initial parameters, order of the data and all noise."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """AdamW, or Muon for the weights and AdamW for the rest."""
    learning_rate: float = 2e-3
    """Peak learning rate."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the learning rate falls after warm-up: to zero by cosine, linearly, or not."""
    warmup: float = 0.02
    """Fraction of the run in which the learning rate rises from zero."""
    beta1: float = 0.9
    """Decay of AdamW's first moment."""
    beta2: float = 0.99
    """Decay of AdamW's second moment."""
    beta2_start: float | None = None
    """Where it begins, to rise to --beta2 along a cosine; by default it stays the same."""
    weight_decay: float = 1e-4
    """Decoupled decay of the weights (not biases), times the learning rate."""
    clip_norm: float = 0.0
    """Clip the gradient to this global norm; 0 does not."""
    ema_half_life: float = 0.01
    """Half-life of the averaged parameters, as a fraction of the run; 0 keeps none."""
    ema_widths: tuple[float, ...] = ()
    """Keep power-function averages of these widths, such as 0.05 0.1, instead; the first
    is the one that is used. Every checkpoint interval stores them in RUN/averages (at
    most 40 files, each of 4 bytes x parameters x widths), for --ema-width of `sample` and
    `evaluate`."""
    init_from: str | None = None
    """A run folder whose averaged parameters a new run starts from, where they fit."""
    parallel: Literal["sharded", "fsdp", "pmap"] = "sharded"
    """How an update is split over devices: by XLA, the state too, or by jax.pmap."""
    devices: int = 0
    """How many devices share a batch, a CPU as so many; 0 for all accelerators or one CPU."""
    steps_per_dispatch: int = 0
    """Updates in one compiled program run; 0 chooses."""
    accumulate: int = 1
    """Parts of a batch whose gradients are summed one after the other, to save memory."""
    log_every: int = 0
    """Steps between lines of metrics.jsonl; 0 gives 100 lines a run, or more."""
    sample_every: int = 0
    """Steps between sample grids; 0 gives 10 a run."""
    checkpoint_every: int = 0
    """Steps between checkpoints; 0 gives 20 a run."""
    on_collapse: Literal["tell", "stop", "rollback"] = "tell"
    """When the training of a GAN collapses: say so; stop; or go back to the last healthy
    checkpoint and on with half the learning rate, three times at most."""
    patience: int | None = None
    """Stop after so many checkpoint intervals without a better loss on a held-out tenth of
    the training split, and keep the best parameters; 0 does not; by default 10 for tables,
    else 0. The learning rate falls as if it went on to --steps."""

    def __post_init__(self):
        check_finite_options(self)
        _require(self.steps >= 1, "steps", self.steps, "at least 1")
        _require(self.batch_size >= 1, "batch-size", self.batch_size, "at least 1")
        _require(self.devices >= 0, "devices", self.devices, "not negative")
        dispatch = self.steps_per_dispatch
        _require(dispatch >= 0, "steps-per-dispatch", dispatch, "not negative")
        _require(self.accumulate >= 1, "accumulate", self.accumulate, "at least 1")
        _require(0 <= self.seed < 2**31, "seed", self.seed, "in 0 .. 2^31 - 1")
        _require(
            self.learning_rate > 0, "learning-rate", self.learning_rate, "positive"
        )
        for name in ("warmup", "ema_half_life"):
            value = getattr(self, name)
            _require(
                0 <= value <= 1, name.replace("_", "-"), value, "a fraction in [0, 1]"
            )
        widths = self.ema_widths
        _require(
            all(0 < width < averaging.MAX_WIDTH for width in widths)
            and len(set(widths)) == len(widths),
            "ema-widths",
            " ".join(map(str, widths)),
            f"different numbers in (0, {averaging.MAX_WIDTH})",
        )
        for name in ("beta1", "beta2", "beta2_start"):
            value = getattr(self, name)
            flag = name.replace("_", "-")
            _require(value is None or 0 <= value < 1, flag, value, "in [0, 1)")
        for name in ("weight_decay", "clip_norm"):
            value = getattr(self, name)
            _require(value >= 0, name.replace("_", "-"), value, "not negative")
        for name in ("log_every", "sample_every", "checkpoint_every"):
            value = getattr(self, name)
            _require(value >= 0, name.replace("_", "-"), value, "not negative")
        patience = self.patience
        _require(
            patience is None or patience >= 0, "patience", patience, "not negative"
        )

    def every(self, name: Literal["log", "sample", "checkpoint"]) -> int:
        """Steps between two events, the automatic number resolved."""
        per_run = {"log": 100, "sample": 10, "checkpoint": 20}[name]
        automatic = max(1, self.steps // per_run)
        if name == "log":  # bounds what waits on the device to be read
            automatic = min(automatic, 1000)
        return getattr(self, f"{name}_every") or automatic


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """All that rebuilds a run: the family's name, its config, the data, the training."""

    family: str
    model: Any
    data: DataConfig
    train: TrainConfig


def make_optimizer(train: TrainConfig) -> optax.GradientTransformation:
    """AdamW or Muon with the run's schedule, after optional clipping by global norm.

    References:
        Loshchilov & Hutter 2019, arXiv:1711.05101. Liu et al. 2025 (Muon, with updates
        of AdamW's size), arXiv:2502.16982.
    """
    decays = {
        "cosine": lambda n: optax.cosine_decay_schedule(train.learning_rate, n),
        "linear": lambda n: optax.linear_schedule(train.learning_rate, 0.0, n),
        "constant": lambda n: optax.constant_schedule(train.learning_rate),
    }
    warmup = round(train.warmup * train.steps)
    schedule = optax.join_schedules(
        [
            optax.linear_schedule(0.0, train.learning_rate, max(warmup, 1)),
            decays[train.schedule](max(train.steps - warmup, 1)),
        ],
        [warmup],
    )
    if train.optimizer == "muon":
        optimizer = contrib.muon(
            schedule,
            adam_b1=train.beta1,
            adam_b2=train.beta2,
            weight_decay=train.weight_decay,
            muon_weight_dimension_numbers=_matrices,
            consistent_rms=0.2,
        )
    else:
        options = {"weight_decay": train.weight_decay, "mask": _kernels}
        if train.beta2_start is None:
            adamw, options["b2"] = optax.adamw, train.beta2
        else:
            fixed = ("b1", "eps", "eps_root", *options, "nesterov")
            adamw = optax.inject_hyperparams(optax.adamw, static_args=fixed)
            options["b2"] = _rising(train.beta2_start, train.beta2, train.steps)
        optimizer = adamw(schedule, b1=train.beta1, **options)
    # One structure of the state with and without clipping: a continued run may change it.
    clip = (
        optax.clip_by_global_norm(train.clip_norm)
        if train.clip_norm
        else optax.identity()
    )
    return optax.chain(clip, optimizer)


def _rising(first: float, last: float, steps: int) -> Any:
    """From one value to another along half a cosine."""
    fall = optax.cosine_decay_schedule(1.0, steps)
    return lambda count: last + (first - last) * fall(count)


def _kernels(params: Any) -> Any:
    """Which parameters decay: weights, not biases, scales or single numbers."""
    return jax.tree_util.tree_map_with_path(lambda path, _: _is_kernel(path), params)


def _matrices(params: Any) -> Any:
    """How Muon sees each kernel as a matrix; None leaves a parameter to AdamW.

    Kernels are `[in, out]` or `[height, width, in, out]`, stacked in front where layers
    are scanned.
    """

    def axes(path: Any, leaf: Any) -> contrib.MuonDimensionNumbers | None:
        if not _is_kernel(path) or leaf.ndim < 2:
            return None
        last = leaf.ndim - 1
        inputs = tuple(range(last))[-3 if leaf.ndim > 3 else -1 :]
        return contrib.MuonDimensionNumbers(inputs, last)

    return jax.tree_util.tree_map_with_path(axes, params)


def _is_kernel(path: Any) -> bool:
    return getattr(path[-1], "key", None) == "kernel"


def default(family: str) -> RunConfig:
    """The run of `jaxgen train FAMILY` without an option."""
    return from_dict({"version": VERSION, "family": family})


def to_dict(config: RunConfig) -> dict[str, Any]:
    """A JSON-ready dict; `from_dict` is its inverse."""
    return {"version": VERSION, **dataclasses.asdict(config)}


def from_dict(values: Mapping[str, Any]) -> RunConfig:
    """Rebuilds a config; names are looked up in closed registries only.

    Raises:
        UserError: for an unknown key (naming the nearest), a wrong type, an unknown
            family, or a version this code does not read.
    """
    values = dict(values)
    version = values.pop("version", None)
    if version != VERSION:
        raise UserError(f"config: version {version!r}, this jaxgen reads {VERSION}")
    family = values.get("family")
    if not isinstance(family, str) or family not in models.FAMILIES:
        raise UserError(f"config: {unknown('family', family, models.FAMILIES)}")
    config_class = models.FAMILIES[family].config_class
    parts = {"model": config_class, "data": DataConfig, "train": TrainConfig}
    for name in values:
        if name not in (*parts, "family"):
            raise UserError(f"config: {unknown('key', name, (*parts, 'family'))}")
    built = {
        name: _build(cls, values.get(name, {}), name) for name, cls in parts.items()
    }
    entry = models.FAMILIES[family]
    for part, defaults in (("train", entry.training), ("data", entry.data)):
        absent = defaults.keys() - values.get(part, {}).keys()
        own = {name: defaults[name] for name in absent}
        built[part] = dataclasses.replace(built[part], **own)
    return RunConfig(family=family, **built)


def differences(old: RunConfig, new: RunConfig) -> dict[str, tuple[Any, Any]]:
    """`{"part.key": (old, new)}` of everything that differs."""
    flat_old, flat_new = flat(old), flat(new)
    keys = sorted(flat_old.keys() | flat_new.keys())
    return {
        key: (flat_old.get(key), flat_new.get(key))
        for key in keys
        if flat_old.get(key) != flat_new.get(key)
    }


def flat(config: RunConfig) -> dict[str, Any]:
    """`{"part.key": value}` of everything in a config."""
    return _flat(to_dict(config))


def may_change(key: str, old: Any, new: Any) -> bool:
    """Whether a continued run may change this key: only what leaves its state valid."""
    if key == "train.patience":  # None is of a run from before there was any
        return bool(old) == bool(new)
    free = ("steps", "learning_rate", "schedule", "warmup", "weight_decay", "clip_norm")
    free += ("log_every", "sample_every", "checkpoint_every", "ema_half_life")
    free += ("on_collapse", "parallel", "devices", "steps_per_dispatch", "accumulate")
    others = {"data.data_dir", "model.remat"}
    sampling = key.startswith("model.sampling.")
    return sampling or key in {f"train.{name}" for name in free} | others


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = list(value) if isinstance(value, tuple) else value
    return flat


def _build(cls: Any, values: Mapping[str, Any], where: str) -> Any:
    if not isinstance(values, Mapping):
        raise UserError(f"config: {where} must be an object, got {values!r}")
    hints = typing.get_type_hints(cls)
    for name in values:
        if name not in hints:
            raise UserError(f"config: {unknown(f'key in {where}', name, hints)}")
    checked = {n: _coerce(hints[n], v, f"{where}.{n}") for n, v in values.items()}
    try:
        return cls(**checked)
    except ValueError as error:
        raise UserError(f"config: {error}") from error


def _coerce(hint: Any, value: Any, where: str) -> Any:
    """The value as the hint wants it (a list becomes a tuple), or UserError."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return _coerce(args[0], value, where)
    if origin is Literal and value in args:
        return value
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in args:
            return None
        return _coerce(next(a for a in args if a is not type(None)), value, where)
    if origin is tuple and isinstance(value, list | tuple):
        items = args[:1] * len(value) if args[-1] is Ellipsis else args
        if len(items) == len(value):
            return tuple(
                _coerce(i, v, where) for i, v in zip(items, value, strict=True)
            )
    if hint is float and type(value) is int:
        return float(value)
    if dataclasses.is_dataclass(hint):
        return _build(hint, typing.cast(Any, value), where)
    if isinstance(hint, type) and origin is None and type(value) is hint:
        return value
    raise UserError(f"config: {where} must be {hint}, got {value!r}")


def _require(condition: bool, name: str, value: Any, expected: str) -> None:  # noqa: FBT001 - an assertion reads best so
    if not condition:
        raise UserError(f"--{name} must be {expected}, got {value}")
