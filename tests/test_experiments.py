"""Every experiment runs at smoke size, with the flags of `jaxgen train`."""

import subprocess
import sys
from pathlib import Path

import pytest

EXPERIMENTS = sorted((Path(__file__).parent.parent / "experiments").glob("*.py"))


@pytest.mark.slow
@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda p: p.stem)
def test_experiment_runs_at_smoke_size(path, tmp_path, mnist_dir):
    argv = [sys.executable, path, "--steps", "4", "--batch-size", "16"]
    argv += ["--out", tmp_path / "run", "--seed", "3"]
    if mnist_dir is None:
        print("no MNIST here: digits instead")
        argv += ["--data", "digits"]
    else:
        argv += ["--data-dir", mnist_dir]
    done = subprocess.run([str(a) for a in argv], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"run: {tmp_path / 'run'}"
    assert (tmp_path / "run" / "report.html").is_file()


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda p: p.stem)
def test_experiment_is_short_and_says_what_it_is(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 120
    assert text.startswith('"""')
