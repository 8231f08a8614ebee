"""A conditional sampler that was trained, and the exact posterior of what it was trained on."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest


@pytest.mark.slow
def test_a_trained_sampler_answers_by_the_exact_posterior():
    """Of Gaussian images whose block means are seen: 3,200 squares, 4,000 updates."""
    script = Path(__file__).with_name("gaussian_answers.py")
    argv = [sys.executable, str(script), "4000", "200", "0"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(done.stdout)
    assert np.abs(told["mean"]).max() < 3, told
    assert np.abs(told["variance"]).max() < 3, told
    assert told["seen"][0] < 1e-5, told
