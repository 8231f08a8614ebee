"""The schedules that are not learned, and what every schedule can do."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float, Real

from jaxgen import _checks

Input = Real[ArrayLike, " *shape"]
Output = Float[Array, " *shape"]


@runtime_checkable
class Schedule(Protocol):
    """The four methods of a noise schedule, each from an array to one of its shape."""

    def alpha(self, t: Input) -> Output:
        """The scale of the data at time t in [0, 1]."""
        ...

    def sigma(self, t: Input) -> Output:
        """The scale of the noise at time t in [0, 1]."""
        ...

    def log_snr(self, t: Input) -> Output:
        """log(alpha^2 / sigma^2), strictly decreasing in t; it may be +-inf at an end."""
        ...

    def inverse(self, log_snr: Input) -> Output:
        """The time at which the log signal-to-noise ratio has this value."""
        ...


@dataclasses.dataclass(frozen=True)
class DDPM:
    """The linear betas of DDPM, variance preserving, made continuous.

    At t = i / num_steps, alpha^2 is the product of the first i factors 1 - beta; that
    product is continued between the steps by the Euler-Maclaurin formula, smoothly.

    Attributes:
        beta_min: The first beta.
        beta_max: The last beta.
        num_steps: Number of betas.

    Raises:
        ValueError: if the betas do not rise within (0, 1), or so steeply that the curve
            would not be monotone between the first steps.

    References:
        Ho et al. 2020, section 4, arXiv:2006.11239.
    """

    beta_min: float = 1e-4
    beta_max: float = 0.02
    num_steps: int = 1000

    def __post_init__(self) -> None:
        _checks.check_rising("DDPM", beta_min=self.beta_min, beta_max=self.beta_max)
        if self.beta_max >= 1 or self.num_steps < 2 or self._rise > 2 * self.beta_min:
            raise ValueError(
                f"DDPM: beta_max must be below 1 and rise by at most 2 * beta_min a "
                f"step, got {self.beta_max} in {self.num_steps} steps; take more "
                "steps here, and a sampler's fewer ones by respaced_times."
            )

    @property
    def _rise(self) -> float:
        return (self.beta_max - self.beta_min) / (self.num_steps - 1)

    def _decay(self, t: Array) -> Array:
        """-log alpha^2 = -sum_{j < u} log(1 - beta_j) at the step u = t * num_steps."""
        u, rise, kept = t * self.num_steps, self._rise, 1 - self.beta_min
        # The integral by Gauss's rule, and by what the sum differs from it at the ends.
        nodes, weights = np.polynomial.legendre.leggauss(8)
        at = jnp.multiply.outer(jnp.asarray(0.5 * (1 + nodes), u.dtype), u)
        logs = jnp.log1p(-self.beta_min - rise * at)
        integral = -u * jnp.tensordot(jnp.asarray(0.5 * weights, u.dtype), logs, 1)
        share = rise * u / kept
        ends = 0.5 * jnp.log1p(-share) + (rise / kept) * share / (12 * (1 - share))
        return integral + ends

    def alpha(self, t: Input) -> Output:
        """From 1, by half the sum of log(1 - beta)."""
        return jnp.exp(-0.5 * self._decay(*_checks.to_float(t)))

    def sigma(self, t: Input) -> Output:
        """sqrt(1 - alpha^2), 0 at t = 0."""
        return jnp.sqrt(-jnp.expm1(-self._decay(*_checks.to_float(t))))

    def log_snr(self, t: Input) -> Output:
        """Infinite at t = 0, where there is no noise."""
        return -jnp.log(jnp.expm1(self._decay(*_checks.to_float(t))))

    def inverse(self, log_snr: Input) -> Output:
        """By Newton's method from the root of the quadratic that the sum is near."""
        (log_snr,) = _checks.to_float(log_snr)
        decay, rise = jax.nn.softplus(-log_snr), self._rise
        first = self.beta_min - 0.5 * rise
        t = 2 * decay / (first + jnp.sqrt(first**2 + 2 * rise * decay)) / self.num_steps

        def newton(t: Array, _: None) -> tuple[Array, None]:
            value, slope = jax.jvp(self._decay, (t,), (jnp.ones_like(t),))
            return t - (value - decay) / slope, None

        return jax.lax.scan(newton, t, length=4)[0]


@dataclasses.dataclass(frozen=True)
class Cosine:
    """alpha a quarter of a cosine, variance preserving; no signal at all at t = 1.

    Attributes:
        offset: What keeps the noise from rising too slowly near the data, s.

    Raises:
        ValueError: if the offset is not positive.

    References:
        Nichol & Dhariwal 2021, section 3.2, arXiv:2102.09672.
    """

    offset: float = 0.008

    def __post_init__(self) -> None:
        _checks.check_positive("Cosine", offset=self.offset)

    @property
    def _turn(self) -> float:
        """The angle that t runs through from 0 to 1; a quarter turn less the start."""
        return 0.5 * math.pi / (1 + self.offset)

    @property
    def _start(self) -> float:
        return self.offset * self._turn

    def alpha(self, t: Input) -> Output:
        """0 at t = 1, exactly."""
        (t,) = _checks.to_float(t)
        return jnp.sin(self._turn * (1 - t)) / math.cos(self._start)

    def sigma(self, t: Input) -> Output:
        """0 at t = 0, exactly."""
        (t,) = _checks.to_float(t)
        # 1 - alpha^2 by the sum formulas: no difference of near-equal numbers.
        turned = jnp.sin(self._turn * t) * jnp.sin(self._turn * t + 2 * self._start)
        return jnp.sqrt(turned) / math.cos(self._start)

    def log_snr(self, t: Input) -> Output:
        """Infinite at t = 0, minus infinite at t = 1."""
        return 2 * (jnp.log(self.alpha(t)) - jnp.log(self.sigma(t)))

    def inverse(self, log_snr: Input) -> Output:
        """The angle whose cosine is alpha."""
        (log_snr,) = _checks.to_float(log_snr)
        alpha_squared, sigma_squared = jax.nn.sigmoid(jnp.stack([log_snr, -log_snr]))
        tangent = math.tan(self._start)
        angle = jnp.atan2(jnp.sqrt(tangent**2 + sigma_squared), jnp.sqrt(alpha_squared))
        return (angle - self._start) / self._turn


@dataclasses.dataclass(frozen=True)
class EDM:
    """Variance exploding with the 1/rho-th power of sigma linear in t; alpha is 1.

    Attributes:
        sigma_min: The noise at t = 0, in units of the data.
        sigma_max: The noise at t = 1.
        rho: Larger puts more of the time at low noise.

    Raises:
        ValueError: if the numbers are not positive and sigma_min below sigma_max.

    References:
        Karras et al. 2022, equation 5, arXiv:2206.00364.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0

    def __post_init__(self) -> None:
        _checks.check_rising("EDM", sigma_min=self.sigma_min, sigma_max=self.sigma_max)
        _checks.check_positive("EDM", rho=self.rho)

    @property
    def _roots(self) -> tuple[float, float]:
        return self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)

    def alpha(self, t: Input) -> Output:
        """1."""
        return jnp.ones_like(*_checks.to_float(t))

    def sigma(self, t: Input) -> Output:
        """From sigma_min to sigma_max."""
        (t,) = _checks.to_float(t)
        low, high = self._roots
        return (low + t * (high - low)) ** self.rho

    def log_snr(self, t: Input) -> Output:
        """-2 log sigma."""
        return -2 * jnp.log(self.sigma(t))

    def inverse(self, log_snr: Input) -> Output:
        """In closed form."""
        (log_snr,) = _checks.to_float(log_snr)
        low, high = self._roots
        return (jnp.exp(-0.5 * log_snr / self.rho) - low) / (high - low)


@dataclasses.dataclass(frozen=True)
class RectifiedFlow:
    """The straight line x_t = (1 - t) x_0 + t eps.

    References:
        Liu et al. 2022, arXiv:2209.03003; Lipman et al. 2022, arXiv:2210.02747.
    """

    def alpha(self, t: Input) -> Output:
        """1 - t."""
        (t,) = _checks.to_float(t)
        return 1 - t

    def sigma(self, t: Input) -> Output:
        """The time itself."""
        (t,) = _checks.to_float(t)
        return t

    def log_snr(self, t: Input) -> Output:
        """Infinite at t = 0, minus infinite at t = 1."""
        (t,) = _checks.to_float(t)
        return 2 * (jnp.log1p(-t) - jnp.log(t))

    def inverse(self, log_snr: Input) -> Output:
        """In closed form."""
        return jax.nn.sigmoid(-0.5 * _checks.to_float(log_snr)[0])


@dataclasses.dataclass(frozen=True)
class GeometricVE:
    """Variance exploding with log sigma linear in t; alpha is 1.

    Attributes:
        sigma_min: The noise at t = 0, in units of the data.
        sigma_max: The noise at t = 1: about the largest distance of two examples.

    Raises:
        ValueError: if the numbers are not positive and sigma_min below sigma_max.

    References:
        Song et al. 2021, appendix C, arXiv:2011.13456.
    """

    sigma_min: float = 0.01
    sigma_max: float = 50.0

    def __post_init__(self) -> None:
        _checks.check_rising(
            "GeometricVE", sigma_min=self.sigma_min, sigma_max=self.sigma_max
        )

    def alpha(self, t: Input) -> Output:
        """1."""
        return jnp.ones_like(*_checks.to_float(t))

    def sigma(self, t: Input) -> Output:
        """From sigma_min to sigma_max."""
        return jnp.exp(-0.5 * self.log_snr(t))

    def log_snr(self, t: Input) -> Output:
        """Linear in t."""
        (t,) = _checks.to_float(t)
        return -2 * ((1 - t) * math.log(self.sigma_min) + t * math.log(self.sigma_max))

    def inverse(self, log_snr: Input) -> Output:
        """In closed form."""
        (log_snr,) = _checks.to_float(log_snr)
        low, high = math.log(self.sigma_min), math.log(self.sigma_max)
        return (-0.5 * log_snr - low) / (high - low)


SCHEDULES: Mapping[str, Callable[..., Schedule]] = MappingProxyType(
    {
        "ddpm": DDPM,
        "cosine": Cosine,
        "edm": EDM,
        "rectified_flow": RectifiedFlow,
        "ve": GeometricVE,
    }
)


def cosine_betas(num_steps: int, *, clip: float = 0.999) -> np.ndarray:
    """The betas of the discrete cosine schedule, `[T]` in float64, at most `clip`.

    The products of 1 - beta are the squares of `Cosine().alpha` but where it clips.

    Raises:
        ValueError: if `num_steps` is below 1.

    References:
        Nichol & Dhariwal 2021, section 3.2, arXiv:2102.09672.
    """
    _checks.check_positive("cosine_betas", num_steps=num_steps)
    quarter = 0.5 * math.pi * (np.arange(num_steps + 1) / num_steps + 0.008) / 1.008
    kept = np.cos(quarter) ** 2
    return np.minimum(1 - kept[1:] / kept[:-1], clip)
