"""Every experiment runs at smoke size, with the flags of `jaxgen train`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import unoptimised

EXPERIMENTS = sorted((Path(__file__).parent.parent / "experiments").glob("*.py"))
# Those that make no run but a table or a figure.
TABLES = {
    "cascade_mnist": "--data digits --size 16 --family vae --flags=--hidden=8 --jobs 1 "
    "--out .",
    "colourise_photos": "--names gan --num-answers 2 --jobs 1 --out .",
    "inpaint_mnist": "--data digits --names vae --jobs 1 --out .",
    "next_frame_minatar": "--names deterministic --num-answers 2 --jobs 1 --out .",
    "next_frame_peg": "--names gan --num-answers 2 --jobs 1 --out .",
    "flow_2d": "--names moons pinwheel --width 8 --bins 4 --out figure.png",
    "flow_tabular": "--names banana_chain --dims 2 3 --width 8",
    "four_families": "--families vae --seeds 0 --jobs 1 --out .",
    "gan_ring": "--seeds 0 --out figure.png",
    "text_pydoc": "--width 16 --depth 1 --length 32 --num-samples 2 --out .",
    "vae_problems": "--names variance --num 60 --out .",
}
# What is in every row of them, and how many rows there are.
MARKS = {
    "cascade_mnist": ("| none |", 2),
    "colourise_photos": ("| gan | ", 1),
    "inpaint_mnist": ("| vae | ", 1),
    "next_frame_minatar": ("| deterministic | ", 1),
    "next_frame_peg": ("| gan | ", 1),
    "flow_2d": ("+-", 2),
    "flow_tabular": ("+-", 4),
    "four_families": ("| vae | 1 | ", 1),
    "gan_ring": (" of ", 2),
    "text_pydoc": ("| ", 6),
    "vae_problems": ("| sigma ", 4),
}
RUNS = [path for path in EXPERIMENTS if path.stem not in (*TABLES, "gan_ablation")]

# They compile for a minute what they run for moments.
ENVIRONMENT = {**os.environ, "XLA_FLAGS": unoptimised.FLAGS}

# What a machine without accelerator and without these data needs otherwise.
NARROW = {
    "diffusion_cifar10": "--data photos --image-size 16 --widths 8 8 --blocks 1 "
    "--num-steps 2 --compute float32 --attention-side 4",
    "diffusion_imagenet64": "--data digits --image-size 16 --width 32 --depth 2",
    "diffusion_mnist": "--data digits --widths 8 8 --blocks 1 --num-steps 2",
    "diffusion_photos": "--image-size 16 --widths 8 8 --blocks 1 --num-steps 2",
    "diffusion_digits": "--widths 8 8 --blocks 1 --num-steps 2",
    "flow_digits": "--width 16",
    "flow_mnist": "--data digits --width 16",
    "gan_cifar10": "--data digits --width 8 --blocks 1 --compute float32",
    "gan_mnist": "--width 8",
    "gan_stacked_mnist": "--data stacked:digits --width 8",
    "gan_stacked_digits": "--data stacked:digits --width 8",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", TABLES)
def test_experiment_prints_a_row_for_each_density(name, tmp_path):
    path = next(path for path in EXPERIMENTS if path.stem == name)
    argv = [sys.executable, path, "--steps", "4", *TABLES[name].split()]
    done = subprocess.run(
        argv, capture_output=True, text=True, cwd=tmp_path, env=ENVIRONMENT
    )
    assert done.returncode == 0, done.stderr
    mark, num_rows = MARKS[name]
    rows = [line for line in done.stdout.splitlines() if mark in line]
    assert len(rows) == num_rows
    num_pictures = len(list(tmp_path.glob("*.png")))
    assert num_pictures == (0 if name in ("flow_tabular", "text_pydoc") else 1)


@pytest.mark.slow
def test_the_ablation_keeps_its_figures_and_trains_what_is_missing(tmp_path):
    path = next(path for path in EXPERIMENTS if path.stem == "gan_ablation")
    options = (
        "--names non_saturating-r1 --seeds 3 --width 8 --judge 64 --results r.json"
    )

    def called(steps):
        argv = [sys.executable, path, "--steps", steps, *options.split()]
        return subprocess.run(
            argv, capture_output=True, text=True, cwd=tmp_path, env=ENVIRONMENT
        )

    first = called("4")
    assert first.returncode == 0, first.stderr
    row = first.stdout.splitlines()[-1]
    assert row.startswith("| non_saturating, r1 | 3 | ")
    again = called("4")
    assert again.stdout.splitlines()[-1] == row
    assert "run:" in first.stdout
    assert "run:" not in again.stdout
    other = called("5")
    assert (other.returncode, other.stderr.count("\n")) == (2, 1)
    assert "r.json is of" in other.stderr


@pytest.mark.slow
@pytest.mark.parametrize("path", RUNS, ids=lambda p: p.stem)
def test_experiment_runs_at_smoke_size(path, tmp_path, mnist_dir):
    argv = [sys.executable, path, "--steps", "4", "--batch-size", "16"]
    argv += ["--out", tmp_path / "run", "--seed", "3"]
    narrow = NARROW.get(path.stem, "").split()
    argv += narrow
    if "--data" in narrow:
        pass
    elif mnist_dir is None:
        print("no MNIST here: digits instead")
        argv += ["--data", "digits"]
    else:
        argv += ["--data-dir", mnist_dir]
    argv = [str(a) for a in argv]
    done = subprocess.run(argv, capture_output=True, text=True, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"run: {tmp_path / 'run'}"
    assert (tmp_path / "run" / "report.html").is_file()


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda p: p.stem)
def test_experiment_is_short_and_says_what_it_is(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 120
    assert text.startswith('"""')
