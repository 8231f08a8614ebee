"""Several processes that train as one: how they meet, and what only one of them does.

Every process runs the same command. JAX connects them (`jax.distributed`); the first
one alone writes the run folder, which all of them must see.
"""

import dataclasses
import glob
import importlib.util
import os
import threading
from collections.abc import Callable, Mapping

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxgen._checks import RunError, UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Launch:
    """How several processes find each other where no engine has started them."""

    coordinator: str | None = None
    """HOST:PORT of process 0; needless on TPU pods, under Slurm and in Kubernetes."""
    num_processes: int | None = None
    """How many processes train together."""
    process_id: int | None = None
    """Which of them this one is, from 0."""
    connect_timeout: int = 300
    """Seconds after which a process that has not met the others gives up."""


def start(launch: Launch) -> None:
    """Meets the other processes, if there are any; before any device is used.

    Raises:
        UserError: if the options do not fit together.
    """
    given = {
        "coordinator_address": launch.coordinator,
        "num_processes": launch.num_processes,
        "process_id": launch.process_id,
    }
    if all(value is None for value in given.values()):
        if not started_by_engine(os.environ):
            return
    else:
        _check(launch)
    # JAX aborts with a stack trace when its own time is up: be there before it.
    timer = threading.Timer(launch.connect_timeout, _give_up, [launch])
    timer.daemon = True
    timer.start()
    try:
        jax.distributed.initialize(
            **given, initialization_timeout=launch.connect_timeout + 60
        )
    except (RuntimeError, ValueError) as error:
        raise RunError(f"the processes did not meet: {error}") from error
    finally:
        timer.cancel()


def started_by_engine(environment: Mapping[str, str]) -> bool:
    """Whether an engine whose processes JAX can connect has started several here."""
    in_slurm = "SLURM_STEP_NODELIST" in environment  # started by srun
    in_kubernetes = "JOB_COMPLETION_INDEX" in environment  # an indexed Job
    return (
        (in_slurm and int(environment.get("SLURM_NTASKS", "1")) > 1)
        or int(environment.get("OMPI_COMM_WORLD_SIZE", "1")) > 1
        # JAX asks the cluster through this package.
        or (in_kubernetes and importlib.util.find_spec("kubernetes") is not None)
        or "," in environment.get("TPU_WORKER_HOSTNAMES", "")
        or "," in environment.get("TPU_PROCESS_ADDRESSES", "")
        or _on_tpu_machine(environment)
    )


def _on_tpu_machine(environment: Mapping[str, str]) -> bool:
    """On Google's TPU machines JAX asks the metadata server who the others are."""
    return (
        importlib.util.find_spec("libtpu") is not None
        and bool(glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*"))
        and "TPU_SKIP_MDS_QUERY" not in environment
    )


def is_first() -> bool:
    """Whether this process writes and speaks; the only one does."""
    return not jax.distributed.is_initialized() or jax.process_index() == 0


def count() -> int:
    """How many processes train together."""
    return jax.process_count() if jax.distributed.is_initialized() else 1


def from_first(act: Callable[[], str]) -> str:
    """What `act` returned in the first process, or its error, in all of them.

    Raises:
        UserError, RunError: that of the first process.
    """
    if count() == 1:
        return act()
    told = ""
    if is_first():
        try:
            told = f"+{act()}"
        except UserError as error:
            told = f"?{error}"
        except (RunError, OSError) as error:
            told = f"!{error}"
    message = np.frombuffer(told.encode(), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(message.size)))
    buffer = message if is_first() else np.zeros(size, np.uint8)
    sent = bytes(np.asarray(multihost_utils.broadcast_one_to_all(buffer)))
    kind, text = chr(sent[0]), sent[1:].decode()
    if kind == "+":
        return text
    raise UserError(text) if kind == "?" else RunError(text)


def _check(launch: Launch) -> None:
    names = ("coordinator", "num_processes", "process_id")
    options = {f"--{n.replace('_', '-')}": getattr(launch, n) for n in names}
    missing = [name for name, value in options.items() if value is None]
    if missing:
        raise UserError(f"{', '.join(options)} go together: {missing[0]} is missing")
    host, _, port = str(launch.coordinator).rpartition(":")
    if not host or not port.isdecimal():
        raise UserError(f"--coordinator must be HOST:PORT, got {launch.coordinator}")
    number, processes = launch.process_id, launch.num_processes
    if processes is not None and number is not None and not 0 <= number < processes:
        raise UserError(
            f"--process-id {number}: with --num-processes {processes} it must be in "
            f"0 .. {processes - 1}"
        )


def _give_up(launch: Launch) -> None:
    where = launch.coordinator or "the engine's coordinator"
    os.write(
        2,
        f"jaxgen: {launch.connect_timeout} s passed and the processes have not met at "
        f"{where}: is it reachable, and were all {launch.num_processes or ''} started? "
        "(--connect-timeout waits longer)\n".replace("  ", " ").encode(),
    )
    os._exit(1)
