"""The peers' sides in torch: the same networks, losses and optimizer.

Each has the setting found fastest for it: fused Adam, channels_last convolutions.
"""

# pyright: reportMissingImports=false
# (torch and pythae come with the extra `peers`, which the linters do not need)

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cases
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

Loss = Callable[[Tensor, Tensor | None], Tensor]  # (indices [B], eps or None) -> scalar


class DenseEncoder(nn.Module):
    """As `jaxgen.nets.coders.MLPEncoder`; modules are named so that weights match."""

    def __init__(self, case: cases.Case):
        super().__init__()
        sizes = (case.image_size**2 * case.channels, *case.widths)
        self.dense = nn.ModuleList(map(nn.Linear, sizes[:-1], sizes[1:]))
        self.moments = nn.Linear(sizes[-1], 2 * case.latent_dim)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance of z."""
        h = x.flatten(1)
        for layer in self.dense:
            h = F.silu(layer(h))
        mu, log_var = self.moments(h).chunk(2, dim=-1)
        return mu, log_var.clamp(-16.0, 16.0)


class DenseDecoder(nn.Module):
    """As `jaxgen.nets.coders.MLPDecoder`."""

    def __init__(self, case: cases.Case):
        super().__init__()
        sizes = (case.latent_dim, *case.widths[::-1])
        self.dense = nn.ModuleList(map(nn.Linear, sizes[:-1], sizes[1:]))
        self.output = nn.Linear(sizes[-1], case.image_size**2 * case.channels)

    def forward(self, z: Tensor) -> Tensor:
        """Logits, flat."""
        for layer in self.dense:
            z = F.silu(layer(z))
        return self.output(z)


class ConvCoder(nn.Module):
    """The residual blocks that encoder and decoder share."""

    levels = 3

    def _blocks(self, convs: list[nn.Module], widths: list[int]) -> None:
        self.norm = nn.ModuleList(nn.LayerNorm(w, eps=1e-6) for w in widths)
        pairs = [nn.Conv2d(w, w, 3, padding=1) for w in widths for _ in range(2)]
        self.conv = nn.ModuleList([*convs, *pairs])

    def _residual(self, h: Tensor, level: int, first: int) -> Tensor:
        r = F.silu(_nchw(self.norm[level](_nhwc(h))))
        r = F.silu(self.conv[first + 2 * level](r))
        return h + self.conv[first + 2 * level + 1](r)


class ConvEncoder(ConvCoder):
    """As `jaxgen.nets.coders.ConvEncoder` of one block a level and even sizes."""

    def __init__(self, case: cases.Case):
        super().__init__()
        widths = [case.widths[0] * 2**level for level in range(self.levels)]
        self._blocks([nn.Conv2d(case.channels, widths[0], 3, padding=1)], widths)
        self.dense = nn.ModuleList(
            nn.Conv2d(a, b, 2, stride=2)
            for a, b in zip(widths[:-1], widths[1:], strict=True)
        )
        side = case.image_size // 2 ** (self.levels - 1)
        self.moments = nn.Linear(side**2 * widths[-1], 2 * case.latent_dim)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance of z."""
        h = self.conv[0](x)
        for level in range(self.levels):
            h = self._residual(h, level, 1)
            if level < self.levels - 1:
                h = self.dense[level](h)
        mu, log_var = self.moments(_nhwc(F.silu(h)).flatten(1)).chunk(2, dim=-1)
        return mu, log_var.clamp(-16.0, 16.0)


class ConvDecoder(ConvCoder):
    """As `jaxgen.nets.coders.ConvDecoder` of one block a level and even sizes."""

    def __init__(self, case: cases.Case):
        super().__init__()
        widths = [case.widths[0] * 2**level for level in reversed(range(self.levels))]
        self._blocks([], widths)
        self.side = case.image_size // 2 ** (self.levels - 1)
        first = nn.Linear(case.latent_dim, self.side**2 * widths[0])
        ups = [nn.Linear(w, 2 * w) for w in widths[:-1]]  # to 2x2 pixels of w / 2
        self.dense = nn.ModuleList([first, *ups])
        self.output = nn.Conv2d(widths[-1], case.channels, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        """Logits, `[B, C, H, W]`."""
        h = _nchw(self.dense[0](z).unflatten(1, (self.side, self.side, -1)))
        for level in range(self.levels):
            h = self._residual(h, level, 0)
            if level < self.levels - 1:
                h = _nchw(_unpatched(self.dense[level + 1](_nhwc(h))))
        return self.output(F.silu(h))


class UNet(nn.Module):
    """As the U-Net of jaxgen's side."""

    def __init__(self, case: cases.Case):
        super().__init__()
        widths, channels = case.widths, case.channels
        pairs = [(channels, widths[0])]
        pairs += [(w, w) for w in widths for _ in range(2)]
        for low, high in zip(widths[-2::-1], widths[:0:-1], strict=True):
            pairs += [(high, low), (2 * low, low)]
        pairs += [(widths[0], channels)]
        self.conv = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in pairs)
        self.dense = nn.ModuleList(
            nn.Conv2d(a, b, 2, stride=2)
            for a, b in zip(widths[:-1], widths[1:], strict=True)
        )

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W] -> [B, C, H, W]`."""
        convs = iter(self.conv)
        h, skips = F.silu(next(convs)(x)), []
        for level in range(len(self.dense) + 1):
            if level:
                skips.append(h)
                h = self.dense[level - 1](h)
            for _ in range(2):
                h = F.silu(next(convs)(h))
        for skip in reversed(skips):
            h = F.silu(next(convs)(F.interpolate(h, scale_factor=2.0)))
            h = F.silu(next(convs)(torch.cat([h, skip], dim=1)))
        return next(convs)(h)


def _nhwc(h: Tensor) -> Tensor:
    return h.permute(0, 2, 3, 1)


def _nchw(h: Tensor) -> Tensor:
    """A view: the memory stays channels last."""
    return h.permute(0, 3, 1, 2)


def _unpatched(h: Tensor) -> Tensor:
    batch, rows, columns, channels = h.shape
    h = h.reshape(batch, rows, columns, 2, 2, channels // 4).transpose(2, 3)
    return h.reshape(batch, 2 * rows, 2 * columns, channels // 4)


class VAE(nn.Module):
    """Encoder, decoder and the mean image, which no gradient reaches."""

    def __init__(self, case: cases.Case):
        super().__init__()
        dense = case.net == "mlp"
        self.encoder = DenseEncoder(case) if dense else ConvEncoder(case)
        self.decoder = DenseDecoder(case) if dense else ConvDecoder(case)
        shape = (case.channels, case.image_size, case.image_size)
        self.centre = nn.Parameter(torch.empty(shape), requires_grad=False)


def _vae(case: cases.Case, images: Tensor) -> tuple[nn.Module, Loss]:
    model = VAE(case)

    def loss(indices: Tensor, eps: Tensor | None) -> Tensor:
        x = (images[indices] > 127).float()
        mu, log_var = model.encoder(x - model.centre)
        eps = torch.randn_like(mu) if eps is None else eps
        logits = model.decoder(mu + torch.exp(0.5 * log_var) * eps)
        distortion = F.binary_cross_entropy_with_logits(
            logits.reshape(x.shape), x, reduction="sum"
        )
        rate = 0.5 * (mu.square() + torch.expm1(log_var) - log_var).sum()
        return (distortion + rate) / len(x)

    return model, loss


def _unet(case: cases.Case, images: Tensor) -> tuple[nn.Module, Loss]:
    model = UNet(case)

    def loss(indices: Tensor, eps: Tensor | None) -> Tensor:
        del eps
        x = images[indices].float() / 255
        return F.mse_loss(model(x), x)

    return model, loss


def _pythae(case: cases.Case, images: Tensor) -> tuple[nn.Module, Loss]:
    """The VAE of pythae with these networks; its loss is that of probabilities."""
    from pythae.models import VAE as PythaeVAE
    from pythae.models import VAEConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder

    nets = VAE(case)

    class Encoder(BaseEncoder):
        def forward(self, x: Tensor) -> Any:
            mu, log_var = nets.encoder(x - nets.centre)
            return ModelOutput(embedding=mu, log_covariance=log_var)

    class Decoder(BaseDecoder):
        def forward(self, z: Tensor) -> Any:
            return ModelOutput(reconstruction=torch.sigmoid(nets.decoder(z)))

    shape = (case.channels, case.image_size, case.image_size)
    config = VAEConfig(
        input_dim=shape, latent_dim=case.latent_dim, reconstruction_loss="bce"
    )
    encoder, decoder = Encoder(), Decoder()
    model = PythaeVAE(config, encoder, decoder)
    draw = model._sample_gauss  # its name for the reparameterised draw

    def loss(indices: Tensor, eps: Tensor | None) -> Tensor:
        if eps is None:
            model._sample_gauss = draw
        else:
            model._sample_gauss = lambda mu, std: (mu + eps * std, eps)
        x = (images[indices] > 127).float()
        return model({"data": x}, epoch=1, dataset_size=len(images)).loss

    return nets, loss


MAKERS = {"mlp": _vae, "conv": _vae, "unet": _unet}


class Side:
    """`advance(updates)`; `checked`, losses of the first from jaxgen's parameters.

    Args:
        case: What is trained.
        side: `eager`, `compiled` or `pythae`.
        folder: With jaxgen's `reference.npz`.
    """

    quantum = 1

    def __init__(self, case: cases.Case, side: str, folder: Path):
        torch.set_num_threads(len(os.sched_getaffinity(0)))
        torch.manual_seed(0)
        reference = np.load(folder / "reference.npz")
        images = _nchw(torch.from_numpy(reference["images"]))
        make = _pythae if side == "pythae" else MAKERS[case.net]
        model, loss = make(case, images)
        _copy_weights(model, reference)
        if case.net != "mlp":
            model.to(memory_format=torch.channels_last)
        self._loss = torch.compile(loss) if side == "compiled" else loss
        trained = [p for p in model.parameters() if p.requires_grad]
        self._optimizer = torch.optim.Adam(
            trained, lr=cases.LEARNING_RATE, betas=cases.BETAS, fused=True
        )
        self._batches = batches(len(images), case.batch_size)
        self._reads_loss = side == "pythae"  # as its trainer does after every update
        self.num_parameters = sum(p.numel() for p in model.parameters())
        batch, eps = (torch.from_numpy(reference[n]) for n in ("batch", "eps"))
        updates = range(cases.CHECKED_UPDATES)
        self.checked = {"losses": [self._update(batch, eps).item() for _ in updates]}
        self.settings = {
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
        }

    def advance(self, updates: int) -> None:
        """So many updates."""
        for _ in range(updates):
            loss = self._update(next(self._batches), None)
            if self._reads_loss and not np.isfinite(loss.item()):
                raise ArithmeticError("the loss is not finite")

    def _update(self, indices: Tensor, eps: Tensor | None) -> Tensor:
        loss = self._loss(indices, eps)
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()
        return loss.detach()


def batches(num_examples: int, batch_size: int) -> Iterator[Tensor]:
    """Indices of shuffled batches, without end."""
    while True:
        order = torch.randperm(num_examples)
        for start in range(0, num_examples - batch_size + 1, batch_size):
            yield order[start : start + batch_size]


@torch.no_grad()
def _copy_weights(model: nn.Module, reference: Any) -> None:
    """Flax's kernels are `[in, out]` and `[height, width, in, out]`, torch's reversed."""
    for name, parameter in model.named_parameters():
        array = reference[_flax_name(name)]
        if name == "centre":
            array = array.transpose(2, 0, 1)
        elif parameter.ndim == 4:
            out, inputs, height, width = parameter.shape
            array = array.reshape(height, width, inputs, out).transpose(3, 2, 0, 1)
        elif parameter.ndim == 2:
            array = array.T
        parameter.copy_(torch.from_numpy(np.ascontiguousarray(array)))


def _flax_name(name: str) -> str:
    """`encoder.conv.0.weight -> encoder/Conv_0/kernel`, and so on."""
    kinds = {"conv": "Conv", "dense": "Dense", "norm": "LayerNorm"}
    name = re.sub(r"(conv|dense|norm)\.(\d+)", lambda m: f"{kinds[m[1]]}_{m[2]}", name)
    weight = "scale" if "LayerNorm" in name else "kernel"
    return name.replace("weight", weight).replace(".", "/")
