"""A schedule that is learned."""

import dataclasses

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import PRNGKeyArray

from jaxgen import _checks
from jaxgen.schedules.fixed import Input, Output


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LearnedGamma:
    """A schedule that is learned: a monotone network between two fixed ends.

    Variance preserving. The variational bound depends on the two ends only, its Monte
    Carlo variance on the curve between them: that is what to train the curve on.

    A pytree: its parameters are the leaves, its ends are not. Made by `init`.

    Attributes:
        slope: Of the linear part, before a softplus; a scalar.
        heights: Of `[K]` sigmoids in t, before a softplus.
        steepness: Of the same, before a softplus.
        centres: Of the same.
        log_snr_max: `log_snr` at t = 0, exactly.
        log_snr_min: `log_snr` at t = 1, exactly.

    References:
        Kingma et al. 2021, appendix H, arXiv:2107.00630.
    """

    slope: Array
    heights: Array
    steepness: Array
    centres: Array
    log_snr_max: float = dataclasses.field(default=13.3, metadata={"static": True})
    log_snr_min: float = dataclasses.field(default=-5.0, metadata={"static": True})

    @staticmethod
    def init(
        key: PRNGKeyArray,
        *,
        log_snr_max: float = 13.3,
        log_snr_min: float = -5.0,
        num_sigmoids: int = 64,
    ) -> "LearnedGamma":
        """A curve near the straight line.

        Raises:
            ValueError: if log_snr_max is not above log_snr_min, or there is no sigmoid.
        """
        _checks.check_positive("LearnedGamma.init", num_sigmoids=num_sigmoids)
        if not log_snr_max > log_snr_min:
            raise ValueError(
                "LearnedGamma.init: log_snr_max must be above log_snr_min, got "
                f"{log_snr_max} and {log_snr_min}; t = 0 is the data."
            )
        heights, steepness, centres = jax.random.split(key, 3)
        shape = (num_sigmoids,)
        return LearnedGamma(
            slope=jnp.ones(()),
            heights=0.1 * jax.random.normal(heights, shape) - 3,
            steepness=2 * jax.random.normal(steepness, shape) + 8,
            centres=jax.random.uniform(centres, shape),
            log_snr_max=log_snr_max,
            log_snr_min=log_snr_min,
        )

    def _raw(self, t: Array) -> Array:
        """Strictly increasing in t, by positive weights."""
        steepness = jax.nn.softplus(self.steepness)[None]
        steps = jax.nn.sigmoid(steepness * (t.reshape(-1, 1) - self.centres[None]))
        curve = (steps @ jax.nn.softplus(self.heights)).reshape(t.shape)
        return (jax.nn.softplus(self.slope) * t + curve).astype(t.dtype)

    def alpha(self, t: Input) -> Output:
        """sqrt(sigmoid(log_snr))."""
        return jnp.sqrt(jax.nn.sigmoid(self.log_snr(t)))

    def sigma(self, t: Input) -> Output:
        """sqrt(sigmoid(-log_snr))."""
        return jnp.sqrt(jax.nn.sigmoid(-self.log_snr(t)))

    def log_snr(self, t: Input) -> Output:
        """From log_snr_max to log_snr_min."""
        (t,) = _checks.to_float(t)
        first, last = self._raw(jnp.zeros_like(t)), self._raw(jnp.ones_like(t))
        done = (self._raw(t) - first) / (last - first)
        return self.log_snr_max * (1 - done) + self.log_snr_min * done

    def inverse(self, log_snr: Input) -> Output:
        """By bisection; its gradient is that of the inverse function."""
        (log_snr,) = _checks.to_float(log_snr)
        fixed, sought = jax.lax.stop_gradient((self, log_snr))

        def halve(ends: tuple[Array, Array], _: None) -> tuple:
            low, high = ends
            middle = 0.5 * (low + high)
            later = fixed.log_snr(middle) > sought
            return (jnp.where(later, middle, low), jnp.where(later, high, middle)), None

        ends = jnp.zeros_like(log_snr), jnp.ones_like(log_snr)
        num_bits = jnp.finfo(log_snr.dtype).nmant + 1
        (low, high), _ = jax.lax.scan(halve, ends, length=num_bits)
        t = 0.5 * (low + high)
        _, slope = jax.jvp(fixed.log_snr, (t,), (jnp.ones_like(t),))
        # One step of Newton's method: nothing in value, the derivative in gradient.
        return t - (self.log_snr(t) - log_snr) / slope
