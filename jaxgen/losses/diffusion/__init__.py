"""Losses of denoising diffusion: targets, weightings and times.

With x_t = alpha x_0 + sigma eps a network is trained to undo the noise. Whatever it
gives, eps or a velocity, is one estimate of x_0, the mean of x_0 given x_t when trained
well, and all losses are weights on the squared error of that, as functions of the log
signal-to-noise ratio. Sums over the event axes, one value per example, `[B]`. For
anybody's `network`, and any schedule of `jaxgen.schedules`:

    u = diffusion.stratified_levels(key, index)                         # [B]
    t = diffusion.logit_normal_time(u)
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    x_t = diffusion.noised(x0, eps, alpha, sigma)
    x0_hat = diffusion.to_x0(network(x_t, t), x_t, alpha, sigma, target="v")
    loss = diffusion.denoising_loss(
        x0, x0_hat, schedule.log_snr(t), weighting="min_snr", target="v"
    )

The variational bound of log p(x) is `variational_bound`.
"""

from jaxgen.losses.diffusion.bound import (
    BoundTerms,
    levels_reconstruction,
    variational_bound,
)
from jaxgen.losses.diffusion.levels import (
    antithetic_levels,
    log_normal_sigma,
    logit_normal_time,
    stratified_levels,
    uniform_levels,
)
from jaxgen.losses.diffusion.targets import (
    TARGETS,
    check_target,
    edm_input_scale,
    from_x0,
    noised,
    score_to_x0,
    to_x0,
    x0_to_score,
)
from jaxgen.losses.diffusion.weights import WEIGHTINGS, denoising_loss, loss_weight

__all__ = [
    "TARGETS",
    "WEIGHTINGS",
    "BoundTerms",
    "antithetic_levels",
    "check_target",
    "denoising_loss",
    "edm_input_scale",
    "from_x0",
    "levels_reconstruction",
    "log_normal_sigma",
    "logit_normal_time",
    "loss_weight",
    "noised",
    "score_to_x0",
    "stratified_levels",
    "to_x0",
    "uniform_levels",
    "variational_bound",
    "x0_to_score",
]
