"""Losses of generative adversarial networks: what each of two players pays.

A discriminator tells data from samples by a number D(x) for each, its logit; a generator
learns to be taken for data. Every function here takes the logits of real and of fake
examples and says what both players pay, per example. The one who differentiates does so
in the parameters of one player, with the other's frozen.

With densities p of data and q of samples the best discriminator has D = log p - log q
(minimax, non-saturating), p / (p + q) (least squares), sign(p - q) (hinge).

Goodfellow et al. 2014, arXiv:1406.2661; Lucic et al. 2018, arXiv:1711.10337.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float

from jaxgen import _checks

Logits = Float[ArrayLike, " B"]
PerExample = Float[Array, " B"]


class Payoff(NamedTuple):
    """What the players pay, in nats where logits are log odds.

    Attributes:
        discriminator: `[B]`, to be minimised in the discriminator's parameters.
        generator: `[B]`, to be minimised in the generator's.
    """

    discriminator: PerExample
    generator: PerExample


def minimax(real: Logits, fake: Logits) -> Payoff:
    """The game of zero sum: -log sigmoid(D(x)) - log(1 - sigmoid(D(G(z)))).

    At the best discriminator it costs log 4 - 2 JSD(p, q); where samples are told from
    data for certain the generator learns nothing.

    Args:
        real: D of data, `[B]`.
        fake: D of samples, `[B]`.

    References:
        Goodfellow et al. 2014, equation 1, arXiv:1406.2661.
    """
    real, fake = _logits("minimax", real, fake)
    against = jax.nn.softplus(fake)
    return Payoff(jax.nn.softplus(-real) + against, -against)


def non_saturating(real: Logits, fake: Logits) -> Payoff:
    """As `minimax`, but the generator pays -log sigmoid(D(G(z))).

    References:
        Goodfellow et al. 2014, section 3, arXiv:1406.2661.
    """
    real, fake = _logits("non_saturating", real, fake)
    paid = jax.nn.softplus(-real) + jax.nn.softplus(fake)
    return Payoff(paid, jax.nn.softplus(-fake))


def least_squares(real: Logits, fake: Logits) -> Payoff:
    """Half the squared distances of raw D to 1 for data and to 0 for samples.

    References:
        Mao et al. 2017, equation 9, arXiv:1611.04076.
    """
    real, fake = _logits("least_squares", real, fake)
    return Payoff(0.5 * (real - 1) ** 2 + 0.5 * fake**2, 0.5 * (fake - 1) ** 2)


def hinge(real: Logits, fake: Logits) -> Payoff:
    """max(0, 1 - D(x)) + max(0, 1 + D(G(z))), and -D(G(z)) for the generator.

    References:
        Lim & Ye 2017, arXiv:1705.02894; Miyato et al. 2018, equations 16 and 17,
        arXiv:1802.05957.
    """
    real, fake = _logits("hinge", real, fake)
    return Payoff(jax.nn.relu(1 - real) + jax.nn.relu(1 + fake), -fake)


def wasserstein(real: Logits, fake: Logits) -> Payoff:
    """D(G(z)) - D(x): the distance that a critic of slope 1 sees, with its sign changed.

    References:
        Arjovsky et al. 2017, equation 2, arXiv:1701.07875.
    """
    real, fake = _logits("wasserstein", real, fake)
    return Payoff(fake - real, -fake)


def relativistic(real: Logits, fake: Logits) -> Payoff:
    """Each sample against one example of the data: softplus(D(G(z)) - D(x)).

    The generator pays the same with the parts exchanged; both pay log 2 where nothing is
    told apart, and neither notices what is added to D.

    References:
        Jolicoeur-Martineau 2018, arXiv:1807.00734 (RpGAN); Huang et al. 2025,
        arXiv:2501.05441.
    """
    real, fake = _logits("relativistic", real, fake)
    return Payoff(jax.nn.softplus(fake - real), jax.nn.softplus(real - fake))


GAMES: dict[str, Callable[[Logits, Logits], Payoff]] = {
    "minimax": minimax,
    "non_saturating": non_saturating,
    "least_squares": least_squares,
    "hinge": hinge,
    "wasserstein": wasserstein,
    "relativistic": relativistic,
}


def _logits(function: str, real: Logits, fake: Logits) -> tuple[Array, Array]:
    _checks.check_axes(function, "[B]", real=real, fake=fake)
    _checks.check_same_shape(function, real=real, fake=fake)
    real, fake = _checks.to_float(real, fake)
    return real, fake
