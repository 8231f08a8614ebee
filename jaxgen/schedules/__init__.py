"""Noise schedules: how x_t = alpha(t) x_0 + sigma(t) eps goes from data to noise.

t is in [0, 1], 0 is data and 1 is noise, for every schedule; what one of them does at
time t another does at another time and another scale, and `log_snr`, the log of alpha^2
/ sigma^2, is what they have in common. A schedule is a frozen dataclass of numbers with
four methods, and a time grid is a decreasing array of times for a sampler:

    schedule = SCHEDULES["edm"]()
    times = karras_times(schedule, 18)                                  # 80 .. 0.002
    x_t = schedule.alpha(t) * x0 + schedule.sigma(t) * eps
"""

from jaxgen.schedules.fixed import (
    DDPM,
    EDM,
    SCHEDULES,
    Cosine,
    GeometricVE,
    RectifiedFlow,
    Schedule,
    cosine_betas,
)
from jaxgen.schedules.grids import (
    drift_and_diffusion,
    karras_times,
    respaced_times,
    uniform_times,
)
from jaxgen.schedules.learned import LearnedGamma

__all__ = [
    "DDPM",
    "EDM",
    "SCHEDULES",
    "Cosine",
    "GeometricVE",
    "LearnedGamma",
    "RectifiedFlow",
    "Schedule",
    "cosine_betas",
    "drift_and_diffusion",
    "karras_times",
    "respaced_times",
    "uniform_times",
]
