"""The weighted squared error, and its weights as functions of the noise."""

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float, Real

from jaxgen import _checks
from jaxgen.losses.diffusion.targets import TARGETS, Examples

WEIGHTINGS = ("simple", "min_snr", "edm", "sigmoid", "vlb")

PerExample = Float[ArrayLike, " B"]


def loss_weight(
    log_snr: PerExample,
    *,
    weighting: str,
    target: str = "x0",
    sigma_data: Real[ArrayLike, ""] = 1.0,
    gamma: float = 5.0,
    bias: float = 0.0,
) -> Float[Array, " B"]:
    """The weight of |x_0 - x0_hat|^2, with SNR = exp(log_snr).

    - "simple": 1 for the squared error of the target itself. That is 1 for "x0", SNR
      for "eps", SNR + 1 for "v", (1 + sqrt SNR)^2 for "velocity", SNR + 1 /
      sigma_data^2 for "edm".
    - "min_snr": min(SNR, gamma), for any target.
    - "edm": SNR + 1 / sigma_data^2, for any target.
    - "vlb": SNR / 2, the variational bound, and "sigmoid": that of SiD2, exp(bias)
      sigmoid(log_snr - bias) / 2. Both for log_snr drawn uniformly: divide by its
      density where it is not.

    Args:
        log_snr: log(alpha^2 / sigma^2), `[B]`.
        weighting: As above.
        target: As in `to_x0`; for "simple".
        sigma_data: Standard deviation of x_0; for "edm" and "simple".
        gamma: Where "min_snr" cuts.
        bias: Where "sigmoid" turns: the log_snr above which details are not paid for,
            lower for larger images.

    Returns:
        `[B]`.

    Raises:
        ValueError: if a name is unknown, a number not positive or an array not `[B]`.

    References:
        Ho et al. 2020, equation 14, arXiv:2006.11239; Hang et al. 2023, section 3.4,
        arXiv:2303.09556; Karras et al. 2022, table 1, arXiv:2206.00364; Hoogeboom et
        al. 2024, section 3.1, arXiv:2410.19324; Kingma & Gao 2023, arXiv:2303.00848.
    """
    name = "loss_weight"
    _checks.check_in(name, "weighting", weighting, WEIGHTINGS)
    _checks.check_in(name, "target", target, TARGETS)
    _checks.check_axes(name, "[B]", log_snr=log_snr)
    _checks.check_positive(name, sigma_data=sigma_data, gamma=gamma)
    (log_snr,) = _checks.to_float(log_snr)
    if weighting == "min_snr":
        return jnp.minimum(jnp.exp(log_snr), gamma)
    if weighting == "sigmoid":
        return 0.5 * jnp.exp(bias) * jax.nn.sigmoid(log_snr - bias)
    if weighting == "vlb":
        return 0.5 * jnp.exp(log_snr)
    if target == "x0" and weighting == "simple":
        return jnp.ones_like(log_snr)
    if target == "velocity" and weighting == "simple":
        return jnp.square(1 + jnp.exp(0.5 * log_snr))
    offsets = {"eps": 0.0, "v": 1.0}
    edm = weighting == "edm" or target == "edm"
    return jnp.exp(log_snr) + (sigma_data**-2 if edm else offsets[target])


def denoising_loss(
    x0: Examples,
    x0_hat: Examples,
    log_snr: PerExample,
    *,
    weighting: str,
    target: str = "x0",
    sigma_data: Real[ArrayLike, ""] = 1.0,
    gamma: float = 5.0,
    bias: float = 0.0,
) -> Float[Array, " B"]:
    """The training loss of a denoiser: its weighted squared error.

    Args:
        x0: Data, `[B, ...]`.
        x0_hat: The network's estimate of it by `to_x0`, same shape.
        log_snr: log(alpha^2 / sigma^2) of the noise on it, `[B]`.
        weighting: As in `loss_weight`, and all that follows.
        target: As there.
        sigma_data: As there.
        gamma: As there.
        bias: As there.

    Returns:
        `[B]`, summed over the event axes; least for the mean of x_0 given x_t under
        every weighting.

    Raises:
        ValueError: if the shapes do not fit, or as in `loss_weight`.
    """
    x0, x0_hat = _checks.example_floats("denoising_loss", x0=x0, x0_hat=x0_hat)
    weight = loss_weight(
        log_snr,
        weighting=weighting,
        target=target,
        sigma_data=sigma_data,
        gamma=gamma,
        bias=bias,
    )
    error = _checks.sum_per_example(jnp.square(x0 - x0_hat))
    _checks.check_same_shape("denoising_loss", error=error, log_snr=weight)
    return weight * error
