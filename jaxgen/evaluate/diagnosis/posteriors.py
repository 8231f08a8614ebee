"""What a set of Gaussian posteriors Q(z given x) tells, on the host in float64.

Every function takes the encoder's means and log variances of N examples, `[N, L]`, or
draws of them; none knows a network. Of its own data a well fitted Q has, variable by
variable, Var mu_j + E sigma_j^2 = 1, used or not: the variance law.

References:
    Burda et al. 2015 (active units), arXiv:1509.00519. Asperti & Trentin 2020 (variance
    law), arXiv:2002.07514.
"""

import math
from typing import Any, NamedTuple

import numpy as np
from scipy import special

from jaxgen import _checks
from jaxgen.evaluate import distances

ACTIVE_VARIANCE = 0.01  # of mu_j, as Burda et al. count


class Information(NamedTuple):
    """How much z tells of which example x it was made of.

    Attributes:
        nats: The estimate, at most `ceiling`.
        ceiling: log N: of N examples no more can be told than which it was.
    """

    nats: float
    ceiling: float


def active(mu: Any) -> np.ndarray:
    """Which variables are used: those with a variance of mu_j above 0.01, `[L]`.

    Args:
        mu: Posterior means, `[N, L]`.

    References:
        Burda et al. 2015, arXiv:1509.00519.
    """
    (mu,) = distances.checked("active", mu=mu)
    return mu.var(axis=0) > ACTIVE_VARIANCE


def variance_law(mu: Any, log_var: Any) -> np.ndarray:
    """Var mu_j + E sigma_j^2 of each variable, `[L]`; 1 where Q(z) has P(z)'s variance.

    It is the variance of z_j over the data (law of total variance), and so takes sigma^2,
    not sigma.

    Args:
        mu: Posterior means, `[N, L]`.
        log_var: Log variances, same shape.

    Raises:
        ValueError: if the shapes differ, or a number is not finite.
    """
    mu, log_var = _posteriors("variance_law", mu, log_var)
    return mu.var(axis=0) + np.exp(log_var).mean(axis=0)


def mutual_information(z: Any, mu: Any, log_var: Any) -> Information:
    """I(x; z) under the N examples themselves: E log Q(z given x) - log Q(z), in nats.

    Q(z) is the mean of all N posteriors, the example's own among them. So it is 0 where
    all are the same and log N where none overlap, and what lies above log N cannot be
    seen: an estimate within a nat of the ceiling is a lower bound.

    Args:
        z: One draw of each posterior, `[N, L]`.
        mu: Their means, same shape.
        log_var: Their log variances, same shape.

    Raises:
        ValueError: if the shapes differ, or a number is not finite.

    References:
        Hoffman & Johnson 2016, "ELBO surgery".
    """
    mu, log_var = _posteriors("mutual_information", mu, log_var)
    (z,) = distances.checked("mutual_information", z=z)
    _checks.check_same_shape("mutual_information", z=z, mu=mu)
    centre = mu.mean(axis=0)
    z, mu = z - centre, mu - centre
    precision = np.exp(-log_var)
    constant = np.sum(log_var + mu**2 * precision, axis=1)
    total = 0.0
    for part in distances.chunks(len(z), len(z)):
        squares = z[part] ** 2 @ precision.T - 2 * z[part] @ (mu * precision).T
        table = -0.5 * (squares + constant)  # but for a constant, which cancels
        own = table[np.arange(len(table)), np.arange(len(z))[part]]
        total += float(np.sum(own - special.logsumexp(table, axis=1)))
    ceiling = math.log(len(z))
    return Information(total / len(z) + ceiling, ceiling)


def total_correlation(z: Any) -> float:
    """How far the variables are from independent, by second moments, in nats.

    KL(N(m, S) || N(m, diag S)) = (sum_j log S_jj - log det S) / 2 of the covariance S of
    the draws. N draws of independent variables have about L (L - 1) / 4 N.

    Args:
        z: `[N, L]`, N above L. A variable that never varies is left out.

    Raises:
        ValueError: if there are too few draws, or a number is not finite.

    References:
        Watanabe 1960, doi:10.1147/rd.41.0066.
    """
    (z,) = distances.checked("total_correlation", z=z)
    z = z[:, z.std(axis=0) > 0]
    num, dims = z.shape
    if num <= dims:
        raise ValueError(
            f"total_correlation: z must have more draws than variables, got {num} of "
            f"{dims}; give more draws."
        )
    if dims < 2:
        return 0.0
    _, log_det = np.linalg.slogdet(np.corrcoef(z.T))
    return max(0.0, -0.5 * float(log_det))


def _posteriors(function: str, mu: Any, log_var: Any) -> list[np.ndarray]:
    _checks.check_same_shape(function, mu=mu, log_var=log_var)
    return distances.checked(function, mu=mu, log_var=log_var)
