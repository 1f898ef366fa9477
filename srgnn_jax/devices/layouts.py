"""How a step function runs: by jit, by pmap, or on a mesh of devices (data, items).

A step function is written for one device's part of a batch. It names its collectives by
the axis that it is given, which is None where there is only one part; `total` sums over
that axis, `gather` joins. The state looks the same to callers in all three ways; on a
mesh each device holds its rows of the item table and of the table's Adam moments only,
and all else whole. Every process makes all of every batch, which is a few numbers a
row.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from srgnn_jax.data.batches import Batch, own_clicks
from srgnn_jax.data.tiering import TIERING, Tiering
from srgnn_jax.devices.processes import glibc
from srgnn_jax.devices.suits import limits_for
from srgnn_jax.errors import UserError
from srgnn_jax.model.item_table import MAX_SCORES

T = TypeVar("T")

DATA_AXIS, ITEM_AXIS = "data", "items"


def total(x: Any, axis_name: str | None) -> Any:
    """Sums every leaf over the devices of the axis; None: one device, nothing to do."""
    return x if axis_name is None else jax.lax.psum(x, axis_name)


def gather(x: Any, axis_name: str | None) -> Any:
    """Joins the first axis of every leaf over the devices, in their order."""
    if axis_name is None:
        return x
    return jax.lax.all_gather(x, axis_name, tiled=True)


@dataclasses.dataclass(frozen=True)
class Devices:
    """The devices of a run, and how steps are run on them.

    Attributes:
      shards: devices, or columns of the mesh, that share a batch.
      mesh: the mesh with the axes "data" and "items"; None for jit and pmap.
      max_scores: scores (items times sessions) that a device holds at a time.
      max_positions: positions of sessions that it works on at a time.
      max_rows: sessions that it ranks at a time.
      max_clicks: clicks of a split that it keeps; of a longer one, each batch brings
        its own.
      steps_per_call: training steps that the host starts at once.
      tiering: how batches are cut into tiers.
    """

    shards: int = 1
    mesh: Mesh | None = None
    max_scores: int = MAX_SCORES
    max_positions: int = 2**30
    max_rows: int = 512
    max_clicks: int = 2**28
    steps_per_call: int = 1
    tiering: Tiering = TIERING

    @property
    def axis_name(self) -> str | None:
        """The axis over which a step function sums, or None."""
        return DATA_AXIS if self.shards > 1 else None

    @property
    def item_shards(self) -> int:
        """Devices that the item table is split over."""
        return 1 if self.mesh is None else self.mesh.shape[ITEM_AXIS]

    @property
    def item_axis(self) -> str | None:
        """The axis over which the item table is split, or None."""
        return ITEM_AXIS if self.item_shards > 1 else None

    @property
    def step_options(self) -> dict[str, Any]:
        """What a step function needs to know of them."""
        return {
            "max_scores": self.max_scores,
            "axis_name": self.axis_name,
            "item_axis": self.item_axis,
        }

    def hold_clicks(self, clicks: np.ndarray) -> Callable[[Batch], tuple[Any, Batch]]:
        """Keeps the clicks of a split on the devices, where they fit.

        Returns:
          What turns a batch into the arguments `clicks, batch` of a step.
        """
        if len(clicks) > self.max_clicks:

            def bring(batch):
                own, batch = own_clicks(clicks, batch)
                return self.put(own), self._place(batch)

            return bring
        held = self.put(clicks)
        return lambda batch: (held, self._place(batch))

    def _place(self, batch: Batch) -> Batch:
        """Splits a batch over the mesh; every process has all of it."""
        mesh = self.mesh
        if mesh is None:
            return batch

        def place(x):
            sharding = NamedSharding(mesh, _part_spec(x))
            return jax.make_array_from_callback(x.shape, sharding, lambda at: x[at])

        return jax.tree.map(place, batch)

    def put(self, x: np.ndarray) -> jax.Array:
        """Puts an array on every device, whole."""
        if self.mesh is not None:
            whole = NamedSharding(self.mesh, PartitionSpec())
            return jax.make_array_from_callback(x.shape, whole, lambda at: x[at])
        if self.shards == 1:
            return jax.device_put(x)
        mesh = Mesh(np.array(jax.local_devices()), (DATA_AXIS,))
        return jax.device_put(x, NamedSharding(mesh, PartitionSpec()))

    def layout(self, state: T) -> T:
        """Describes how a state lies on the devices.

        Args:
          state: arrays, or their shapes and types, with the table as a whole.

        Returns:
          The same tree of `jax.ShapeDtypeStruct` with shardings; the rows of the item
          table and its moments are filled up to a multiple of the devices.
        """
        shards = self.item_shards

        def leaf(path, x):
            shape = list(x.shape)
            if _is_table(path):
                shape[0] = -(-shape[0] // shards) * shards
            sharding = (
                jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
                if self.mesh is None
                else NamedSharding(self.mesh, _spec(path))
            )
            return jax.ShapeDtypeStruct(tuple(shape), x.dtype, sharding=sharding)

        return jax.tree_util.tree_map_with_path(leaf, state)

    def make(self, function: Callable[[], T]) -> T:
        """Calls a function that makes a state, and lays what it makes out."""
        if self.mesh is None:
            return function()
        layout = self.layout(jax.eval_shape(function))

        def fill_up(x, wanted):
            missing = zip(x.shape, wanted.shape, strict=True)
            zero = jax.numpy.zeros((), x.dtype)
            return jax.lax.pad(x, zero, [(0, m - n, 0) for n, m in missing])

        def filled_up():
            return jax.tree.map(fill_up, function(), layout)

        shardings = jax.tree.map(lambda x: x.sharding, layout)
        return jax.jit(filled_up, out_shardings=shardings)()

    def compile(self, step: Callable, updates_state: bool = False) -> "Compiled":
        """Compiles `step(state, clicks, batch)`.

        Args:
          step: takes the state as this device holds it, all clicks and this device's
            parts of a batch; returns what is the same on all devices, or a state.
          updates_state: whether it returns the state, whose buffers may be written
            over. It then takes stacked batches too, one after another.
        """
        if updates_state:
            step = _one_after_another(step)
        return Compiled(self, step, updates_state)

    def lower(self, step: Callable, arguments: tuple, updates_state: bool) -> Any:
        """Lowers a step of jit or of a mesh, to be compiled.

        Args:
          step: see `compile`.
          arguments: state, or what it looks like, and clicks and batch as
            `hold_clicks` returns them.
          updates_state: see `compile`.
        """
        donate = (0,) if updates_state else ()
        if self.mesh is None:
            return jax.jit(step, donate_argnums=donate).lower(*arguments)
        state, _, batch = arguments
        whole = PartitionSpec()
        specs = jax.tree_util.tree_map_with_path(lambda path, _: _spec(path), state)
        on_mesh = jax.shard_map(
            step,
            mesh=self.mesh,
            in_specs=(specs, whole, jax.tree.map(_part_spec, batch)),
            out_specs=specs if updates_state else whole,
            # Gradients are taken inside, where each sum over the items' axis has a
            # gradient of its own; see `item_table`.
            check_vma=False,
        )
        return jax.jit(on_mesh, donate_argnums=donate).lower(*arguments)

    def on_all(self, step: Callable, donate: tuple[int, ...]) -> Any:
        """Returns a step by `pmap`, whose batch is dealt out."""
        return jax.pmap(
            step,
            axis_name=DATA_AXIS,
            in_axes=(None, None, 0),
            out_axes=None,
            devices=jax.local_devices(),
            donate_argnums=donate,
        )

    def deal(self, batch: Batch) -> Batch:
        """Gives each device of `pmap` its parts, along a first axis."""
        if self.mesh is not None or self.shards == 1:
            return batch

        def split(x):
            if not x.ndim:
                return np.full(self.shards, x)
            shape = *x.shape[:-2], self.shards, -1, x.shape[-1]
            return np.moveaxis(x.reshape(shape), -3, 0)

        return jax.tree.map(split, batch)


class Compiled:
    """A step, compiled for each new shape before the first call with it.

    The compiler's memory, hundreds of megabytes, is then given back before a step needs
    its own.
    """

    def __init__(self, devices: Devices, step: Callable, updates_state: bool):
        self._devices, self._step, self._updates = devices, step, updates_state
        self._compiled: dict[Any, Callable] = {}
        # Only pmap itself takes a state that lies on one device yet.
        self._on_all: Callable | None = None
        if devices.mesh is None and devices.shards > 1:
            self._on_all = devices.on_all(step, (0,) if updates_state else ())

    def prepare(self, state: Any, clicks: jax.Array, batch: Batch) -> Callable:
        """Compiles for these shapes, unless that is done; pmap does so when called."""
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
        return run(state, clicks, self._devices.deal(batch))


def _part_spec(x: Any) -> PartitionSpec:
    """Returns how an array of a batch, [N, R] or [S, N, R], is split over a mesh."""
    return (
        PartitionSpec(*[None] * (x.ndim - 2), DATA_AXIS) if x.ndim else PartitionSpec()
    )


def _one_after_another(step: Callable) -> Callable:
    """Lets a step that returns a state take stacked batches, as many as count."""

    def steps(state, clicks, batch):
        if batch.count is None:
            return step(state, clicks, batch)
        count, stacked = batch.count, dataclasses.replace(batch, count=None)

        def body(i, state):
            return step(state, clicks, jax.tree.map(lambda x: x[i], stacked))

        return jax.lax.fori_loop(0, count, body, state)

    return steps


def _is_table(path: tuple) -> bool:
    return any(getattr(key, "key", None) == "item_embedding" for key in path)


def _spec(path: tuple) -> PartitionSpec:
    """Returns how the array at a path of a state is split over a mesh."""
    return PartitionSpec(ITEM_AXIS) if _is_table(path) else PartitionSpec()


def find_devices(
    parallel: str,
    mesh_shape: Sequence[int] = (0, 0),
    embedding_size: int = 100,
    **limits: Any,
) -> Devices:
    """Returns what `config.parallel` asks for: "jit", "pmap", "mesh", or "auto".

    "auto" is jit where this process has one device, else pmap; with several processes
    it is a mesh of all of their devices.

    Args:
      parallel: how to run.
      mesh_shape: (data, items), whose product is the number of all devices; one of them
        may be 0, which takes what the other leaves, and (0, 0) is (all, 1).
      embedding_size: D, by which the number of tiers is chosen.
      limits: fields of `Devices`; those that are 0 or left out suit the device.

    Raises:
      UserError: the devices cannot be had in that way.
    """
    limits = limits_for(jax.default_backend(), embedding_size, limits)
    several = jax.process_count() > 1
    if parallel == "auto":
        parallel = "mesh" if several or any(mesh_shape) else "pmap"
    elif several and parallel != "mesh":
        raise UserError(
            f"config.parallel is {parallel!r}, which serves one process, and there are "
            f"{jax.process_count()}; choose 'mesh'"
        )
    if parallel != "mesh":
        return Devices(1 if parallel == "jit" else jax.local_device_count(), **limits)
    data, items = mesh_shape
    count = jax.device_count()
    if not data:
        items = items or 1
        data = count // items
    items = items or count // data
    if data * items != count:
        raise UserError(
            f"config.mesh_shape is {tuple(mesh_shape)}; (data, items) must multiply to "
            f"the {count} devices that there are"
        )
    mesh = jax.make_mesh(
        (data, items), (DATA_AXIS, ITEM_AXIS), axis_types=(AxisType.Auto,) * 2
    )
    return Devices(data, mesh, **limits)


def layout_of(state: T) -> T:
    """Returns shapes, types and shardings of a state's arrays, as `Devices.layout`."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )
