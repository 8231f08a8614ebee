"""The samplers themselves; `jaxgen.samplers` tells what they have in common."""

import functools
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float

from jaxgen import _checks, schedules
from jaxgen.samplers import steps
from jaxgen.samplers.steps import Chain, Denoise, Examples, Keys, Level, Times


def ddpm(
    denoise: Denoise,
    x: Examples,
    keys: Keys,
    *,
    schedule: schedules.Schedule,
    times: Times,
    clean: bool = True,
    keep: bool = False,
    variance: str = "small",
) -> Chain:
    """Ancestral sampling: x_s of q(x_s | x_t, x_0), with the estimate for x_0.

    Args:
        denoise: x `[B, ...]` and t, a scalar, to the estimate of x_0, `[B, ...]`.
        x: Noise of the level times[0], `[B, ...]`.
        keys: One per example, `[B]`.
        schedule: alpha and sigma.
        times: Decreasing, `[N]`; those of DDPM by `schedules.respaced_times`.
        clean: Whether a last step goes from times[-1] to data.
        keep: Whether to keep the estimates of all steps.
        variance: "small", that of q, right if all data were one point; or "large", the
            noise from s to t (beta_t), right for data of unit variance.

    Returns:
        `Chain`.

    Raises:
        ValueError: if the estimate has not the shape of x, the times do not decrease,
            or the choice is not one.

    References:
        Ho et al. 2020, section 3.2, arXiv:2006.11239.
    """
    _checks.check_in("ddpm", "variance", variance, ("small", "large"))

    def noise_std(here: Level, there: Level) -> tuple[Array, Array]:
        kept, new = steps.noise_std(here, there)
        if variance == "large":
            new = here.sigma * jnp.sqrt(steps.new_share(here, there))
        return kept, new

    step = steps.ancestral(steps.given("ddpm", keys), noise_std)
    return steps.run("ddpm", step, denoise, x, schedule, times, clean=clean, keep=keep)


def ddim(
    denoise: Denoise,
    x: Examples,
    keys: Keys,
    *,
    schedule: schedules.Schedule,
    times: Times,
    clean: bool = True,
    keep: bool = False,
    eta: float = 0.0,
) -> Chain:
    """DDIM: a family of samplers with the same marginals, from an ODE to DDPM.

    Args:
        denoise: As in `ddpm`, like the next six.
        x: `[B, ...]`.
        keys: `[B]`; None will do for eta = 0.
        schedule: alpha and sigma.
        times: Decreasing, `[N]`.
        clean: As there.
        keep: As there.
        eta: Standard deviation of the new noise relative to `ddpm`'s "small": 1 is that
            sampler, 0 has none and is `euler`.

    Returns:
        `Chain`.

    Raises:
        ValueError: as there, or if eta is not in [0, 1].

    References:
        Song, Meng & Ermon 2021, equation 12, arXiv:2010.02502.
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"ddim: eta must be in [0, 1], got {eta}; 1 is ddpm.")

    step = steps.euler
    if eta > 0:
        noise_std = functools.partial(steps.noise_std, eta=eta)
        step = steps.ancestral(steps.given("ddim", keys), noise_std)
    return steps.run("ddim", step, denoise, x, schedule, times, clean=clean, keep=keep)


def euler(
    denoise: Denoise,
    x: Examples,
    keys: Keys = None,
    *,
    schedule: schedules.Schedule,
    times: Times,
    clean: bool = True,
    keep: bool = False,
) -> Chain:
    """Euler's method for dx = x0 dalpha + eps dsigma; `ddim` with eta = 0.

    Takes, returns and raises what `ddim` does. Order 1 for one call a step.

    References:
        Karras et al. 2022, algorithm 1 without its second half, arXiv:2206.00364.
    """
    del keys
    step = steps.euler
    return steps.run("euler", step, denoise, x, schedule, times, clean=clean, keep=keep)


def heun(
    denoise: Denoise,
    x: Examples,
    keys: Keys = None,
    *,
    schedule: schedules.Schedule,
    times: Times,
    clean: bool = True,
    keep: bool = False,
) -> Chain:
    """Heun's method: Euler's step, then x0 and eps averaged over both its ends.

    Takes, returns and raises what `ddim` does. Order 2 for two calls a step; a step to
    sigma = 0 is Euler's, as eps has no value there.

    References:
        Karras et al. 2022, algorithm 1, arXiv:2206.00364; here for any schedule.
    """
    del keys
    step = steps.heun
    return steps.run("heun", step, denoise, x, schedule, times, clean=clean, keep=keep)


def dpmpp_2m(
    denoise: Denoise,
    x: Examples,
    keys: Keys = None,
    *,
    schedule: schedules.Schedule,
    times: Times,
    clean: bool = True,
    keep: bool = False,
) -> Chain:
    """DPM-Solver++(2M): x0 extrapolated in the log SNR from the last two estimates.

    Takes, returns and raises what `ddim` does. Order 2 for one call a step; the first
    step, and one from alpha = 0 or to sigma = 0, is of order 1 and that of `euler`.

    References:
        Lu et al. 2022, algorithm 2, arXiv:2211.01095.
    """
    del keys
    name, step = "dpmpp_2m", steps.multistep
    return steps.run(name, step, denoise, x, schedule, times, clean=clean, keep=keep)


def stochastic(
    denoise: Denoise,
    x: Examples,
    keys: Keys,
    *,
    schedule: schedules.Schedule,
    times: Times,
    clean: bool = True,
    keep: bool = False,
    churn: float = 40.0,
    churn_min: float = 0.05,
    churn_max: float = 50.0,
    noise_scale: float = 1.003,
) -> Chain:
    """EDM's stochastic sampler: before each step of `heun` some noise is added.

    It raises sigma / alpha by the factor 1 + min(churn / N, sqrt(2) - 1), though not
    beyond the schedule's t = 1, of which a network knows nothing.

    Args:
        denoise: As in `ddpm`.
        x: `[B, ...]`.
        keys: `[B]`.
        schedule: alpha and sigma.
        times: Decreasing, `[N]`.
        clean: As there.
        keep: As there.
        churn: Amount of noise over all N steps; with 0 it is `heun`.
        churn_min: Least sigma / alpha to which noise is added.
        churn_max: Greatest, infinity excluded.
        noise_scale: Of its standard deviation; over 1 if networks take away too much.

    Returns:
        `Chain`.

    Raises:
        ValueError: as there, or if churn is negative.

    References:
        Karras et al. 2022, algorithm 2 and table 5, arXiv:2206.00364.
    """
    if churn < 0:
        raise ValueError(f"stochastic: churn must not be negative, got {churn}.")
    keys = steps.given("stochastic", keys)
    growth = 1 + min(churn / max(np.size(times), 1), math.sqrt(2) - 1)

    def noised(x: Array, level: Level) -> tuple[Array, Level]:
        ratio = level.sigma / level.alpha
        wanted = (ratio >= churn_min) & (ratio <= churn_max) & (ratio < jnp.inf)
        t = schedule.inverse(level.log_snr - 2 * math.log(growth))
        t = jnp.clip(t, level.t, 1).astype(x.dtype)
        raised = steps.level_at(schedule, level.index, t)
        added = jnp.expm1(level.log_snr - raised.log_snr)
        std = noise_scale * raised.alpha * ratio * jnp.sqrt(added)
        more = raised.alpha / level.alpha * x + std * steps.noise(keys, level, x)
        return _where(wanted, (more, raised), (x, level))

    before = noised if churn > 0 else None
    options = {"clean": clean, "keep": keep, "before": before}
    return steps.run("stochastic", steps.heun, denoise, x, schedule, times, **options)


def invert(
    denoise: Denoise, x: Examples, *, schedule: schedules.Schedule, times: Times
) -> Float[Array, " B *event"]:
    """DDIM inversion, from data to noise by Euler's method: `euler` leads back, about.

    Args:
        denoise: As in `ddpm`.
        x: Examples of the level times[0], `[B, ...]`.
        schedule: alpha and sigma.
        times: Increasing, `[N]`; sigma is not 0 at the first.

    Returns:
        x at times[-1], `[B, ...]`. Of fourth order: `probability_flow.encode`.

    Raises:
        ValueError: as there, or if the times do not increase.

    References:
        Song, Meng & Ermon 2021, section 4.3, arXiv:2010.02502.
    """
    return steps.run(
        "invert",
        steps.euler,
        denoise,
        x,
        schedule,
        times,
        clean=False,
        keep=False,
        increasing=True,
    ).x


def guided(
    conditional: Denoise, unconditional: Denoise, *, guidance: ArrayLike
) -> Denoise:
    """Classifier-free guidance: u + guidance (c - u) of two estimates of x_0.

    So 0 is unconditional, 1 is conditional and more goes beyond. It is the same whether
    estimates of x_0, eps, v or the score are mixed.

    References:
        Ho & Salimans 2022, arXiv:2207.12598, whose w is guidance - 1.
    """

    def denoise(x: Array, t: Array) -> Array:
        without = unconditional(x, t)
        return without + guidance * (conditional(x, t) - without)

    return denoise


SAMPLERS: Mapping[str, Callable[..., Chain]] = MappingProxyType(
    {
        "ddpm": ddpm,
        "ddim": ddim,
        "euler": euler,
        "heun": heun,
        "dpmpp_2m": dpmpp_2m,
        "stochastic": stochastic,
    }
)


def _where(condition: Array, chosen: Any, other: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), chosen, other)
