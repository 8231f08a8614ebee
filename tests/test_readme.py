"""What the README shows is run."""

import functools
import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxgen import cli

README = (Path(__file__).parent.parent / "README.md").read_text()
FAST = {"--steps": "2", "--num-samples": "2"}


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_python_snippets_run(capsys):
    assert blocks("python")
    for code in blocks("python"):
        assert len(code.strip().splitlines()) <= 16
        exec(compile(code, "README.md", "exec"), {})  # our own file
    assert capsys.readouterr().out == "(2, 4)\nTrue 1.0\nTrue (512, 2)\n"


def commands():
    lines = [line for block in blocks("bash") for line in block.splitlines()]
    return [line for line in lines if line.startswith("jaxgen ")]


TINY = {
    "vae": ["--hidden", "8", "--width", "4", "--levels", "2", "--mixture", "1"],
    "diffusion": ["--widths", "8", "--blocks", "1"],
    "flow": ["--width", "8", "--bins", "4", "--depth", "2"],
    "gan": ["--width", "8"],
    "masked": ["--width", "16", "--depth", "1", "--length", "32"],
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a short run of a family, trained where it is first asked for."""

    @functools.cache
    def train(family):
        run = tmp_path_factory.mktemp(family) / "RUN"
        short = ["--batch-size", "16", *TINY[family], "--steps", "2"]
        if family == "flow":  # the commands on a run of flows are those of tables
            short += ["--data", "table:wine"]
        with pytest.raises(SystemExit) as stop:
            cli.main(["train", family, *short, "--out", str(run)])
        assert not stop.value.code
        return run

    return train


OWN = {
    "diffusion",
    "edit",
    "--sampler",
    "--likelihood",
}  # words of commands of diffusion


def family(words):
    """Of the run that a command makes, or needs."""
    if words[:2] == ["train", "flow"] or "rows.csv" in words:
        return "flow"
    if words[:2] == ["train", "gan"]:
        return "gan"
    if words[:2] == ["train", "masked"] or words[0] == "infill":
        return "masked"
    return "diffusion" if OWN & set(words) else "vae"


def marked(line):
    """A command, among the slow tests where it compiles a denoiser."""
    return pytest.param(
        line, marks=[pytest.mark.slow] if OWN & set(line.split()) else []
    )


@pytest.mark.parametrize("line", [marked(line) for line in commands()])
def test_commands_run(line, trained, tmp_path, mnist_dir, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    photos = tmp_path / "PHOTOS"
    photos.mkdir()
    for i in range(40):
        pixels = np.full((40, 50, 3), i, np.uint8)
        Image.fromarray(pixels).save(photos / f"{i}.png")
    lines = [f"{i / 7},{i % 5},{1 + i % 3}" for i in range(200)]
    Path("FILE.csv").write_text("\n".join(["a,b,w", *lines]) + "\n")
    words = shlex.split(line.split("#")[0])[1:]
    if "mnist" in words and mnist_dir is None:
        print("no MNIST here: digits instead")
        words[words.index("mnist")] = "digits"
    words = [str(mnist_dir or tmp_path) if w == "DIR" else w for w in words]
    for flag, value in FAST.items():
        if flag in words:
            words[words.index(flag) + 1] = value
    tiny = ["--batch-size", "16", *TINY[family(words)]]
    if words[0] == "train" and "--help" not in words:
        words += tiny if "--steps" in words else [*tiny, "--steps", "2"]
    if words[0] == "bench":
        words += [*tiny, "--repeats", "2"]
    if words[0] == "sample" and "--num" not in words:
        words += ["--num", "4"]
    if {"RUN", "latents:RUN"} & set(words):
        shutil.copytree(trained(family(words)), tmp_path / "RUN")
    others = {  # what other run a command needs, and where
        "--prior-run": ["--data", "latents:RUN", "--out", "OTHER"],
        "--then": ["--image-size", "16", "--task", "enlarge", "--out", "OTHER"],
        "--answers": ["--task", "inpaint", "--out", "ASKED"],
    }
    if named := [flag for flag in others if flag in words]:
        with pytest.raises(SystemExit):
            cli.main(["train", "vae", *others[named[0]], *tiny, "--steps", "2"])
        if "--answers" in words:
            words[words.index("RUN")] = "ASKED"
    elif "OTHER" in words:  # the same run, but for its seed
        shutil.copytree("RUN", "OTHER")
        config = json.loads(Path("OTHER/config.json").read_text())
        config["train"]["seed"] = 1
        Path("OTHER/config.json").write_text(json.dumps(config))
    with pytest.raises(SystemExit) as stop:
        cli.main(words)
    assert not stop.value.code, capsys.readouterr().err
