"""How a step function runs: with jit, pmap, or on a mesh of devices (data, items).

A step function is written for one device's part of a batch. Its collectives use the
axis name that it is passed, None if there is one part. Callers see the same state in
all three cases; on a mesh, each device holds only its rows of the item table and of the
table's Adam moments. Every process builds every batch as a whole: it is a few numbers
per row.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental.layout import Format, Layout
from jax.sharding import (
    AxisType,
    Mesh,
    NamedSharding,
    PartitionSpec,
    SingleDeviceSharding,
)

from srgnn_jax.data.batches import Batch, own_clicks
from srgnn_jax.data.tiering import TIERING, Tiering
from srgnn_jax.devices.processes import glibc
from srgnn_jax.devices.suits import limits_for
from srgnn_jax.errors import UserError
from srgnn_jax.model.item_table import MAX_SCORES

T = TypeVar("T")

DATA_AXIS, ITEM_AXIS = "data", "items"


@dataclasses.dataclass(frozen=True)
class Devices:
    """The devices of a run, and how steps run on them.

    Attributes:
      shards: number of devices, or columns of the mesh, that share a batch.
      mesh: the mesh with the axes "data" and "items"; None for jit and pmap.
      max_scores: scores (items times sessions) that a device holds at a time.
      max_positions: session positions that it processes at a time.
      max_rows: sessions that it ranks at a time.
      max_clicks: largest split, in clicks, that it keeps; for a larger one, each batch
        brings its own clicks.
      steps_per_call: training steps that the host starts at once.
      tiering: how batches are cut into tiers.
      table_order: memory order of the axes of the item table and its moments, the
        slowest-varying first; None: the compiler's choice.
    """

    shards: int = 1
    mesh: Mesh | None = None
    max_scores: int = MAX_SCORES
    max_positions: int = 2**30
    max_rows: int = 512
    max_clicks: int = 2**28
    steps_per_call: int = 1
    tiering: Tiering = TIERING
    table_order: tuple[int, int] | None = None

    @property
    def axis_name(self) -> str | None:
        """The axis that shares a batch, or None."""
        return DATA_AXIS if self.shards > 1 else None

    @property
    def item_shards(self) -> int:
        """Devices that the item table is split over."""
        return 1 if self.mesh is None else self.mesh.shape[ITEM_AXIS]

    @property
    def item_axis(self) -> str | None:
        """The axis that shares the item table, or None."""
        return ITEM_AXIS if self.item_shards > 1 else None

    @property
    def step_options(self) -> dict[str, Any]:
        """Keyword arguments of a step function that depend on the devices."""
        return {
            "max_scores": self.max_scores,
            "axis_name": self.axis_name,
            "item_axis": self.item_axis,
        }

    def hold_clicks(self, clicks: np.ndarray) -> Callable[[Batch], tuple[Any, Batch]]:
        """Keeps the clicks of a split on the devices, if they fit.

        Returns:
          A function from a batch to the arguments `clicks, batch` of a step.
        """
        held = None if len(clicks) > self.max_clicks else self.put(clicks)

        def arguments(batch):
            own = held
            if own is None:
                some, batch = own_clicks(clicks, batch)
                own = self.put(some)
            if self.mesh is not None:
                batch = jax.tree.map(lambda x: self._split(x, part_spec(x)), batch)
            return own, batch

        return arguments

    def put(self, x: np.ndarray) -> jax.Array:
        """Puts the whole array on every device."""
        if self.mesh is not None:
            return self._split(x, PartitionSpec())
        if self.shards == 1:
            return jax.device_put(x)
        mesh = Mesh(np.array(jax.local_devices()), (DATA_AXIS,))
        return jax.device_put(x, NamedSharding(mesh, PartitionSpec()))

    def _split(self, x: np.ndarray, spec: PartitionSpec) -> jax.Array:
        """Puts an array, of which every process has all, on the mesh."""
        assert self.mesh is not None
        sharding = NamedSharding(self.mesh, spec)
        return jax.make_array_from_callback(x.shape, sharding, lambda at: x[at])

    def layout(self, state: T) -> T:
        """Describes how a state, or its shapes, is spread over the devices.

        Returns:
          The same tree of `jax.ShapeDtypeStruct` with shardings; the rows of the item
          table and its moments are padded to a multiple of the item shards.
        """

        def leaf(path, x):
            shape = x.shape
            sharding: Any = SingleDeviceSharding(jax.local_devices()[0])
            if self.mesh is not None:
                sharding = NamedSharding(self.mesh, _spec(path))
            if is_table(path):
                padded = -(-shape[0] // self.item_shards) * self.item_shards
                shape = padded, *shape[1:]
            return jax.ShapeDtypeStruct(shape, x.dtype, sharding=sharding)

        return jax.tree_util.tree_map_with_path(leaf, state)

    def formats(self, state: T) -> T:
        """Returns the sharding, and for tables the layout, of each array of a state."""

        def leaf(path, x):
            if self.table_order is None or not is_table(path):
                return x.sharding
            return Format(Layout(self.table_order), x.sharding)

        return jax.tree_util.tree_map_with_path(leaf, state)

    def make(self, function: Callable[[], T]) -> T:
        """Calls a function that makes a state, and puts the state on the devices."""
        if self.mesh is None:
            return self.lay_out(function())
        layout = self.layout(jax.eval_shape(function))

        def pad(x, wanted):
            missing = zip(x.shape, wanted.shape, strict=True)
            zero = jax.numpy.zeros((), x.dtype)
            return jax.lax.pad(x, zero, [(0, m - n, 0) for n, m in missing])

        def padded():
            return jax.tree.map(pad, function(), layout)

        return jax.jit(padded, out_shardings=self.formats(layout))()

    def lay_out(self, state: T) -> T:
        """Puts the tables of a restored state in the memory order `table_order`."""
        if self.table_order is None:
            return state
        return jax.device_put(state, self.formats(state), donate=True)

    def compile(self, step: Callable, updates_state: bool = False) -> "Compiled":
        """Compiles `step(state, clicks, batch)`.

        Args:
          step: takes the state as this device holds it, all clicks and this device's
            parts of a batch; returns a state, or values equal on all devices.
          updates_state: whether it returns the state. The input state's buffers may
            then be overwritten, and the step also takes stacked batches, which it
            processes in turn.
        """
        if updates_state:
            step = one_after_another(step)
        return Compiled(self, step, updates_state)

    def lower(self, step: Callable, arguments: tuple, updates_state: bool) -> Any:
        """Lowers a step for jit or a mesh; see `compile`.

        The arguments may be shapes, such as `layout` returns.
        """
        state, _, batch = arguments
        options: dict[str, Any] = {"donate_argnums": (0,) if updates_state else ()}
        if self.table_order is not None:
            formats = self.formats(state)
            options["in_shardings"] = formats, None, None
            options["out_shardings"] = formats if updates_state else None
        if self.mesh is None:
            return jax.jit(step, **options).lower(*arguments)
        whole = PartitionSpec()
        specs = jax.tree_util.tree_map_with_path(lambda path, _: _spec(path), state)
        on_mesh = jax.shard_map(
            step,
            mesh=self.mesh,
            in_specs=(specs, whole, jax.tree.map(part_spec, batch)),
            out_specs=specs if updates_state else whole,
            # Gradients are taken inside, where sums over the items axis have custom
            # gradients; see `item_table`.
            check_vma=False,
        )
        return jax.jit(on_mesh, **options).lower(*arguments)


class Compiled:
    """A step, compiled for each new shape before the first call with it.

    This frees the compiler's memory, hundreds of megabytes, before the step allocates
    its own.
    """

    def __init__(self, devices: Devices, step: Callable, updates_state: bool):
        self._devices, self._step, self._updates = devices, step, updates_state
        self._compiled: dict[Any, Callable] = {}
        self._on_all: Callable | None = None
        if devices.mesh is None and devices.shards > 1:
            self._on_all = on_all(step, updates_state, jax.local_devices())

    def prepare(self, state: Any, clicks: jax.Array, batch: Batch) -> Callable:
        """Compiles for these shapes, if not done yet; pmap compiles when called."""
        if self._on_all is not None:
            return self._on_all
        shapes = batch.layout, batch.start.shape, clicks.shape
        if shapes not in self._compiled:
            arguments = state, clicks, batch
            lowered = self._devices.lower(self._step, arguments, self._updates)
            self._compiled[shapes] = lowered.compile()
            glibc("malloc_trim", 0)
        return self._compiled[shapes]

    def __call__(self, state: Any, clicks: jax.Array, batch: Batch) -> Any:
        run = self.prepare(state, clicks, batch)
        if self._on_all is not None:
            batch = by_device(batch, self._devices.shards)
        return run(state, clicks, batch)


def on_all(step: Callable, updates_state: bool, devices: Sequence[jax.Device]) -> Any:
    """Returns a step under pmap, for a batch as `by_device` returns it."""
    return jax.pmap(
        step,
        axis_name=DATA_AXIS,
        in_axes=(None, None, 0),
        out_axes=None,
        devices=devices,
        donate_argnums=(0,) if updates_state else (),
    )


def by_device(batch: Batch, count: int) -> Batch:
    """Splits a batch over `count` devices, along a new first axis."""

    def deal(x):
        if not x.ndim:
            return np.full(count, x)
        shape = *x.shape[:-2], count, -1, x.shape[-1]
        return np.moveaxis(x.reshape(shape), -3, 0)

    return jax.tree.map(deal, batch)


def part_spec(x: Any) -> PartitionSpec:
    """Returns how an array of a batch, [N, R] or [S, N, R], is split over a mesh."""
    return (
        PartitionSpec(*[None] * (x.ndim - 2), DATA_AXIS) if x.ndim else PartitionSpec()
    )


def one_after_another(step: Callable) -> Callable:
    """Lets a step that returns a state loop over stacked batches, `count` of them."""

    def steps(state, clicks, batch):
        if batch.count is None:
            return step(state, clicks, batch)
        count, stacked = batch.count, dataclasses.replace(batch, count=None)

        def body(i, state):
            return step(state, clicks, jax.tree.map(lambda x: x[i], stacked))

        return jax.lax.fori_loop(0, count, body, state)

    return steps


def is_table(path: tuple) -> bool:
    """Whether the array at a path of a state is the item table or a moment of it."""
    return any(getattr(key, "key", None) == "item_embedding" for key in path)


def _spec(path: tuple) -> PartitionSpec:
    """Returns how the array at a path of a state is split over a mesh."""
    return PartitionSpec(ITEM_AXIS) if is_table(path) else PartitionSpec()


def find_devices(
    parallel: str,
    mesh_shape: Sequence[int] = (0, 0),
    embedding_size: int = 100,
    devices: Sequence[jax.Device] = (),
    **limits: Any,
) -> Devices:
    """Returns the devices for `config.parallel`: "jit", "pmap", "mesh" or "auto".

    "auto" means a mesh of all devices with several processes or a `mesh_shape`. Else it
    means jit if this process has one device, and pmap if it has more.

    Args:
      parallel: see above.
      mesh_shape: (data, items), whose product is the number of devices. If one of them
        is 0, it is inferred from the other; (0, 0) means (all, 1).
      embedding_size: D, which the number of tiers depends on.
      devices: the devices of a mesh; if empty, all devices.
      **limits: fields of `Devices`; 0 or missing means the default for the device.

    Raises:
      UserError: `parallel` or `mesh_shape` does not fit the devices or processes.
    """
    devices = devices or jax.devices()
    limits = limits_for(devices[0].platform, embedding_size, limits)
    several = jax.process_count() > 1
    if parallel == "auto":
        parallel = "mesh" if several or any(mesh_shape) else "pmap"
    elif several and parallel != "mesh":
        raise UserError(
            f"config.parallel is {parallel!r}, which is for one process, but there are "
            f"{jax.process_count()}; choose 'mesh'"
        )
    if parallel == "jit" or (parallel == "pmap" and jax.local_device_count() == 1):
        return Devices(**limits)
    if parallel == "pmap":  # pmap takes no custom memory order.
        return Devices(jax.local_device_count(), **limits | {"table_order": None})
    data, items = mesh_shape
    count = len(devices)
    items = items or (count // data if data else 1)
    data = data or count // items
    if data * items != count:
        raise UserError(
            f"config.mesh_shape is {tuple(mesh_shape)}; (data, items) must multiply to "
            f"the {count} devices available"
        )
    axes, auto = (DATA_AXIS, ITEM_AXIS), (AxisType.Auto,) * 2
    mesh = jax.make_mesh((data, items), axes, axis_types=auto, devices=devices)
    return Devices(data, mesh, **limits)


def layout_of(state: T) -> T:
    """Returns shapes, types and shardings of a state, like `Devices.layout`."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )
