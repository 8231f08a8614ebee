"""`jaxgen edit RUN`: several answers to an image of which a part is seen."""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jax import Array

from jaxgen import data, operators, tasks
from jaxgen._checks import UserError, check_seed, unknown
from jaxgen.data import conditions, images
from jaxgen.models.base import indexed_keys
from jaxgen.samplers import conditional
from jaxgen.train import answering, expost, pictures, rundir, session
from jaxgen.train.console import say

BLANK = 128


@dataclasses.dataclass(frozen=True, kw_only=True)
class EditOptions:
    """Several answers to an image of which a part is seen.

    By a run that was trained on a --task, or, with nothing trained anew, by a diffusion run of
    images alone. Each row of the picture has what is seen, the answers, and the image that was
    given. Answer k to image i depends on (seed, i, k) only. `jaxgen edit RUN --help` also
    shows what this run's model lets one choose anew.
    """

    run: Annotated[Path, tyro.conf.Positional]
    """The run folder."""
    task: Literal["colourise", "inpaint", "enlarge"] | None = None
    """Colour for a grey image, what is under a mask, or an image --scale times as large; of a
    run on a task that one."""
    image: tuple[Path, ...] = ()
    """Image files, whole ones or what is seen of them (grey, or small); of another size they
    are cropped to the centre and resized. By default images of the run's test split."""
    num: int = 4
    """Answers to each image."""
    num_images: int = 4
    """Images of the test split, where no --image is given."""
    mask: str | None = None
    """What inpaint hides: centre, half (the right one), boxes, pixels (75 %), or F.png of the
    run's size, white where it is hidden; by default what the run was trained on, or centre."""
    scale: int | None = None
    """Of enlarge: 2 (the default) or 4."""
    method: conditional.Method = "pseudo_inverse"
    """How the network of a run of images alone is led to what is seen. pseudo_inverse and
    moments lead any --sampler (auto: 64 steps of ddpm), dps, repaint and replacement have
    their own steps, those of ddpm. moments is exact for Gaussian data, but asks more of a
    network and of the time to compile; replacement is biased, and here to be compared
    with."""
    resamples: int = conditional.RESAMPLES
    """How often repaint takes each step."""
    step_size: float = conditional.STEP_SIZE
    """Of dps."""
    seed: int = 0
    """Which answers, and which boxes and pixels."""
    ema_width: float | None = None
    """Use the average of this width, rebuilt from what --ema-widths has stored."""
    data_dir: str | None = None
    """Where the data lie now, if not where they lay in training."""
    out: Path | None = None
    """F.png, one picture of all, or a folder, for a file of each; by default RUN/edit.png."""


class Given(NamedTuple):
    """An image to be edited.

    Attributes:
        name: For files.
        seen: y, `[h, w, c]` in [0, 1].
        hidden: 1 where pixels are hidden, `[H, W, 1]`; 0 everywhere where none are.
        shown: What is seen, as a picture of the run's shape, uint8 `[H, W, C]`.
        truth: The image given, where it was whole, of the same shape.
    """

    name: str
    seen: np.ndarray
    hidden: np.ndarray
    shown: np.ndarray
    truth: np.ndarray | None


def edit(options: EditOptions, sampling: Any = None) -> int:
    """Answers, written as pictures; returns the exit status.

    Args:
        options: Of the command.
        sampling: The model's options under this name, chosen anew.
    """
    config = rundir.RunFolder(options.run).read_config()
    options = _of_run(options, config)
    _check(options)
    shape = tuple(config.model.shape)
    scale = options.scale or conditions.SCALES[0]
    data.check_task(str(options.task), shape, scale, str(options.run))
    out = options.run / "edit.png" if options.out is None else options.out
    given = _given(options, config, shape)
    loaded = expost.load(options.run, sampling, ema_width=options.ema_width)
    chosen = loaded.config.model
    for note in loaded.notes:
        say(note)
    if getattr(chosen, "num_classes", None) and chosen.sampling.label is None:
        say("the run knows classes: no class is told; --label K tells one")
    found = _answers(options, loaded, given)
    how = f" by {options.method}" if loaded.config.data.task is None else ""
    _tell(options, given, found, how)
    sys.stdout.writelines(f"{path}\n" for path in _write(out, given, found))
    return 0


def _of_run(options: EditOptions, config: Any) -> EditOptions:
    """With the task, mask and scale that the run was trained on, where there are any."""
    trained = config.data
    if trained.task is None:
        if options.task is None:
            raise UserError("--task says what is asked: colourise, inpaint or enlarge")
        if session.bind(config).model.answer is None:
            raise UserError(
                "jaxgen edit takes runs on a --task, and diffusion runs of images trained "
                f"without --one-step; {options.run} is {config.family} on {trained.name}"
            )
        return options
    if trained.task == "next-frame":
        raise UserError(
            "jaxgen edit has no image to ask a run on --task next-frame about: jaxgen "
            "evaluate shows its answers to the test split"
        )
    if options.task not in (None, trained.task) or (
        options.scale not in (None, trained.scale)
    ):
        asked = f"--task {trained.task}"
        asked += f" --scale {trained.scale}" if trained.scale else ""
        raise UserError(
            f"{options.run} was trained on {asked}: it answers nothing else"
        )
    mask = options.mask or trained.mask
    return dataclasses.replace(
        options, task=trained.task, mask=mask, scale=trained.scale
    )


def _check(options: EditOptions) -> None:
    for flag in ("num", "num_images", "resamples"):
        if (value := getattr(options, flag)) < 1:
            name = flag.replace("_", "-")
            raise UserError(f"--{name} must be at least 1, got {value}")
    check_seed(options.seed)
    for flag, task in (("mask", "inpaint"), ("scale", "enlarge")):
        if getattr(options, flag) is not None and options.task != task:
            raise UserError(f"--{flag} is for --task {task}, not {options.task}")
    if options.scale not in (None, *conditions.SCALES):
        raise UserError(f"--scale must be 2 or 4, got {options.scale}")
    if (out := options.out) is None:
        return
    if out.suffix not in ("", ".png") and not out.is_dir():
        raise UserError(f"--out must end in .png or be a folder, got {out}")
    if not out.parent.is_dir():
        raise UserError(f"--out: no such folder: {out.parent}")


def _operator(options: EditOptions, hidden: Array) -> operators.Operator:
    if options.task == "inpaint":
        return operators.mask(hidden)
    if options.task == "colourise":
        return operators.luma()
    return operators.block_mean(options.scale or conditions.SCALES[0])


def _given(options: EditOptions, config: Any, shape: tuple[int, ...]) -> list[Given]:
    """The images to be edited: of files, or of the test split."""
    if options.image:
        read = [_read(options, path, shape) for path in options.image]
        named = [
            (path.stem, *each) for path, each in zip(options.image, read, strict=True)
        ]
    else:
        where = config.data
        if options.data_dir is not None:
            where = dataclasses.replace(where, data_dir=options.data_dir)
        dataset = data.open_dataset(where)
        test, run = dataset.test, rundir.RunFolder(options.run)
        if other := run.check_data(session.data_identity(dataset)):
            say(other)
        if tuple(test.shape) != shape:
            raise UserError(f"the run's images are {shape}, these are {test.shape}")
        if options.num_images > test.num_examples:
            raise UserError(
                f"--num-images must be at most {test.num_examples}, got {options.num_images}"
            )
        chosen = data.spread(test.num_examples, options.num_images)
        named = [
            (f"test-{i}", x, x)
            for i, x in zip(chosen, test.take(chosen)["x"], strict=True)
        ]
    masks = _masks(options, len(named), shape)
    given = []
    for (name, x, truth), hidden in zip(named, masks, strict=True):
        operator = _operator(options, jnp.asarray(hidden)[None])
        seen = _unit(x)[None]
        if x.shape == shape:
            seen = operator.apply(seen)
        given.append(
            Given(
                name,
                np.asarray(seen)[0],
                hidden,
                _shown(options, seen, hidden, shape),
                truth,
            )
        )
    return given


def _unit(x: np.ndarray) -> Array:
    """Levels to the middle of what dequantising makes of them."""
    return (jnp.asarray(x, jnp.float32) + 0.5) / 256


def _shown(
    options: EditOptions, seen: Array, hidden: np.ndarray, shape: tuple[int, ...]
) -> np.ndarray:
    """What is seen as a picture: small ones with repeated pixels, grey where it is hidden."""
    picture = np.asarray(seen)
    if options.task == "enlarge":
        operator = _operator(options, jnp.asarray(hidden)[None])
        picture = np.asarray(operator.pseudo_inverse(seen))
    levels = pictures.to_uint8(np.broadcast_to(picture[0], shape))
    return np.where(hidden > 0, np.uint8(BLANK), levels)


def _masks(options: EditOptions, num: int, shape: tuple[int, ...]) -> np.ndarray:
    """What is hidden of each image, `[num, H, W, 1]`."""
    height, width, _ = shape
    if options.task != "inpaint":
        return np.zeros((num, height, width, 1), np.float32)
    name = "centre" if options.mask is None else options.mask
    if name in operators.MASKS:
        key = jax.random.fold_in(jax.random.key(options.seed), 2**30)
        keys = indexed_keys(key, jnp.arange(num))
        return np.asarray(operators.MASKS[name](keys, height, width))
    path = Path(name)
    if not path.is_file():
        choices = [*operators.MASKS, "F.png"]
        raise UserError(f"--mask: {unknown('mask or file', name, choices)}")
    hidden = (_pixels("--mask", path, 1) > 127).astype(np.float32)
    if hidden.shape[:2] != (height, width):
        raise UserError(
            f"--mask {path} is {_size(hidden)}, the run's images are {height}x{width}: a mask "
            "is not resized"
        )
    if not hidden.any():
        raise UserError(f"--mask {path} hides nothing: white is what is hidden")
    return np.broadcast_to(hidden[None], (num, *hidden.shape))


def _read(
    options: EditOptions, path: Path, shape: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray | None]:
    """A file as what is edited, uint8 of the run's shape or a small one, and the truth."""
    height, width, channels = shape
    x = _pixels("--image", path, channels)
    if options.task == "enlarge":
        scale = options.scale or conditions.SCALES[0]
        small = height // scale, width // scale
        if x.shape[:2] == small:
            return x, None
        if x.shape[0] < height or x.shape[1] < width:
            raise UserError(
                f"--image {path} is {_size(x)}: enlarge by {scale} takes "
                f"{small[0]}x{small[1]}, or a whole image, {height}x{width} or larger"
            )
    if x.shape[:2] != (height, width):
        if height != width:
            raise UserError(
                f"--image {path} is {_size(x)}, the run's images are {height}x{width}: only "
                "squares are cropped and resized"
            )
        say(
            f"{path}: {_size(x)}, cropped to the centre and resized to {height}x{width}"
        )
        x = images.conform_array(x, size=height, channels=channels)
    is_grey = options.task == "colourise" and bool(np.all(x == x[..., :1]))
    return x, None if is_grey else x


def _pixels(flag: str, path: Path, channels: int) -> np.ndarray:
    if not path.is_file():
        raise UserError(
            f"{flag} {path}: {'a folder' if path.is_dir() else 'no such file'}"
        )
    try:
        return images.decode_image(path, size=None, channels=channels, orient=True)
    except Exception as error:  # whatever Pillow says of a broken file
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:120]
        raise UserError(f"{flag} {path} cannot be read ({reason})") from error


def _size(x: np.ndarray) -> str:
    return f"{x.shape[0]}x{x.shape[1]}"


def _answers(
    options: EditOptions, loaded: session.Loaded, given: Sequence[Given]
) -> np.ndarray:
    """`[images, num, H, W, C]` in [0, 1]."""
    by_task = loaded.config.data.task is not None
    questions = [np.stack([getattr(g, n) for g in given]) for n in ("seen", "hidden")]
    return answering.several(
        _by_task(options, loaded) if by_task else _led(options, loaded),
        loaded.params,
        questions,
        options.num,
        seed=options.seed,
    )


def _by_task(options: EditOptions, loaded: session.Loaded) -> Any:
    """What the model was trained to answer; what is seen is then put in its place."""
    answer = answering.to_condition(loaded.model)

    def one(params: Any, keys: Array, seen: Array, hidden: Array) -> Array:
        condition = seen
        if options.task == "inpaint":
            condition = tasks.masked(seen, hidden)
        if options.task == "enlarge":
            level = jnp.zeros(len(seen))
            scale = options.scale or conditions.SCALES[0]
            condition = tasks.small_planes(seen, keys, level, scale=scale)
        x = answer(params, keys, condition)
        return operators.consistent_within(_operator(options, hidden), x, seen)

    return one


def _led(options: EditOptions, loaded: session.Loaded) -> Any:
    """What the denoising steps of a model of images alone are led to."""
    answer = cast(Any, loaded.model.answer)
    how = {"method": options.method, "step_size": options.step_size}
    how["resamples"] = options.resamples

    def one(params: Any, keys: Array, seen: Array, hidden: Array) -> Array:
        prior, generate = jax.vmap(jax.random.split, out_axes=1)(keys)
        z = loaded.model.prior(prior, params)
        return answer(params, z, generate, _operator(options, hidden), seen, **how)

    return one


def _tell(
    options: EditOptions, given: Sequence[Given], found: np.ndarray, how: str
) -> None:
    """How well the answers agree with what is seen, and how much with each other."""
    off = 0.0
    for each, some in zip(given, found, strict=True):
        operator = _operator(options, jnp.asarray(each.hidden)[None])
        missing = operator.apply(jnp.asarray(some)) - jnp.asarray(each.seen)[None]
        off = max(off, float(jnp.abs(missing).max()))
    spread = 255 * float(np.sqrt(found.var(axis=1).mean()))
    say(
        f"{options.num} answers to each of {len(given)} images{how}: what is "
        f"seen is met within {255 * off:.2f} of 255 levels"
        + (f", they differ by {spread:.1f} levels (RMS)" if options.num > 1 else "")
    )


def _write(out: Path, given: Sequence[Given], found: np.ndarray) -> list[Path]:
    """One picture of all, or a folder of files, whose paths are returned."""
    levels = pictures.to_uint8(found)
    if out.suffix == ".png" and not out.is_dir():
        blank = np.full_like(given[0].shown, BLANK)
        rows = []
        for each, some in zip(given, levels, strict=True):
            row = [each.shown, *some]
            if any(g.truth is not None for g in given):
                row.append(blank if each.truth is None else each.truth)
            rows.append(np.stack(row))
        picture = pictures.grid(np.stack(rows))
        rundir.write_bytes(out, pictures.png(picture, min_side=256))
        return [out]
    out.mkdir(exist_ok=True)
    files = {}
    for row, (each, some) in enumerate(zip(given, levels, strict=True)):
        name = f"{row:02d}-{each.name}"
        files[f"{name}-seen"] = each.shown
        files |= {f"{name}-{k}": x for k, x in enumerate(some)}
        if each.truth is not None:
            files[f"{name}-given"] = each.truth
    paths = [out / f"{name}.png" for name in files]
    for path, picture in zip(paths, files.values(), strict=True):
        rundir.write_bytes(path, pictures.png(picture))
    return paths
