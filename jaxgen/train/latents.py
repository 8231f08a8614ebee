"""The encodings of a run's data, made once and kept in its folder.

They are draws of Q(z given x): several of each training example where there are few, so
that what is fitted to them hears how wide Q is. No example of the test split is among
those that are fitted.
"""

import dataclasses
import hashlib
import io
import json
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen import data
from jaxgen._checks import UserError
from jaxgen.data import latents
from jaxgen.models.base import indexed_keys
from jaxgen.train import processes, rundir, session
from jaxgen.train.console import say

SEED = 20_280_101
BATCH = 256
NUM_ROWS = 10_000  # that are wanted to train on
MAX_DRAWS = 10  # of one example


def ensure(config: data.DataConfig) -> None:
    """Makes what `latents:RUN` names, where it is not there yet or is of other parameters.

    Raises:
        UserError: if RUN is no trained run, or has no latent vectors.
    """
    if config.name.startswith(latents.PREFIX):
        of(session.load(latents.folder_of(config.name)))


def of(loaded: session.Loaded) -> latents.Latents:
    """The encodings of a run's data by its own parameters, from its folder or made anew.

    Raises:
        UserError: if the model has no encoder, or its latents are no vectors.
    """
    folder, digest = loaded.run.path, _digest(loaded)
    found = latents.read(folder)
    if found is not None and found.digest == digest:
        return found
    _check(loaded)
    say(f"encoding the data of {folder}")
    opened = data.with_validation(data.open_dataset(loaded.config.data), 1)
    encode = _encoder(loaded)
    num = opened.train.num_examples
    num_draws = min(MAX_DRAWS, math.ceil(NUM_ROWS / num))
    draws = [encode(opened.train, 0)]
    for draw in range(1, num_draws):
        draws.append(encode(opened.train, draw))
        if np.array_equal(draws[0], draws[-1]):  # an encoder that draws no noise
            draws = draws[:1]
            break
    held: Any = opened.validation
    made = latents.Latents(
        np.concatenate(draws), encode(held, 0), encode(opened.test, 0), digest
    )
    if not all(np.all(np.isfinite(split)) for split in made[:3]):
        raise UserError(f"{folder}: some encodings of its data are not finite")

    def write() -> str:
        buffer = io.BytesIO()
        arrays: dict[str, Any] = made._asdict()
        np.savez(buffer, **arrays)
        rundir.write_bytes(folder / latents.FILE, buffer.getvalue())
        return ""

    processes.from_first(write)  # and the others wait for it
    return made


def _check(loaded: session.Loaded) -> None:
    """Raises UserError unless the model encodes to vectors."""
    session.refuse_task(loaded.config, "a prior fitted to latents")
    family, model = loaded.config.family, loaded.model
    if model.encode is None:
        raise UserError(f"{loaded.run.path}: a model of {family} has no encoder")
    x = jax.ShapeDtypeStruct((1, *loaded.config.model.shape), jnp.float32)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 1))
    z = jax.eval_shape(model.encode, loaded.params, x, keys)
    if len(z.shape) != 2:
        raise UserError(
            f"{loaded.run.path}: the latents of this {family} have the shape "
            f"{z.shape[1:]}; priors are fitted to vectors, such as a VAE's"
        )


def _encoder(loaded: session.Loaded) -> Any:
    """`(source, draw) -> [N, L]`, every example once and in order."""
    transform: Any = loaded.config.data.transform
    encode: Any = loaded.model.encode

    @jax.jit
    def some(params: Any, raw: Any, key: jax.Array) -> jax.Array:
        batch = data.prepare(raw, jax.random.fold_in(key, 0), transform=transform)
        keys = indexed_keys(jax.random.fold_in(key, 1), batch["index"])
        return encode(params, batch["x"], keys)

    def every(source: data.Source, draw: int) -> np.ndarray:
        key = jax.random.fold_in(jax.random.key(SEED), draw)
        parts = [
            np.asarray(some(loaded.params, batch, key))[batch["mask"] > 0]
            for batch in data.eval_batches(source, BATCH)
        ]
        return np.concatenate(parts).astype(np.float32)

    return every


def _digest(loaded: session.Loaded) -> str:
    """Of the parameters and of the names of the data that they are to encode."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(loaded.params):
        digest.update(np.ascontiguousarray(leaf).tobytes())
    named = [dataclasses.asdict(loaded.config.data), SEED, NUM_ROWS, MAX_DRAWS]
    digest.update(json.dumps(named).encode())
    return digest.hexdigest()
