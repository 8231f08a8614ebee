"""The recipes of experiments/launch, with the engine played by this machine.

What is run is the recipe's own command, in two processes that find each other the way
that engine lets them; what only the engine itself can do (queues, pods, nodes) is not.
"""

import os
import random
import re
import subprocess
from pathlib import Path

import pytest
import yaml
from doors import SHORT
from test_processes import TWO, free_port

LAUNCH = Path(__file__).parent.parent / "experiments" / "launch"
SRUN = """#!/bin/bash
shift 2  # its own options
for i in 0 1; do
    SLURM_STEP_NODELIST=localhost SLURM_NTASKS=2 SLURM_PROCID=$i SLURM_LOCALID=$i \\
        SLURM_STEP_NUM_NODES=1 "$@" &
done
wait -n || { status=$?; kill $(jobs -p); exit $status; }
wait -n
"""


def in_shell(script, **environment):
    """A shell script in the clone, with two devices for each process."""
    return subprocess.Popen(
        ["bash", "-euc", script],
        env={**os.environ, **TWO, **environment},
        cwd=LAUNCH.parent.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process, timeout=240):
    out, err = process.communicate(timeout=timeout)
    return process.returncode, out, err


def recipe(name):
    return yaml.safe_load((LAUNCH / name).read_text())


@pytest.fixture
def slurm(tmp_path):
    """A PATH with an `srun` of two tasks, and an `scontrol` that says what it is told."""
    for name, text in (("srun", SRUN), ("scontrol", "#!/bin/bash\necho scontrol $*")):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    return {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "SLURM_JOB_ID": str(random.randrange(10_000_000)),  # decides the port
        "OUT": str(tmp_path / "run"),
    }


@pytest.mark.slow
def test_slurm_trains_in_two_tasks_that_nobody_told_of_each_other(slurm):
    command = " ".join(["vae", *SHORT, "--devices", "4"])
    status, out, err = ended(in_shell(f"{LAUNCH}/slurm.sh {command}", **slurm))
    assert status == 0, err
    assert "2 processes" in err
    assert out.count("run: ") == 1
    assert (Path(slurm["OUT"]) / "report.html").is_file()


@pytest.mark.slow
def test_slurm_requeues_a_job_that_failed_but_not_a_mistake(slurm):
    mistake = in_shell(f"{LAUNCH}/slurm.sh vae --stepz 3", **slurm)
    status, out, _ = ended(mistake)
    assert status == 2
    assert "scontrol" not in out
    (Path(slurm["OUT"])).mkdir()
    bound = "ulimit -f 8;"  # a full disk: no file of more than 8 blocks
    failed = in_shell(f"{bound} {LAUNCH}/slurm.sh vae {' '.join(SHORT)}", **slurm)
    status, out, err = ended(failed)
    assert status != 0, err
    assert f"scontrol requeue {slurm['SLURM_JOB_ID']}" in out
    last = {**slurm, "SLURM_RESTART_COUNT": "10"}
    failed = in_shell(f"{bound} {LAUNCH}/slurm.sh vae {' '.join(SHORT)}", **last)
    assert "scontrol" not in ended(failed)[1]


def container():
    job = recipe("jobset.yaml")["spec"]["replicatedJobs"][0]["template"]["spec"]
    return job, job["template"]["spec"]["containers"][0]


def test_jobset_is_one_job_of_as_many_pods_as_processes():
    jobset, (job, pod) = recipe("jobset.yaml"), container()
    assert job["parallelism"] == job["completions"] == 2
    assert f"--num-processes={job['completions']}" in pod["command"]
    assert job["completionMode"] == "Indexed"
    environment = {e["name"]: e for e in pod["env"]}
    host, port = environment["COORDINATOR"]["value"].split(":")
    name, workers = jobset["metadata"]["name"], jobset["spec"]["replicatedJobs"][0]
    assert host == f"{name}-{workers['name']}-0-0.{name}"
    assert int(port) == pod["ports"][0]["containerPort"]


@pytest.mark.slow
def test_jobset_trains(tmp_path):
    _, pod = container()
    where = f"127.0.0.1:{free_port()}"
    pods = []
    for i in range(2):
        words = [
            word.replace("$(COORDINATOR)", where).replace("$(PROCESS_ID)", str(i))
            for word in pod["command"]
        ]
        assert not re.search(r"\$\(", " ".join(words))
        kept = [w for w in words if not w.startswith(("--data", "--out"))]
        pods.append(
            in_shell(" ".join([*kept, *SHORT, "--devices 4", f"--out {tmp_path}/run"]))
        )
    results = [ended(p) for p in pods]
    assert [r[0] for r in results] == [0, 0], results
    assert "2 processes" in results[0][2]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sky-gpu.yaml", "sky-tpu.yaml"])
def test_sky_trains_on_one_node(tmp_path, name):
    task = recipe(name)
    assert set(task["envs"]) == {"BUCKET", "OUT", "COMMAND"}
    given = {"OUT": f"{tmp_path}/run", "COMMAND": " ".join(["vae", *SHORT])}
    node = {
        "SKYPILOT_NODE_IPS": "127.0.0.1",
        "SKYPILOT_NUM_NODES": "1",
        "SKYPILOT_NODE_RANK": "0",
    }
    script = task["run"].replace(":8476", f":{free_port()}")
    status, out, err = ended(in_shell(script, **given, **node))
    assert status == 0, err
    assert f"run: {tmp_path}/run" in out
