"""What keeps a discriminator smooth: penalties of its slope, and spectral normalisation.

A critic is a function `x [B, ...] -> [B]` that judges each example by itself. Its slope at
x is the gradient of its logit in x; squares are summed over the axes of an example, so a
penalty depends on the range of the data: the published weights are for [-1, 1].
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.extend import core as jex
from jaxtyping import Float, Key

from jaxgen import _checks

Critic = Callable[[Array], Array]
Examples = Float[Array, " B *event"]
PerExample = Float[Array, " B"]


def logits_and_slopes(
    critic: Critic, x: Examples, *, checked: bool = True
) -> tuple[PerExample, PerExample]:
    """A critic's logits, and |dD/dx|^2 of each example, by one pass.

    The mean of the latter is R1 where x are data, R2 where they are samples; the penalty
    is gamma / 2 times it.

    Args:
        critic: `x [B, ...] -> [B]`.
        x: `[B, ...]`.
        checked: Whether a critic that couples examples is looked for; leave it out where
            it is known to be none.

    Raises:
        ValueError: if the critic couples examples: the gradient of its sum is then not
            the gradient of each.

    References:
        Mescheder et al. 2018, equation 9, arXiv:1801.04406.
    """
    if checked:
        check_uncoupled("logits_and_slopes", critic, x)
    logits, pull = jax.vjp(critic, x)
    (gradient,) = pull(jnp.ones_like(logits))
    return logits, _checks.sum_per_example(gradient**2)


def squared_slope(critic: Critic, x: Examples) -> PerExample:
    """The second part of `logits_and_slopes`."""
    check_uncoupled("squared_slope", critic, x)
    return logits_and_slopes(critic, x, checked=False)[1]


def estimated_squared_slope(
    critic: Critic,
    x: Examples,
    keys: Key[Array, " B"],
    *,
    deviation: float = 0.01,
    checked: bool = True,
) -> PerExample:
    """`squared_slope` from one step of noise, without a second derivative.

    (D(x + s eps) - D(x))^2 / s^2 with eps ~ N(0, I): of a linear critic its mean is the
    squared slope; one draw deviates by sqrt(2) times that.

    Args:
        critic: `x [B, ...] -> [B]`.
        x: `[B, ...]`.
        keys: One for each example.
        deviation: s, in units of x.
        checked: As in `logits_and_slopes`.

    Raises:
        ValueError: if the critic couples examples.

    References:
        Lin et al. 2025 (APT), arXiv:2501.08316.
    """
    _checks.check_positive("estimated_squared_slope", deviation=deviation)
    if checked:
        check_uncoupled("estimated_squared_slope", critic, x)
    draw = jax.vmap(lambda key: jax.random.normal(key, x.shape[1:], x.dtype))
    step = critic(x + deviation * draw(keys)) - critic(x)
    return (step / deviation) ** 2


def slope_deviation(
    critic: Critic,
    real: Examples,
    fake: Examples,
    keys: Key[Array, " B"],
    *,
    checked: bool = True,
) -> PerExample:
    """(|dD/dx| - 1)^2 between data and samples, at one random place for each pair.

    The penalty is 10 times the mean of it. Where a critic is constant the value is 1, and
    its gradient 0, not NaN.

    Args:
        critic: `x [B, ...] -> [B]`.
        real: Data, `[B, ...]`.
        fake: Samples, of the same shape.
        keys: One for each pair.
        checked: As in `logits_and_slopes`.

    Raises:
        ValueError: if the critic couples examples, or the shapes differ.

    References:
        Gulrajani et al. 2017, equation 3, arXiv:1704.00028.
    """
    _checks.check_same_shape("slope_deviation", real=real, fake=fake)
    share = jax.vmap(jax.random.uniform)(keys).astype(real.dtype)
    share = share.reshape(-1, *(1,) * (real.ndim - 1))
    between = real + share * (fake - real)
    if checked:
        check_uncoupled("slope_deviation", critic, between)
    _, square = logits_and_slopes(critic, between, checked=False)
    steep = square > 0
    return (jnp.where(steep, jnp.sqrt(jnp.where(steep, square, 1)), 0) - 1) ** 2


def check_uncoupled(function: str, critic: Critic, x: Examples) -> None:
    """Raises ValueError if what a critic says of one example depends on the others.

    Found out when the program is traced: its parameters replaced by random ones, a NaN in
    the other examples must not reach the first. That compiles the critic once a call.
    """
    if x.shape[0] < 2:
        return
    traced = jax.make_jaxpr(critic)(x)
    with jax.ensure_compile_time_eval(), jax.debug_nans(new_val=False):
        rng = np.random.default_rng(0)

        def filled(like: Array) -> Array:
            if not jnp.issubdtype(like.dtype, jnp.floating):
                return jnp.zeros(like.shape, like.dtype)
            return jnp.asarray(0.1 * rng.standard_normal(like.shape), like.dtype)

        consts = [
            c if _checks.concrete(c) is not None else filled(c) for c in traced.consts
        ]
        program = jex.jaxpr_as_fun(jex.ClosedJaxpr(traced.jaxpr, consts))
        said = jax.jit(program)(filled(x).at[1:].set(jnp.nan))[0]
    if not np.isfinite(np.asarray(said)[0]):
        raise ValueError(
            f"{function}: critic must judge each example by itself, but its first value "
            "depends on other examples; leave out what looks at the batch (batch "
            "normalisation, deviations over the batch)."
        )


def spectral_norm(
    kernel: Float[Array, "*inputs outputs"],
    u: Float[Array, " outputs"],
    *,
    num_steps: int = 1,
) -> tuple[Float[Array, ""], Float[Array, " outputs"]]:
    """The largest singular value of a kernel, and the next vector of power iteration.

    Divide the kernel by it, and carry the vector. The estimate is differentiable in the
    kernel with both vectors held fixed; its error falls as (s2 / s1)^(2 steps).

    Args:
        kernel: `[..., outputs]`, read as a matrix.
        u: The vector so far, not zero.
        num_steps: Of power iteration, at least 1.

    References:
        Miyato et al. 2018, algorithm 1, arXiv:1802.05957.
    """
    matrix = kernel.reshape(-1, kernel.shape[-1])
    fixed, u = jax.lax.stop_gradient((matrix, u))
    v = jnp.zeros(matrix.shape[0], matrix.dtype)
    for _ in range(num_steps):
        v = _unit(fixed @ u)
        u = _unit(v @ fixed)
    return v @ matrix @ u, u


def _unit(x: Array) -> Array:
    return x / jnp.maximum(jnp.linalg.norm(x), jnp.finfo(x.dtype).tiny)
