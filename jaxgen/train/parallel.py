"""One update on many devices: the only file that knows of them.

`sharded` compiles the update as one program over the global batch and leaves it to XLA
to split it (`jax.jit` with `NamedSharding`); `fsdp` is the same with the state split too;
`pmap` runs one copy of the program per device, which sum their gradients. Noise belongs
to the position in the global batch, so all three compute the same numbers, to rounding.

A dispatch does up to `num_steps` updates inside one program, so that the host is not
waited for; how many is an argument, so that there is one program for all.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxgen._checks import UserError
from jaxgen.train.update import TrainState, Update

AXIS = "data"
AUTOMATIC_STEPS = 16  # per dispatch
ITEM_BYTES = 2**26  # of the batches that wait on the device, where they are streamed

Kind = Literal["sharded", "fsdp", "pmap"]
Fetch = Callable[[Any, Any], Any]


class Program(NamedTuple):
    """A compiled dispatch.

    Attributes:
        run: `(state, resident, items [num_steps, ...], count, key) -> (state, metrics
            [num_steps, ...])`; only the first `count` items are used. The state is
            donated.
        num_steps: The most updates a dispatch can do.
    """

    run: Callable[..., tuple[Any, dict[str, jax.Array]]]
    num_steps: int


class Layout:
    """Where state and batches lie.

    Args:
        kind: How the update is split.
        num_devices: 0 for all accelerators, or one CPU device (several share its cores).
        batch_size: Of the global batch.
        num_parts: Of gradient accumulation.

    Raises:
        UserError: if there are fewer devices, or the batch does not divide over them.
    """

    def __init__(
        self, kind: Kind, num_devices: int, *, batch_size: int, num_parts: int = 1
    ):
        devices = jax.devices()
        if num_devices > len(devices):
            raise UserError(
                f"--devices {num_devices}: this machine has {len(devices)} "
                f"({devices[0].device_kind})"
            )
        automatic = 1 if devices[0].platform == "cpu" else len(devices)
        self.devices = devices[: num_devices or automatic]
        self.kind = kind
        shares = self.num_devices * num_parts
        if rest := batch_size % shares:
            near = [n for n in (batch_size - rest, batch_size - rest + shares) if n]
            parts = f" and {num_parts} parts" if num_parts > 1 else ""
            raise UserError(
                f"--batch-size {batch_size} does not divide over {self.num_devices} "
                f"devices{parts}; {' or '.join(map(str, near))} does"
            )
        self._mesh = Mesh(np.array(self.devices), (AXIS,))

    @property
    def num_devices(self) -> int:
        """How many devices share the batch."""
        return len(self.devices)

    @property
    def axis_name(self) -> str | None:
        """The axis over which the update must sum by itself."""
        return AXIS if self.kind == "pmap" else None

    @property
    def is_eager(self) -> bool:
        """Whether dispatches must be waited for one by one.

        Queued programs of several virtual CPU devices can starve each other's
        collectives, and XLA then aborts the process (jax 0.10.2).
        """
        return self.num_devices > 1 and self.devices[0].platform == "cpu"

    def state_sharding(self, state: Any) -> Any:
        """A sharding for each leaf of the state, as it is stored and checkpointed."""
        if self.kind != "fsdp":
            return jax.tree.map(lambda _: self._sharding(P()), state)
        return jax.tree.map(lambda leaf: self._sharding(self._split(leaf)), state)

    def place(self, state: TrainState) -> TrainState:
        """The state as a dispatch wants it."""
        placed = jax.device_put(state, self.state_sharding(state))
        return self._stacked(placed) if self.kind == "pmap" else placed

    def view(self, tree: Any) -> Any:
        """Placed state, or a part of it, as ordinary global arrays."""
        if self.kind != "pmap":
            return tree
        return jax.tree.map(self._one_of_each, tree)

    def place_resident(self, resident: Any) -> Any:
        """Data that every device keeps whole."""
        placed = jax.device_put(resident, self._sharding(P()))
        return self._stacked(placed) if self.kind == "pmap" else placed

    def place_items(self, items: list[Any], num_steps: int) -> Any:
        """Up to `num_steps` batches (or their indices), split over the devices."""
        padded = items + [items[-1]] * (num_steps - len(items))
        stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *padded)
        if self.kind != "pmap":
            return jax.device_put(stacked, self._sharding(P(None, AXIS)))
        split = jax.tree.map(
            lambda a: a.reshape(num_steps, self.num_devices, -1, *a.shape[2:]).swapaxes(
                0, 1
            ),
            stacked,
        )
        return jax.device_put(split, self._sharding(P(AXIS)))

    def compile(
        self, advance: Update, fetch: Fetch, arguments: tuple[Any, ...], num_steps: int
    ) -> Program:
        """Compiles a dispatch for placed `(state, resident, [item], key)`.

        Args:
            advance: The update, made with `axis_name`.
            fetch: `(resident, item) -> raw batch`.
            arguments: Examples of the arguments.
            num_steps: Updates per dispatch; 0 chooses.
        """
        state, resident, item, key = arguments
        dispatch = self._jit(
            functools.partial(_dispatch, advance, self._indexed(fetch)), state
        )
        item_bytes = sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(item))
        chosen = num_steps or max(1, min(AUTOMATIC_STEPS, ITEM_BYTES // item_bytes))
        items = self.place_items([item], chosen)
        lowered = dispatch.lower(state, resident, items, np.int32(1), key)
        return Program(lowered.compile(), chosen)

    def _jit(self, dispatch: Callable[..., Any], state: Any) -> Any:
        if self.kind == "pmap":
            return jax.pmap(
                dispatch,
                axis_name=AXIS,
                in_axes=(0, 0, 0, None, None),
                out_axes=(0, None),
                donate_argnums=0,
                devices=self.devices,
            )
        everywhere = self._sharding(P())
        states = jax.tree.map(lambda leaf: leaf.sharding, state)
        return jax.jit(
            dispatch,
            donate_argnums=0,
            in_shardings=(
                states,
                everywhere,
                self._sharding(P(None, AXIS)),
                everywhere,
                everywhere,
            ),
            out_shardings=(states, everywhere),
        )

    def _indexed(self, fetch: Fetch) -> Fetch:
        """Adds each example's position in the global batch, where a part is seen."""
        if self.axis_name is None:
            return fetch

        def with_index(resident: Any, item: Any) -> Any:
            batch = fetch(resident, item)
            num = batch["x"].shape[0]
            first = jax.lax.axis_index(AXIS) * num
            return {**batch, "index": first + jnp.arange(num, dtype=jnp.int32)}

        return with_index

    def _split(self, leaf: Any) -> P:
        """Over the longest axis that divides; whole where none does."""
        fits = [n if n % self.num_devices == 0 else 0 for n in leaf.shape]
        if not any(fits):
            return P()
        axis = int(np.argmax(fits))
        return P(*(AXIS if i == axis else None for i in range(len(fits))))

    def _stacked(self, tree: Any) -> Any:
        """Replicated `[...]` arrays as `[devices, ...]` of one copy each, unmoved."""

        def stack(leaf: jax.Array) -> jax.Array:
            copies = [shard.data[None] for shard in leaf.addressable_shards]
            shape = (self.num_devices, *leaf.shape)
            sharding = self._sharding(P(AXIS))
            return jax.make_array_from_single_device_arrays(shape, sharding, copies)

        return jax.tree.map(stack, tree)

    def _one_of_each(self, leaf: jax.Array) -> jax.Array:
        copies = [shard.data[0] for shard in leaf.addressable_shards]
        return jax.make_array_from_single_device_arrays(
            leaf.shape[1:], self._sharding(P()), copies
        )

    def _sharding(self, spec: P) -> NamedSharding:
        return NamedSharding(self._mesh, spec)


def _dispatch(
    advance: Update,
    fetch: Fetch,
    state: TrainState,
    resident: Any,
    items: Any,
    count: jax.Array,
    key: jax.Array,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """`count` updates; metrics `[num_steps, ...]`, of which the first `count` are real."""

    def one(state: TrainState, i: jax.Array | int) -> Any:
        item = jax.tree.map(lambda a: a[i], items)
        return advance(state, fetch(resident, item), key)

    num_steps = jax.tree.leaves(items)[0].shape[0]
    if num_steps == 1:
        state, metrics = one(state, 0)
        return state, {name: value[None] for name, value in metrics.items()}

    def body(i: jax.Array, carry: Any) -> Any:
        state, record = carry
        state, metrics = one(state, i)
        return state, {name: record[name].at[i].set(metrics[name]) for name in record}

    _, shapes = jax.eval_shape(one, state, 0)
    record = {n: jnp.zeros((num_steps, *s.shape), s.dtype) for n, s in shapes.items()}
    return jax.lax.fori_loop(0, count, body, (state, record))
