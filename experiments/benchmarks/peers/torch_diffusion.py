"""The peers' sides of diffusion: their own networks, losses and samplers, in torch.

Each network has jaxgen's widths, about as many residual blocks, attention on the same
levels and FiLM; its library's own merging of skips, norms, down- and upsampling.
"""

# pyright: reportMissingImports=false
# (the libraries come with the extra `peers`, which the linters do not need)

import importlib.metadata
import os
from collections.abc import Callable
from pathlib import Path

import cases
import numpy as np
import torch
import torch.nn.functional as F
import torch_side
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

try:
    import torchvision  # noqa: F401
except RuntimeError:  # a wheel for CUDA, whose import wants operators that nobody calls
    for name in ("nms", "qnms"):
        signature = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
        torch.library.define(f"torchvision::{name}", signature)

import denoising_diffusion_pytorch as ddp
import diffusers


class Side:
    """`advance(number)` of updates or sampled batches.

    Args:
        case: What is timed.
        side: `ddp` or `diffusers`, perhaps with `-compiled` behind it.
        folder: With jaxgen's `reference.npz`.
    """

    quantum = 1

    def __init__(self, case: cases.Case, side: str, folder: Path):
        torch.set_num_threads(len(os.sched_getaffinity(0)))
        torch.manual_seed(0)
        self.checked, self._case = {}, case
        library, _, mode = side.partition("-")
        make = {"ddp": _ddp, "diffusers": _diffusers}[library]
        net, self._loss = make(case)
        net.to(memory_format=torch.channels_last)
        self.num_parameters = sum(p.numel() for p in net.parameters())
        self.settings = {
            "torch": torch.__version__,
            library: importlib.metadata.version(
                ddp.__name__ if library == "ddp" else library
            ),
            "threads": torch.get_num_threads(),
            "mflop_forward": _mflop(net, case),
        }
        if mode == "compiled":
            net.compile()
        images = np.load(folder / "reference.npz")["images"]
        self._images = torch.from_numpy(images).permute(0, 3, 1, 2)
        self._batches = torch_side.batches(len(images), case.batch_size)
        self._optimizer = torch.optim.Adam(
            net.parameters(), lr=cases.LEARNING_RATE, betas=cases.BETAS, fused=True
        )
        if case.task == "sample":
            self._net = net.eval()
            self.checked = {"samples": _samples()}

    def advance(self, number: int) -> None:
        """So many of what the case times."""
        for _ in range(number):
            if self._case.task == "sample":
                _sampled(self._net, self._case)
            else:
                self._update()

    def _update(self) -> None:
        loss = self._loss(self._images[next(self._batches)].float() / 255)
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()


def _ddp(case: cases.Case) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    """Two blocks a level, down and up; attention on all levels, most of it linear."""
    first = case.widths[0]
    net = ddp.Unet(
        dim=first,
        dim_mults=tuple(width // first for width in case.widths),
        channels=case.channels,
    )
    return net, ddp.GaussianDiffusion(net, image_size=case.image_size)


def _diffusers(case: cases.Case) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    """One block a level down and two up, the latter as wide as both their inputs."""
    attends = [
        case.image_size >> level <= case.attention_side
        for level in range(len(case.widths))
    ]
    net = diffusers.UNet2DModel(
        sample_size=case.image_size,
        in_channels=case.channels,
        out_channels=case.channels,
        block_out_channels=case.widths,
        layers_per_block=1,
        down_block_types=tuple(
            "AttnDownBlock2D" if a else "DownBlock2D" for a in attends
        ),
        up_block_types=tuple(
            "AttnUpBlock2D" if a else "UpBlock2D" for a in attends[::-1]
        ),
        norm_num_groups=8,
        attention_head_dim=32,
        resnet_time_scale_shift="scale_shift",
    )
    scheduler = diffusers.DDPMScheduler()

    def loss(x: Tensor) -> Tensor:
        x = 2 * x - 1
        noise = torch.randn_like(x)
        t = torch.randint(0, scheduler.config.num_train_timesteps, x.shape[:1])
        return F.mse_loss(net(scheduler.add_noise(x, noise, t), t).sample, noise)

    return net, loss


def _mflop(net: nn.Module, case: cases.Case) -> float:
    """Products and convolutions of one call on one image, as torch counts them."""
    x = torch.zeros(1, case.channels, case.image_size, case.image_size)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(x, torch.zeros(1, dtype=torch.long))
    return counter.get_total_flops() / 1e6


def _scheduler(prediction_type: str) -> diffusers.DPMSolverMultistepScheduler:
    scheduler = diffusers.DPMSolverMultistepScheduler(
        algorithm_type="dpmsolver++", solver_order=2, prediction_type=prediction_type
    )
    scheduler.set_timesteps(cases.SAMPLING_STEPS)
    return scheduler


@torch.inference_mode()
def _sampled(net: nn.Module, case: cases.Case) -> Tensor:
    """One batch, as the library's pipelines draw it."""
    scheduler = _scheduler("epsilon")
    x = torch.randn(case.batch_size, case.channels, case.image_size, case.image_size)
    for t in scheduler.timesteps:
        x = scheduler.step(net(x, t).sample, t, x).prev_sample
    return x


def _samples() -> list[float]:
    """By the exact denoiser, from the noise that jaxgen starts from."""
    scheduler, x = _scheduler("sample"), torch.from_numpy(cases.noise())
    for t in scheduler.timesteps:
        alpha, sigma = scheduler.alpha_t[t], scheduler.sigma_t[t]
        estimate = cases.posterior_mean(torch.tanh, x, alpha, sigma)
        x = scheduler.step(estimate, t, x).prev_sample
    return x[:, 0].tolist()
