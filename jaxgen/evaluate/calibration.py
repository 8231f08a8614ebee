"""Whether a density of rows is calibrated: ranks of held-out rows among samples.

Given its context, a row and samples of the model are alike if the model is right: the
row's rank among them is then uniform, column by column (simulation-based calibration),
and so is that of its density (the coverage of regions of highest density).

References:
    Talts et al. 2018, theorem 1, arXiv:1804.06788. Hermans et al. 2022 (coverage),
    equation 3, arXiv:2110.06581.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from jaxgen import data
from jaxgen.models.base import sample_keys
from jaxgen.train.session import Loaded

NUM_ROWS = 1000
NUM_DRAWS = 127  # samples a row, so that a rank is one of 128
ROWS_AT_ONCE = 20
LEVELS = (0.5, 0.8, 0.95)


def evaluate_calibration(
    loaded: Loaded, source: data.Source, *, seed: int = 0
) -> dict[str, Any]:
    """Ranks and coverage of up to `NUM_ROWS` rows of `source`.

    Returns:
        `coverage_50` (and 80, 95): the share of rows within the region of highest
        density that holds this share of the model, with `_se`; `rank_p_min`: the
        smallest p-value of a Kolmogorov-Smirnov test of uniform ranks among the
        columns, times their number; `rank_p_column`: whose that is; `density_rank_p`:
        of the ranks of the density; `ranks`: each column's, in [0, 1], by 16 bins.
    """
    num = min(NUM_ROWS, source.num_examples)
    rows = source.take(data.spread(source.num_examples, num))["x"]
    ranks, density = [], []
    draw = jax.jit(lambda params, x, key, start: _ranks(loaded, params, x, key, start))
    for start in range(0, num, ROWS_AT_ONCE):
        part = rows[start : start + ROWS_AT_ONCE]
        padded = np.resize(part, (ROWS_AT_ONCE, *part.shape[1:]))
        by_column, by_density = draw(
            loaded.params, jnp.asarray(padded), jax.random.key(seed), start
        )
        ranks.append(np.asarray(by_column)[: len(part)])
        density.append(np.asarray(by_density)[: len(part)])
    return summarise(
        np.concatenate(ranks),
        np.concatenate(density),
        [c.name for c in loaded.config.model.columns if not c.is_context],
    )


def _ranks(
    loaded: Loaded, params: Any, x: jax.Array, key: jax.Array, start: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Ranks in (0, 1) of rows `[B, C]` by modelled column `[B, D]`, and by density `[B]`."""
    model, columns = loaded.model, loaded.config.model.columns
    modelled = np.flatnonzero([not c.is_context for c in columns])
    given = np.flatnonzero([c.is_context for c in columns])
    if model.log_likelihood is None:
        raise ValueError("calibration: the model has no likelihood.")
    batch = len(x)
    index = (start + jnp.arange(batch))[:, None] * (NUM_DRAWS + 2)
    index = index + jnp.arange(NUM_DRAWS + 2)[None]
    prior_keys, keys = sample_keys(key, index.reshape(-1))
    prior_keys, keys = (k.reshape(batch, NUM_DRAWS + 2) for k in (prior_keys, keys))
    context = x[:, given] if len(given) else None
    told = None if context is None else jnp.repeat(context, NUM_DRAWS, axis=0)
    draw_keys = keys[:, :NUM_DRAWS].reshape(-1)
    z = model.prior(prior_keys[:, :NUM_DRAWS].reshape(-1), params)
    drawn = model.generate(params, z, draw_keys, told)
    nats = model.log_likelihood(params, drawn, draw_keys, told, num_samples=1).nats
    own = model.log_likelihood(
        params, x, keys[:, NUM_DRAWS], context, num_samples=1
    ).nats
    ties = jax.vmap(lambda k: jax.random.uniform(k, (len(modelled) + 1,)))(
        keys[:, NUM_DRAWS + 1]
    )
    drawn = drawn.reshape(batch, NUM_DRAWS, -1)[:, :, modelled]
    by_column = _rank(x[:, None, modelled], drawn, ties[:, 1:])
    by_density = _rank(own[:, None], nats.reshape(batch, NUM_DRAWS), ties[:, 0])
    return by_column, by_density


def _rank(value: jax.Array, among: jax.Array, u: jax.Array) -> jax.Array:
    """The rank in (0, 1) along axis 1, what is equal being put in order by chance."""
    below = jnp.sum(among < value, axis=1)
    equal = jnp.sum(among == value, axis=1)
    return (below + u * (equal + 1)) / (among.shape[1] + 1)


def summarise(
    ranks: np.ndarray, density: np.ndarray, names: list[str]
) -> dict[str, Any]:
    """What `evaluate_calibration` tells, from ranks `[N, D]` and `[N]` in (0, 1)."""
    p_values = [stats.kstest(ranks[:, i], "uniform").pvalue for i in range(len(names))]
    worst = int(np.argmin(p_values))
    result = {}
    for level in LEVELS:
        share = float(np.mean(density > 1 - level))
        name = f"coverage_{round(100 * level)}"
        result[name] = share
        result[f"{name}_se"] = float(np.sqrt(share * (1 - share) / len(density)))
    return result | {
        "rank_p_min": float(min(1.0, len(names) * p_values[worst])),
        "rank_p_column": names[worst],
        "density_rank_p": float(stats.kstest(density, "uniform").pvalue),
        "num_ranked": len(density),
        "ranks": {
            name: np.histogram(ranks[:, i], 16, (0.0, 1.0))[0].tolist()
            for i, name in enumerate(names)
        },
    }
