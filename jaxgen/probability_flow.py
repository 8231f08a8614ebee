"""Likelihoods and codes of diffusion models by the probability-flow ODE.

The deterministic flow with the marginals of x_t = alpha x_0 + sigma eps makes of a
denoiser a continuous normalizing flow: an exact density, at the cost of integration.
With y = x / rho, rho^2 = alpha^2 sigma_data^2 + sigma^2, and the angle phi of (alpha
sigma_data, sigma), which goes from 0 (data) to pi / 2 (noise), the flow is

    dy / dphi = -sin(phi) x0 / sigma_data + cos(phi) eps,

which vanishes for data N(0, sigma_data^2 I): only what differs from it is integrated,
by the Runge-Kutta method of order 4. The prior at the noisy end is N(0, rho^2 I), so
the code z = y is standard normal there; data with a mean other than 0 pay for it.

    times = schedules.karras_times(schedule, 65)[::-1]      # from data to noise
    estimate = log_likelihood(denoise, x, keys, schedule=schedule, times=times)
    bits = estimators.bits_per_dim(-estimate.nats, ...)     # mind the scale of x

x is taken for what it would be at times[0]; dequantise it if it is discrete. With few
steps a number comes out as well, and means nothing: see its `step_error`. Where sigma
is 0 at times[0] the flow is at rest, as for any smooth density.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float, Real

from jaxgen import _checks, schedules
from jaxgen.samplers.steps import Denoise, Examples, Keys, Times

__all__ = [
    "FlowLikelihood",
    "decode",
    "decode_with_likelihood",
    "encode",
    "log_likelihood",
]

CHUNK = 16  # Directions of the divergence at once: times the batch, in memory.


class FlowLikelihood(NamedTuple):
    """A log-likelihood by integration, and what is known of its error.

    Attributes:
        nats: log p(x) with all constants, `[B]` nats.
        step_error: How far it is from the same with every second time, `[B]` nats. That
            is 15 times the error once the order 4 is reached, and more than the error
            where the steps are too long for it.
        probe_error: Standard error over the probes, `[B]` nats; inf for one probe, 0 if
            exact. An error of the divergence only: a mean over many examples has less.
        z: The code of x, `[B, ...]`, standard normal under the prior.
    """

    nats: Float[Array, " B"]
    step_error: Float[Array, " B"]
    probe_error: Float[Array, " B"]
    z: Float[Array, " B *event"]


class _Node(NamedTuple):
    """A point on the way, or an array of them."""

    t: Array
    angle: Array
    cos: Array
    sin: Array
    rho: Array


# A state is y, or y and the integral of the divergence, `[K, B]` for K probes.
_Field = Callable[[Any, _Node], Any]


def log_likelihood(
    denoise: Denoise,
    x: Examples,
    keys: Keys,
    *,
    schedule: schedules.Schedule,
    times: Times,
    num_probes: int = 1,
    exact: bool = False,
    sigma_data: Real[ArrayLike, ""] = 1.0,
) -> FlowLikelihood:
    """The log-likelihood by the change of variables along the flow from data to noise.

    It costs 6 (N - 1) calls of `denoise`, each with its vector-Jacobian products.

    Args:
        denoise: x `[B, ...]` and t, a scalar, to the estimate of x_0, `[B, ...]`, that
            of an example depending on this example only; differentiated in reverse.
        x: `[B, ...]`.
        keys: One per example, `[B]`; None will do if exact.
        schedule: alpha and sigma.
        times: Increasing, `[N]`, N odd: N - 1 steps, and half as many for the error.
        num_probes: Vectors of random signs, each of which gives the divergence without
            bias and so the log-likelihood (not the likelihood).
        exact: The divergence by all D unit vectors instead.
        sigma_data: Standard deviation of the data, all pixels and examples together.

    Returns:
        `FlowLikelihood`.

    Raises:
        ValueError: if a shape or a number is wrong, the times do not increase, or N is
            even.

    References:
        Song et al. 2021, section 4.3, arXiv:2011.13456; Grathwohl et al. 2019 (probes),
        arXiv:1810.01367.
    """
    name = "log_likelihood"
    (x,) = _checks.to_float(x)
    nodes = _nodes(name, schedule, times, sigma_data, x.dtype)
    traced = _traced(name, denoise, sigma_data, x, keys, num_probes, exact=exact)
    fine, coarse = _ends(name, schedule, nodes, sigma_data, traced, x / nodes.rho[0])
    (z, gain), (rough, rough_gain) = fine, coarse
    shift = _size(x) * jnp.log(nodes.rho[0])
    nats = _standard_normal(z)[None] + gain - shift
    rough_nats = _standard_normal(rough)[None] + rough_gain - shift
    return _summary(nats, rough_nats, z, exact=exact)


def decode_with_likelihood(
    denoise: Denoise,
    z: Examples,
    keys: Keys,
    *,
    schedule: schedules.Schedule,
    times: Times,
    num_probes: int = 1,
    exact: bool = False,
    sigma_data: Real[ArrayLike, ""] = 1.0,
) -> tuple[Float[Array, " B *event"], FlowLikelihood]:
    """`decode`, and on the way the log-likelihood of what comes out.

    Takes what `log_likelihood` does, with the code `z` `[B, ...]` in the place of x, and
    raises the same.

    Returns:
        x at times[0], `[B, ...]`, and its `FlowLikelihood`: what `log_likelihood` gives
        for it, but for errors of integration and of the probes.
    """
    name = "decode_with_likelihood"
    (z,) = _checks.to_float(z)
    nodes = _nodes(name, schedule, times, sigma_data, z.dtype)
    back = jax.tree.map(lambda a: a[::-1], nodes)
    traced = _traced(name, denoise, sigma_data, z, keys, num_probes, exact=exact)
    fine, coarse = _ends(name, schedule, back, sigma_data, traced, z)
    shift = _size(z) * jnp.log(nodes.rho[0])
    # Backwards the divergence is integrated with the other sign.
    nats = _standard_normal(z)[None] - fine[1] - shift
    rough_nats = _standard_normal(z)[None] - coarse[1] - shift
    return nodes.rho[0] * fine[0], _summary(nats, rough_nats, z, exact=exact)


def encode(
    denoise: Denoise,
    x: Examples,
    *,
    schedule: schedules.Schedule,
    times: Times,
    sigma_data: Real[ArrayLike, ""] = 1.0,
) -> Float[Array, " B *event"]:
    """The code z of x: the flow from data to noise; 4 (N - 1) calls of `denoise`.

    Args:
        denoise: As in `log_likelihood`, but not differentiated.
        x: At times[0], `[B, ...]`.
        schedule: alpha and sigma.
        times: Increasing, `[N]`, N at least 2.
        sigma_data: As there.

    Returns:
        `[B, ...]`, standard normal where the data are those of the denoiser: x at
        times[-1], divided by its rho.

    Raises:
        ValueError: as there, but N may be even.
    """
    (x,) = _checks.to_float(x)
    nodes = _nodes("encode", schedule, times, sigma_data, x.dtype)
    field = functools.partial(_velocity, "encode", denoise, sigma_data)
    steps = _steps(schedule, nodes, sigma_data)
    return _solve(field, x / nodes.rho[0], steps)[0]


def decode(
    denoise: Denoise,
    z: Examples,
    *,
    schedule: schedules.Schedule,
    times: Times,
    sigma_data: Real[ArrayLike, ""] = 1.0,
) -> Float[Array, " B *event"]:
    """The flow of `encode` back, of the same arguments but for the code `z`.

    Returns:
        x at times[0], `[B, ...]`: what `encode` had, but for errors of integration.

    Raises:
        ValueError: as in `encode`.
    """
    (z,) = _checks.to_float(z)
    nodes = _nodes("decode", schedule, times, sigma_data, z.dtype)
    back = jax.tree.map(lambda a: a[::-1], nodes)
    field = functools.partial(_velocity, "decode", denoise, sigma_data)
    return nodes.rho[0] * _solve(field, z, _steps(schedule, back, sigma_data))[0]


def _nodes(
    name: str,
    schedule: schedules.Schedule,
    times: Times,
    sigma_data: Real[ArrayLike, ""],
    dtype: Any,
) -> _Node:
    """The way at the times, `[N]`, from data to noise."""
    _checks.check_positive(name, sigma_data=sigma_data)
    _checks.check_times(name, times, increasing=True)
    if np.size(times) < 2:
        raise ValueError(f"{name}: times must be [N], N at least 2, got N = 1.")
    return _at(schedule, jnp.asarray(times, dtype), sigma_data)


def _at(
    schedule: schedules.Schedule, t: Array, sigma_data: Real[ArrayLike, ""]
) -> _Node:
    signal = jnp.asarray(sigma_data * schedule.alpha(t), t.dtype)
    sigma = schedule.sigma(t).astype(t.dtype)
    rho = jnp.hypot(signal, sigma)
    return _Node(t, jnp.arctan2(sigma, signal), signal / rho, sigma / rho, rho)


def _steps(
    schedule: schedules.Schedule, nodes: _Node, sigma_data: Real[ArrayLike, ""]
) -> tuple[Array, _Node]:
    """For S = N - 1 steps their widths `[S]` and the nodes of their stages `[S, 4]`."""
    first, last = (jax.tree.map(lambda a, s=s: a[s], nodes) for s in (_FIRST, _LAST))
    angle = 0.5 * (first.angle + last.angle)
    log_snr = -2 * (jnp.log(jnp.tan(angle)) + jnp.log(sigma_data))
    t = schedule.inverse(log_snr).astype(angle.dtype)
    middle = _at(schedule, t, sigma_data)
    four = (first, middle, middle, last)
    stages = jax.tree.map(lambda *parts: jnp.stack(parts, axis=1), *four)
    return last.angle - first.angle, stages


_FIRST, _LAST = slice(None, -1), slice(1, None)


def _velocity(
    name: str, denoise: Denoise, sigma_data: Real[ArrayLike, ""], y: Array, node: _Node
) -> Array:
    """The flow, (cos(phi) y - x0 / sigma_data) / sin(phi); 0 at phi = 0."""
    x0 = denoise(node.rho * y, node.t)
    _checks.check_same_shape(name, x=y, estimate=x0)
    noisy = node.sin > 0
    scale = jnp.where(noisy, 1 / jnp.where(noisy, node.sin, 1), 0)
    return scale * (node.cos * y - x0.astype(y.dtype) / sigma_data)


def _traced(
    name: str,
    denoise: Denoise,
    sigma_data: Real[ArrayLike, ""],
    x: Array,
    keys: Keys,
    num_probes: int,
    *,
    exact: bool,
) -> tuple[_Field, Array]:
    """The field of (y, integral of the divergence), and the integral's zero, `[K, B]`."""
    _checks.check_positive(name, num_probes=num_probes)
    velocity = functools.partial(_velocity, name, denoise, sigma_data)

    def unit(index: Array) -> Array:
        one = jax.nn.one_hot(index, _size(x), dtype=x.dtype)
        return jnp.broadcast_to(one.reshape(x.shape[1:])[None], x.shape)

    def signs(key: Array) -> Array:
        shape = (num_probes, *x.shape[1:])
        return jax.random.rademacher(key, shape, x.dtype)

    if exact:
        directions = jnp.arange(_size(x))
    elif keys is None:
        raise ValueError(f"{name}: keys must be [B] unless exact, got None.")
    else:  # One set for the whole way: so each of its probes gives a value of its own.
        directions = jax.vmap(signs, 0, 1)(keys)

    def field(state: tuple[Array, Array], node: _Node) -> tuple[Array, Array]:
        slope, pullback = jax.vjp(lambda y: velocity(y, node), state[0])

        def curvature(direction: Array) -> Array:
            vector = unit(direction) if exact else direction
            return _checks.sum_per_example(vector * pullback(vector)[0])

        size = min(CHUNK, directions.shape[0])
        each = jax.lax.map(curvature, directions, batch_size=size)
        return slope, each.sum(0, keepdims=True) if exact else each

    return field, jnp.zeros((1 if exact else num_probes, x.shape[0]), x.dtype)


def _ends(
    name: str,
    schedule: schedules.Schedule,
    nodes: _Node,
    sigma_data: Real[ArrayLike, ""],
    traced: tuple[_Field, Array],
    y: Array,
) -> tuple[Any, Any]:
    """The last states by all the nodes and by every second."""
    if nodes.t.size % 2 == 0:
        raise ValueError(
            f"{name}: times must be odd in number, got {nodes.t.size}; every second one "
            "is left out to find the error of the steps."
        )
    field, zero = traced
    sparse = jax.tree.map(lambda a: a[::2], nodes)
    coarse, fine = (_steps(schedule, n, sigma_data) for n in (sparse, nodes))
    return _solve(field, (y, zero), coarse, fine)


def _solve(field: _Field, start: Any, *grids: tuple[Array, _Node]) -> tuple[Any, Any]:
    """Ends of the last grid and of the one before: one scan, so one program, for all."""
    counts = [widths.size for widths, _ in grids]
    anew = np.isin(np.arange(sum(counts)), np.cumsum(counts)[:-1])
    widths, stages = jax.tree.map(lambda *parts: jnp.concatenate(parts), *grids)

    def choose(condition: Array, chosen: Any, other: Any) -> Any:
        return jax.tree.map(lambda a, b: jnp.where(condition, a, b), chosen, other)

    def step(carry: tuple[Any, Any], inputs: tuple) -> tuple[tuple[Any, Any], None]:
        (state, before), (width, nodes, anew) = carry, inputs
        before, state = choose(anew, state, before), choose(anew, start, state)
        return (_runge_kutta(field, state, width, nodes), before), None

    inputs = (widths, stages, jnp.asarray(anew))
    return jax.lax.scan(step, (start, start), inputs)[0]


def _runge_kutta(field: _Field, state: Any, width: Array, nodes: _Node) -> Any:
    """One step of order 4; its stages a scan as well, which compiles the field once."""

    def stage(carry: tuple[Any, Any], inputs: tuple) -> tuple[tuple[Any, Any], None]:
        (slope, end), (node, shift, weight) = carry, inputs
        slope = field(jax.tree.map(lambda s, k: s + shift * k, state, slope), node)
        return (slope, jax.tree.map(lambda e, k: e + weight * k, end, slope)), None

    shifts = width * jnp.asarray([0, 0.5, 0.5, 1], width.dtype)
    weights = width * jnp.asarray([1, 2, 2, 1], width.dtype) / 6
    at_rest = jax.tree.map(jnp.zeros_like, state)
    return jax.lax.scan(stage, (at_rest, state), (nodes, shifts, weights))[0][1]


def _size(x: Array) -> int:
    return math.prod(x.shape[1:])


def _standard_normal(z: Array) -> Array:
    """The log density of N(0, I), `[B]` nats."""
    constant = 0.5 * _size(z) * math.log(2 * math.pi)
    return -0.5 * _checks.sum_per_example(z**2) - constant


def _summary(nats: Array, rough: Array, z: Array, *, exact: bool) -> FlowLikelihood:
    """Over the probes, `[K, B]`."""
    num, mean = nats.shape[0], nats.mean(0)
    if exact:
        error = jnp.zeros_like(mean)
    elif num == 1:
        error = jnp.full_like(mean, jnp.inf)
    else:
        error = nats.std(0, ddof=1) / math.sqrt(num)
    return FlowLikelihood(mean, jnp.abs(mean - rough.mean(0)), error, z)
