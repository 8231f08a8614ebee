"""How many modes of data samples have, where the modes are known."""

from typing import Any

import numpy as np

WITHIN = 3.0  # standard deviations of a mode, to be called good


def near_centres(
    samples: np.ndarray, centres: np.ndarray, deviation: float
) -> dict[str, Any]:
    """Modes of an even mixture of equal round Gaussians.

    Args:
        samples: `[N, D]`.
        centres: `[K, D]`.
        deviation: Of each Gaussian.

    Returns:
        What `of_labels` tells, a good sample's mode being the nearest centre; and
        `good_share`: of samples within 3 standard deviations of one. In two dimensions a
        perfect sampler has 0.989.
    """
    away = np.linalg.norm(samples[:, None] - centres[None], axis=2)
    is_good = away.min(axis=1) <= WITHIN * deviation
    told = of_labels(away.argmin(axis=1)[is_good], len(centres))
    return {"good_share": float(is_good.mean()), **told}


def of_labels(
    labels: np.ndarray, num_modes: int, probabilities: np.ndarray | None = None
) -> dict[str, Any]:
    """Modes of data whose modes are known for each sample.

    Args:
        labels: The mode of each sample, `[N]` in 0 .. num_modes - 1.
        num_modes: K.
        probabilities: Of the modes, `[K]`, above 0; None where they are equally likely.

    Returns:
        `modes`: how many have a sample; `reverse_kl`: KL(samples || data) of the modes'
        shares, in nats. A perfect sampler has about (K - 1) / 2 N, told as
        `reverse_kl_floor`; of no sample at all it is infinite.
    """
    counts = np.bincount(labels, minlength=num_modes)
    num = len(labels)
    if not num:
        return {"modes": 0, "reverse_kl": np.inf, "reverse_kl_floor": np.inf}
    if probabilities is None:
        probabilities = np.full(num_modes, 1 / num_modes)
    seen = counts > 0
    shares = counts[seen] / num
    return {
        "modes": int(np.sum(seen)),
        "reverse_kl": float(np.sum(shares * np.log(shares / probabilities[seen]))),
        "reverse_kl_floor": (num_modes - 1) / (2 * num),
    }
