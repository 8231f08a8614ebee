"""One update on many devices: the only file that knows of them.

`sharded` compiles the update as one program over the global batch and leaves it to XLA
to split it (`jax.jit` with `NamedSharding`); `fsdp` is the same with the state split too;
`pmap` runs one copy of the program per device, which sum their gradients. Noise belongs
to the position in the global batch, so all three compute the same numbers, to rounding.

A dispatch does up to `num_steps` updates inside one program, so that the host is not
waited for; how many is an argument, so that there is one program for all.
"""

import contextlib
import functools
import os
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxgen._checks import UserError
from jaxgen.train.update import TrainState, Update

AXIS = "data"
AUTOMATIC_STEPS = 64  # per dispatch: the host then costs 20 to 35 us a step
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
        devices: To choose from; None for this machine's. Those of a topology that is
            not here can be compiled for, from shapes.

    Raises:
        UserError: if there are fewer devices, or the batch does not divide over them.
    """

    def __init__(
        self,
        kind: Kind,
        num_devices: int,
        *,
        batch_size: int,
        num_parts: int = 1,
        devices: Sequence[Any] | None = None,
    ):
        self.devices = _choose(num_devices, devices)
        self.kind = kind
        shares = self.num_devices * num_parts
        if rest := batch_size % shares:
            near = [n for n in (batch_size - rest, batch_size - rest + shares) if n]
            parts = f" and {num_parts} parts" if num_parts > 1 else ""
            raise UserError(
                f"--batch-size {batch_size} does not divide over {self.num_devices} "
                f"devices{parts}; {' or '.join(map(str, near))} does"
            )
        self._batch_size = batch_size
        self._mesh = Mesh(np.array(self.devices), (AXIS,))
        self._gather = jax.jit(lambda tree: tree, out_shardings=self._sharding(P()))

    @property
    def num_devices(self) -> int:
        """How many devices share the batch."""
        return len(self.devices)

    @property
    def axis_name(self) -> str | None:
        """The axis over which the update must sum by itself."""
        return AXIS if self.kind == "pmap" else None

    @property
    def rows(self) -> slice:
        """The part of each global batch that this process feeds."""
        num = self._batch_size // jax.process_count()
        return slice(jax.process_index() * num, (jax.process_index() + 1) * num)

    @property
    def is_eager(self) -> bool:
        """Whether dispatches must be waited for one by one.

        Queued programs of several virtual CPU devices can starve each other's
        collectives, and XLA then aborts the process (jax 0.10.2).
        """
        return self.num_devices > 1 and self.devices[0].platform == "cpu"

    def state_sharding(self, state: Any) -> Any:
        """A sharding for each leaf of the state."""
        if self.kind != "fsdp":
            return jax.tree.map(lambda _: self._sharding(P()), state)
        return jax.tree.map(lambda leaf: self._sharding(self._split(leaf)), state)

    def stored(self, state: Any) -> Any:
        """Shapes and shardings of the state as it is stored and checkpointed."""
        return jax.tree.map(_shape, state, self.state_sharding(state))

    def place(self, state: TrainState) -> TrainState:
        """The state as a dispatch wants it; given whole, or as it is stored."""
        placed = jax.tree.map(_put, state, self.state_sharding(state))
        return self._stacked(placed) if self.kind == "pmap" else placed

    def view(self, tree: Any) -> Any:
        """Placed state, or a part of it, as ordinary global arrays."""
        if self.kind != "pmap":
            return tree
        return jax.tree.map(self._one_of_each, tree)

    def whole(self, tree: Any) -> Any:
        """A view's whole copy on this process's first device; all must ask for it."""
        if jax.process_count() == 1:
            return tree
        return jax.tree.map(lambda a: a.addressable_data(0), self._gather(tree))

    def place_resident(self, resident: Any) -> Any:
        """Data that every device keeps whole."""
        everywhere = self._sharding(P())
        placed = jax.tree.map(lambda leaf: _put(leaf, everywhere), resident)
        return self._stacked(placed) if self.kind == "pmap" else placed

    def place_items(self, items: list[Any], num_steps: int) -> Any:
        """Up to `num_steps` batches (or their indices), split over the devices.

        Of each batch this process gives its own `rows`.
        """
        padded = items + [items[-1]] * (num_steps - len(items))
        stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *padded)
        if self.kind != "pmap":
            sharding = self._sharding(P(None, AXIS))
            return jax.make_array_from_process_local_data(sharding, stacked)
        own = self._batch_size // self.num_devices
        split = jax.tree.map(
            lambda a: a.reshape(num_steps, -1, own, *a.shape[2:]).swapaxes(0, 1),
            stacked,
        )
        return jax.make_array_from_process_local_data(self._sharding(P(AXIS)), split)

    def place_batch(self, batch: Any) -> Any:
        """One batch for a program besides the dispatch; all processes give it whole."""
        own = jax.tree.map(lambda a: a[self.rows], batch)
        return jax.make_array_from_process_local_data(self._sharding(P(AXIS)), own)

    def compile_sums(self, sums: Callable[..., Any]) -> Callable[..., Any]:
        """A program of views and a placed batch whose small result every process has."""
        return jax.jit(sums, out_shardings=self._sharding(P()))

    def compile_select(self, like: Any) -> Callable[[np.ndarray, Any, Any], Any]:
        """`(which, new, old) -> new where which, else old`, of placed trees like this.

        `which` is bool, `[]` or `[K]` for each run that is joined; `old` is donated.
        """
        copies = int(self.kind == "pmap")  # an axis in front of all others

        def select(which: jax.Array, new: Any, old: Any) -> Any:
            def one(a: jax.Array, b: jax.Array) -> jax.Array:
                after = (1,) * (a.ndim - copies - which.ndim)
                return jnp.where(
                    which.reshape((1,) * copies + which.shape + after), a, b
                )

            return jax.tree.map(one, new, old)

        shardings = jax.tree.map(lambda leaf: leaf.sharding, like)
        return jax.jit(select, donate_argnums=2, out_shardings=shardings)

    def shapes(self, state: Any, resident: Any) -> tuple[Any, Any]:
        """What `place` and `place_resident` give, as shapes with shardings."""
        everywhere = self._sharding(P())
        shapes = (
            self.stored(state),
            jax.tree.map(lambda leaf: _shape(leaf, everywhere), resident),
        )
        if self.kind != "pmap":
            return shapes
        copies, sharding = self.num_devices, self._sharding(P(AXIS))
        return jax.tree.map(
            lambda s: jax.ShapeDtypeStruct(
                (copies, *s.shape), s.dtype, sharding=sharding
            ),
            shapes,
        )

    def compile(
        self, advance: Update, fetch: Fetch, arguments: tuple[Any, ...], num_steps: int
    ) -> Program:
        """Compiles a dispatch for `(state, resident, [item], key)`.

        Args:
            advance: The update, made with `axis_name`.
            fetch: `(resident, item) -> raw batch`.
            arguments: State and resident data as placed (or their `shapes`), a batch
                and the key; only shapes are looked at.
            num_steps: Updates per dispatch; 0 chooses.
        """
        state, resident, item, key = arguments
        dispatch = self._jit(
            functools.partial(_dispatch, advance, self._indexed(fetch)), state
        )
        leaves = jax.tree.leaves(item)
        item_bytes = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
        chosen = num_steps or max(1, min(AUTOMATIC_STEPS, ITEM_BYTES // item_bytes))
        if jax.process_count() > 1:  # pmap then takes no shapes
            items = self.place_items([item], chosen)
        else:
            items = jax.tree.map(lambda leaf: self._item_shape(leaf, chosen), item)
            key = jax.ShapeDtypeStruct(key.shape, key.dtype)
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

    def _item_shape(self, leaf: Any, num_steps: int) -> jax.ShapeDtypeStruct:
        """Of a batch's array, as `place_items` stacks and splits it."""
        shape, spec = (num_steps, self._batch_size, *leaf.shape[1:]), P(None, AXIS)
        sharding = self._sharding(spec)
        if self.kind == "pmap":
            own = self._batch_size // self.num_devices
            shape = (self.num_devices, num_steps, own, *leaf.shape[1:])
            sharding = self._sharding(P(AXIS))
        return _shape(jax.ShapeDtypeStruct(shape, leaf.dtype), sharding)

    def _sharding(self, spec: P) -> NamedSharding:
        return NamedSharding(self._mesh, spec)


def count_cpu_as(num_devices: int) -> None:
    """Lets JAX count this machine's CPU as so many devices; before any is used.

    Nothing changes where the environment says how many there are, where JAX has begun,
    or in one of several processes, which bring a device each.
    """
    config: Any = jax.config  # whose attributes pyright does not know
    is_said = config.jax_num_cpu_devices >= 0 or (
        "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    )
    if num_devices < 2 or is_said or jax.distributed.is_initialized():
        return
    with contextlib.suppress(RuntimeError):  # JAX has begun
        jax.config.update("jax_num_cpu_devices", num_devices)


def _choose(num_devices: int, given: Sequence[Any] | None) -> list[Any]:
    """As many devices of each process, in the order of the processes."""
    processes, here = jax.process_count(), given or jax.local_devices()
    automatic = 1 if here[0].platform == "cpu" else len(here)
    each, rest = divmod(num_devices or automatic * processes, processes)
    if rest:
        raise UserError(
            f"--devices {num_devices} does not divide over {processes} processes"
        )
    if each > len(here):
        where = "this machine has" if processes == 1 else "each process has"
        raise UserError(
            f"--devices {num_devices}: {where} {len(here)} ({here[0].device_kind})"
        )
    if given is not None:
        return list(given[:each])
    by_process: dict[int, list[Any]] = {}
    for device in sorted(jax.devices(), key=lambda d: (d.process_index, d.id)):
        by_process.setdefault(device.process_index, []).append(device)
    return [device for devices in by_process.values() for device in devices[:each]]


def _shape(leaf: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    dtype = jax.dtypes.canonicalize_dtype(leaf.dtype)
    return jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=sharding)


def _put(leaf: Any, sharding: NamedSharding) -> jax.Array:
    """An array of which every process has the whole, or its part of a placed one."""
    is_placed = isinstance(leaf, jax.Array) and not leaf.is_fully_addressable
    if is_placed or sharding.is_fully_addressable:
        return jax.device_put(leaf, sharding)
    whole = np.asarray(leaf)
    return jax.make_array_from_callback(whole.shape, sharding, lambda at: whole[at])


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

    @jax.jit  # traced once, for its shapes and for the loop
    def one(state: TrainState, i: jax.Array) -> Any:
        item = jax.tree.map(lambda a: a[i], items)
        return advance(state, fetch(resident, item), key)

    first = jnp.int32(0)
    num_steps = jax.tree.leaves(items)[0].shape[0]
    if num_steps == 1:
        state, metrics = one(state, first)
        return state, {name: value[None] for name, value in metrics.items()}

    def body(i: jax.Array, carry: Any) -> Any:
        state, record = carry
        state, metrics = one(state, i)
        return state, {name: record[name].at[i].set(metrics[name]) for name in record}

    _, shapes = jax.eval_shape(one, state, first)
    record = {n: jnp.zeros((num_steps, *s.shape), s.dtype) for n, s in shapes.items()}
    return jax.lax.fori_loop(first, count, body, (state, record))
