"""Normalizing flows of one architecture: its sizes, its data, and what is checked."""

import dataclasses
from typing import Literal

import numpy as np

EXAMPLES = 8192
CHECKED_EXAMPLES = 4  # whose densities are compared with numerical log-determinants
TRAINED_UPDATES = 128  # after which a side tells its loss


@dataclasses.dataclass(frozen=True, kw_only=True)
class FlowCase:
    """One flow in D dimensions; all sides have the same layers, widths and bins.

    A network has three hidden layers and silu. Those of jaxgen and nflows are a residual
    block of two after the first one, those of zuko and flowjax are plain: the matrices,
    and so the FLOPs, are the same.

    Attributes:
        net: Coupling by rational-quadratic splines, masked autoregression with affine
            transforms, or affine coupling.
        dim: D.
        num_layers: Transforms.
        hidden: Width of the hidden layers: zuko's default. With 128 the matrix products
            take most of the time, and jaxgen's gain over flowjax is small.
        num_bins: Of a spline.
        bound: Of its box.
        batch_size: Examples an update.
        sides: Who takes part, jaxgen first; flowjax-scan does many updates a call.
        parameters_apart: How far the numbers of parameters may differ, as a share of
            jaxgen's: flowjax's splines have two slopes more, those at the box's ends.
        devices: As which jaxgen counts the CPU: 1.
    """

    net: Literal["spline", "maf", "affine"]
    dim: int
    num_layers: int = 5
    hidden: int = 64
    num_bins: int = 8
    bound: float = 5.0
    batch_size: int = 256
    sides: tuple[str, ...] = (
        "jaxgen",
        "zuko",
        "zuko-compiled",
        "nflows",
        "nflows-compiled",
        "flowjax",
        "flowjax-scan",
    )
    parameters_apart: float = 0.0
    devices: int = 1

    def module(self, side: str) -> str:
        """Where the side's code stands."""
        library = side.split("-")[0]
        return {"jaxgen": "jax_flow", "flowjax": "jax_flowjax"}.get(
            library, "torch_flow"
        )

    def small(self) -> "FlowCase":
        """At smoke size."""
        return dataclasses.replace(
            self, dim=4, num_layers=2, hidden=8, batch_size=8, parameters_apart=0.1
        )

    def examples(self) -> np.ndarray:
        """`[N, D]`, each value bent by the one before, of mean 0 and deviation 1."""
        shape = EXAMPLES, self.dim
        x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
        for place in range(1, self.dim):
            x[:, place] = 0.6 * x[:, place] + 0.5 * (x[:, place - 1] ** 2 - 1)
            x[:, place] /= x[:, place].std()
        return (x - x.mean(0)) / x.std(0)


FLOW_CASES = {
    f"{net}-{dim}d": FlowCase(
        net=net, dim=dim, parameters_apart=0.07 if net == "spline" else 0.0
    )
    for net in ("spline", "maf", "affine")
    for dim in (8, 64)
}


def densities(told: np.ndarray, z: np.ndarray, jacobians: np.ndarray) -> dict:
    """What `ratios` compares: a side's log p(x) `[N]`, and the same by its Jacobians.

    Args:
        told: By the library.
        z: Its latents `[N, D]` of these x.
        jacobians: dz/dx, `[N, D, D]`, by automatic differentiation of z alone.
    """
    jacobians, z = jacobians.astype(np.float64), z.astype(np.float64)
    prior = -0.5 * (z**2 + np.log(2 * np.pi)).sum(1)
    numerical = prior + np.linalg.slogdet(jacobians).logabsdet
    return {"densities": [told.tolist(), numerical.tolist()]}
