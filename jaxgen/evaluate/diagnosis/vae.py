"""What a VAE makes of test examples, and the four problems looked for in it."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen import data, losses
from jaxgen._checks import RunError
from jaxgen.evaluate.diagnosis import vae_problems as problems
from jaxgen.evaluate.diagnosis.records import Subject, Told
from jaxgen.evaluate.diagnosis.vae_problems import Seen
from jaxgen.models import vae
from jaxgen.models import vae_networks as net
from jaxgen.models.base import indexed_keys
from jaxgen.train import medium

BATCH = 250


def diagnose(subject: Subject) -> Told:
    """Looks for collapse, balance, lost variance, and mismatch of the prior.

    Raises:
        RunError: if an encoding, a reconstruction or a sample is not finite.
    """
    seen = look(subject)
    sigma = problems.weighing(subject, seen)
    return Told(
        findings={
            "collapse": problems.collapse(subject, seen, sigma),
            "balance": problems.balance(subject, seen, sigma),
            "variance": problems.variance_loss(subject, seen),
            "prior": problems.prior_mismatch(subject, seen),
        },
        made={"reconstructions": seen.rebuilt, "samples": seen.of_prior},
    )


def look(subject: Subject) -> Seen:
    """Encodings, reconstructions and samples, as many as there are test examples.

    Raises:
        RunError: if one is not finite.
    """
    some = _compiled(subject)
    x = data.ArraySource(subject.test["x"])
    parts: list[dict[str, np.ndarray]] = []
    for raw in data.eval_batches(x, min(BATCH, subject.num)):
        real = raw["mask"] > 0
        batch = {name: jnp.asarray(raw[name]) for name in ("x", "index")}
        made = some(subject.loaded.params, batch, jax.random.key(subject.seed))
        parts.append({name: np.asarray(made[name])[real] for name in Seen._fields})
    seen = Seen(*(np.concatenate([p[n] for p in parts]) for n in Seen._fields))
    for name, array in seen._asdict().items():
        if not np.all(np.isfinite(array)):
            raise RunError(f"diagnose: the model's {name} is not finite on test data")
    stored = medium.of(subject.loaded.config.model).stored
    shown = {n: stored(getattr(seen, n)) for n in ("rebuilt", "of_data", "of_prior")}
    return seen._replace(**shown)


def _compiled(subject: Subject) -> Any:
    """`(params, raw batch, key) ->` fields of `Seen`, noise by the example's index."""
    loaded = subject.loaded
    model, config = loaded.model, loaded.config.model
    transform = loaded.config.data.transform

    @jax.jit
    def some(params: Any, batch: Any, key: jax.Array) -> dict[str, jax.Array]:
        batch = data.prepare(batch, jax.random.fold_in(key, 0), transform=transform)
        own, prior, noise, others = (
            indexed_keys(jax.random.fold_in(key, i), batch["index"])
            for i in (1, 2, 3, 4)
        )
        inner = params["vae"]
        x, log_det = net.to_inside(config, batch["x"], own)
        mu, log_var = vae.encode(config, inner, x)
        eps = net.noise(own, (config.latent_dim,))
        if config.autoencoder:
            eps = jnp.zeros_like(eps)
        terms = vae.elbo(config, inner, x, eps)
        z = losses.vae.reparameterised(mu, log_var, eps)
        mean = net.mean(config, inner, z)
        drawn = model.prior(prior, params)
        squares = jnp.square(x - mean).reshape(len(x), -1)
        return {
            "mu": mu,
            "log_var": log_var,
            "z": z,
            "distortion": terms.distortion - log_det,
            "rate": terms.rate,
            "kl": losses.vae.kl_standard_normal_per_dim(mu, log_var),
            "squared_error": squares.mean(axis=1),
            "rebuilt": net.to_data(config, mean),
            "of_data": model.generate(params, z, noise),
            "prior": drawn,
            "of_prior": model.generate(params, drawn, others),
        }

    return some
