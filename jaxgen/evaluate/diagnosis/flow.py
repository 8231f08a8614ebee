"""The problems of a flow: a way back that misses, a wrong log-determinant, a bad fit."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen import data
from jaxgen._checks import RunError
from jaxgen.evaluate import two_sample
from jaxgen.evaluate.diagnosis.records import Finding, Subject, Told
from jaxgen.models import flow
from jaxgen.models.base import indexed_keys

BATCH = 100
NUM_BACK = 100  # test examples that go there and back
NUM_SHOWN = 256  # samples, of which some flows make few a second
NUM_CERTIFIED = 4  # whose Jacobian is taken
MOST_DIMS = 1024  # of it: as many backward passes
MISSED = 1e-3  # of the values' own deviation: in float32 a good chain is within 1e-4
# Nats a number: the third digit of bits/dim.
WRONG = 1e-3
# Mean square of the latents of held-out data, either way. N(0, I) has 1; 0.8 and 1.25
# cost 0.02 nats a number.
SPREAD = 1.25
TOO_MANY = f"the Jacobian is taken of at most {MOST_DIMS:,} numbers"


class Seen(NamedTuple):
    """Of test examples: `[N, D]`, of there and back and certified ones fewer.

    Attributes:
        z: Latents.
        error: How far the way there and back misses, by the values' own deviation.
        between: log_det there plus log_det back, `[M]` nats, 0 of a right one.
        certified: log_det minus that of the Jacobian, `[K]` nats; None of large data.
    """

    z: np.ndarray
    error: np.ndarray
    between: np.ndarray
    certified: np.ndarray | None


def diagnose(subject: Subject) -> Told:
    """Looks at the way there and back, the log-determinant, and the latents."""
    seen = look(subject)
    return Told(
        findings={
            "inverse": judge_inverse(seen),
            "log_det": judge_log_det(seen),
            "latents": judge_latents(seen, subject.seed),
        },
        made={"samples": subject.samples(min(NUM_SHOWN, subject.num))},
    )


def judge_inverse(seen: Seen) -> Finding:
    """Does data -> latent -> data come back?"""
    worst = float(np.max(seen.error)) if np.all(np.isfinite(seen.error)) else math.inf
    figures = {
        "round_trip_error": float(np.sqrt(np.mean(seen.error**2))),
        "largest_round_trip_error": worst,
        "num": len(seen.error),
    }
    told = (
        f"of {len(seen.error)} test examples there and back, the worst value is off by "
    )
    told += f"{worst:.1g} deviations"
    is_clean = worst <= MISSED
    return Finding(
        title="the way there and back",
        figures=figures,
        verdict=f"clean: {told}" if is_clean else told,
        is_clean=is_clean,
        mend=None if is_clean else "a lower --learning-rate, a smaller --depth",
    )


def judge_log_det(seen: Seen) -> Finding:
    """Is the log-determinant that of the Jacobian, and of the way back its negative?"""
    dims = seen.z.shape[1]
    figures = {
        "log_det_between_ways_nats": float(np.abs(seen.between).max()),
        "log_det_against_jacobian_nats": None,
        "dims": dims,
    }
    missing = {}
    if seen.certified is None:
        missing["log_det_against_jacobian_nats"] = TOO_MANY
    else:
        figures["log_det_against_jacobian_nats"] = float(np.abs(seen.certified).max())
    worst = max(value for value in list(figures.values())[:2] if value is not None)
    told = (
        f"the log-determinant is off by {worst:.1g} nats at most, of {dims:,} numbers"
    )
    if seen.certified is None:
        told += ", between the two ways"
    is_clean = worst <= WRONG * dims
    return Finding(
        title="the log-determinant",
        figures=figures,
        missing=missing,
        verdict=f"clean: {told}" if is_clean else told,
        is_clean=is_clean,
        mend=None if is_clean else "a lower --learning-rate; `jaxgen verify flow`",
    )


def judge_latents(seen: Seen, seed: int) -> Finding:
    """Are the latents of test data those of N(0, I)?"""
    z = seen.z
    normal = np.random.default_rng(seed).standard_normal(z.shape)
    test = two_sample.c2st(z, normal, seed=seed, method="logistic")
    square = float(np.mean(z**2))
    figures = {
        "mean_square": square,
        "largest_mean": float(np.abs(z.mean(axis=0)).max()),
        "least_variance": float(z.var(axis=0).min()),
        "largest_variance": float(z.var(axis=0).max()),
        "largest_latent": float(np.abs(z).max()),
        "c2st_accuracy": test.accuracy,
        "c2st_p_value": test.p_value,
    }
    told = f"latents of test data have the mean square {square:.3g}, of N(0, 1) it is 1"
    mend = None
    if square > SPREAD:
        mend = (
            "--patience 5, a smaller network: others than training data lie further out"
        )
    if square < 1 / SPREAD:
        mend = "more --steps"
    return Finding(
        title="latents of test data",
        figures=figures,
        verdict=told if mend else f"clean: {told}",
        is_clean=mend is None,
        mend=mend,
    )


def look(subject: Subject) -> Seen:
    """Latents of all test examples, of some the way back and the Jacobian.

    Raises:
        RunError: if a latent is not finite.
    """
    latents, there_and_back, jacobian = _compiled(subject)
    batches = _batches(subject, BATCH, subject.num)
    z = np.concatenate([latents(*batch)[real] for *batch, real in batches])
    if not np.all(np.isfinite(z)):
        raise RunError("diagnose: latents of test data are not finite")
    z = z.reshape(len(z), -1).astype(np.float64)
    *batch, real = next(_batches(subject, NUM_BACK, NUM_BACK))
    x, back, between = (np.asarray(a, np.float64)[real] for a in there_and_back(*batch))
    deviation = x.std(axis=0)
    error = np.abs(back - x) / np.where(deviation > 0, deviation, 1.0)
    certified = None
    if z.shape[1] <= MOST_DIMS:
        num, differences = min(NUM_CERTIFIED, subject.num), []
        for *batch, _ in _batches(subject, 1, num):
            matrix, log_det = (np.asarray(a, np.float64) for a in jacobian(*batch))
            differences.append(log_det[0] - np.linalg.slogdet(matrix)[1])
        certified = np.array(differences)
    return Seen(z, error.reshape(len(x), -1), between, certified)


def _batches(subject: Subject, size: int, num: int) -> Any:
    """Params, a batch, a key, and which of the batch are no padding."""
    arrays = {n: a[:num] for n, a in subject.test.items() if n in ("x", "label")}
    source, key = data.ArraySource(**arrays), jax.random.key(subject.seed)
    for raw in data.eval_batches(source, min(size, subject.num)):
        batch = {n: jnp.asarray(raw[n]) for n in ("x", "index", "label") if n in raw}
        yield subject.loaded.params, batch, key, raw["mask"] > 0


def _compiled(subject: Subject) -> tuple[Any, Any, Any]:
    """Functions of (params, raw batch, key)."""
    config = subject.loaded.config.model
    transform: Any = subject.loaded.config.data.transform

    def bound(params: Any, raw: Any, key: jax.Array) -> Any:
        batch = data.prepare(raw, jax.random.fold_in(key, 0), transform=transform)
        keys = indexed_keys(jax.random.fold_in(key, 1), batch["index"])
        label = batch.get("label") if getattr(config, "num_classes", None) else None
        return flow.bound(config, params, batch["x"], keys, label)

    @jax.jit
    def latents(*batch: Any) -> jax.Array:
        values, to_latent, _ = bound(*batch)
        return to_latent(values)[0]

    @jax.jit
    def there_and_back(*batch: Any) -> tuple[jax.Array, ...]:
        values, to_latent, to_data = bound(*batch)
        z, log_det = to_latent(values)
        back, other = to_data(z)
        return values, back, log_det + other

    @jax.jit
    def jacobian(*batch: Any) -> tuple[jax.Array, jax.Array]:
        values, to_latent, _ = bound(*batch)
        shape = values.shape

        def flat(x: jax.Array) -> jax.Array:
            return to_latent(x.reshape(shape))[0].reshape(-1)

        return jax.jacrev(flat)(values.reshape(-1)), to_latent(values)[1]

    return latents, there_and_back, jacobian
