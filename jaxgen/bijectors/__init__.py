"""Bijectors: invertible maps between data and latent, with their log-determinants.

A normalizing flow is a chain of them: with z = f(x) and a known prior of z,

    log p(x) = log p_z(f(x)) + log |det df/dx|.

Every one is a `Bijector` of three pure functions. The two ways have the names of where
they lead, `to_latent` and `to_data`, as "forward" means one in half of the libraries and
the other in the rest:

    flow = bijectors.scan_chain(bijectors.chain(bijectors.actnorm(), ...), depth=8)
    params = flow.init(key, x)
    z, log_det = flow.to_latent(params, x)
    x, log_det = flow.to_data(params, z)

Networks are the user's own: see `Network` and `CausalNetwork`. Rezende & Mohamed 2015,
arXiv:1505.05770; Papamakarios et al. 2021, arXiv:1912.02762.
"""

from jaxgen.bijectors.base import (
    Bijector,
    chain,
    inverted,
    no_change,
    scan_chain,
    without_params,
)
from jaxgen.bijectors.bounded import circular, exponential, logit, softplus
from jaxgen.bijectors.causal import CausalNetwork, causal
from jaxgen.bijectors.conditional import (
    Network,
    autoregressive,
    checkerboard,
    coupling,
    elementwise,
    masked_coupling,
    told,
)
from jaxgen.bijectors.linear import (
    actnorm,
    invertible_linear,
    permutation,
    rescale,
    reverse,
)
from jaxgen.bijectors.shapes import flatten, reshape, split, squeeze
from jaxgen.bijectors.splines import Spline, evaluate, invert, spline
from jaxgen.bijectors.transforms import Transform, affine, rational_quadratic

__all__ = [
    "Bijector",
    "CausalNetwork",
    "Network",
    "Spline",
    "Transform",
    "actnorm",
    "affine",
    "autoregressive",
    "causal",
    "chain",
    "checkerboard",
    "circular",
    "coupling",
    "elementwise",
    "evaluate",
    "exponential",
    "flatten",
    "inverted",
    "invert",
    "invertible_linear",
    "logit",
    "masked_coupling",
    "no_change",
    "permutation",
    "rational_quadratic",
    "rescale",
    "reshape",
    "reverse",
    "scan_chain",
    "softplus",
    "spline",
    "split",
    "squeeze",
    "told",
    "without_params",
]
