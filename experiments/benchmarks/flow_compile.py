"""Compile time of a flow's update by its depth, one process each, interleaved.

    python experiments/benchmarks/flow_compile.py [ROUNDS]

Prints a table of medians in seconds. Depth 32 is to take at most 1.3 times as long as
depth 4: up to 8 layers are written out, more are a loop.
"""

import statistics
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import optax

from jaxgen import bijectors
from jaxgen.losses.flow import negative_log_likelihood
from jaxgen.nets import flow as nets

DEPTHS = (4, 8, 16, 32)
DIM = 8


def main() -> None:
    if sys.argv[1:2] == ["--depth"]:
        sys.stdout.write(f"{seconds(int(sys.argv[2]))}\n")
        return
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    found: dict[int, list[float]] = {depth: [] for depth in DEPTHS}
    for _ in range(rounds):
        for depth in DEPTHS:
            argv = [sys.executable, __file__, "--depth", str(depth)]
            done = subprocess.run(argv, check=True, capture_output=True, text=True)
            found[depth].append(float(done.stdout))
    medians = {depth: statistics.median(s) for depth, s in found.items()}
    sys.stdout.write("depth  seconds  ratio\n")
    for depth, median in medians.items():
        sys.stdout.write(f"{depth:5}  {median:7.2f}  {median / medians[4]:5.2f}\n")


def seconds(depth: int) -> float:
    """To lower and compile loss, gradient and Adam of spline coupling."""
    transform = bijectors.rational_quadratic()
    net = nets.network(nets.MLP(transform.num_params * (DIM - DIM // 2)))
    layer = bijectors.coupling(net, transform, num_kept=DIM // 2)
    flow = bijectors.scan_chain(bijectors.chain(layer, bijectors.reverse()), depth)
    x = jnp.zeros((256, DIM))
    optimizer = optax.adam(1e-3)

    def loss(params, x):
        return jnp.mean(negative_log_likelihood(*flow.to_latent(params, x)))

    def update(params, opt_state, x):
        updates, opt_state = optimizer.update(jax.grad(loss)(params, x), opt_state)
        return optax.apply_updates(params, updates), opt_state

    params = jax.eval_shape(flow.init, jax.random.key(0), x)
    opt_state = jax.eval_shape(optimizer.init, params)
    began = time.perf_counter()
    jax.jit(update).lower(params, opt_state, x).compile()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
