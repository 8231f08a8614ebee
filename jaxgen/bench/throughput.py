"""Step throughput of a model, one schema for every family.

Protocol: compile once ahead of time, warm up, then repeats of many queued updates with
one wait at the end of each; the median and the spread of the repeats are reported. The
batches are those of training, so that waiting for data shows.
"""

import functools
import itertools
import math
import statistics
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen import data
from jaxgen.bench import chips
from jaxgen.train import assembly, parallel, rundir
from jaxgen.train import config as configs
from jaxgen.train.session import (
    Session,
    abstract_state,
    bind,
    num_parameters,
    resolve,
)

REPEATS = 10
MIN_STEPS = 20  # a repeat
MIN_SECONDS = 0.3  # a repeat
MATMUL = 2048


def measure(
    config: configs.RunConfig, *, repeats: int = REPEATS, profile: Path | None = None
) -> dict[str, Any]:
    """Trains a model for a few seconds and says how fast that went.

    Args:
        config: Of the run; `steps` plays no part.
        repeats: How many timings the median is taken of.
        profile: Where to write an xprof trace of one more repeat.

    Returns:
        `examples_per_s`, `examples_per_s_per_device`, `ms_per_step` with `_p10` and
        `_p90`, `cpu_ms_per_step` (what it kept the host's cores busy, all together, other
        processes apart), `compile_s`, `host_us_per_step` (what the host does for a step
        while the device is idle: batch indices, placing, dispatch), `flops_per_example`,
        `bytes_accessed` (a step; XLA's count for the program of one update),
        `peak_fraction` (of `peak_flops_per_s`: the table's on accelerators, the measured
        matrix product's elsewhere), `peak_memory_bytes`, `data_wait_share`,
        `steps_per_dispatch`, and what it ran on.
    """
    dataset = data.open_dataset(config.data)
    session = bind(resolve(config, dataset))
    train = session.config.train
    runner = Runner(session, dataset)
    layout, program = runner.layout, runner.program
    single = program
    if program.num_steps > 1:  # XLA counts the body of a loop once, or not at all
        single = runner.compile(1)

    timings = runner.timings(repeats)
    host_s = runner.host_seconds()
    if profile is not None:
        with jax.profiler.trace(str(profile)):
            runner.timings(1)
    runner.close()
    step_s = [t.seconds / t.steps for t in timings]
    ms = [1e3 * s for s in step_s]
    costs = _costs(single.run, layout.num_devices)
    median_s = statistics.median(step_s)
    rate = train.batch_size / median_s
    peak = _peak(layout.devices[0]) * layout.num_devices
    return {
        "family": config.family,
        "data": session.config.data.name,
        "shape": list(dataset.shape),
        "num_parameters": num_parameters(abstract_state(session).params),
        "batch_size": train.batch_size,
        "parallel": train.parallel,
        "num_devices": layout.num_devices,
        "device_kind": layout.devices[0].device_kind,
        "examples_per_s": rate,
        "examples_per_s_per_device": rate / layout.num_devices,
        "ms_per_step": statistics.median(ms),
        "ms_per_step_p10": float(np.percentile(ms, 10)),
        "ms_per_step_p90": float(np.percentile(ms, 90)),
        "cpu_ms_per_step": 1e3 * statistics.median(t.busy / t.steps for t in timings),
        "compile_s": runner.compile_s,
        "host_us_per_step": 1e6 * host_s,
        "flops_per_example": costs["flops"] / train.batch_size,
        "peak_flops_per_s": peak,
        "peak_fraction": costs["flops"] / median_s / peak,
        "bytes_accessed": costs["bytes accessed"],
        "peak_memory_bytes": peak_memory(program.run),
        "data_wait_share": sum(t.waited for t in timings)
        / sum(t.seconds for t in timings),
        "steps_per_dispatch": program.num_steps,
        "environment": rundir.environment(),
    }


class Timing(NamedTuple):
    """One repeat: seconds in all, of them waited for data, updates done, CPU seconds."""

    seconds: float
    waited: float
    steps: int
    busy: float


class Runner:
    """Dispatches a session's update on the batches of training, as the loop does.

    Args:
        session: Resolved config, model and optimizers.
        dataset: Whose training split is used.

    Attributes:
        layout: Where state and batches lie.
        program: The compiled dispatch, of as many updates as the config says.
        compile_s: Seconds that compiling it took.
    """

    def __init__(self, session: Session, dataset: data.Dataset):
        train = session.config.train
        endless = 2**30  # batches; they are made one by one
        self.layout = assembly.make_layout(train)
        self._feed = assembly.make_feed(
            dataset.train,
            [train.seed],
            train.batch_size,
            0,
            endless,
            self.layout.rows,
        )
        self._first = next(self._feed.items)
        self._items = itertools.chain([self._first], self._feed.items)
        self._advance = assembly.make_advance(session, self.layout)
        (state,) = assembly.first_states([session], dataset)
        self._state = self.layout.place(state)
        self._resident = self.layout.place_resident(self._feed.resident)
        self._key = jax.random.key(train.seed)
        began = time.perf_counter()
        self.program = self.compile(train.steps_per_dispatch)
        self.compile_s = time.perf_counter() - began
        self._size = self.program.num_steps  # updates a dispatch

    def compile(self, num_steps: int) -> parallel.Program:
        """A dispatch of `num_steps` updates; 0 chooses."""
        arguments = (self._state, self._resident, self._first, self._key)
        return self.layout.compile(
            self._advance, self._feed.fetch, arguments, num_steps
        )

    def close(self) -> None:
        """Ends the threads that read ahead."""
        self._feed.items.close()

    def timings(self, repeats: int) -> list[Timing]:
        """Of repeats with one wait at the end, after two dispatches to warm up."""
        dispatches = self.warm_up()
        return [self.repeat(dispatches) for _ in range(repeats)]

    def warm_up(self) -> int:
        """Some updates and a short repeat; says how many dispatches make a long enough one.

        Where updates are slow a dispatch has no more of them than a repeat needs.
        """
        self._size = 1
        for _ in range(2):
            single = self.repeat(1).seconds
        enough = max(MIN_STEPS, math.ceil(MIN_SECONDS / single))
        self._size = min(self.program.num_steps, enough)
        dispatches = math.ceil(MIN_STEPS / self._size)
        seconds = self.repeat(dispatches).seconds
        return dispatches * max(1, math.ceil(MIN_SECONDS / seconds))

    def repeat(self, dispatches: int) -> Timing:
        """So many dispatches, queued, and one wait."""
        began, waited = (time.perf_counter(), time.process_time()), 0.0
        for _ in range(dispatches):
            waited += self._dispatch()
        jax.block_until_ready(self._state)
        steps = dispatches * self._size
        seconds, busy = time.perf_counter() - began[0], time.process_time() - began[1]
        return Timing(seconds, waited, steps, busy)

    def host_seconds(self) -> float:
        """What the host does for one update, the device being idle.

        The median of 20, or of as many as there is time for in ten seconds.
        """
        seconds, last = [], time.perf_counter() + 10.0
        while not seconds or (len(seconds) < 20 and time.perf_counter() < last):
            jax.block_until_ready(self._state)
            began = time.perf_counter()
            self._dispatch()
            seconds.append(time.perf_counter() - began)
        return statistics.median(seconds) / self._size

    def _dispatch(self) -> float:
        """One dispatch; the seconds until its batches were there."""
        size = self._size
        began = time.perf_counter()
        items = list(itertools.islice(self._items, size))
        waited = time.perf_counter() - began
        self._state, metrics = self.program.run(
            self._state,
            self._resident,
            self.layout.place_items(items, self.program.num_steps),
            np.int32(size),
            self._key,
        )
        if self.layout.is_eager:
            jax.block_until_ready(metrics)
        return waited


def _peak(device: Any) -> float:
    """FLOP/s of the table for an accelerator, of a float32 matrix product elsewhere."""
    for chip in chips.CHIPS.values():
        if chip.device_kind == device.device_kind:
            return chip.flops_per_s
    return _matmul_peak()


@functools.cache
def _matmul_peak() -> float:
    a = jnp.ones((MATMUL, MATMUL), jnp.float32)
    product = jax.jit(jnp.matmul)
    jax.block_until_ready(product(a, a))
    seconds = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        jax.block_until_ready(product(a, a))
        seconds.append(time.perf_counter() - began)
    return 2 * MATMUL**3 / statistics.median(seconds)


def _costs(compiled: Any, num_devices: int) -> dict[str, float]:
    """XLA's FLOPs and bytes of one update on all devices; NaN where it counts none."""
    counted = compiled.cost_analysis() or {}
    return {
        name: num_devices * counted.get(name, math.nan)
        for name in ("flops", "bytes accessed")
    }


def peak_memory(compiled: Any) -> int:
    """Bytes a device needs: the program, arguments, results and what is between."""
    sizes = compiled.memory_analysis()
    return int(
        sizes.generated_code_size_in_bytes
        + sizes.argument_size_in_bytes
        + sizes.output_size_in_bytes
        - sizes.alias_size_in_bytes
        + sizes.temp_size_in_bytes
    )
