"""Samples of x given what is seen of it, y = A x, by any denoiser that never heard of y.

What a sampler would need is E[x_0 | x_t, y] = D + (sigma^2 / alpha) grad log p(y | x_t).
No unconditional denoiser D knows p(y | x_t); each method puts something in its place:

`pseudo_inverse_guided`  x_0 given x_t is N(D, r_t^2 I). Exact for data N(m, s^2 I).
`moment_guided`          x_0 given x_t is N(D, (sigma^2 / alpha) dD/dx), its true first two
                         moments. Exact for every Gaussian; several times the cost, and
                         sensitive to errors of dD/dx, which a network has at high noise.
`dps`                    the same gradient, of a length that was found by trying: answers
                         come near y, and no posterior is behind their spread.
`replacement`            what is seen of x_t is drawn anew from p(y_t | y). The rest never
                         hears of y itself, only of its noised versions one by one: biased
                         towards the prior even with the exact denoiser, for any number of
                         steps. Of data N(0, [[1, c], [c, 1]]) with x_1 = y seen, the mean of
                         x_2 is y (1 - sqrt(1 - c^2)) / c in place of c y.
`repaint`                replacement with each step taken several times, noise being added
                         in between: the bias shrinks as the number grows.

The first two make a denoiser of a denoiser, for all of `samplers.SAMPLERS`; the others are
samplers. `operator` is an `operators.Operator`, y `[B, h, w, c]` is in the space of x_0.
"""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float

from jaxgen import _checks, operators, schedules
from jaxgen.samplers import steps
from jaxgen.samplers.steps import Chain, Denoise, Examples, Keys, Level, Memory, Times

Method = Literal["moments", "pseudo_inverse", "dps", "repaint", "replacement"]
RESAMPLES = 10  # of `repaint`
STEP_SIZE = 1.0  # of `dps`
Seen = Float[ArrayLike, " B *seen"]


def pseudo_inverse_guided(
    denoise: Denoise,
    operator: operators.Operator,
    y: Seen,
    *,
    schedule: schedules.Schedule,
    scale: ArrayLike = 1.0,
    noise_std: float = 0.0,
) -> Denoise:
    """The denoiser given y, as if x_0 given x_t were N(D, r_t^2 I).

    D + (sigma^2 / alpha) J^T A^T (r_t^2 A A^T + noise_std^2 I)^-1 (y - A D) with J = dD/dx
    and r_t^2 = scale^2 sigma^2 / (alpha^2 scale^2 + sigma^2), which for alpha = scale = 1 is
    sigma^2 / (1 + sigma^2). Exact for data N(m, scale^2 I). Of correlated data the gradient
    is too long at high noise. Where alpha = 0, y is not heard of.

    Args:
        denoise: x `[B, ...]` and t, a scalar, to the estimate of x_0.
        operator: A.
        y: What is seen, `[B, ...]`.
        schedule: Whose times t are.
        scale: Standard deviation of the data, about their mean.
        noise_std: Of Gaussian noise in y; 0 for none.

    Returns:
        A denoiser of the same batch of examples. One call, and its transpose.

    Raises:
        ValueError: (when called) if y has not the shape of A x; or if noise_std is negative.

    References:
        Song, Vahdat, Mardani & Kautz 2023, Pseudoinverse-Guided Diffusion Models for
        Inverse Problems, ICLR, openreview.net/forum?id=9_gsMA8MRKQ; here as Bayes' rule has
        the gradient, without further weights.
    """
    name = "pseudo_inverse_guided"
    _check_noise(name, noise_std)

    def guided(x: Array, t: Array) -> Array:
        x0, pull = jax.vjp(lambda x: denoise(x, t), x)
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        seen, spread = jnp.asarray(alpha) > 0, jnp.asarray(scale) ** 2
        variance = alpha**2 * spread + sigma**2
        # sigma^2 gram / (r_t^2 gram + noise_std^2), so written that sigma may be 0.
        length = variance / spread
        if noise_std > 0:
            heard = operator.gram * sigma**2
            length = heard * variance / (spread * heard + noise_std**2 * variance)
        length = jnp.where(seen, length / jnp.where(seen, alpha, 1), 0)
        missing = operator.pseudo_inverse(_missing(name, operator, y, x0))
        return x0 + length.astype(x.dtype) * pull(missing)[0]

    return guided


def moment_guided(
    denoise: Denoise,
    operator: operators.Operator,
    y: Seen,
    *,
    schedule: schedules.Schedule,
    noise_std: float = 0.0,
    iterations: int = 5,
) -> Denoise:
    """The denoiser given y, as if x_0 given x_t were N(D, C), its own first two moments.

    D + C A^T (A C A^T + noise_std^2 I)^-1 (y - A D) with C = (sigma^2 / alpha) J^T, the
    covariance of x_0 given x_t by Tweedie's formula. The system is solved by conjugate
    gradients, each example by itself; as many iterations as y has numbers are exact.

    Args:
        denoise: As in `pseudo_inverse_guided`.
        operator: A.
        y: As there.
        schedule: As there.
        noise_std: As there.
        iterations: Of conjugate gradients, a transpose of the denoiser each.

    Returns:
        A denoiser of the same batch of examples.

    Raises:
        ValueError: as there, or if iterations is below 1.

    References:
        Rozet et al. 2024 (moment matching posterior sampling), arXiv:2405.13712.
    """
    name = "moment_guided"
    _check_noise(name, noise_std)
    _checks.check_positive(name, iterations=iterations)

    def guided(x: Array, t: Array) -> Array:
        x0, pull = jax.vjp(lambda x: denoise(x, t), x)
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        seen = jnp.asarray(alpha) > 0
        factor = jnp.where(seen, sigma**2 / jnp.where(seen, alpha, 1), 0)

        def spread(u: Array) -> Array:
            """C A^T u."""
            return factor.astype(x.dtype) * pull(operator.adjoint(u))[0]

        def system(u: Array) -> Array:
            return operator.apply(spread(u)) + noise_std**2 * u

        missing = _missing(name, operator, y, x0)
        return x0 + spread(_conjugate_gradients(system, missing, iterations))

    return guided


def dps(
    denoise: Denoise,
    x: Examples,
    keys: Keys,
    *,
    operator: operators.Operator,
    y: Seen,
    schedule: schedules.Schedule,
    times: Times,
    keep: bool = False,
    step_size: float = STEP_SIZE,
) -> Chain:
    """Diffusion posterior sampling: after each step of `ddpm` one towards y.

    It is step_size times -grad |y - A D(x_t)|, x being scaled to alpha^2 + sigma^2 = 1, so
    that it is the same along every schedule. With A A^T = gram I it points where
    `pseudo_inverse_guided` points, whose length is right for Gaussian data of one variance;
    this one's is right for no data, and the number of steps is a part of it: it was chosen
    for 1000.

    Args:
        denoise: As in `samplers.ddpm`.
        x: Noise of the level times[0], `[B, ...]`.
        keys: One per example, `[B]`.
        operator: A.
        y: What is seen, `[B, ...]`.
        schedule: alpha and sigma.
        times: Decreasing, `[N]`.
        keep: Whether to keep the estimates of all steps.
        step_size: zeta; more agrees better with y, and too much with nothing else.

    Returns:
        `Chain`, ended by the estimate at times[-1]. N calls, and their transposes.

    Raises:
        ValueError: as `samplers.ddpm`; if y has not the shape of A x.

    References:
        Chung et al. 2023, arXiv:2209.14687.
    """
    ancestral = steps.ancestral(steps.given("dps", keys), steps.noise_std)

    def step(
        denoise: Denoise, x: Array, memory: Memory, here: Level, there: Level
    ) -> tuple[Array, Memory]:
        x0, pull = jax.vjp(lambda x: denoise(x, here.t), x)
        missing = _missing("dps", operator, y, x0)
        distance = jnp.sqrt(_dot(missing, missing))
        unit = missing / jnp.where(distance > 0, distance, 1)
        norms = jnp.hypot(here.alpha, here.sigma) * jnp.hypot(there.alpha, there.sigma)
        towards = norms * pull(operator.adjoint(unit))[0]
        x, memory = ancestral(lambda x, t: x0, x, memory, here, there)
        return x + step_size * towards, memory

    return steps.run("dps", step, denoise, x, schedule, times, clean=True, keep=keep)


def repaint(
    denoise: Denoise,
    x: Examples,
    keys: Keys,
    *,
    operator: operators.Operator,
    y: Seen,
    schedule: schedules.Schedule,
    times: Times,
    keep: bool = False,
    resamples: int = RESAMPLES,
) -> Chain:
    """RePaint: `replacement` with each step taken several times, to harmonise.

    Before each step of `ddpm` what is seen of x is replaced by alpha y + sigma eps; after
    all but the last of them x is noised back to where the step began. The way back is one
    step of the grid (their jump length 1).

    Args:
        denoise: As in `dps`, like all but the last.
        x: `[B, ...]`.
        keys: `[B]`.
        operator: A.
        y: Without noise, `[B, ...]`.
        schedule: alpha and sigma.
        times: Decreasing, `[N]`.
        keep: As there.
        resamples: How often each step is taken; 1 is `replacement`.

    Returns:
        `Chain`, whose x agrees with y. resamples (N - 1) + 1 calls.

    Raises:
        ValueError: as `samplers.ddpm`; if y has not the shape of A x, or resamples is below 1.

    References:
        Lugmayr et al. 2022, arXiv:2201.09865.
    """
    _checks.check_positive("repaint", resamples=resamples)
    keys = steps.given("repaint", keys)
    for_seen, for_step, for_back = jax.vmap(
        lambda key: jax.random.split(key, 3), out_axes=1
    )(keys)

    def replaced(x: Array, level: Level, number: ArrayLike) -> Array:
        """With what is seen of it drawn anew."""
        noise = steps.noise(_numbered(for_seen, number), level, x)
        missing = _missing("repaint", operator, y, x, level.alpha)
        noise = level.sigma * operator.apply(noise)
        return x + operator.pseudo_inverse(missing + noise)

    def step(
        denoise: Denoise, x: Array, memory: Memory, here: Level, there: Level
    ) -> tuple[Array, Memory]:
        share = steps.new_share(here, there)

        def once(number: Array, carry: tuple[Array, Memory]) -> tuple[Array, Memory]:
            x, memory = carry
            noise = steps.noise(_numbered(for_back, number), here, x)
            back = here.alpha / there.alpha * x
            back = back + here.sigma * jnp.sqrt(share) * noise
            x = jnp.where(number > 0, replaced(back, here, number), x)
            ancestral = steps.ancestral(_numbered(for_step, number), steps.noise_std)
            return ancestral(denoise, x, memory, here, there)

        return jax.lax.fori_loop(0, resamples, once, (x, memory))

    def before(x: Array, level: Level) -> tuple[Array, Level]:
        return replaced(x, level, 0), level

    options = {"clean": True, "keep": keep, "before": before}
    chain = steps.run("repaint", step, denoise, x, schedule, times, **options)
    return chain._replace(x=operators.consistent(operator, chain.x, jnp.asarray(y)))


def replacement(
    denoise: Denoise,
    x: Examples,
    keys: Keys,
    *,
    operator: operators.Operator,
    y: Seen,
    schedule: schedules.Schedule,
    times: Times,
    keep: bool = False,
) -> Chain:
    """What is seen of x_t replaced before each step: `repaint` with one resample.

    Takes, returns and raises what that does. Known to be biased, as the module tells: to be
    compared with.

    References:
        Song et al. 2021 (imputation), arXiv:2011.13456.
    """
    options = {"operator": operator, "y": y, "schedule": schedule, "times": times}
    return repaint(denoise, x, keys, keep=keep, resamples=1, **options)


def _missing(
    name: str,
    operator: operators.Operator,
    y: ArrayLike,
    x0: Array,
    of: ArrayLike = 1.0,
) -> Array:
    """Of y what the estimate does not have, of * y - A x0; ValueError if it cannot be."""
    seen, y = operator.apply(x0), jnp.asarray(y, x0.dtype)
    _checks.check_same_shape(name, y=y, seen=seen)
    # Of y only what can be seen: what lies under a mask says nothing.
    y = operator.apply(operator.pseudo_inverse(y))
    return jnp.asarray(of, x0.dtype) * y - seen


def _check_noise(name: str, noise_std: float) -> None:
    if noise_std < 0:
        raise ValueError(f"{name}: noise_std must not be negative, got {noise_std}.")


def _numbered(keys: Array, number: ArrayLike) -> Array:
    return jax.vmap(jax.random.fold_in, (0, None))(keys, number)


def _dot(a: Array, b: Array) -> Array:
    """Of each example, `[B, 1, ...]`."""
    return jnp.sum(a * b, axis=tuple(range(1, a.ndim)), keepdims=True)


def _conjugate_gradients(
    system: Callable[[Array], Array], b: Array, iterations: int
) -> Array:
    """The solution of system(u) = b, each example by itself; it stays where no way leads on."""

    def ratio(above: Array, below: Array) -> Array:
        return jnp.where(below > 0, above / jnp.where(below > 0, below, 1), 0)

    def step(_: Array, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        u, rest, way = state
        bent, squared = system(way), _dot(rest, rest)
        length = ratio(squared, _dot(way, bent))
        u, rest = u + length * way, rest - length * bent
        return u, rest, rest + ratio(_dot(rest, rest), squared) * way

    return jax.lax.fori_loop(0, iterations, step, (jnp.zeros_like(b), b, b))[0]
