"""Samplers of diffusion models: from noise to data in the steps of a time grid.

With x_t = alpha(t) x_0 + sigma(t) eps, t from 0 (data) to 1 (noise), all that a sampler
asks of a model is its estimate of x_0, `denoise(x [B, ...], t) -> [B, ...]`, t a 0-d
array. A step from t to s puts x0 = denoise(x_t, t) and eps = (x_t - alpha_t x0) / sigma_t
together anew at the level s. One signature serves all:

    times = schedules.karras_times(schedule, 18)
    chain = samplers.heun(denoise, x, keys, schedule=schedule, times=times)

`x` is noise of the level times[0], where alpha may be 0. `keys` is one key per example,
whose noise so does not depend on the batch it is in; samplers without noise take None.
Step i goes from times[i] to times[i + 1]. With `clean` one more step goes from times[-1]
to alpha = 1, sigma = 0, where x is the estimate itself; without it the chain ends at
times[-1], where sigma may be 0 then. With `keep` the chain holds the estimates of all
steps, for a film strip. N times cost N calls of `denoise`, with `heun` and `stochastic`
2 N - 1; the time to compile does not grow with N.

`jaxgen.samplers.masked.revealed` is the sampler of masked diffusion, of tokens.
`jaxgen.samplers.conditional` has those of x given a part of it, y = A x, and tells what
each of them takes for the truth: `pseudo_inverse_guided` and `moment_guided` make such a
denoiser of one that knows of no y, `dps`, `replacement` and `repaint` are samplers.
"""

from jaxgen.samplers.conditional import (
    dps,
    moment_guided,
    pseudo_inverse_guided,
    repaint,
    replacement,
)
from jaxgen.samplers.methods import (
    SAMPLERS,
    ddim,
    ddpm,
    dpmpp_2m,
    euler,
    guided,
    heun,
    invert,
    stochastic,
)
from jaxgen.samplers.steps import Chain, Denoise

__all__ = [
    "SAMPLERS",
    "Chain",
    "Denoise",
    "ddim",
    "ddpm",
    "dpmpp_2m",
    "dps",
    "euler",
    "guided",
    "heun",
    "invert",
    "moment_guided",
    "pseudo_inverse_guided",
    "repaint",
    "replacement",
    "stochastic",
]
