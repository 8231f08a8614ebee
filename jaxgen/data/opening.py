"""`open_dataset`: from a config to two sources, through the cache of decoded sets."""

from collections.abc import Callable
from typing import Any

import numpy as np

from jaxgen._checks import UserError, check_in
from jaxgen.data import (
    builtin,
    cache,
    conditions,
    folder,
    latents,
    minatar,
    peg,
    prepared,
    stacked,
    table_files,
    tables,
    texts,
)
from jaxgen.data.config import TRANSFORMS, DataConfig
from jaxgen.data.images import conform_array
from jaxgen.data.sources import ArraySource, Dataset, Source
from jaxgen.data.transforms import static_binarise

# The sets that come with the library; every other name is looked up among TFDS sets.
DATASETS: dict[str, Callable[[], Dataset]] = {
    "digits": builtin.make_digits,
    "photos": builtin.make_photos,
}

MAX_DECODED_BYTES = 256 * 2**20
_FOLDER = "folder:"
_CLIPS = (peg.PREFIX, minatar.PREFIX)


def open_dataset(
    config: DataConfig, *, max_decoded_bytes: int = MAX_DECODED_BYTES
) -> Dataset:
    """Opens train and test of the set that a config names.

    A set that takes at most `max_decoded_bytes` as uint8 is decoded once, kept in
    memory and in the cache directory, and given as `ArraySource`s; a larger one is
    decoded on demand. Where `config.transform` is "static", both splits are
    binarised already.

    Args:
        config: Name, place, size, channels.
        max_decoded_bytes: Of both splits together.

    Raises:
        UserError: for every mistake in the config or fault of the files, in one line.
    """
    _check(config)
    return conditions.with_task(_opened(config, max_decoded_bytes), config)


def _opened(config: DataConfig, max_decoded_bytes: int) -> Dataset:
    if config.name.startswith(stacked.PREFIX):
        name = config.name.removeprefix(stacked.PREFIX)
        parts = open_dataset(conditions.without_task(config, name=name))
        return stacked.stacked(parts)
    if config.name.startswith(_FOLDER):
        dataset = _open_folder(config, max_decoded_bytes)
    elif config.name.startswith(tables.PREFIX):
        dataset = tables.open_table(
            config.name.removeprefix(tables.PREFIX), config.columns
        )
    elif config.name.startswith(latents.PREFIX):
        dataset = latents.open_latents(config.name)
    elif config.name.startswith(_CLIPS):
        dataset = _open_clips(config.name)
    elif config.name.startswith(texts.PREFIX):
        dataset = texts.open_text(config.name, config.length)
    elif config.name in DATASETS:
        dataset = _open_builtin(config)
    else:
        dataset = _open_prepared(config, max_decoded_bytes)
    if config.transform == "static":
        dataset = dataset._replace(
            train=static_binarise(dataset.train), test=static_binarise(dataset.test)
        )
    return dataset


def described() -> dict[str, str]:
    """What `--data` takes, with a line each."""
    lines = {n: (make.__doc__ or "").split("\n")[0] for n, make in DATASETS.items()}
    lines |= {f"{tables.PREFIX}{n}": line for n, line in table_files.BUNDLED.items()}
    lines |= {f"{texts.PREFIX}{n}": line for n, line in texts.BUNDLED.items()}
    return lines | {
        "folder:PATH": "A folder of images of any size and mode.",
        "table:FILE.csv": "Rows of numbers below a header; comma, semicolon or tab.",
        "text:FILE": "Windows of a file's bytes.",
        "latents:RUN": "The encodings of a run's training data as rows, for --prior-run.",
        "stacked:SET": "Three grey images of a labelled set as the channels of one.",
        "peg:2, peg:4": "Clips: a ball meets a peg and goes one of 2 or 4 ways.",
        "minatar:GAME": f"Clips of random play: {', '.join(minatar.GAMES)}.",
        "NAME": "Any TFDS set that is prepared under --data-dir, such as mnist.",
    }


def _check(config: DataConfig) -> None:
    if config.name.startswith(latents.PREFIX) and config.columns:
        raise UserError(f"--columns: those of {config.name} are all real; leave it out")
    if config.length is not None and not config.name.startswith(texts.PREFIX):
        raise UserError(f"--length is for texts, {config.name} is none; leave it out")
    if config.name.startswith((tables.PREFIX, latents.PREFIX)):
        _check_no_image(config, "rows", "none")
    elif config.name.startswith(texts.PREFIX):
        _check_no_image(config, "texts", "bytes")
        texts.check(config)
    elif config.columns:
        raise UserError(
            f"--columns: {config.name} holds images; leave it out, or give --data "
            "table:FILE.csv"
        )
    elif config.transform in ("none", "bytes"):
        what = "tables" if config.transform == "none" else "texts"
        raise UserError(
            f"--transform {config.transform} is for {what}, {config.name} holds images; "
            "leave it out"
        )
    if config.name.startswith(_CLIPS):
        _check_for_clips(config)
    if config.channels not in (None, 1, 3):
        raise UserError(
            f"channels: got {config.channels}, expected 1 (grey) or 3 (RGB); leave it "
            "out to keep the stored number."
        )
    if config.image_size is not None and not 1 <= config.image_size <= 4096:
        raise UserError(
            f"image_size: got {config.image_size}, expected 1 to 4096 pixels; leave it "
            "out to keep the stored size."
        )
    if config.transform is not None:
        try:
            check_in("open_dataset", "transform", config.transform, TRANSFORMS)
        except ValueError as error:
            raise UserError(str(error)) from error


def _check_no_image(config: DataConfig, what: str, transform: str) -> None:
    wrong = {
        "image-size": config.image_size is not None,
        "channels": config.channels is not None,
        f"transform {config.transform}": config.transform not in (None, transform),
    }
    for option, is_given in wrong.items():
        if is_given:
            raise UserError(
                f"--{option} is for images, {config.name} holds {what}; leave it out"
            )


def _check_for_clips(config: DataConfig) -> None:
    wrong = {
        "image-size": config.image_size is not None,
        "channels": config.channels is not None,
        "transform static": config.transform == "static",
    }
    for option, is_given in wrong.items():
        if is_given:
            raise UserError(
                f"--{option} would leave the past frames of {config.name} as they are; "
                "leave it out"
            )


def _open_clips(name: str) -> Dataset:
    if name.startswith(peg.PREFIX):
        return peg.open_peg(name)
    game = minatar.find(name)
    version = minatar.version(name)
    key = cache.make_key(kind="clips", name=name, game=game, version=version)
    return _cached(key, lambda: minatar.open_minatar(name))


def _open_builtin(config: DataConfig) -> Dataset:
    key = cache.make_key(
        kind="builtin",
        name=config.name,
        version=builtin.version(),
        size=config.image_size,
        channels=config.channels,
    )
    return _cached(key, lambda: _conform(DATASETS[config.name](), config))


def _open_folder(config: DataConfig, max_decoded_bytes: int) -> Dataset:
    size = folder.DEFAULT_SIZE if config.image_size is None else config.image_size
    channels = folder.DEFAULT_CHANNELS if config.channels is None else config.channels
    root, files, closed = folder.find_images(config.name.removeprefix(_FOLDER))

    def build() -> Dataset:
        return folder.read_folder(
            root,
            files,
            closed,
            size=size,
            channels=channels,
            max_decoded_bytes=max_decoded_bytes,
        )

    if len(files) * size * size * channels > max_decoded_bytes:
        return build()
    place = {"root": str(root.resolve()), "files": files, "closed": closed}
    key = cache.make_key(kind="folder", size=size, channels=channels, **place)
    return _cached(key, build)


def _open_prepared(config: DataConfig, max_decoded_bytes: int) -> Dataset:
    found, notes = prepared.find_prepared(
        config.name, config.data_dir, builtins=DATASETS
    )
    key = cache.make_key(
        kind="prepared",
        path=str(found.path.resolve()),
        files=cache.listing(found.path),
        size=config.image_size,
        channels=config.channels,
        max_decoded_bytes=max_decoded_bytes,
    )

    def build() -> Dataset:
        from jaxgen.data import prepared_source  # not needed where the cache has it

        return prepared_source.read_prepared(
            found,
            size=config.image_size,
            channels=config.channels,
            max_decoded_bytes=max_decoded_bytes,
        )

    dataset = _cached(key, build)
    return dataset._replace(notes=(*notes, *dataset.notes))


def _conform(dataset: Dataset, config: DataConfig) -> Dataset:
    """Resizes and recolours a set that lies in memory, where the config asks for it."""
    channels = dataset.shape[2] if config.channels is None else config.channels
    size = config.image_size
    if channels == dataset.shape[2] and size in (None, dataset.shape[0]):
        return dataset

    def conform(source: Source) -> ArraySource:
        batch = source.take(np.arange(source.num_examples))
        images = [conform_array(x, size=size, channels=channels) for x in batch["x"]]
        return ArraySource(np.stack(images), batch.get("label"))

    train, test = conform(dataset.train), conform(dataset.test)
    return dataset._replace(train=train, test=test, shape=train.shape)


def _cached(key: str, build: Callable[[], Dataset]) -> Dataset:
    hit = cache.load(key)
    if hit is not None:
        return _from_entry(*hit)
    dataset = build()
    if not isinstance(dataset.train, ArraySource):
        return dataset
    if not isinstance(dataset.test, ArraySource):
        return dataset
    splits = {"train": dataset.train, "test": dataset.test}
    arrays = {
        f"{split}_{name}": array
        for split, source in splits.items()
        for name, array in source.arrays.items()
    }
    fields = ("name", "shape", "num_classes", "notes")
    meta = {field: getattr(dataset, field) for field in fields}
    note = cache.store(key, arrays, meta)
    if note is None:
        return dataset
    return dataset._replace(notes=(*dataset.notes, note))


def _from_entry(arrays: dict[str, np.ndarray], meta: dict[str, Any]) -> Dataset:
    splits = {"train": {}, "test": {}}
    for name, array in arrays.items():
        split, _, kind = name.partition("_")
        splits[split][kind] = array
    return Dataset(
        name=meta["name"],
        train=ArraySource(**splits["train"]),
        test=ArraySource(**splits["test"]),
        shape=tuple(meta["shape"]),
        num_classes=meta["num_classes"],
        notes=tuple(meta["notes"]),
    )
