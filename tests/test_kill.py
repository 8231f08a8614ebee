"""kill -9 at random moments changes nothing."""

import random
import subprocess
import sys
import time

import numpy as np
import pytest
from test_loop import leaves

NUM_KILLS = 20


@pytest.mark.slow
def test_a_run_killed_at_random_moments_ends_bit_for_bit_the_same(tmp_path):
    argv = [sys.executable, "-m", "jaxgen.cli", "train", "vae", "--hidden", "8"]
    argv += ["--latent-dim", "2", "--batch-size", "32", "--steps", "15000"]
    argv += ["--checkpoint-every", "25", "--log-every", "10", "--out"]
    began = time.monotonic()
    subprocess.run([*argv, str(tmp_path / "whole")], check=True, capture_output=True)
    seconds = time.monotonic() - began
    rng = random.Random(0)
    kills = 0
    continued = []
    while kills < NUM_KILLS:
        process = subprocess.Popen(
            [*argv, str(tmp_path / "cut")], stderr=subprocess.PIPE, text=True
        )
        try:
            # From before the first import to within the training of the rest.
            _, err = process.communicate(timeout=rng.uniform(0.2, 0.3 * seconds))
        except subprocess.TimeoutExpired:
            process.kill()
            _, err = process.communicate()
            kills += 1
        else:
            pytest.fail(f"the run ended after {kills} kills: {err}")
        continued += [line for line in err.splitlines() if "continuing" in line]
    subprocess.run([*argv, str(tmp_path / "cut")], check=True, capture_output=True)
    print(f"{kills} kills, continued {len(continued)} times: {continued}")
    assert kills == NUM_KILLS
    assert continued
    both = zip(leaves(tmp_path / "whole"), leaves(tmp_path / "cut"), strict=True)
    for a, b in both:
        np.testing.assert_array_equal(a, b)
