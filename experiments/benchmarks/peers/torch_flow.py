"""The sides of normalizing flows in torch: zuko and nflows, as their pages say."""

# pyright: reportMissingImports=false

import os
from pathlib import Path
from typing import Any

import cases
import flow_cases
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_side import batches


def _zuko(case: flow_cases.FlowCase) -> nn.Module:
    """Spline coupling by RealNVP's layers: NSF(passes=2) would mask a larger network."""
    import zuko
    from zuko.transforms import MonotonicRQSTransform

    options: dict[str, Any] = {
        "transforms": case.num_layers,
        "hidden_features": (case.hidden,) * 3,
        "activation": nn.SiLU,
    }
    if case.net == "maf":
        return zuko.flows.MAF(case.dim, **options)
    if case.net == "spline":
        bins = case.num_bins
        options["univariate"] = MonotonicRQSTransform  # its box is [-5, 5]
        options["shapes"] = [(bins,), (bins,), (bins - 1,)]
    return zuko.flows.RealNVP(case.dim, **options)


def _nflows(case: flow_cases.FlowCase) -> nn.Module:
    """Its residual networks are jaxgen's."""
    from nflows import distributions, flows
    from nflows.nn.nets import ResidualNet
    from nflows.transforms import base, coupling

    sizes = case.dim, case.hidden, case.num_layers
    if case.net == "maf":
        return flows.MaskedAutoregressiveFlow(
            *sizes, num_blocks_per_layer=1, activation=F.silu
        )
    if case.net == "affine":
        return flows.SimpleRealNVP(*sizes, num_blocks_per_layer=1, activation=F.silu)

    def network(inputs: int, outputs: int) -> nn.Module:
        return ResidualNet(
            inputs, outputs, case.hidden, num_blocks=1, activation=F.silu
        )

    layers = [
        coupling.PiecewiseRationalQuadraticCouplingTransform(
            mask=torch.arange(case.dim) % 2 == number % 2,
            transform_net_create_fn=network,
            num_bins=case.num_bins,
            tails="linear",
            tail_bound=case.bound,
        )
        for number in range(case.num_layers)
    ]
    return flows.Flow(
        base.CompositeTransform(layers), distributions.StandardNormal([case.dim])
    )


class Side:
    """`advance(updates)`.

    Args:
        case: What is trained.
        side: `zuko`, `nflows`, or either `-compiled`.
        folder: Not used.
    """

    quantum = 1

    def __init__(self, case: flow_cases.FlowCase, side: str, folder: Path):
        del folder
        torch.set_num_threads(len(os.sched_getaffinity(0)))
        torch.manual_seed(0)
        self._x = torch.from_numpy(case.examples())
        is_zuko = side.startswith("zuko")
        flow = _zuko(case) if is_zuko else _nflows(case)
        self.checked = _densities(flow, self._x, is_zuko=is_zuko)
        self.num_parameters = sum(p.numel() for p in flow.parameters())

        def loss(x: Tensor) -> Tensor:
            log_prob = flow().log_prob(x) if is_zuko else flow.log_prob(x)
            return -log_prob.mean()

        self._loss = torch.compile(loss) if side.endswith("-compiled") else loss
        self._optimizer = torch.optim.Adam(
            flow.parameters(), lr=cases.LEARNING_RATE, betas=cases.BETAS, fused=True
        )
        self._batches = batches(len(self._x), case.batch_size)
        self.advance(flow_cases.TRAINED_UPDATES)
        self.settings = {
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "loss": float(self._last),
        }

    def advance(self, updates: int) -> None:
        """So many updates."""
        for _ in range(updates):
            loss = self._loss(self._x[next(self._batches)])
            self._optimizer.zero_grad()
            loss.backward()
            self._optimizer.step()
            self._last = loss.detach()


def _densities(flow: Any, x: Tensor, *, is_zuko: bool) -> dict[str, Any]:
    x = x[: flow_cases.CHECKED_EXAMPLES]
    to_latent = flow().transform if is_zuko else flow.transform_to_noise
    jacobians = torch.stack(
        [
            torch.autograd.functional.jacobian(lambda x: to_latent(x[None])[0], each)
            for each in x
        ]
    )
    with torch.no_grad():
        told = flow().log_prob(x) if is_zuko else flow.log_prob(x)
        z = to_latent(x)
    return flow_cases.densities(*(np.asarray(a) for a in (told, z, jacobians)))
