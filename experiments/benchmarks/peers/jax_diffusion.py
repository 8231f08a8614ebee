"""jaxgen's side of diffusion: its update, and its own sampling of a batch."""

from pathlib import Path
from typing import Any

import cases
import jax
import jax.numpy as jnp
import jax_side
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxgen import data, samplers, schedules
from jaxgen.bench import throughput
from jaxgen.models import diffusion, diffusion_denoiser
from jaxgen.models.base import sample_keys
from jaxgen.train import assembly
from jaxgen.train.session import Session, bind, num_parameters, resolve


class Side:
    """`advance(number)` of updates or sampled batches.

    Args:
        case: What is timed.
        side: `jaxgen`.
        folder: Where `reference.npz` is written for the others: the images.
    """

    def __init__(self, case: cases.Case, side: str, folder: Path):
        del side  # torch has several
        self.checked, self._case = {}, case
        dataset, session = _bound(case)
        (state,) = assembly.first_states([session], dataset)
        self.num_parameters = num_parameters(state.params["denoiser"]["net"])
        source = dataset.train
        if not isinstance(source, data.ArraySource):
            raise TypeError("the digits lie in memory")
        np.savez(folder / "reference.npz", images=source.arrays["x"])
        self.settings = {
            "jax": jax.__version__,
            "mflop_forward": _mflop(session, state.params["denoiser"]),
        }
        if case.task == "train":
            self._runner = throughput.Runner(session, dataset)
            self.quantum = self._runner.program.num_steps
            self.settings["steps_per_dispatch"] = self.quantum
        else:
            self.checked = {"samples": _samples()}
            self.quantum, self._params = 1, state.params
            self._sample = _sampler(session, case)

    def advance(self, number: int) -> None:
        """So many updates, a multiple of `quantum`, and one wait; or so many batches."""
        if self._case.task == "train":
            self._runner.repeat(number // self.quantum)
            return
        for index in range(number):
            self._sample(self._params, jax.random.key(index)).block_until_ready()


def _bound(case: cases.Case) -> tuple[data.Dataset, Session]:
    model = diffusion.DiffusionConfig(
        widths=case.widths,
        patch=1,
        attention_side=case.attention_side,
        sampling=diffusion.Sampling(sampler="dpmpp_2m", num_steps=cases.SAMPLING_STEPS),
    )
    config = jax_side.run_config(case, "diffusion", model)
    dataset = data.open_dataset(config.data)
    return dataset, bind(resolve(config, dataset))


def _sampler(session: Session, case: cases.Case) -> Any:
    model = session.model
    mesh = Mesh(np.array(jax.devices()[: case.devices]), ("batch",))
    each = NamedSharding(mesh, PartitionSpec("batch"))

    @jax.jit
    def sample(params: Any, key: Array) -> Array:
        prior_keys, keys = sample_keys(key, jnp.arange(case.batch_size))
        z = jax.lax.with_sharding_constraint(model.prior(prior_keys), each)
        return model.generate(params, z, keys)

    return sample


def _mflop(session: Session, params: Any) -> float:
    """XLA's count of one call of the network on one image."""

    def denoise(params: Any, x: Array) -> Array:
        config = session.config.model
        call = diffusion_denoiser.denoiser(config, params, schedule=schedules.EDM())
        return call(x, jnp.ones(()))

    x = jnp.zeros((1, *session.config.model.shape))
    counted: Any = jax.jit(denoise).lower(params, x).cost_analysis()
    return counted["flops"] / 1e6


def _samples() -> list[float]:
    """By the exact denoiser, at the times that diffusers takes by itself.

    Its step i, from 0, has the product of i + 1 factors, so that it is our time
    (i + 1) / 1000. It leaves out the last of its grid, step 0, and ends at sigma = 0.
    """
    schedule = schedules.DDPM()
    steps = np.linspace(0, 999, cases.SAMPLING_STEPS + 1).round()[:0:-1]

    def denoise(x: Array, t: Array) -> Array:
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        return cases.posterior_mean(jnp.tanh, x, alpha, sigma)

    times = (steps + 1) / 1000
    chain = samplers.dpmpp_2m(denoise, cases.noise(), schedule=schedule, times=times)
    return np.asarray(chain.x)[:, 0].tolist()
