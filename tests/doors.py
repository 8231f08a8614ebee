"""Calling the command line from tests."""

import subprocess
import sys

import pytest

from jaxgen import cli

TINY = ["--hidden", "8", "--latent-dim", "2", "--batch-size", "32", "--mixture", "1"]
SHORT = [*TINY, "--steps", "12", "--checkpoint-every", "4"]


def call(capsys, *argv):
    """Exit status, standard output and standard error of `jaxgen ARGV`."""
    with pytest.raises(SystemExit) as stop:
        cli.main([str(a) for a in argv])
    captured = capsys.readouterr()
    return stop.value.code or 0, captured.out, captured.err


def jaxgen(*argv, **options):
    """`jaxgen ARGV` in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "jaxgen", *map(str, argv)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )
