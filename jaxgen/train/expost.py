"""A trained model with another prior, fitted afterwards to its encoded training data.

What the encoder makes of the data, Q(z), is not quite P(z), and samples of P(z) show it.
So z may be drawn from what is fitted to Q(z): a Gaussian, a mixture of them, or any run
of this library on `--data latents:RUN`, be it a flow, a GAN, or a second VAE.

The decoder stays as it is, and P(z) keeps its likelihood: with another prior there is
none.

References:
    Ghosh et al. 2020 (ex-post density estimation), arXiv:1903.12436. Dai & Wipf 2019
    (two-stage VAE), arXiv:1903.05789. Asperti & Trentin 2020 (renormalisation),
    arXiv:2002.07514.
"""

import io
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen import mixtures
from jaxgen._checks import UserError
from jaxgen.data import latents as files
from jaxgen.models.base import indexed_keys
from jaxgen.train import latents, processes, rundir, session

PLAYER = "prior"  # of the parameters, beside the players'
NUM_DRAWS = 10_000  # by which a prior is renormalised
SEED = 20_280_102


class Prior(NamedTuple):
    """How z is drawn.

    Attributes:
        params: Arrays.
        draw: `(params, keys [N]) -> z [N, L]`.
        told: What it is, for the user.
    """

    params: Any
    draw: Callable[[Any, jax.Array], jax.Array]
    told: str


def load(
    path: Path, sampling: Any = None, *, ema_width: float | None = None
) -> session.Loaded:
    """`session.load`, with the prior that the model's options of sampling ask for.

    Raises:
        UserError: also if that prior is none of this run's latents.
    """
    loaded = session.load(path, sampling, ema_width=ema_width)
    chosen = getattr(loaded.config.model, "sampling", None)
    run, kind = (getattr(chosen, name, None) for name in ("prior_run", "ex_post"))
    if run is None and kind in (None, "none"):
        return loaded
    if ema_width is not None:
        raise UserError(
            "--ema-width: another prior is fitted to the run's own average; leave one out"
        )
    codes, sampling = latents.of(loaded), loaded.config.model.sampling
    if run is not None:
        prior = _of_run(loaded, Path(run).expanduser())
    else:
        num = 1 if kind == "gaussian" else sampling.components
        prior = _of_mixture(loaded, codes, num)
    if sampling.renormalise:
        prior = renormalised(prior, codes.train)
    return with_prior(loaded, prior)


def with_prior(loaded: session.Loaded, prior: Prior) -> session.Loaded:
    """The run with z drawn otherwise; its likelihood, of its own prior, is left out."""

    def draw(keys: jax.Array, params: Any = None) -> jax.Array:
        if params is None:
            raise ValueError(
                "expost: a fitted prior has parameters: prior(keys, params)"
            )
        return prior.draw(params[PLAYER], keys)

    note = (
        f"z is drawn from {prior.told}; the likelihood is of the model's own prior only"
    )
    return loaded._replace(
        model=loaded.model._replace(prior=draw, log_likelihood=None, observation=None),
        params={**loaded.params, PLAYER: prior.params},
        notes=[*loaded.notes, note],
    )


def renormalised(prior: Prior, train: np.ndarray) -> Prior:
    """A prior whose draws are spread about their mean as the encodings are.

    They are multiplied by sqrt(mean_j Var z_j) of the encodings, which is sqrt(mean_j (Var
    mu_j + E sigma_j^2)), over the same of the draws. (Asperti & Trentin divide by the mean
    of the deviations: of unlike variances a right prior would then be stretched.)

    Args:
        prior: Any.
        train: Encodings of training data, `[N, L]`.

    References:
        Asperti & Trentin 2020, arXiv:2002.07514.
    """
    keys = indexed_keys(jax.random.key(SEED), jnp.arange(NUM_DRAWS))
    parts = np.split(np.arange(NUM_DRAWS), 10)
    some = jax.jit(lambda params, part: prior.draw(params, keys[part]))
    drawn = np.concatenate(
        [some(prior.params, part) for part in parts], dtype=np.float64
    )
    centre = drawn.mean(axis=0)
    wanted = np.sqrt(np.var(train.astype(np.float64), axis=0).mean())
    factor = wanted / np.sqrt(drawn.var(axis=0).mean())
    params = {
        "of": prior.params,
        "centre": jnp.asarray(centre, jnp.float32),
        "factor": jnp.float32(factor),
    }

    def draw(params: Any, keys: jax.Array) -> jax.Array:
        z, centre = prior.draw(params["of"], keys), params["centre"][None]
        return centre + params["factor"] * (z - centre)

    return Prior(params, draw, f"{prior.told}, times {factor:.4f}")


def _of_mixture(loaded: session.Loaded, codes: files.Latents, num: int) -> Prior:
    """One Gaussian or several, from the run folder or fitted now and kept there."""
    if num > len(codes.train):
        raise UserError(f"--components must be at most {len(codes.train)}, got {num}")
    told = "a Gaussian" if num == 1 else f"{num} Gaussians"
    path = loaded.run.path / f"prior-{num}.npz"
    mixture = _read(path, codes.digest)
    if mixture is None:
        mixture = fitted(codes.train, num)

        def write() -> str:
            buffer, arrays = io.BytesIO(), {"digest": codes.digest, **mixture._asdict()}
            np.savez(buffer, **arrays)
            rundir.write_bytes(path, buffer.getvalue())
            return ""

        processes.from_first(write)
    told += f" fitted to {len(codes.train):,} encodings of training data"
    return Prior(mixture, mixtures.sample, told)


def fitted(train: np.ndarray, num: int) -> mixtures.Mixture:
    """The mixture of `num` Gaussians of encodings `[N, L]`, found at variance 1 each."""
    mean = train.mean(axis=0)
    scale = np.maximum(train.std(axis=0), files.LEAST_DEVIATION)
    z = jnp.asarray((train - mean) / scale)
    if num == 1:
        found = mixtures.gaussian(z)
    else:
        key = jax.random.key(SEED)
        found = mixtures.fit(z, key, num_components=num, floor=1e-4).mixture
    return mixtures.Mixture(
        found.log_weights,
        found.means * scale[None] + mean[None],
        found.factors * scale[None, :, None],
    )


def _read(path: Path, digest: str) -> mixtures.Mixture | None:
    """A stored fit, unless it is of other encodings or cannot be read."""
    try:
        with np.load(path, allow_pickle=False) as file:
            if str(file["digest"]) != digest:
                return None
            arrays = [jnp.asarray(file[name]) for name in mixtures.Mixture._fields]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        return None
    return mixtures.Mixture(*arrays)


def _of_run(loaded: session.Loaded, path: Path) -> Prior:
    """The samples of a run that was trained on this run's latents."""
    other = session.load(path)
    name, folder = other.config.data.name, loaded.run.path.resolve()
    if not name.startswith(files.PREFIX) or files.folder_of(name).resolve() != folder:
        raise UserError(
            f"--prior-run {path} was trained on {name}: train it with --data "
            f"{files.PREFIX}{loaded.run.path}"
        )
    if other.run.check_data(session.data_identity(files.open_latents(name))):
        raise UserError(
            f"--prior-run {path} was trained on what {loaded.run.path} made of its data "
            "before it was trained on: train it anew"
        )

    def draw(params: Any, keys: jax.Array) -> jax.Array:
        first, second = jax.vmap(jax.random.split, out_axes=1)(keys)
        return other.model.generate(params, other.model.prior(first, params), second)

    return Prior(other.params, draw, f"{other.config.family} {path}")
