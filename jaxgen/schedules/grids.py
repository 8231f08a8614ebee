"""Times for samplers, and the differential equation behind a schedule."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from jaxgen import _checks
from jaxgen.schedules.fixed import Input, Output, Schedule

Times = Float[Array, " N"]


def drift_and_diffusion(schedule: Schedule, t: Input) -> tuple[Output, Output]:
    """The stochastic differential equation dx = f x dt + g dw that noises as x_t.

    Args:
        schedule: Any schedule.
        t: Times in (0, 1), any shape.

    Returns:
        f = d log alpha / dt and g^2 = d sigma^2 / dt - 2 f sigma^2, which is -sigma^2
        d log_snr / dt; the shape of `t` each. An end of the schedule where alpha or the
        derivative of sigma is not finite has no finite answer.

    References:
        Kingma et al. 2021, section 3, arXiv:2107.00630.
    """
    (t,) = _checks.to_float(t)
    ones = jnp.ones_like(t)
    alpha, alpha_rate = jax.jvp(schedule.alpha, (t,), (ones,))
    sigma, sigma_rate = jax.jvp(schedule.sigma, (t,), (ones,))
    drift = alpha_rate / alpha
    return drift, 2 * sigma * (sigma_rate - drift * sigma)


def karras_times(
    schedule: Schedule,
    num_times: int,
    *,
    rho: float = 7.0,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
) -> Times:
    """The times at which sigma / alpha stands on the grid of Karras et al.

    Args:
        schedule: Any schedule.
        num_times: N.
        rho: Larger puts more of the grid at low noise.
        sigma_min: sigma / alpha of the last time, in units of the data.
        sigma_max: sigma / alpha of the first time.

    Returns:
        `[N]` decreasing times in [0, 1]; for N = 1 that of `sigma_max` alone.

    Raises:
        ValueError: if a number is not positive, sigma_min is not below sigma_max, or
            the schedule does not reach from one to the other.

    References:
        Karras et al. 2022, equation 5, arXiv:2206.00364.
    """
    name = "karras_times"
    _checks.check_positive(name, num_times=num_times, rho=rho)
    _checks.check_rising(name, sigma_min=sigma_min, sigma_max=sigma_max)
    roots = np.linspace(sigma_max ** (1 / rho), sigma_min ** (1 / rho), num_times)
    times = schedule.inverse(jnp.asarray(-2 * rho * np.log(roots), float))
    known = _checks.concrete(times)
    # A schedule's own end may miss its time by a rounding.
    if known is not None and np.any(np.abs(known - 0.5) > 0.5 + 1e-4):
        raise ValueError(
            f"{name}: sigma_min {sigma_min} to sigma_max {sigma_max} must be within "
            f"{schedule}; narrow the grid, or widen the schedule."
        )
    return jnp.clip(times, 0, 1)


def uniform_times(num_times: int, *, start: float = 1.0, end: float) -> Times:
    """`[N]` times in equal steps from `start` down to `end`, both included.

    Raises:
        ValueError: unless num_times is positive and 0 <= end < start <= 1.
    """
    _checks.check_positive("uniform_times", num_times=num_times)
    if not 0 <= end < start <= 1:
        raise ValueError(
            f"uniform_times: start and end must be 0 <= end < start <= 1, got start "
            f"{start} and end {end}; times run from noise to data."
        )
    return jnp.asarray(np.linspace(start, end, num_times), float)


def respaced_times(num_times: int, *, num_steps: int = 1000) -> Times:
    """The T steps of a discrete schedule thinned to N, as equally as they go.

    Args:
        num_times: N.
        num_steps: T, of the schedule.

    Returns:
        `[N]` decreasing multiples of 1 / T: T / T first, 1 / T last (for N = 1 the
        first alone), and all of them for N = T.

    Raises:
        ValueError: if N is not in 1..T.

    References:
        Nichol & Dhariwal 2021, section 4, arXiv:2102.09672.
    """
    if not 1 <= num_times <= num_steps:
        raise ValueError(
            f"respaced_times: num_times must be in 1..num_steps = {num_steps}, got "
            f"{num_times}; a step cannot be taken twice."
        )
    steps = np.round(np.linspace(num_steps, 1, num_times))
    return jnp.asarray(steps / num_steps, float)
