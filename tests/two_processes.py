"""One of two processes that train the toys; see test_processes.py."""

import sys

import jax
import numpy as np

from jaxgen.train import processes

LAYOUTS = {
    "sharded": {"num_steps": 3},
    "fsdp": {"kind": "fsdp"},
    "pmap": {"kind": "pmap", "num_steps": 7},
    "parts": {"num_parts": 2},
}

# What compiles too long for processes that share a core; its players are as linear_gan's.
LARGE = ("gan",)

if __name__ == "__main__":
    coordinator, number, out = sys.argv[1:]
    processes.start(
        processes.Launch(
            coordinator=coordinator, num_processes=2, process_id=int(number)
        )
    )
    import test_parallel

    # Every model on one of them, and on all of them the one with two players.
    for name in [name for name in test_parallel.MODELS if name not in LARGE]:
        for label, options in LAYOUTS.items():
            if name != "linear_gan" and label != "sharded":
                continue
            layout, state, metrics = test_parallel.train(name, devices=4, **options)
            state = layout.whole(layout.view(state))
            leaves = [np.asarray(leaf) for leaf in jax.tree.leaves((state, metrics))]
            if processes.is_first():
                np.savez(f"{out}/{name}-{label}.npz", *leaves)
