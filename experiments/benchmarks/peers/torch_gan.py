"""torch's sides of a GAN: the same networks, game, penalties and optimizers.

Modules have the names that flax gives, so that weights match. The slopes of R1 and R2 are
taken by `torch.func`, whose result `torch.compile` can differentiate once more.
"""

# pyright: reportMissingImports=false

import itertools
import os
from pathlib import Path

import cases
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_side import batches

SMALLEST, SLOPE = 4, 0.2


class Generator(nn.Module):
    """As `jaxgen.nets.gan.ResidualGenerator` or `DCGANGenerator`, of even sides."""

    def __init__(self, case: cases.Case):
        super().__init__()
        self.residual = case.net == "residual"
        sides = _sides(case)
        times = len(sides) - (1 if self.residual else 2)
        first = _width(case, times)
        self.basis = nn.Parameter(torch.empty(first, sides[-1], sides[-1]))
        self.input = nn.Linear(case.latent_dim, first)
        self.stages = list(reversed(range(len(sides) - (not self.residual))))
        for stage in self.stages:
            if not self.residual:
                inputs = _width(case, stage)
                out = _width(case, stage - 1) if stage else case.channels
                conv = nn.ConvTranspose2d(inputs, out, 4, 2, padding=1)
                self.add_module(f"stage_{stage}", conv)
                continue
            above, own = _width(case, stage + 1), _width(case, stage)
            if stage < times and above != own:
                narrowed = nn.Conv2d(above, own, 1, bias=False)
                self.add_module(f"narrowed_{stage}", narrowed)
            _add_blocks(self, stage, own)
        if self.residual:
            self.output = nn.Conv2d(_width(case, 0), 4 * case.channels, 1)

    def forward(self, z: Tensor) -> Tensor:
        """Images `[B, C, H, W]`."""
        h = self.basis * self.input(z)[:, :, None, None]
        for stage in self.stages:
            if not self.residual:
                h = F.relu(h * (h.square().mean(1, keepdim=True) + 1e-8).rsqrt())
                h = self.get_submodule(f"stage_{stage}")(h)
                continue
            if stage < self.stages[0]:
                if hasattr(self, f"narrowed_{stage}"):
                    h = self.get_submodule(f"narrowed_{stage}")(h)
                h = F.interpolate(h, scale_factor=2.0, mode="bilinear")
            h = _through_blocks(self, stage, h)
        return _unpatched(self.output(h)) if self.residual else h


class Discriminator(nn.Module):
    """As `jaxgen.nets.gan.ResidualDiscriminator` or `DCGANDiscriminator`."""

    def __init__(self, case: cases.Case):
        super().__init__()
        self.residual = case.net == "residual"
        sides = _sides(case)
        self.stages = range(len(sides) - (not self.residual))
        for stage in self.stages:
            own = _width(case, stage)
            if not self.residual:
                inputs = _width(case, stage - 1) if stage else case.channels
                conv = nn.Conv2d(inputs, own, 4, 2, padding=1)
                self.add_module(f"stage_{stage}", conv)
                continue
            if stage and own != _width(case, stage - 1):
                widened = nn.Conv2d(_width(case, stage - 1), own, 1, bias=False)
                self.add_module(f"widened_{stage}", widened)
            _add_blocks(self, stage, own)
        features = _width(case, self.stages[-1])
        if self.residual:
            self.input = nn.Conv2d(case.channels, _width(case, 0), 2, stride=2)
            self.basis = nn.Parameter(torch.empty(features, sides[-1], sides[-1]))
        else:
            features *= sides[-1] ** 2
        self.output = nn.Linear(features, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `[B]`."""
        if not self.residual:
            for stage in self.stages:
                x = F.leaky_relu(self.get_submodule(f"stage_{stage}")(x), SLOPE)
            return self.output(x.permute(0, 2, 3, 1).flatten(1))[:, 0]
        h = self.input(x)
        for stage in self.stages:
            if stage:
                h = _halved(h)
                if hasattr(self, f"widened_{stage}"):
                    h = self.get_submodule(f"widened_{stage}")(h)
            h = _through_blocks(self, stage, h)
        return self.output((h * self.basis).sum((2, 3)))[:, 0]


class Block(nn.Module):
    """As `jaxgen.nets.gan.Block`."""

    def __init__(self, channels: int):
        super().__init__()
        inner = max(8, channels // 2)
        self.narrow = nn.Conv2d(channels, inner, 1)
        self.conv = nn.Conv2d(inner, inner, 3, padding=1)
        self.wide = nn.Conv2d(inner, channels, 1, bias=False)

    def forward(self, h: Tensor) -> Tensor:
        """`[B, C, H, W]`, C as it comes."""
        r = F.leaky_relu(self.narrow(h), SLOPE)
        return h + self.wide(F.leaky_relu(self.conv(r), SLOPE))


class Side:
    """`advance(updates)`; `checked`, losses of the first from jaxgen's parameters.

    Args:
        case: What is trained.
        side: `eager` or `compiled`.
        folder: With jaxgen's `reference.npz`.
    """

    quantum = 1

    def __init__(self, case: cases.Case, side: str, folder: Path):
        torch.set_num_threads(len(os.sched_getaffinity(0)))
        torch.manual_seed(0)
        reference = np.load(folder / "reference.npz")
        self._images = torch.from_numpy(reference["images"]).permute(0, 3, 1, 2)
        self._latent_dim, self._gamma = case.latent_dim, float(reference["gamma"])
        self._nets = {
            "discriminator": Discriminator(case),
            "generator": Generator(case),
        }
        self._optimizers = {}
        for name, net in self._nets.items():
            _copy_weights(net, name, reference)
            net.to(memory_format=torch.channels_last)
            self._optimizers[name] = torch.optim.Adam(
                net.parameters(), lr=cases.LEARNING_RATE, betas=cases.BETAS, fused=True
            )
        self._losses = {"discriminator": self._judging, "generator": self._making}
        if side == "compiled":
            self._losses = {k: torch.compile(loss) for k, loss in self._losses.items()}
        self._batches = batches(len(self._images), case.batch_size)
        self.num_parameters = sum(
            p.numel() for net in self._nets.values() for p in net.parameters()
        )
        batch, drawn = (torch.from_numpy(reference[name]) for name in ("batch", "z"))
        turns = zip(itertools.cycle(self._nets), drawn, strict=False)
        self.checked = {
            "losses": [self._turn(name, batch, z).item() for name, z in turns]
        }
        self.settings = {
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
        }

    def advance(self, updates: int) -> None:
        """So many updates of both players, from one batch each."""
        for _ in range(updates):
            batch = next(self._batches)
            for name in self._nets:
                self._turn(name, batch, torch.randn(len(batch), self._latent_dim))

    def _turn(self, name: str, batch: Tensor, z: Tensor) -> Tensor:
        """An update of one player, the other frozen."""
        for other, net in self._nets.items():
            net.requires_grad_(other == name)
        real = self._images[batch].float().mul_(2 / 255).sub_(1)
        loss = self._losses[name](real, z)
        self._optimizers[name].zero_grad()
        loss.backward()
        self._optimizers[name].step()
        return loss.detach()

    def _judging(self, real: Tensor, z: Tensor) -> Tensor:
        discriminator = self._nets["discriminator"]
        with torch.no_grad():
            fake = self._nets["generator"](z)

        def total(x: Tensor) -> tuple[Tensor, Tensor]:
            logits = discriminator(x)
            return logits.sum(), logits

        slopes, logits = torch.func.grad(total, has_aux=True)(torch.cat([real, fake]))
        there, here = logits.chunk(2)
        price = 0.5 * slopes.square().sum((1, 2, 3)).sum() / len(real)
        return F.softplus(here - there).mean() + self._gamma * price

    def _making(self, real: Tensor, z: Tensor) -> Tensor:
        discriminator = self._nets["discriminator"]
        fake = discriminator(self._nets["generator"](z))
        with torch.no_grad():
            there = discriminator(real)
        return F.softplus(there - fake).mean()


def _add_blocks(net: nn.Module, stage: int, channels: int) -> None:
    for number in range(cases.GAN_BLOCKS):
        net.add_module(f"stage_{stage}_{number}", Block(channels))


def _through_blocks(net: nn.Module, stage: int, h: Tensor) -> Tensor:
    for number in range(cases.GAN_BLOCKS):
        h = net.get_submodule(f"stage_{stage}_{number}")(h)
    return h


def _sides(case: cases.Case) -> list[int]:
    side = case.image_size // (2 if case.net == "residual" else 1)
    found = [side]
    while found[-1] > SMALLEST:
        found.append(found[-1] // 2)
    return found


def _width(case: cases.Case, stage: int) -> int:
    return case.widths[0] * 2 ** min(max(stage, 0), 2)


def _halved(h: Tensor) -> Tensor:
    """By weights 1 3 3 1 along each side."""
    # (F.pad by replication compiles, but not its second derivative.)
    h = torch.cat([h[:, :, :1], h, h[:, :, -1:]], 2)
    h = h[:, :, :-3:2] + 3 * (h[:, :, 1:-2:2] + h[:, :, 2:-1:2]) + h[:, :, 3::2]
    h = torch.cat([h[..., :1], h, h[..., -1:]], 3)
    h = h[..., :-3:2] + 3 * (h[..., 1:-2:2] + h[..., 2:-1:2]) + h[..., 3::2]
    return h / 64


def _unpatched(h: Tensor) -> Tensor:
    """Channels are (row, column, channel), as in `jaxgen.nets.patches`."""
    batch, channels, rows, columns = h.shape
    h = h.reshape(batch, 2, 2, channels // 4, rows, columns).permute(0, 3, 4, 1, 5, 2)
    return h.reshape(batch, channels // 4, 2 * rows, 2 * columns)


@torch.no_grad()
def _copy_weights(
    net: nn.Module, player: str, reference: dict[str, np.ndarray]
) -> None:
    for name, parameter in net.named_parameters():
        module = net.get_submodule(name.rpartition(".")[0])
        path = f"{player}/{name}".replace("weight", "kernel").replace(".", "/")
        array = reference[path]
        if name == "basis":
            array = array.transpose(2, 0, 1)
        elif isinstance(module, nn.ConvTranspose2d) and parameter.ndim == 4:
            array = array[::-1, ::-1].transpose(2, 3, 0, 1)
        elif parameter.ndim == 4:
            out, inputs, height, width = parameter.shape
            array = array.reshape(height, width, inputs, out).transpose(3, 2, 0, 1)
        elif parameter.ndim == 2:
            array = array.T
        parameter.copy_(torch.from_numpy(np.ascontiguousarray(array)))
