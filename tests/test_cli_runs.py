"""A run that is stopped, prolonged or harmed: the same command continues it."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from doors import SHORT, TINY, call, jaxgen
from PIL import Image


@pytest.mark.slow
def test_train_without_out_numbers_runs_and_finds_the_same_one_again(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        _, out, _ = call(capsys, "train", "vae", *SHORT)
        assert out == "run: runs/00000-vae-digits\n"
    _, out, _ = call(capsys, "train", "vae", *SHORT, "--seed", "1")
    assert out == "run: runs/00001-vae-digits\n"


@pytest.mark.slow
def test_train_goes_on_with_more_steps_and_says_what_changed(tmp_path, capsys):
    call(capsys, "train", "vae", *SHORT, "--out", tmp_path / "r")
    status, _, err = call(
        capsys, "train", "vae", *SHORT, "--out", tmp_path / "r", "--steps", "16"
    )
    assert status == 0
    assert "train.steps: 12 -> 16" in err
    assert "continuing from step 12" in err


def test_what_a_kill_before_the_config_leaves_is_taken_over(tmp_path, capsys):
    path = tmp_path / "r"
    (path / "samples").mkdir(parents=True)
    (path / "environment.json").write_text("{")
    (path / ".config.json.123").write_text("{")
    status, _, err = call(capsys, "train", "vae", *SHORT, "--out", path)
    assert status == 0, err


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", "{}", "config.json: config: version None"),
        ("config.json", '{"version": 1, "architectures": []}', "config.json: config:"),
        ("config.json", "[1]", "not the config of a jaxgen run"),
        ("config.json", "no JSON", "cannot be read"),
        ("samples/reals.png", "precious", "holds files but no config.json"),
    ],
)
def test_a_foreign_folder_is_left_as_it_is(tmp_path, capsys, name, content, message):
    (tmp_path / "theirs" / name).parent.mkdir(parents=True)
    (tmp_path / "theirs" / name).write_text(content)
    status, _, err = call(capsys, "train", "vae", *SHORT, "--out", tmp_path / "theirs")
    assert status == 2
    assert message in err.splitlines()[-1]
    left = [p for p in (tmp_path / "theirs").rglob("*") if p.is_file()]
    assert left == [tmp_path / "theirs" / name]
    assert left[0].read_text() == content
    assert {p.name for p in (tmp_path / "theirs").iterdir()} == {name.split("/")[0]}


def test_a_run_goes_on_only_with_the_data_it_was_begun_with(tmp_path, capsys):
    photos = tmp_path / "photos"
    photos.mkdir()
    for i in range(40):
        Image.new("L", (4, 4), 5 * i).save(photos / f"{i:02d}.png")
    argv = ["train", "vae", *TINY, "--steps", "2", "--data", f"folder:{photos}"]
    argv += ["--image-size", "4", "--channels", "1", "--out", tmp_path / "run"]
    assert call(capsys, *argv)[0] == 0
    Image.new("L", (4, 4), 255).save(photos / "00a.png")
    status, _, err = call(capsys, *argv, "--steps", "4")
    assert status == 2
    assert "num_train 36 -> 37" in err or "digest" in err
    status, _, err = call(capsys, "evaluate", tmp_path / "run")
    assert status == 0
    assert "not those the run was begun with" in err


@pytest.mark.slow
def test_a_longer_run_is_judged_again_after_an_interrupted_judgement(
    tmp_path, capsys, monkeypatch
):
    from jaxgen.evaluate import judgement

    path = tmp_path / "r"
    call(capsys, "train", "vae", *SHORT, "--out", path)
    real = judgement.judge

    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(judgement, "judge", interrupt)
    longer = ("train", "vae", *SHORT, "--steps", "16", "--out", path)
    assert call(capsys, *longer)[0] == 130
    monkeypatch.setattr(judgement, "judge", real)
    assert call(capsys, *longer)[0] == 0
    assert json.loads((path / "evaluation.json").read_text())["step"] == 16


@pytest.mark.slow
def test_a_damaged_run_says_which_checkpoint(tmp_path, capsys):
    path = tmp_path / "r"
    call(capsys, "train", "vae", *SHORT, "--out", path)
    newest = path / "checkpoints" / "12" / "manifest.json"
    newest.write_bytes(newest.read_bytes()[:-1] + b"!")
    status, _, err = call(capsys, "sample", path)
    assert status == 0
    assert "checkpoint 12 is not valid" in err
    status, _, err = call(capsys, "train", "vae", *SHORT, "--out", path)
    assert status == 0
    assert "continuing from step 8" in err


def test_devices_of_a_cpu_are_as_many_as_are_asked_for(tmp_path):
    environment = {k: v for k, v in os.environ.items() if k != "JAX_NUM_CPU_DEVICES"}
    argv = ["train", "vae", *SHORT, "--devices", "2", "--out", tmp_path / "r"]
    done = jaxgen(*argv, env=environment)
    _, err = done.communicate(timeout=300)
    assert done.returncode == 0, err
    told = json.loads((tmp_path / "r" / "environment.json").read_text())
    assert told["devices"] == ["cpu", "cpu"]
    # What the environment says stands: there is one, and the line says so.
    done = jaxgen(*argv, env={**environment, "JAX_NUM_CPU_DEVICES": "1"})
    _, err = done.communicate(timeout=300)
    assert done.returncode == 2
    assert err.strip() == "jaxgen: --devices 2: this machine has 1 (cpu)"


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_loses_nothing(tmp_path):
    path = tmp_path / "r"
    argv = ["train", "vae", *SHORT, "--hidden", "200", "--out", path]
    first = jaxgen(*argv)
    first.communicate(timeout=300)
    assert first.returncode == 0

    code = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (60_000,) * 2); "
    code += "from jaxgen import cli; cli.main()"
    full = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, argv), "--steps", "40"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    _, err = full.communicate(timeout=300)
    assert full.returncode == 1, err
    assert "Traceback" not in err
    last = err.strip().splitlines()[-1]
    assert last.startswith("jaxgen: cannot write")
    assert "File too large" in last
    again = jaxgen(*argv, "--steps", "40")
    _, err = again.communicate(timeout=300)
    assert again.returncode == 0
    assert "continuing from step 12" in err


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)]
)
def test_signals_finish_the_step_save_and_exit_with_their_status(
    tmp_path, number, status
):
    path = tmp_path / "r"
    argv = ["train", "vae", *TINY, "--steps", "100000", "--log-every", "10"]
    process = jaxgen(*argv, "--out", path)
    deadline = time.monotonic() + 200
    while not (path / "metrics.jsonl").exists():
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    process.send_signal(number)
    out, err = process.communicate(timeout=200)
    assert process.returncode == status, err
    assert f"{signal.Signals(number).name}: saved step " in err
    assert out.splitlines()[-1] == f"run: {path}"
    saved = [int(p.name) for p in (path / "checkpoints").iterdir()]
    lines = (path / "metrics.jsonl").read_text().splitlines()
    assert max(saved) == json.loads(lines[-1])["step"]


@pytest.mark.parametrize(
    ("number", "status", "word"),
    [(signal.SIGTERM, 143, "terminated"), (signal.SIGINT, 130, "interrupted")],
)
def test_signals_before_the_first_step_end_with_one_line(
    tmp_path, number, status, word
):
    process = jaxgen("train", "vae", *TINY, "--out", tmp_path / "r")
    assert process.stderr.readline().startswith("vae on digits")  # now it compiles
    process.send_signal(number)
    _, err = process.communicate(timeout=200)
    assert process.returncode == status
    assert err.splitlines()[-1] == f"jaxgen: {word}"
    assert "Traceback" not in err
