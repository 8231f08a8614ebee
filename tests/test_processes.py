"""Several processes that train as one."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import unoptimised
from doors import SHORT, jaxgen

from jaxgen._checks import UserError
from jaxgen.train import processes, session, snapshots
from jaxgen.train.processes import Launch
from jaxgen.train.rundir import RunFolder

TWO = {
    "JAX_NUM_CPU_DEVICES": "2",
    "NPROC": "8",
    "JAX_PLATFORMS": "cpu",
    "PYTHONUNBUFFERED": "",  # what is written at the end must not be lost
}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"coordinator": "here:1"}, "go together: --num-processes is missing"),
        ({"process_id": 0, "num_processes": 2}, "together: --coordinator is missing"),
        ({"coordinator": "here"}, "--coordinator must be HOST:PORT, got here"),
        ({"process_id": 2}, r"--process-id 2: .* must be in 0 \.\. 1"),
    ],
)
def test_start_refuses_options_that_do_not_fit(options, message):
    whole = {"coordinator": "here:1", "num_processes": 2, "process_id": 0}
    given = options if "must" not in message else {**whole, **options}
    with pytest.raises(UserError, match=message):
        processes.start(Launch(**given))


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, False),
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4"}, False),  # the batch script itself
        ({"SLURM_STEP_NODELIST": "n[1-2]", "SLURM_NTASKS": "2"}, True),
        ({"SLURM_STEP_NODELIST": "n1", "SLURM_NTASKS": "1"}, False),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, True),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, False),
        ({"TPU_WORKER_HOSTNAMES": "t-0,t-1"}, True),
        ({"JOB_COMPLETION_INDEX": "0"}, False),  # nothing here can ask the cluster
    ],
)
def test_started_by_engine_wants_several_processes(environment, expected):
    assert processes.started_by_engine(environment) is expected


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def environment_of(number):
    """That of one of two processes: two devices, and a folder for what it compiles."""
    env = {**os.environ, **TWO}
    if kept := env.get("JAX_COMPILATION_CACHE_DIR"):
        env["JAX_COMPILATION_CACHE_DIR"] = f"{kept}-process-{number}"
    return env


def start_two(*argv):
    """`jaxgen ARGV` in two processes with two devices each."""
    where = ["--coordinator", f"127.0.0.1:{free_port()}", "--num-processes", "2"]
    return [
        jaxgen(*argv, *where, "--process-id", i, env=environment_of(i))
        for i in range(2)
    ]


def wait(started, timeout=480):
    """Exit statuses, outputs and errors, in the order of the processes."""
    try:
        told = [process.communicate(timeout=timeout) for process in started]
    except subprocess.TimeoutExpired as error:
        for process in started:
            process.kill()
        told = [process.communicate() for process in started]
        raise AssertionError(f"{timeout} s passed: {told}") from error
    return [p.returncode for p in started], *zip(*told, strict=True)


def test_an_unreachable_coordinator_is_given_up_in_time():
    began = time.monotonic()
    where = ["--coordinator", f"127.0.0.1:{free_port()}", "--num-processes", "2"]
    process = jaxgen(
        "train", "vae", *where, "--process-id", "1", "--connect-timeout", "2"
    )
    statuses, _, errors = wait([process], timeout=60)
    assert statuses == [1]
    assert "2 s passed and the processes have not met at 127.0.0.1" in errors[0]
    assert errors[0].count("\n") == 1
    assert time.monotonic() - began < 60


@pytest.mark.slow
def test_two_processes_have_the_numbers_of_one_device(tmp_path):
    from test_parallel import MODELS, TOLERANCES, assert_same, reference
    from two_processes import LARGE, LAYOUTS

    script = Path(__file__).parent / "two_processes.py"
    where = f"127.0.0.1:{free_port()}"
    started = [
        subprocess.Popen(
            [sys.executable, str(script), where, str(i), str(tmp_path)],
            env=environment_of(i) | {"XLA_FLAGS": unoptimised.FLAGS},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    statuses, _, errors = wait(started)
    assert statuses == [0, 0], errors
    compared = 0
    for file in tmp_path.glob("*.npz"):
        name, _ = file.stem.split("-", 1)
        leaves = np.load(file, allow_pickle=False)
        numbered = [leaves[f"arr_{i}"] for i in range(len(leaves.files))]
        import jax

        expected = jax.tree.leaves(reference(name))
        assert_same(numbered, expected, TOLERANCES.get(name, 1e-5))
        compared += 1
    assert compared == len(MODELS) - len(LARGE) - 1 + len(LAYOUTS)


@pytest.mark.slow
def test_processes_stop_together_and_go_on_in_one(tmp_path):
    """One of them is told to stop, then one is killed; then a lone process finishes."""
    command = ["train", "vae", *SHORT, "--steps", "3000", "--checkpoint-every", "20"]
    out = ["--out", tmp_path / "run"]
    for number, who in ((signal.SIGTERM, 1), (signal.SIGKILL, 0)):
        before = steps(tmp_path / "run")
        started = start_two(*command, *out, "--devices", "4")
        while steps(tmp_path / "run") <= before:
            assert all(p.poll() is None for p in started), wait(started)
            time.sleep(0.1)
        started[who].send_signal(number)
        statuses, outputs, errors = wait(started)
        if number == signal.SIGTERM:
            assert statuses == [143, 143], errors
            assert "the same command continues" in errors[0]
            assert "run: " in outputs[0]
            assert "jaxgen" not in errors[1]  # one of them speaks
        else:
            assert statuses[0] == -signal.SIGKILL
            assert statuses[1] not in (0, None)
    reached = steps(tmp_path / "run")
    command[command.index("3000")] = str(reached + 40)
    one, _, errors = wait([jaxgen(*command, *out)])
    assert one == [0], errors
    assert "continuing from step" in errors[0]


def steps(run):
    """The newest checkpoint that is sealed."""
    return max(steps_of(run), default=0)


def steps_of(run):
    sealed = (run / "checkpoints").glob("*/manifest.json")
    return [int(path.parent.name) for path in sealed]


@pytest.mark.slow
def test_two_processes_train_as_one_does(tmp_path):
    command = ["train", "vae", *SHORT, "--steps", "12"]
    statuses, outputs, errors = wait(
        start_two(*command, "--devices", "4", "--out", tmp_path / "two")
    )
    assert statuses == [0, 0], errors
    assert outputs[0].endswith(f"run: {tmp_path / 'two'}\n")
    assert "run:" not in outputs[1]
    statuses, _, _ = wait([jaxgen(*command, "--out", tmp_path / "one")])
    assert statuses == [0]
    two, one = (
        [r["loss"] for r in RunFolder(tmp_path / name).read_metrics()]
        for name in ("two", "one")
    )
    np.testing.assert_allclose(two, one, rtol=1e-5)
    judged = (
        json.loads((tmp_path / n / "evaluation.json").read_text())["nll_nats"]
        for n in ("two", "one")
    )
    assert next(judged) == pytest.approx(next(judged), rel=1e-5)


@pytest.mark.slow
def test_two_processes_train_several_seeds(tmp_path):
    command = ["train", "vae", *SHORT, "--num-seeds", "3", "--out", tmp_path / "seeds"]
    command += ["--ema-widths", "0.05", "0.1"]
    statuses, outputs, errors = wait(
        start_two(*command, "--devices", "4", "--parallel", "fsdp")
    )
    assert statuses == [0, 0], errors
    assert outputs[0].count("run: ") == 3
    for seed in range(3):
        run = tmp_path / "seeds" / f"seed-{seed}"
        assert sorted(steps_of(run)) == [8, 12]
        assert snapshots.stored(run / "averages") == [4, 8, 12]
        assert "rebuilt" in session.load(run, ema_width=0.08).notes[-1]
        assert (run / "report.html").is_file()


@pytest.mark.slow
def test_bench_measures_two_processes_and_one_tells(tmp_path):
    options = [*SHORT[:8], "--devices", "4", "--repeats", "2", "--json"]
    statuses, outputs, errors = wait(start_two("bench", "vae", *options))
    assert statuses == [0, 0], errors
    # Gloo, which connects the processes on CPU, writes lines of its own before.
    assert json.loads(outputs[0].splitlines()[-1])["num_devices"] == 4
    assert "{" not in outputs[1]


@pytest.mark.slow
def test_an_error_of_the_first_process_reaches_all(tmp_path):
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "thesis.txt").write_text("x")
    statuses, _, errors = wait(
        start_two("train", "vae", *SHORT, "--out", tmp_path / "foreign")
    )
    assert statuses == [2, 2]
    assert all("holds files but no config.json" in e for e in errors)
