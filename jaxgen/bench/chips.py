"""Accelerators: what each can do at most, and how a compiler is asked for one."""

import dataclasses
import importlib.util
import re
from typing import Any, Literal, NamedTuple

from jaxgen._checks import UserError, unknown

GIB = 2**30
# Of a GPU's memory JAX takes three quarters, unless XLA_CLIENT_MEM_FRACTION says more.
GPU_FRACTION = 0.75

# What XLA wants to know of a GPU that is not here, from NVIDIA's published figures.
_H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  shared_memory_per_core: 233472 threads_per_core_limit: 2048 core_count: 132
  fpus_per_core: 128 block_dim_limit_x: 2147483647 block_dim_limit_y: 65535
  block_dim_limit_z: 65535 memory_bandwidth: 3352320000000 l2_cache_size: 52428800
  clock_rate_ghz: 1.98 device_memory_size: 84978434048
  shared_memory_per_block_optin: 232448 registers_per_core_limit: 65536
  registers_per_block_limit: 65536 cuda_compute_capability { major: 9 minor: 0 }
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 8 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


@dataclasses.dataclass(frozen=True)
class Chip:
    """One accelerator as JAX counts devices: half a chip on TPU7x.

    Attributes:
        device_kind: JAX's name of it.
        flops_per_s: Its peak, dense bfloat16.
        bytes_per_s: The peak of its memory.
        usable_bytes: Of its memory, by a program: what the compiler of a TPU calls
            available, and what JAX takes of a GPU.
        platform: Of its compiler.
        description: Its name in that compiler, or the compiler's own description;
            "" where there is none to compile by.
        rank: Axes of a topology.
    """

    device_kind: str
    flops_per_s: float
    bytes_per_s: float
    usable_bytes: float
    platform: Literal["tpu", "cuda"]
    description: str
    rank: int


# Sources in BUILD_NOTES; usable memory of TPUs as libtpu's errors name it.
CHIPS = {
    "v4": Chip("TPU v4", 275e12, 1200e9, 30.75 * GIB, "tpu", "v4", 3),
    "v5e": Chip("TPU v5 lite", 197e12, 819e9, 15.75 * GIB, "tpu", "v5e", 2),
    "v5p": Chip("TPU v5", 459e12, 2765e9, 95.74 * GIB, "tpu", "v5", 3),
    "v6e": Chip("TPU v6 lite", 918e12, 1638e9, 31.25 * GIB, "tpu", "v6e", 2),
    "tpu7x": Chip("TPU7x", 1153.5e12, 3690e9, 94.75 * GIB, "tpu", "tpu7x", 3),
    "a100": Chip(
        "NVIDIA A100-SXM4-80GB", 312e12, 2039e9, GPU_FRACTION * 80e9, "cuda", "", 1
    ),
    "h100": Chip(
        "NVIDIA H100 80GB HBM3",
        989e12,
        3350e9,
        GPU_FRACTION * 84978434048,
        "cuda",
        _H100,
        1,
    ),
    "h200": Chip("NVIDIA H200", 989e12, 4800e9, GPU_FRACTION * 141e9, "cuda", "", 1),
}

_EXTRAS = {
    "tpu": ("plan-tpu", ("libtpu",)),
    "cuda": ("plan-gpu", ("jax_cuda12_plugin", "jax_cuda13_plugin")),
}


class Target(NamedTuple):
    """Accelerators to compile for, joined as `shape`."""

    chip: Chip
    shape: tuple[int, ...]


def parse_target(text: str) -> Target:
    """The target that is written as `v5e:2x4`, `v5p:2x2x1` or `h100:8`.

    Raises:
        UserError: if there is no such target, listing those there are.
    """
    forms = {
        name: ":".join((name, "x".join("ABC"[: chip.rank]) if chip.rank > 1 else "N"))
        for name, chip in CHIPS.items()
        if chip.description
    }
    name, _, sizes = text.partition(":")
    if name not in forms:
        raise UserError(unknown("target", text, forms.values()))
    chip = CHIPS[name]
    if not re.fullmatch("x".join([r"[1-9]\d*"] * chip.rank), sizes):
        example = "x".join(("2", "2", "1")[: chip.rank]) if chip.rank > 1 else "8"
        raise UserError(
            f"--target {text}: expected {forms[name]}, such as {name}:{example}"
        )
    return Target(chip, tuple(map(int, sizes.split("x"))))


def check_compiler(target: Target) -> None:
    """Raises UserError, with what to install, where the target's compiler is missing."""
    extra, modules = _EXTRAS[target.chip.platform]
    if not any(importlib.util.find_spec(module) for module in modules):
        raise UserError(
            f"a program for {target.chip.device_kind} is compiled by what is installed "
            f'with: python -m pip install -e ".[{extra}]"'
        )


def topology_devices(target: Target) -> list[Any]:
    """The target's devices, to compile for; none of them is there.

    Raises:
        UserError: if the compiler knows no such shape.
    """
    import jax
    from jax.experimental import topologies

    chip, shape = target
    options: dict[str, Any]
    if chip.platform == "cuda":
        (num,) = shape
        nodes, own = (num // 8, 8) if num % 8 == 0 else (1, num)
        name = f"1x{nodes}x{own}"
        options = {"target_config": chip.description, "topology": name}
    else:
        name = "x".join(map(str, shape))
        hosts = [min(n, 2) for n in (*shape[:2], 1)]
        options = {
            "topology_name": f"{chip.description}:{name}",
            "chips_per_host_bounds": tuple(hosts),
        }
        if chip.device_kind in ("TPU v4", "TPU v5"):  # two cores are one device
            options["chip_config_name"] = "megacore"
    try:
        topology = topologies.get_topology_desc(platform=chip.platform, **options)
    except jax.errors.JaxRuntimeError as error:
        if "INVALID_ARGUMENT" not in str(error):
            raise
        raise UserError(f"--target: {error}") from error
    return list(topology.devices)
