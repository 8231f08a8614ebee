"""Oracles of flows: log-determinants against autodiff, and densities that integrate to 1."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxgen import bijectors, estimators
from jaxgen.losses import flow
from jaxgen.verify import cases
from jaxgen.verify.cases import Case
from jaxgen.verify.records import Record, Records, compiled, equal, exactly

NUM, TOLERANCE = 3, 1e-9
REACH = 6.0  # of a standard normal latent in a quadrature, in deviations


def bijector(
    b: bijectors.Bijector,
    shape: tuple[int, ...],
    *,
    params: Any = None,
    condition: Array | None = None,
    low: float = -math.inf,
    high: float = math.inf,
) -> Records:
    """Checks a bijector, in float64.

    Args:
        b: The bijector.
        shape: Of one example.
        params: Its params; by default those of its `init`, with N(0, 0.3^2) added, as
            many flows begin as the identity, of which nothing can be seen.
        condition: `[3, ...]` for three examples, where it needs one.
        low: Lower end of the data's range.
        high: Upper end.

    Returns:
        Log-determinants both ways against autodiff's, round trips, that examples do not
        mix; and for one or two values, without a condition, the integral of its density.
    """
    case = Case(b, tuple(shape), condition is not None, low, high)
    with exactly():
        rng = np.random.default_rng(1)
        x = cases.within(case, jnp.asarray(rng.normal(size=(NUM, *shape))))
        params, condition = jax.tree.map(_double, (params, condition))
        if params is None:
            params = _random_params(b, x, condition)
        records = _against_autodiff(b, params, x, condition)
        if condition is None and math.prod(shape) <= 2:
            records = (*records, _integral(b, params, case.shape))
        return records


def _double(a: Any) -> Array:
    a = jnp.asarray(a)
    return a.astype(float) if jnp.issubdtype(a.dtype, jnp.floating) else a


def _random_params(b: bijectors.Bijector, x: Array, condition: Any = None) -> Any:
    params = compiled(b.init)(jax.random.key(0), x, condition)
    rng = np.random.default_rng(0)

    def moved(a: Array) -> Array:
        noise = 0.3 * rng.normal(size=a.shape)
        return a + noise if jnp.issubdtype(a.dtype, jnp.floating) else a

    return jax.tree.map(moved, params)


def _against_autodiff(
    b: bijectors.Bijector, params: Any, x: Array, condition: Array | None
) -> Records:
    @compiled
    def moved(params: Any, x: Array, direction: Array, condition: Any) -> tuple:
        """Latents, their log-determinants, and how latents move where data do."""

        def through(x: Array) -> tuple[Array, Array]:
            return b.to_latent(params, x, condition)

        return jax.jvp(through, (x,), (direction.reshape(x.shape),))

    num, size, columns = x.shape[0], x[0].size, []
    for direction in np.eye(num * size):
        (z, log_det), (slope, _) = moved(params, x, direction, condition)
        columns.append(np.asarray(slope).ravel())
    matrix = np.stack(columns, axis=1).reshape(num, size, num, size)
    own = np.arange(num)
    truth = np.linalg.slogdet(matrix[own, :, own])[1]
    mixed = np.where(np.eye(num)[:, None, :, None] == 1, 0, matrix)
    back, log_det_back = compiled(b.to_data)(params, z, condition)
    return (
        equal("log-det to the latent is autodiff's", log_det, truth, TOLERANCE),
        # Of the way back it is the negative, as the data come back.
        equal("log-det to data is autodiff's", log_det_back, -truth, TOLERANCE),
        equal("data come back", back, x, TOLERANCE * (1 + np.abs(x))),
        equal("examples do not mix", mixed, 0, 0),
    )


def _integral(b: bijectors.Bijector, params: Any, shape: tuple[int, ...]) -> Record:
    """Of exp(log p) over the box of what latents within REACH become."""
    dims = math.prod(shape)
    num = 4001 if dims == 1 else 401
    axes = [np.linspace(-REACH, REACH, num)] * dims
    z = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, *shape)
    x, _ = compiled(b.to_data)(params, jnp.asarray(z))
    x = np.asarray(x).reshape(-1, dims)
    if dims == 1:  # as dense where the density is steep as the latents are
        places = [np.sort(x[:, 0])]
    else:
        places = [
            np.linspace(*ends, num) for ends in zip(x.min(0), x.max(0), strict=True)
        ]
    weights = [np.gradient(p) for p in places]
    at = np.stack(np.meshgrid(*places, indexing="ij"), -1).reshape(-1, *shape)
    nll = flow.negative_log_likelihood(*compiled(b.to_latent)(params, jnp.asarray(at)))
    weight = weights[0] if dims == 1 else np.outer(*weights).ravel()
    total = float(np.exp(-np.asarray(nll)) @ weight)
    tolerance = 1e-4 if dims == 1 else 1e-3
    return equal("the density integrates to 1", total, 1, tolerance)


def every_bijector() -> Records:
    """All bijectors of `jaxgen.bijectors`, and chains of them, with random parameters."""
    records: list[Record] = []
    for name, case in cases.CASES.items():
        found = check(case)
        records += (record._replace(name=f"{name}: {record.name}") for record in found)
    return tuple(records)


def check(case: Case) -> Records:
    """`bijector` of a case, with a condition where it needs one."""
    condition = np.random.default_rng(2).normal(size=(NUM, 2))
    return bijector(
        case.bijector,
        case.shape,
        condition=jnp.asarray(condition) if case.condition else None,
        low=case.low,
        high=case.high,
    )


def densities() -> Records:
    """A flow of the plane integrates to 1; a linear one is a multivariate normal."""
    spline = bijectors.rational_quadratic(num_bins=4, bound=3.0)
    half = bijectors.coupling(
        cases.mlp(spline.num_params, hidden=6), spline, num_kept=1
    )
    plane = bijector(bijectors.chain(half, bijectors.reverse(), half), (2,))[-1]

    line = bijectors.chain(bijectors.actnorm(), bijectors.invertible_linear())
    x = np.random.default_rng(0).normal(size=(5, 3)) * [1.0, 3.0, 0.2] + 2
    params = _random_params(line, jnp.asarray(x))
    to_latent, to_data = compiled(line.to_latent), compiled(line.to_data)
    nll = flow.negative_log_likelihood(*to_latent(params, jnp.asarray(x)))
    centre, *root = np.asarray(to_data(params, jnp.eye(4, 3, -1))[0])
    root = np.stack(root) - centre[None]
    covariance, off = root.T @ root, x - centre
    squares = np.sum(off @ np.linalg.inv(covariance) * off, 1)
    truth = 0.5 * (squares + np.linalg.slogdet(2 * np.pi * covariance)[1])
    z, log_det = jnp.asarray(x), jnp.asarray(x[:, 0])
    itself = flow.reverse_kl(z, log_det, -flow.standard_normal_nll(z) - log_det)
    return (
        plane._replace(name=f"coupling of splines in the plane: {plane.name}"),
        equal("a linear flow is a multivariate normal, nats", nll, truth, 1e-9),
        equal("reverse KL of a flow to its own density", itself, 0, 1e-9),
    )  # fmt: skip


def splines() -> Records:
    """Splines begin as the identity, and are smooth at their knots and ends."""
    raw = np.random.default_rng(0).normal(size=(3 * 5 - 1, 1))
    spline = compiled(lambda raw: bijectors.spline(raw, bound=3.0))(jnp.asarray(raw))
    knots = np.concatenate([np.asarray(spline.x)[:, 0], [-3.0, 3.0]])
    to_latent = compiled(bijectors.rational_quadratic(num_bins=5, bound=3.0).to_latent)

    def at(raw: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        raw = np.broadcast_to(raw, (len(x), *raw.shape))
        y, log_slope = to_latent(jnp.asarray(raw), jnp.asarray(x)[:, None])
        return np.asarray(y)[:, 0], np.asarray(log_slope)[:, 0]

    below, above = (at(raw, knots + step) for step in (-1e-9, 1e-9))
    line = np.linspace(-5, 5, 41)
    same, _ = at(0 * raw, line)
    ends, _ = at(raw, np.array([-3.0, 3.0]))
    return (
        equal("spline of zeros is the identity", same, line, 1e-9),
        equal("spline keeps the ends of its box", ends, [-3, 3], 1e-9),
        equal("spline is continuous at its knots", below[0], above[0], 1e-6),
        equal("spline's slope is continuous at its knots", below[1], above[1], 1e-5),
    )


def dequantisation() -> Records:
    """Bits of the uniform density, and the bound of one pixel's probability."""
    keys = jax.random.split(jax.random.key(0), 256)
    levels = np.arange(256)[:, None]
    x = np.asarray(flow.dequantised(levels, keys))
    own = np.floor(256 * x)
    bound = flow.dequantisation_bound(jnp.zeros(1), num_dims=12)
    bits = estimators.bits_per_dim(-bound, 12, kind="discrete")
    # The density 2x: a level's own integral is its probability.
    places = (levels + (np.arange(64) + 0.5)[None] / 64) / 256
    inner = flow.dequantisation_bound(jnp.log(2 * jnp.asarray(places.T)), num_dims=1)
    mean, truth = np.asarray(inner).mean(0), np.log((2 * np.arange(256) + 1) / 256**2)
    total = np.exp(np.asarray(inner)).mean(0).sum()
    return (
        equal("dequantised values stay in their level", own, levels, 0),
        equal("bits/dim of the uniform density, by the bound", bits, 8, 1e-9),
        equal("probabilities of all levels sum to one", total, 1, 1e-9),
        Record("the bound is below log P(x)", float((mean - truth).max()), 0, 0, "<="),
    )


ORACLES = (every_bijector, densities, splines, dequantisation)
