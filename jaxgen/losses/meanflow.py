"""MeanFlow: a network for the average velocity of a flow, which samples in one step.

On the straight path x_t = (1 - t) x_0 + t eps, t = 0 data, an example has the velocity
v = eps - x_0. With the mean v(x, t) of it over all examples that pass x at t, and x_r the
place at time r <= t on the flow through x_t,

    u(x_t, t, r) = (x_t - x_r) / (t - r),        u(x, t, t) = v(x, t)

obeys v = u + (t - r) du/dt, d/dt along the flow: a derivative in the direction (v, 1, 0)
of (x, t, r). Improved MeanFlow regresses its right side on the example's v, and takes
the network's own u(x, t, t) for the direction: the example's v, which the first MeanFlow
took there, would give the answer to the network as an input. For anybody's u(x, t, r):

    t, r = meanflow.mean_flow_times(u1, u2)               # uniform numbers, [B] each
    error = meanflow.mean_flow_error(average_velocity, x0, eps, t, r)
    loss = meanflow.adaptive(error).mean()
    x = meanflow.mean_flow_sample(average_velocity, eps, times=jnp.array([1.0, 0.0]))

Watch `error`: the adaptive loss of power 1 is nearly constant by construction.

References:
    Geng et al. 2025, "Mean flows for one-step generative modeling", arXiv:2505.13447;
    Geng et al. 2025, "Improved mean flows", section 4.1, arXiv:2512.02012.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float

from jaxgen import _checks

__all__ = [
    "adaptive",
    "instantaneous_velocity",
    "mean_flow_error",
    "mean_flow_loss",
    "mean_flow_sample",
    "mean_flow_times",
    "total_derivative",
]

Examples = Float[ArrayLike, " B *event"]
PerExample = Float[ArrayLike, " B"]

# u(x [B, ...], t [B], r [B]) -> [B, ...], entry b of b's arguments alone; differentiated
# forward: a function with a custom vjp and no jvp will not do.
AverageVelocity = Callable[[Array, Array, Array], Array]


def mean_flow_loss(
    average_velocity: AverageVelocity,
    x0: Examples,
    eps: Examples,
    t: PerExample,
    r: PerExample,
    *,
    power: float = 1.0,
    offset: float = 0.01,
) -> Float[Array, " B"]:
    """The loss of improved MeanFlow: `adaptive` of `mean_flow_error`.

    Args:
        average_velocity: `u(x [B, ...], t [B], r [B]) -> [B, ...]`.
        x0: Data, `[B, ...]`.
        eps: Standard normal noise, same shape.
        t: The later (noisier) time, in [0, 1].
        r: The earlier time, at most t. Where r = t this is flow matching.
        power: Of the adaptive weight; 0 is the plain error.
        offset: Of the adaptive weight.

    Returns:
        `[B]`, summed over event axes, dimensionless.

    Raises:
        ValueError: if shapes differ, or `offset` is not positive.
    """
    error = mean_flow_error(average_velocity, x0, eps, t, r)
    return adaptive(error, power=power, offset=offset)


def mean_flow_error(
    average_velocity: AverageVelocity,
    x0: Examples,
    eps: Examples,
    t: PerExample,
    r: PerExample,
) -> Float[Array, " B"]:
    """|`instantaneous_velocity` - (eps - x0)|^2; arguments as `mean_flow_loss`.

    Its minimum over u is the spread of eps - x0 among the examples that pass x_t, not 0.

    Returns:
        `[B]`, summed over event axes.

    Raises:
        ValueError: if shapes differ.
    """
    x0, eps = _checks.example_floats("mean_flow_error", x0=x0, eps=eps)
    t, r = jnp.asarray(t), jnp.asarray(r)
    x = (1 - _like(t, x0)) * x0 + _like(t, x0) * eps
    velocity = instantaneous_velocity(average_velocity, x, t, r)
    return _checks.sum_per_example(jnp.square(velocity - (eps - x0)))


def adaptive(
    error: PerExample, *, power: float = 1.0, offset: float = 0.01
) -> Float[Array, " B"]:
    """Error / (error + offset)^power, the divisor seen as a constant.

    Args:
        error: Squared error of each example, `[B]`.
        power: 0 leaves the error as it is; with 1 each example counts the same, however
            large its error; 0.75 is between.
        offset: Keeps the weight of small errors finite, positive.

    Raises:
        ValueError: if `offset` is not positive.
    """
    _checks.check_positive("adaptive", offset=offset)
    (error,) = _checks.to_float(error)
    return error / jax.lax.stop_gradient((error + offset) ** power)


def instantaneous_velocity(
    average_velocity: AverageVelocity,
    x: Examples,
    t: PerExample,
    r: PerExample,
) -> Float[Array, " B *event"]:
    """v(x, t) by way of u(x, t, r): u + (t - r) du/dt, for any r.

    du/dt is along the network's own u(x, t, t), and constant for the gradient.

    Args:
        average_velocity: `u(x [B, ...], t [B], r [B]) -> [B, ...]`.
        x: Where, `[B, ...]`.
        t: The later time, `[B]`.
        r: The earlier time, `[B]`.
    """
    (x,), t, r = _checks.to_float(x), jnp.asarray(t), jnp.asarray(r)
    velocity = jax.lax.stop_gradient(average_velocity(x, t, t))
    u, rate = total_derivative(average_velocity, velocity, x, t, r)
    return u + _like(t - r, x) * jax.lax.stop_gradient(rate)


def total_derivative(
    average_velocity: AverageVelocity,
    velocity: Float[ArrayLike, "..."],
    x: Examples,
    t: PerExample,
    r: PerExample,
) -> tuple[Float[Array, " B *event"], Float[Array, " B *event"]]:
    """U(x, t, r), and du/dt where x moves with `velocity` and r rests.

    The target of the first MeanFlow for u is `velocity - (t - r) du/dt`.

    Args:
        average_velocity: `u(x [B, ...], t [B], r [B]) -> [B, ...]`.
        velocity: dx/dt, `[B, ...]`.
        x: Where, `[B, ...]`.
        t: The later time, `[B]`.
        r: The earlier time, `[B]`.

    Returns:
        `(u, du/dt)`, `[B, ...]` each.

    Raises:
        ValueError: if `velocity`, such as what the network gives, has another shape than x.
    """
    x, velocity = _checks.example_floats("total_derivative", x=x, velocity=velocity)
    t, r = jnp.asarray(t), jnp.asarray(r)
    u, rate = jax.jvp(
        average_velocity,
        (x, t, r),
        (velocity.astype(x.dtype), jnp.ones_like(t), jnp.zeros_like(r)),
    )
    return u, rate


def mean_flow_times(
    u1: PerExample,
    u2: PerExample,
    share_equal: float = 0.5,
    *,
    mean: float = -0.4,
    std: float = 1.0,
) -> tuple[Float[Array, " B"], Float[Array, " B"]]:
    """Times (t, r), r <= t, of two logit-normal draws; some with r = t.

    Args:
        u1: Uniform in [0, 1), `[B]`.
        u2: Uniform in [0, 1), independent of u1; also says where r = t, so that of a
            stratified u2 exactly that share is.
        share_equal: Which share has r = t, in [0, 1]: flow matching, on which the rest
            stands. 0.5 to 0.75 are usual.
        mean: Of logit t before the two are ordered; -0.4 and 1 are the authors'.
        std: Its standard deviation.

    Returns:
        t and r, `[B]` each.

    Raises:
        ValueError: if `share_equal` is not in [0, 1] or `std` is not positive.
    """
    if not 0 <= share_equal <= 1:
        raise ValueError(
            f"mean_flow_times: share_equal must be in [0, 1], got {share_equal}."
        )
    _checks.check_positive("mean_flow_times", std=std)
    u1, u2 = _checks.to_float(u1, u2)
    is_equal = u2 < share_equal
    # What u2 says besides is uniform again.
    again = u2 if share_equal in (0, 1) else jnp.where(
        is_equal, u2 / share_equal, (u2 - share_equal) / (1 - share_equal)
    )  # fmt: skip
    first, second = (
        jax.nn.sigmoid(mean + std * jax.scipy.special.ndtri(u)) for u in (u1, again)
    )
    t = jnp.maximum(first, second)
    return t, jnp.where(is_equal, t, jnp.minimum(first, second))


def mean_flow_sample(
    average_velocity: AverageVelocity, z: Examples, *, times: Float[ArrayLike, " N"]
) -> Float[Array, " B *event"]:
    """x_r = x_t - (t - r) u(x_t, t, r) from each of the times to the next.

    Args:
        average_velocity: `u(x [B, ...], t [B], r [B]) -> [B, ...]`.
        z: x at the first time; standard normal where that is 1, `[B, ...]`.
        times: `[N]` for N - 1 calls of the network: [1, 0] samples in one step; rising
            times go from data to noise, if the network has learned r > t.

    Returns:
        x at the last time, `[B, ...]`.

    Raises:
        ValueError: if there are fewer than two times.
    """
    (z,), times = _checks.to_float(z), jnp.asarray(times)
    if times.shape[0] < 2:
        raise ValueError(
            f"mean_flow_sample: times must be at least two, got {times.shape[0]}; "
            "[1, 0] samples in one step."
        )

    def step(x: Array, pair: tuple[Array, Array]) -> tuple[Array, None]:
        t, r = (jnp.broadcast_to(time.astype(x.dtype), x.shape[:1]) for time in pair)
        moved = _like(t - r, x) * average_velocity(x, t, r)
        return (x - moved).astype(x.dtype), None

    return jax.lax.scan(step, z, (times[:-1], times[1:]))[0]


def _like(per_example: Array, x: Array) -> Array:
    """`[B]` as `[B, 1, ...]`, in the dtype of x."""
    shape = (-1, *(1,) * (x.ndim - 1))
    return per_example.astype(x.dtype).reshape(shape)
