"""What a run says about its data: plain values that go into config.json and back."""

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

Transform = Literal["levels", "binarise", "static", "dequantise", "none", "bytes"]
TaskName = Literal["colourise", "inpaint", "enlarge", "next-frame"]
IMAGE_TRANSFORMS: tuple[Transform, ...] = ("levels", "binarise", "static", "dequantise")
TRANSFORMS: tuple[Transform, ...] = (*IMAGE_TRANSFORMS, "none", "bytes")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which images, of which size, and how their 256 levels become numbers; a table; a text."""

    name: Annotated[str, tyro.conf.arg(name="data")] = "digits"
    """digits, photos, folder:PATH, table:FILE.csv, text:FILE, text:pydoc, stacked:SET (three
    grey images as the channels of one), latents:RUN (encodings of a run's training data),
    peg:2, peg:4 or minatar:GAME (clips), or a TFDS name such as mnist (name/config too)."""

    data_dir: str | None = None
    """Where prepared TFDS sets lie, or one prepared set itself; default
    $TFDS_DATA_DIR, else ~/tensorflow_datasets."""

    image_size: int | None = None
    """Resize the shorter side to this many pixels (block means where that divides it, else
    antialiased Lanczos) and crop the centre square; default: the stored size, and 32 for
    folder:."""

    channels: int | None = None
    """1 (grey, ITU-R 601 luma) or 3 (RGB); default: the stored number, and 3 for
    folder:. Transparent pixels are shown on white."""

    transform: Transform | None = None
    """levels k/255; binarise: a fresh Bernoulli(k/255) draw each step; static: one
    fixed such draw per image; dequantise: (k + u)/256; none: the rows of a table as they
    are; bytes: those of a text; default: as the model needs."""

    columns: tuple[str, ...] = ()
    """What columns of a table are, each as NAME=KIND: real, positive, bounded:LOW:HIGH or
    angle:LOW:HIGH, then perhaps ,step:S (of rounded values; 0 for none); NAME=context or
    NAME=context,KIND for one that is given, not modelled; NAME=weight; NAME=skip.
    Default: as the values look."""

    task: TaskName | None = None
    """Model not images but the answers to a question: colour for a grey image, what is under
    --mask, an image --scale times as large, or the frame after those that are given (of data
    that are clips)."""

    mask: Literal["centre", "half", "boxes", "pixels"] | None = None
    """What inpaint hides: the centre, the right half, a random box (the default) or random
    pixels (75 %)."""

    scale: Literal[2, 4] | None = None
    """Of enlarge, by default 2."""

    length: int | None = None
    """Bytes of a window of a text, one example; default 128."""
