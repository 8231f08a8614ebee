"""`jaxgen infill RUN --text "a text with ____"`: several answers to what is left blank."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from jaxgen._checks import UserError, check_seed
from jaxgen.models.base import indexed_keys
from jaxgen.train import expost, rundir, session
from jaxgen.train.console import say

AT_ONCE = 8  # answers, whatever their number: one program, and no other rounding


@dataclasses.dataclass(frozen=True, kw_only=True)
class InfillOptions:
    """Several answers to what is left blank in a text, by a masked run in any order.

    The text stands in the middle of a window of the run's length, of which the rest is
    hidden too. Answer k depends on (seed, k) only. `jaxgen infill RUN --help` also shows
    what this run's model lets one choose anew.
    """

    run: Annotated[Path, tyro.conf.Positional]
    """The run folder."""
    text: str = tyro.MISSING
    """What is given, with a blank for each byte that is not: "for i in _____:". \\n is the
    end of a line."""
    blank: str = "_"
    """The character that stands for a byte to be filled in."""
    num: int = 4
    """Answers."""
    seed: int = 0
    """Which answers."""
    ema_width: float | None = None
    """Use the average of this width, rebuilt from what --ema-widths has stored."""
    json: bool = False
    """Print one JSON object to standard output, all else to standard error."""


def infill(options: InfillOptions, sampling: Any = None) -> int:
    """Answers, printed one after the other; returns the exit status.

    Args:
        options: Of the command.
        sampling: The model's options under this name, chosen anew.
    """
    if options.num < 1:
        raise UserError(f"--num must be at least 1, got {options.num}")
    check_seed(options.seed)
    config = rundir.RunFolder(options.run).read_config()
    if session.bind(config).model.infill is None:
        raise UserError(
            f"jaxgen infill is for runs of texts in any order; {options.run} "
            f"({config.family} on {config.data.name}) cannot: jaxgen train masked"
        )
    given, hidden = parsed(options.text, options.blank)
    (length,) = config.model.shape
    if len(given) > length:
        raise UserError(
            f"the text has {len(given)} bytes, the run's windows have {length}: a shorter "
            "one, or a run with a larger --length"
        )
    loaded = expost.load(options.run, sampling, ema_width=options.ema_width)
    for note in loaded.notes:
        say(note)
    found = answers(loaded, given, hidden, num=options.num, seed=options.seed)
    shown = [bytes(row).decode("utf-8", "replace") for row in found]
    if options.json:
        sys.stdout.write(json.dumps({"answers": shown}) + "\n")
    else:
        sys.stdout.writelines(f"--- {k}\n{text}\n" for k, text in enumerate(shown))
    return 0


def parsed(text: str, blank: str) -> tuple[np.ndarray, np.ndarray]:
    """The bytes of a text `[n]` uint8, and which of them are left blank `[n]`.

    Raises:
        UserError: if the blank is not one byte, or none is in the text.
    """
    mark = blank.encode()
    if len(mark) != 1:
        raise UserError(f"--blank must be one character of one byte, got {blank!r}")
    given = np.frombuffer(text.replace("\\n", "\n").encode(), np.uint8)
    hidden = given == mark[0]
    if not hidden.any():
        raise UserError(
            f"the text has no {blank!r}, which stands for a byte to fill in"
        )
    return given, hidden


def answers(
    loaded: session.Loaded,
    given: np.ndarray,
    hidden: np.ndarray,
    *,
    num: int,
    seed: int,
) -> np.ndarray:
    """Texts with what is hidden filled in, uint8 `[num, n]`.

    Args:
        loaded: The run, whose model has `infill`.
        given: The bytes, `[n]`, n at most the run's length.
        hidden: Which are to be filled in, `[n]`.
        num: Answers.
        seed: Which ones.
    """
    (length,), fill = loaded.config.model.shape, loaded.model.infill
    if fill is None:
        raise ValueError("answers: the model cannot fill in: model.infill is None.")
    start = (length - len(given)) // 2
    place = slice(start, start + len(given))
    x, unseen = np.zeros(length, np.int32), np.ones(length, bool)
    x[place], unseen[place] = given, hidden

    @jax.jit
    def some(params: Any, first: jax.Array) -> jax.Array:
        keys = indexed_keys(jax.random.key(seed), first + jnp.arange(AT_ONCE))
        shape = (AT_ONCE, length)
        return fill(
            params,
            jnp.broadcast_to(jnp.asarray(x), shape),
            jnp.broadcast_to(jnp.asarray(unseen), shape),
            keys,
        )

    parts = [np.asarray(some(loaded.params, k)) for k in range(0, num, AT_ONCE)]
    return np.concatenate(parts)[:num, place].astype(np.uint8)
