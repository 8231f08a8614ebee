"""What a training step would need and could reach on accelerators that are not here.

Their own compilers run on any machine: the program that training would run is compiled
ahead of time for a described topology, and its figures are read. Nothing is executed.
The compilers live in a process of their own (`python -m jaxgen.bench.plan`), which takes
`{"config", "target", "search"}` as JSON and answers with one JSON object.
"""

import dataclasses
import json
import math
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import Any, NamedTuple

import jax

from jaxgen import data
from jaxgen._checks import RunError, UserError
from jaxgen.bench import chips
from jaxgen.bench.throughput import peak_memory
from jaxgen.train import assembly, parallel
from jaxgen.train import config as configs
from jaxgen.train.console import say
from jaxgen.train.session import (
    Session,
    abstract_state,
    bind,
    num_parameters,
    resolve,
)

COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)
PACKAGES = ("jax", "libtpu", "jax-cuda12-plugin", "jax-cuda13-plugin")

# For the process of the compilers: no device is looked for, nor a host of the cloud.
_ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # nothing is locked that is not there
}
Compile = Callable[[int, int], parallel.Program]


def ask(
    config: configs.RunConfig, target: str, *, search: bool = True
) -> dict[str, Any]:
    """`plan` in a process of its own.

    Raises:
        UserError: for a mistake in the config or target, or a compiler that is missing.
        RunError: if the compiler fails, for another reason than memory.
    """
    chips.check_compiler(chips.parse_target(target))
    say(f"compiling for {target}: seconds to minutes")
    question = {"config": configs.to_dict(config), "target": target, "search": search}
    done = subprocess.run(
        [sys.executable, "-m", "jaxgen.bench.plan"],
        input=json.dumps(question),
        env={**os.environ, **_ENVIRONMENT},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise RunError(f"compiling for {target}: status {done.returncode}: {last}")
    answer = json.loads(done.stdout)
    if "mistake" in answer:
        raise UserError(answer["mistake"])
    if "failure" in answer:
        raise RunError(f"compiling for {target}: {answer['failure']}")
    return answer


def plan(
    config: configs.RunConfig, target: chips.Target, *, search: bool = True
) -> dict[str, Any]:
    """Compiles a run's training step for a target and reads the program.

    Args:
        config: Of the run; its batch is the global one.
        target: Chips and how they are joined.
        search: Whether the largest batch is looked for.

    Returns:
        `fits`, `bytes_needed` and `bytes_usable` (a device; of the program that does
        `steps_per_dispatch` updates), `compiler` (its words, where it refused),
        `largest_batch_per_device` (four significant bits; None without a search), and of
        a program of one update, if it fits: `collectives` ({kind: count and bytes a
        device}), `flops` and `bytes_accessed` (a device), `flops_from` ("target", or
        "cpu" where the target's compiler counts none), `examples_per_s_per_device` (the
        roofline bound), `bound_by` ("compute" or "memory").
    """
    dataset = data.open_dataset(config.data)
    bound = bind(resolve(config, dataset))
    train = bound.config.train
    layout = assembly.make_layout(train, chips.topology_devices(target))
    num = layout.num_devices
    compiler = make_compiler(bound, dataset, layout.devices)
    result = {
        "family": config.family,
        "data": config.data.name,
        "shape": list(dataset.shape),
        "num_parameters": num_parameters(abstract_state(bound).params),
        "device_kind": target.chip.device_kind,
        "num_devices": num,
        "parallel": train.parallel,
        "accumulate": train.accumulate,
        "batch_size": train.batch_size,
        "batch_per_device": train.batch_size // num,
        "notes": list(dataset.notes),
        "versions": _versions(),
    }
    memory, program = _memory(
        result, target.chip, compiler, train.steps_per_dispatch, search=search
    )
    result |= memory
    if program and result["fits"]:
        if program.num_steps > 1:
            program = compiler(train.batch_size, 1)
        cpu = make_compiler(bound, dataset, jax.devices("cpu")[:num])
        result |= _one_update(result, target.chip, program.run, cpu)
    return result


def _memory(
    asked: dict[str, Any],
    chip: chips.Chip,
    compiler: Compile,
    num_steps: int,
    *,
    search: bool,
) -> tuple[dict[str, Any], parallel.Program | None]:
    """What the asked batch needs, and the largest that fits; and the asked program."""
    usable, num, parts = chip.usable_bytes, asked["num_devices"], asked["accumulate"]

    def need(size: int) -> Need:
        return compile_for(compiler, size * num, num_steps, usable)

    own = asked["batch_per_device"]
    wanted = need(own)
    fits = wanted.bytes <= usable
    largest = None
    if search:
        # In float32 an example takes its own size at the least.
        top = int(usable / (4 * math.prod(asked["shape"]) * parts))
        largest = parts * largest_size(lambda n: need(n * parts).bytes, usable, top)
        largest = max(largest, own) if fits else largest
    told = {
        "steps_per_dispatch": wanted.program and wanted.program.num_steps,
        "fits": fits,
        "bytes_needed": wanted.bytes,
        "bytes_usable": usable,
        "compiler": wanted.refusal,
        "largest_batch_per_device": largest,
    }
    return told, wanted.program


def _one_update(
    asked: dict[str, Any], chip: chips.Chip, compiled: Any, cpu: Compile
) -> dict[str, Any]:
    """Figures of a program of one update: of a loop XLA counts the body once, or not."""
    counted, flops_from = compiled.cost_analysis() or {}, "target"
    if "flops" not in counted:
        on_cpu = cpu(asked["batch_size"], 1).run
        counted, flops_from = on_cpu.cost_analysis(), "cpu"
    costs = counted["flops"], counted["bytes accessed"]
    rate, bound_by = roofline(chip, *costs, asked["batch_per_device"])
    return {
        "collectives": collectives(compiled.as_text()),
        "flops": costs[0],
        "bytes_accessed": costs[1],
        "flops_from": flops_from,
        "examples_per_s_per_device": rate,
        "bound_by": bound_by,
    }


def make_compiler(
    session: Session, dataset: data.Dataset, devices: Sequence[Any]
) -> Compile:
    """`(global batch, updates per dispatch or 0) -> Program` of a run on devices.

    The batch may exceed the data set: memory is asked about, not training.
    """
    train = session.config.train
    feed = assembly.make_feed(
        dataset.train, [train.seed], train.batch_size, 0, train.steps
    )
    item = next(feed.items)
    feed.items.close()
    state = abstract_state(session)

    def compiler(batch_size: int, num_steps: int) -> parallel.Program:
        layout = assembly.make_layout(
            dataclasses.replace(train, batch_size=batch_size, devices=len(devices)),
            devices,
        )
        batch = jax.tree.map(
            lambda a: jax.ShapeDtypeStruct((batch_size, *a.shape[1:]), a.dtype), item
        )
        key = jax.eval_shape(jax.random.key, train.seed)
        return layout.compile(
            assembly.make_advance(session, layout),
            feed.fetch,
            (*layout.shapes(state, feed.resident), batch, key),
            num_steps,
        )

    return compiler


class Need(NamedTuple):
    """Bytes a device needs, and the program, or the words with which it was refused."""

    bytes: float
    program: parallel.Program | None
    refusal: str | None = None


def compile_for(
    compiler: Compile, batch_size: int, num_steps: int, usable: float
) -> Need:
    """Compiles a batch; what does not fit is an answer too."""
    try:
        program = compiler(batch_size, num_steps)
    except RuntimeError as error:  # JAX's own is one too
        if "Invalid dimension size" in str(error):  # beyond XLA's 2^31
            return Need(2 * usable, None, _first_line(error))
        told = out_of_memory(error)
        if told is None:
            raise
        # What is named may be a part only of what was too much.
        return Need(max(told, usable + 1), None, _first_line(error))
    return Need(peak_memory(program.run), program)


def out_of_memory(error: Exception) -> float | None:
    """The bytes an error says are too many; None if it is about something else."""
    text = str(error)
    if "RESOURCE_EXHAUSTED" not in text:
        return None
    found = re.search(r"(?:\(|Used )([\d.]+)([KMGT]?)\b", text)
    return float(found[1]) * 1024 ** " KMGT".index(found[2] or " ") if found else 0.0


def largest_size(need: Callable[[int], float], usable: float, top: int) -> int:
    """The largest size up to `top` that fits, to four significant bits; 0 if none does.

    It comes down from above, since what does not fit is refused in seconds, and is led
    by the refusals' figures: where need = a + b size with a >= 0, nothing between
    size * usable / need and size fits.

    Args:
        need: `size -> bytes`, not decreasing.
        usable: The bytes there are.
        top: Surely too large.
    """
    size = _four_bits(top)
    while size and (wanted := need(size)) > usable:
        size = _four_bits(min(size - 1, int(size * usable / wanted)))
    return size


def _four_bits(number: int) -> int:
    rest = max(number.bit_length() - 4, 0)
    return number >> rest << rest


def collectives(program: str) -> dict[str, dict[str, int]]:
    """What a compiled program exchanges between devices.

    Args:
        program: Its HLO text, of one device.

    Returns:
        `{kind: {"count", "bytes"}}`, bytes of the results on one device; kinds that do
        not occur are left out. An asynchronous pair counts once, by its end.
    """
    kinds = "|".join(COLLECTIVES)
    found: dict[str, dict[str, int]] = {}
    for results, kind in re.findall(rf"= (.*?) ({kinds})(?:-done)?\(", program):
        entry = found.setdefault(kind, {"count": 0, "bytes": 0})
        entry["count"] += 1
        entry["bytes"] += _num_bytes(results)
    return found


def _num_bytes(shapes: str) -> int:
    """Of all the arrays in an HLO type, such as `(f32[8,16]{1,0}, pred[3])`."""
    total = 0
    for dtype, sizes in re.findall(r"\b(pred|[a-z]+\d\w*)\[([\d,]*)\]", shapes):
        bits = re.search(r"\d+", dtype)
        num = math.prod(int(n) for n in sizes.split(",") if n)
        total += -(-num * (int(bits[0]) if bits else 8) // 8)
    return total


def roofline(
    chip: chips.Chip, flops: float, bytes_accessed: float, examples: int
) -> tuple[float, str]:
    """Examples a second and device at most, and whether "compute" or "memory" limits it.

    Args:
        chip: Whose peaks are the roof.
        flops: Of an update, on one device.
        bytes_accessed: The same.
        examples: The device's share of the batch.

    References:
        Williams, Waterman & Patterson 2009, "Roofline".
    """
    seconds = {
        "compute": flops / chip.flops_per_s,
        "memory": bytes_accessed / chip.bytes_per_s,
    }
    limit = max(seconds, key=lambda name: seconds[name])
    return examples / seconds[limit], limit


def _versions() -> dict[str, str]:
    there = {d.name: d.version for d in metadata.distributions()}
    return {name: there[name] for name in PACKAGES if name in there}


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


def main() -> None:
    """Answers the question on standard input; libraries that chatter do so elsewhere."""
    # A compilation is minutes that nobody would wait for.
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    answer_to = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    question = json.load(sys.stdin)
    target = chips.parse_target(question["target"])
    # As many as there are in the target: on TPU7x a chip is two of JAX's devices.
    jax.config.update("jax_num_cpu_devices", 2 * math.prod(target.shape))
    try:
        config = configs.from_dict(question["config"])
        answer = plan(config, target, search=question["search"])
    except UserError as error:
        answer = {"mistake": str(error)}
    except (RunError, jax.errors.JaxRuntimeError) as error:
        answer = {"failure": _first_line(error)}
    json.dump(answer, answer_to, allow_nan=False)
    answer_to.close()


if __name__ == "__main__":
    main()
