"""Held-out likelihood of a run: every test example, once."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen import data, estimators
from jaxgen._checks import RunError, UserError
from jaxgen.models.base import indexed_keys
from jaxgen.train.session import Loaded

NUMBERS = 2**22  # of at most 100 examples at once; no result depends on it


def evaluate_likelihood(
    loaded: Loaded,
    source: data.Source,
    *,
    num_samples: int,
    num_images: int | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Negative log-likelihood in nats and bits/dim over `source`.

    Args:
        loaded: The run.
        source: Usually the test split; its last batch is padded and masked.
        num_samples: Effort of an estimate, such as K of importance sampling.
        num_images: So many examples, spread over the source; by default all.
        seed: Fixes all noise; that of example i depends on (seed, i) alone.
        batch_size: Examples at once; by default what fits.
        progress: Called with (examples done, examples in all).

    Returns:
        `nll_nats` and `bits_per_dim`, each with `_se` (standard error over the
        examples) and `_kind`; `monte_carlo_se` (nats, of the mean, from the estimate's
        own noise), `step_error_mean` (nats, of a numerical integration), `ess_mean`,
        `ess_min` where importance sampling is used; `bayes_accuracy` with `_se`: the
        share of examples whose class is the likeliest by Bayes' rule, where the model
        was trained with classes.

    Raises:
        ValueError: if the family has no likelihood.
        UserError: if there are not so many images.
        RunError: if any example's value is not finite; none is left out.
    """
    total = source.num_examples if num_images is None else num_images
    if not 1 <= total <= source.num_examples:
        raise UserError(
            f"--num-images must be in 1 .. {source.num_examples}, the test split, got "
            f"{total}"
        )
    if batch_size is None:
        batch_size = max(1, min(100, NUMBERS // int(np.prod(source.shape))))
    chosen = data.spread(source.num_examples, total)
    batches = data.eval_batches(source, min(batch_size, total), chosen=chosen)
    evaluate = _compiled(loaded, num_samples)
    key = jax.random.key(seed)
    parts, kind, done = [], "exact", 0
    for raw in batches:
        real = raw["mask"].astype(bool)
        batch = {
            n: jnp.asarray(raw[n]) for n in ("x", "index", "condition") if n in raw
        }
        result = evaluate(loaded.params, batch, key)
        kind = result.kind
        columns = (
            result.nats,
            result.standard_error,
            result.ess,
            result.step_error,
            _is_right(result.class_log_prob, raw.get("label")),
        )
        parts.append([None if c is None else np.asarray(c)[real] for c in columns])
        done += int(real.sum())
        progress(done, total)
    joined = [
        None if c[0] is None else np.concatenate(c) for c in zip(*parts, strict=True)
    ]
    return _summary(loaded, joined, kind, num_samples)


def log_prob(loaded: Loaded, rows: np.ndarray, *, seed: int = 0) -> np.ndarray:
    """The density of each row `[N, C]` given its context columns: log p, `[N]` nats.

    In the units of the table, as `evaluate_likelihood` tells the mean of it; of a rounded
    column by one draw of the noise within its step. The noise of row i depends on
    (seed, i) alone.

    Raises:
        ValueError: if the family has no likelihood.
    """
    evaluate, key = _compiled(loaded, 1), jax.random.key(seed)
    batches = data.eval_batches(data.ArraySource(rows), min(100, len(rows)))
    nats = []
    for raw in batches:
        batch = {name: jnp.asarray(raw[name]) for name in ("x", "index")}
        result = evaluate(loaded.params, batch, key)
        nats.append(np.asarray(result.nats)[raw["mask"].astype(bool)])
    return np.concatenate(nats)


def _compiled(loaded: Loaded, num_samples: int) -> Callable[..., Any]:
    """`(params, raw batch, key) -> LogLikelihood`, noise by the example's index."""
    log_likelihood = loaded.model.log_likelihood
    if log_likelihood is None:
        raise ValueError(
            f"evaluate: the family {loaded.config.family} has no likelihood"
        )
    prepare = data.make_prepare(loaded.config.data)

    @jax.jit
    def evaluate(params: Any, batch: Any, key: jax.Array) -> Any:
        batch = prepare(batch, jax.random.fold_in(key, 0))
        keys = indexed_keys(jax.random.fold_in(key, 1), batch["index"])
        given = batch.get("condition")
        return log_likelihood(params, batch["x"], keys, given, num_samples=num_samples)

    return evaluate


def _summary(
    loaded: Loaded, columns: Any, kind: str, num_samples: int
) -> dict[str, Any]:
    nats, standard_error, ess, step_error, is_right = columns
    nats = np.asarray(nats, np.float64)
    if not np.all(np.isfinite(nats)):
        count = int(np.sum(~np.isfinite(nats)))
        raise RunError(f"evaluate: {count} of {len(nats)} likelihoods are not finite")
    error = np.inf if len(nats) < 2 else nats.std(ddof=1) / np.sqrt(len(nats))
    result: dict[str, Any] = {
        "nll_nats": float(-nats.mean()),
        "nll_nats_se": _or_none(error),
        "nll_nats_kind": kind,
    }
    if loaded.model.density != "other":
        dims = int(np.prod(loaded.config.model.shape))
        bits = estimators.bits_per_dim(-nats.mean(), dims, kind=loaded.model.density)
        result |= {
            "bits_per_dim": float(bits),
            "bits_per_dim_se": _or_none(error / (dims * np.log(2.0))),
            "bits_per_dim_kind": kind,
        }
    result |= {
        "num_examples": len(nats),
        "num_samples": num_samples,
        "step": loaded.step,
    }
    if is_right is not None:
        share = float(np.mean(is_right))
        result["bayes_accuracy"] = share
        result["bayes_accuracy_se"] = float(np.sqrt(share * (1 - share) / len(nats)))
    if standard_error is not None:
        spread = np.sqrt(np.sum(np.square(standard_error, dtype=np.float64)))
        result["monte_carlo_se"] = _or_none(spread / len(nats))
    if step_error is not None:
        result["step_error_mean"] = float(step_error.mean())
    if ess is not None:
        result["ess_mean"], result["ess_min"] = float(ess.mean()), float(ess.min())
    return result


def _is_right(class_log_prob: Any, label: Any) -> np.ndarray | None:
    if class_log_prob is None or label is None:
        return None
    return np.argmax(class_log_prob, axis=1) == label


def _or_none(value: Any) -> float | None:
    """JSON has no infinity: what cannot be told is null."""
    return float(value) if np.isfinite(value) else None
