"""The competition of the families: what is measured, kept, left out and told."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from jaxgen import data
from jaxgen._checks import RunError, UserError
from jaxgen.bench import families, families_shown, pinned
from jaxgen.train import config as configs
from jaxgen.train import rundir, session

ENTRANTS = [
    families.Entrant("vae", "vae", ["--data", "digits"], ["--num-images", "30"]),
    families.Entrant("gan", "gan", ["--data", "digits"]),
]
SLEEPER = [sys.executable, "-c", "import time; print(1, flush=True); time.sleep(60)"]


def protocol(tmp_path, **changes):
    given = {"out": tmp_path, "minutes": 0.5, "seeds": (0, 1), "jobs": 1}
    return families.Protocol(**(given | changes))


@pytest.fixture
def commands(monkeypatch):
    """The commands that are called, none of which does anything but leave its files."""
    called = []
    broken = set()

    def command(self, argv, log):
        del self
        name, *rest = argv[argv.index("-m") + 2 :]
        called.append([name, *rest])
        if any(f" {part}" in " ".join(called[-1]) for part in broken):
            raise RunError("status 1")
        if name == "bench":
            return json.dumps(
                {"ms_per_step": 99.0, "cpu_ms_per_step": 70.0, "batch_size": 126}
            )
        if name == "train":
            run = rundir.RunFolder(pinned.Path(rest[-1]))
            run.path.mkdir(parents=True)
            config = configs.default(rest[0])
            run.write_config(session.resolve(config, data.open_dataset(config.data)))
        elif name == "evaluate":
            run = pinned.Path(rest[0])
            seed = int(run.name.removeprefix("seed-"))
            entry = {"value": 3.0 + seed, "floor": 0.5}
            told = {"step": 420, "bits_per_dim": None}
            if run.parent.name == "vae":
                told |= {"bits_per_dim": 3.5 + seed, "bits_per_dim_kind": "bound"}
                told["best_step"] = 40
            told["quality"] = dict.fromkeys(families.FIGURES, entry)
            (run / "evaluation.json").write_text(json.dumps(told))
        else:
            return 'words\n{"samples_per_s": 12345.6}\n'
        return ""

    monkeypatch.setattr(pinned.Cores, "command", command)
    return called, broken


@pytest.mark.parametrize(
    ("seconds", "ms", "steps"),
    [
        (120, 100.0, 1200),
        (120, 97.0, 1200),
        (120, 92.0, 1300),
        (120, 3.0, 40_000),
        (120, 3.01, 39_000),
        (1, 11.2, 89),
        (1, 9.1, 100),
        (1, 150.0, 6),
        (0.01, 150.0, 1),
    ],
)
def test_steps_within_never_takes_longer_and_has_two_digits(seconds, ms, steps):
    assert families.steps_within(seconds, ms) == steps


def test_compete_measures_first_then_trains_with_these_steps(commands, tmp_path):
    called, _ = commands
    rows, failures = families.compete(ENTRANTS, protocol(tmp_path))
    assert failures == []
    assert [argv[:2] for argv in called[:2]] == [["bench", "vae"], ["bench", "gan"]]
    trained = [argv for argv in called if argv[0] == "train"]
    assert len(trained) == 4
    for argv in trained:
        assert argv[2:4] == ["--data", "digits"]
        assert argv[argv.index("--steps") + 1] == "420"
    judged = [argv for argv in called if argv[0] == "evaluate"]
    assert [argv[2:] for argv in judged] == 2 * [["--num-images", "30"]] + 2 * [[]]
    # Drawing is timed when all else is done, one run of each family.
    assert [argv[0] for argv in called[-2:]] == [
        str(tmp_path / name / "seed-0") for name in ("vae", "gan")
    ]
    vae, gan = rows
    assert (vae.name, vae.seeds, vae.steps) == ("vae", [0, 1], [420, 420])
    assert (vae.bits_per_dim, vae.kind) == ([3.5, 4.5], "bound")
    assert (gan.bits_per_dim, gan.kind) == (None, None)
    assert (vae.best, gan.best) == ([40, 40], None)
    assert vae.quality["density"] == [3.0, 4.0]
    assert vae.floor["recall"] == 0.5
    assert (vae.examples_per_s, vae.samples_per_s) == (1800.0, 12345.6)
    assert vae.num_parameters != gan.num_parameters > 1000


def test_compete_does_nothing_twice(commands, tmp_path):
    called, _ = commands
    first = families.compete(ENTRANTS, protocol(tmp_path))
    called.clear()
    assert families.compete(ENTRANTS, protocol(tmp_path)) == first
    assert called == []
    families.compete(ENTRANTS, protocol(tmp_path, seeds=(0, 1, 2)))
    assert [argv[0] for argv in called] == ["train", "evaluate"] * 2
    # A run that was trained but not judged is given to both commands again.
    (tmp_path / "gan" / "seed-1" / "evaluation.json").write_text('{"step": 420}')
    assert not families.is_judged(tmp_path / "gan" / "seed-1")


def test_compete_tells_of_a_run_that_fails_and_keeps_the_others(commands, tmp_path):
    called, broken = commands
    broken.add(f"--out {tmp_path / 'vae' / 'seed-0'}")
    rows, failures = families.compete(ENTRANTS, protocol(tmp_path))
    assert failures == ["vae, seed 0: status 1"]
    assert [row.seeds for row in rows] == [[1], [0, 1]]
    broken.clear()
    called.clear()
    rows, failures = families.compete(ENTRANTS, protocol(tmp_path))
    assert ([row.seeds for row in rows], failures) == ([[0, 1], [0, 1]], [])
    assert [argv[0] for argv in called] == ["train", "evaluate"]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"minutes": 1.0}, "vae is of minutes 0.5, not 1.0: another --out?"),
        ({"steps": 7}, "vae is of steps None, not 7: another --out?"),
    ],
)
def test_compete_refuses_a_folder_of_another_protocol(
    commands, tmp_path, changes, told
):
    called, _ = commands
    families.compete(ENTRANTS[:1], protocol(tmp_path, seeds=(0,)))
    called.clear()
    with pytest.raises(UserError, match=told):
        families.compete(ENTRANTS, protocol(tmp_path, **changes))
    assert called == []


def test_compete_refuses_other_flags_and_wrong_numbers(commands, tmp_path):
    del commands
    families.compete(ENTRANTS, protocol(tmp_path))
    other = ENTRANTS[1]._replace(train=["--data", "digits", "--width", "8"])
    words = "gan is of train --data digits, not --data digits --width 8"
    with pytest.raises(UserError, match=words):
        families.compete([ENTRANTS[0], other], protocol(tmp_path))
    with pytest.raises(UserError, match="--seeds must be different"):
        families.compete(ENTRANTS, protocol(tmp_path, seeds=(1, 1)))
    with pytest.raises(UserError, match="--minutes must be positive"):
        families.compete(ENTRANTS, protocol(tmp_path, minutes=0.0))
    with pytest.raises(UserError, match="--jobs must be in 1 .. "):
        families.compete(ENTRANTS, protocol(tmp_path, jobs=10_000))


def test_compete_needs_no_speed_where_steps_are_given(commands, tmp_path):
    called, _ = commands
    rows, _ = families.compete(ENTRANTS, protocol(tmp_path, steps=7, minutes=2.0))
    assert all(argv[0] != "bench" for argv in called)
    assert rows[0].examples_per_s is None
    families.compete(ENTRANTS, protocol(tmp_path, steps=7, minutes=3.0))


ROW = families.Row(
    name="vae",
    seeds=[0, 1],
    num_parameters=407_584,
    steps=[1000, 1200],
    best=[300, 500],
    examples_per_s=1834.0,
    samples_per_s=7.13,
    bits_per_dim=[3.5, 3.7],
    kind="bound",
    quality=dict.fromkeys(families.FIGURES, [30.0, 34.0]),
    floor=dict.fromkeys(families.FIGURES, 6.502),
)


def test_table_has_mean_and_deviation_and_the_value_of_real_images():
    lone = dataclasses.replace(
        ROW,
        name="gan",
        seeds=[0],
        steps=[1000],
        best=None,
        bits_per_dim=None,
        examples_per_s=None,
        quality=dict.fromkeys(families.FIGURES, [0.25]),
    )
    lines = families_shown.table([ROW, lone]).splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert lines[2] == (
        "| vae | 2 | 407,584 | 1,100, best 400 "
        + "| 32 ± 2.8 " * 5
        + "| 3.6 ± 0.14 (bound) | 1,800 | 7.1 |"
    )
    assert lines[3] == (
        "| gan | 1 | 407,584 | 1,000 " + "| 0.25 " * 5 + "| none |  | 7.1 |"
    )
    assert lines[4] == "| real images |  |  |  " + "| 6.5 " * 5 + "|  |  |  |"


@pytest.mark.parametrize(
    ("rate", "text"),
    [
        (0.337, "0.34"),
        (7.13, "7.1"),
        (0.0123, "0.012"),
        (99.6, "100"),
        (34_567, "35,000"),
    ],
)
def test_rounded_keeps_two_digits(rate, text):
    assert families_shown.rounded(rate) == text


def test_figure_is_drawn_without_a_likelihood_too(tmp_path):
    rows = [dataclasses.replace(ROW, bits_per_dim=None, kind=None)]
    samples = {"vae": np.zeros((64, 8, 8, 1), np.uint8)}
    families_shown.figure(rows, samples, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity"), reason="nothing is bound here"
)
def test_cores_binds_each_command_to_one_core_and_not_the_caller(tmp_path):
    before = os.sched_getaffinity(0)
    words = "import os, time; time.sleep(1); print(*os.sched_getaffinity(0))"
    with pinned.Cores() as cores:
        tasks = [
            cores.submit(
                cores.command, [sys.executable, "-c", words], tmp_path / f"{core}.log"
            )
            for core in before
        ]
        bound = [task.result().split() for task in tasks]
    assert sorted(int(core) for (core,) in bound) == sorted(before)
    assert os.sched_getaffinity(0) == before


def test_cores_tells_the_last_line_of_a_command_that_fails(tmp_path):
    argv = [sys.executable, "-c", "import sys; print(1); sys.exit('jaxgen: no')"]
    with pinned.Cores(1) as cores:
        task = cores.submit(cores.command, argv, tmp_path / "a.log")
        with pytest.raises(RunError, match="status 1, .*a.log: jaxgen: no"):
            task.result()
        argv = [sys.executable, "-c", "print(2)"]
        assert cores.submit(cores.command, argv, tmp_path / "a.log").result() == "2\n"
    assert (tmp_path / "a.log").read_text().splitlines()[-1] == "2"


def test_cores_ends_what_runs_and_begins_no_more_after_an_error(tmp_path):
    began = time.monotonic()
    with pytest.raises(ZeroDivisionError), pinned.Cores(1) as cores:  # noqa: PT012
        running = cores.submit(cores.command, SLEEPER, tmp_path / "a.log")
        waiting = cores.submit(cores.command, SLEEPER, tmp_path / "b.log")
        while not (tmp_path / "a.log").is_file() or not running.running():
            time.sleep(0.01)
        time.sleep(0.5)
        raise ZeroDivisionError
    assert time.monotonic() - began < 30
    assert f"status -{signal.SIGTERM.value}" in str(running.exception())
    assert waiting.cancelled()
    assert not (tmp_path / "b.log").exists()


def test_cores_passes_sigterm_on(tmp_path):
    words = f"""
import sys
from pathlib import Path
from jaxgen.bench import pinned
with pinned.Cores(1) as cores:
    print("here", flush=True)
    cores.submit(cores.command, {SLEEPER!r}, Path({str(tmp_path / "a.log")!r})).result()
"""
    argv = [sys.executable, "-c", words]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "here\n"
        time.sleep(1)
        process.terminate()
        assert process.wait(30) == 128 + signal.SIGTERM
