"""kill -9 at random moments changes nothing."""

import os
import random
import subprocess
import sys
import time

import numpy as np
import pytest
import unoptimised
from test_loop import leaves

RUNS = {
    "vae": (
        1,
        "--hidden 8 --latent-dim 2 --likelihood gaussian --geco 0.2 --steps 800",
    ),
    "diffusion": (1, "--task enlarge --widths 8 --blocks 1 --num-steps 2 --steps 240"),
    "masked": (1, "--data text:pydoc --length 16 --width 16 --depth 1 --steps 300"),
}


@pytest.mark.slow
@pytest.mark.parametrize("family", RUNS)
def test_a_run_killed_at_random_moments_ends_bit_for_bit_the_same(family, tmp_path):
    num_kills, options = RUNS[family]
    argv = [sys.executable, "-m", "jaxgen", "train", family, *options.split()]
    argv += ["--batch-size", "32", "--checkpoint-every", "20", "--log-every", "10"]
    # Every start compiles anew, as it does where nothing keeps compiled programs.
    environ = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    environ["XLA_FLAGS"] = unoptimised.FLAGS
    began = time.monotonic()
    whole = tmp_path / "whole"
    subprocess.run(
        [*argv, "--out", str(whole)], check=True, capture_output=True, env=environ
    )
    seconds = time.monotonic() - began
    expected = leaves(whole)
    rng = random.Random(0)
    kills, runs, continued = 0, 0, []
    while True:
        process = subprocess.Popen(
            [*argv, "--out", str(tmp_path / f"cut{runs}")],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=environ,
        )
        # From before the first import to within the training and its judgement; later
        # where, on a busy machine, all kills have come before the first checkpoint.
        moment = rng.uniform(0.2, 0.7 * seconds)
        if kills >= num_kills:
            late = not continued and kills < 4 * num_kills
            moment = rng.uniform(0.5, 1.0) * seconds if late else None
        is_killed = False
        try:
            _, err = process.communicate(timeout=moment)
        except subprocess.TimeoutExpired:
            process.kill()
            _, err = process.communicate()
            is_killed = True
        continued += [line for line in err.splitlines() if "continuing" in line]
        if is_killed:
            kills += 1
            continue
        assert process.returncode == 0, err
        for a, b in zip(expected, leaves(tmp_path / f"cut{runs}"), strict=True):
            np.testing.assert_array_equal(a, b)
        runs += 1
        if kills >= num_kills and (continued or runs > num_kills):
            break
    print(f"{kills} kills over {runs} runs; {len(continued)} times: {continued}")
    assert continued
