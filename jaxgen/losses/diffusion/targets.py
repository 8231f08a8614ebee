"""What a denoising network may be trained to give, and x_0 from it."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float, Real

from jaxgen import _checks, schedules

TARGETS = ("x0", "eps", "v", "velocity", "edm")

# The arguments of one call have one shape: that is checked, never broadcast.
Examples = Float[ArrayLike, " B *event"]
Scale = Real[ArrayLike, ""] | Float[ArrayLike, " B"]


def noised(
    x0: Examples, eps: Examples, alpha: Scale, sigma: Scale
) -> Float[Array, " B *event"]:
    """x_t = alpha x_0 + sigma eps.

    Args:
        x0: Data, `[B, ...]`.
        eps: Standard normal noise, same shape.
        alpha: Scale of the data, `[B]` or a scalar.
        sigma: Scale of the noise, likewise.

    Returns:
        The shape of `x0`.

    Raises:
        ValueError: if the shapes do not fit.
    """
    x0, eps = _checks.example_floats("noised", x0=x0, eps=eps)
    alpha, sigma = _scales("noised", x0, alpha=alpha, sigma=sigma)
    return alpha * x0 + sigma * eps


def to_x0(
    prediction: Examples,
    x_t: Examples,
    alpha: Scale,
    sigma: Scale,
    *,
    target: str,
    sigma_data: Real[ArrayLike, ""] = 1.0,
) -> Float[Array, " B *event"]:
    """The estimate of x_0 in what a network gives.

    Args:
        prediction: What the network gives at x_t, `[B, ...]`.
        x_t: alpha x_0 + sigma eps, same shape.
        alpha: Scale of the data, `[B]` or a scalar.
        sigma: Scale of the noise, likewise.
        target: What it is trained to give. "x0"; "eps"; "v", (alpha eps - sigma x_0)
            / (alpha^2 + sigma^2)^0.5;
            "velocity", eps - x_0; "edm", the raw network of EDM: with x_t times
            `edm_input_scale` as its input, its target has unit variance.
        sigma_data: Standard deviation of x_0, for "edm".

    Returns:
        The shape of `x_t`; finite at alpha = 0 and at sigma = 0, but for "eps".

    Raises:
        ValueError: if the target is unknown or the shapes do not fit, or for "eps" if
            alpha is 0: pure noise says nothing about x_0.

    References:
        Salimans & Ho 2022, appendix D (v), arXiv:2202.00512; Karras et al. 2022, table
        1 (EDM), arXiv:2206.00364.
    """
    name = "to_x0"
    _checks.check_in(name, "target", target, TARGETS)
    prediction, x_t = _checks.example_floats(name, prediction=prediction, x_t=x_t)
    if target == "eps":
        _check_nonzero(name, "target 'eps'", alpha=alpha)
    alpha, sigma = _scales(name, x_t, alpha=alpha, sigma=sigma)
    if target == "x0":
        return prediction
    if target == "eps":
        return (x_t - sigma * prediction) / alpha
    if target == "v":
        rho = jnp.hypot(alpha, sigma)
        return (alpha / rho * x_t - sigma * prediction) / rho
    if target == "velocity":
        return (x_t - sigma * prediction) / (alpha + sigma)
    scale = _inverse_deviation(alpha, sigma, sigma_data)
    skip = alpha * sigma_data**2 * scale**2 * x_t
    return skip + sigma * sigma_data * scale * prediction


def from_x0(
    x0: Examples,
    x_t: Examples,
    alpha: Scale,
    sigma: Scale,
    *,
    target: str,
    sigma_data: Real[ArrayLike, ""] = 1.0,
) -> Float[Array, " B *event"]:
    """The inverse of `to_x0`: what the network should give for this x_0.

    Args:
        x0: x_0 or an estimate of it, `[B, ...]`.
        x_t: alpha x_0 + sigma eps, same shape.
        alpha: Scale of the data, `[B]` or a scalar.
        sigma: Scale of the noise, likewise.
        target: As in `to_x0`.
        sigma_data: As in `to_x0`.

    Returns:
        The shape of `x_t`.

    Raises:
        ValueError: if the target is unknown or the shapes do not fit, or for any target
            but "x0" if sigma is 0: where there is no noise, x_t does not tell it.
    """
    name = "from_x0"
    _checks.check_in(name, "target", target, TARGETS)
    x0, x_t = _checks.example_floats(name, x0=x0, x_t=x_t)
    if target != "x0":
        _check_nonzero(name, f"target {target!r}", sigma=sigma)
    alpha, sigma = _scales(name, x_t, alpha=alpha, sigma=sigma)
    if target == "x0":
        return x0
    eps = (x_t - alpha * x0) / sigma
    if target == "eps":
        return eps
    if target == "v":
        return (alpha * eps - sigma * x0) / jnp.hypot(alpha, sigma)
    if target == "velocity":
        return eps - x0
    scale = _inverse_deviation(alpha, sigma, sigma_data)
    return scale * (sigma / sigma_data * x0 - alpha * sigma_data * eps)


def edm_input_scale(
    alpha: Real[ArrayLike, " *shape"],
    sigma: Real[ArrayLike, " *shape"],
    *,
    sigma_data: Real[ArrayLike, ""] = 1.0,
) -> Float[Array, " *shape"]:
    """What x_t is multiplied by to have unit variance: the input of EDM's network.

    Args:
        alpha: Scale of the data, any shape.
        sigma: Scale of the noise, same shape.
        sigma_data: Standard deviation of x_0.

    Returns:
        1 / sqrt(alpha^2 sigma_data^2 + sigma^2), the shape of `alpha`.

    Raises:
        ValueError: if the shapes differ.
    """
    _checks.check_same_shape("edm_input_scale", alpha=alpha, sigma=sigma)
    alpha, sigma = _checks.to_float(alpha, sigma)
    return _inverse_deviation(alpha, sigma, sigma_data)


def x0_to_score(
    x0: Examples, x_t: Examples, alpha: Scale, sigma: Scale
) -> Float[Array, " B *event"]:
    """The gradient of log p(x_t), by Tweedie's formula: -(x_t - alpha x_0) / sigma^2.

    Args:
        x0: The mean of x_0 given x_t, `[B, ...]`.
        x_t: Where the gradient is taken, same shape.
        alpha: Scale of the data, `[B]` or a scalar.
        sigma: Scale of the noise, likewise.

    Returns:
        The shape of `x_t`.

    Raises:
        ValueError: if the shapes do not fit or sigma is 0.

    References:
        Efron 2011, "Tweedie's formula and selection bias".
    """
    eps = from_x0(x0, x_t, alpha, sigma, target="eps")
    (sigma,) = _scales("x0_to_score", eps, sigma=sigma)
    return -eps / sigma


def score_to_x0(
    score: Examples, x_t: Examples, alpha: Scale, sigma: Scale
) -> Float[Array, " B *event"]:
    """The inverse of `x0_to_score`: (x_t + sigma^2 score) / alpha.

    Args:
        score: The gradient of log p(x_t), `[B, ...]`.
        x_t: Where it was taken, same shape.
        alpha: Scale of the data, `[B]` or a scalar.
        sigma: Scale of the noise, likewise.

    Returns:
        The shape of `x_t`.

    Raises:
        ValueError: if the shapes do not fit or alpha is 0.
    """
    score, x_t = _checks.example_floats("score_to_x0", score=score, x_t=x_t)
    (scale,) = _scales("score_to_x0", x_t, sigma=sigma)
    return to_x0(-scale * score, x_t, alpha, sigma, target="eps")


def check_target(
    schedule: schedules.Schedule, target: str, *, start: float = 1.0
) -> None:
    """Refuses a target that the noisiest time in use leaves undefined.

    Inside a compiled function the scales have no values to look at, and "eps" at alpha
    = 0 would be a NaN: call this where the schedule and the target are chosen.

    Args:
        schedule: Any schedule.
        target: As in `to_x0`.
        start: The noisiest time in use.

    Raises:
        ValueError: if the target is unknown, or "eps" with alpha(start) = 0.

    References:
        Lin et al. 2023 (zero terminal SNR), arXiv:2305.08891.
    """
    _checks.check_in("check_target", "target", target, TARGETS)
    if target == "eps":
        what = f"target 'eps' at t = {start} of {schedule}"
        _check_nonzero("check_target", what, alpha=schedule.alpha(start))


def _scales(function: str, x: Array, **scales: ArrayLike) -> tuple[Array, ...]:
    """The named scales, `[B]` or scalars, with the axes of x `[B, ...]`."""
    shaped = []
    for name, scale in zip(scales, _checks.to_float(*scales.values()), strict=True):
        if scale.ndim and scale.shape != x.shape[:1]:
            raise ValueError(
                f"{function}: {name} must be a scalar or [B] = {x.shape[:1]}, got "
                f"shape {scale.shape}; give one number per example."
            )
        axes = tuple(range(1, x.ndim))
        shaped.append(jnp.expand_dims(scale, axes) if scale.ndim else scale)
    return tuple(shaped)


def _check_nonzero(function: str, what: str, **scale: ArrayLike) -> None:
    """Raises ValueError where the named scale has a value, and that is 0 somewhere."""
    ((name, value),) = scale.items()
    known = _checks.concrete(value)
    if known is not None and np.any(known == 0):
        raise ValueError(
            f"{function}: {name} must not be 0 for {what}, which is undefined there; "
            f"keep away from that end, or take another target."
        )


def _inverse_deviation(
    alpha: Array, sigma: Array, sigma_data: Real[ArrayLike, ""]
) -> Array:
    """1 / sqrt(alpha^2 sigma_data^2 + sigma^2), of x_t; never of x_t / alpha."""
    return jax.lax.rsqrt((alpha * sigma_data) ** 2 + sigma**2)
