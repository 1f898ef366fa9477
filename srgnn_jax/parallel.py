"""How a step function runs: by jit on one device, or by pmap over the local devices.

A step function is written for one device's part of a batch. It names its collectives by
the axis that it is given, which is None where there is only one part; `total` is the
sum over that axis. The state, replicated, looks the same to callers either way.
"""

import contextlib
import ctypes
import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from srgnn_jax import item_table
from srgnn_jax.data.batches import Batch, own_clicks

AXIS = "batch"
CPU_POSITIONS = 8192


def total(x: Any, axis_name: str | None) -> Any:
    """Sums every leaf over the devices of the axis; None: one device, nothing to do."""
    return x if axis_name is None else jax.lax.psum(x, axis_name)


@dataclasses.dataclass(frozen=True)
class Devices:
    """The devices of this process, and how steps are run on them.

    Attributes:
      shards: devices that share a batch, each with as many of its parts.
      max_scores: scores (items times sessions) that a device holds at a time.
      max_positions: positions of sessions that it works on at a time.
      max_clicks: clicks of a split that it keeps; of a longer one, each batch brings
        its own.
    """

    shards: int = 1
    max_scores: int = item_table.MAX_SCORES
    max_positions: int = 2**30
    max_clicks: int = 2**28

    @property
    def axis_name(self) -> str | None:
        """The axis over which a step function sums, or None."""
        return AXIS if self.shards > 1 else None

    def put(self, x: np.ndarray) -> jax.Array:
        """Puts an array on every device, once."""
        if self.shards == 1:
            return jax.device_put(x)
        mesh = jax.sharding.Mesh(np.array(jax.local_devices()), (AXIS,))
        whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
        return jax.device_put(x, whole)

    def hold_clicks(self, clicks: np.ndarray) -> Callable[[Batch], tuple[Any, Batch]]:
        """Keeps the clicks of a split on the devices, where they fit.

        Returns:
          What turns a batch into the arguments `clicks, batch` of a step.
        """
        if len(clicks) > self.max_clicks:
            return functools.partial(own_clicks, clicks)
        held = self.put(clicks)
        return lambda batch: (held, batch)

    def compile(self, step: Callable, donate_state: bool = False) -> Callable:
        """Compiles `step(state, clicks, batch) -> replicated results`.

        Args:
          step: takes the whole state, all clicks and one device's parts of a batch.
          donate_state: whether the state's buffers may be written over.
        """
        donate = (0,) if donate_state else ()
        if self.shards == 1:
            return _compile_ahead(jax.jit(step, donate_argnums=donate))
        run = jax.pmap(
            step,
            axis_name=AXIS,
            in_axes=(None, None, 0),
            out_axes=None,
            devices=jax.local_devices(),
            donate_argnums=donate,
        )

        def split(x):
            return x.reshape(self.shards, -1, *x.shape[1:])

        return lambda state, clicks, batch: run(
            state, clicks, jax.tree.map(split, batch)
        )


def local_devices(parallel: str, **limits: int) -> Devices:
    """Returns what `config.parallel` asks for: "jit", "pmap", or "auto".

    "auto" is pmap where this process has several devices, else jit. The limits are
    fields of `Devices`; those that are 0 or left out are chosen to suit the device.
    """
    _reuse_freed_memory()
    limits = {name: limit for name, limit in limits.items() if limit}
    if jax.default_backend() == "cpu":
        # What a step holds then stays in the caches.
        limits.setdefault("max_positions", CPU_POSITIONS)
    count = jax.local_device_count() if parallel in ("auto", "pmap") else 1
    return Devices(count, **limits)


def _compile_ahead(jitted: Any) -> Callable:
    """Compiles for each new shape before the first call with it.

    The compiler's memory, hundreds of megabytes, is then given back before a step needs
    its own.
    """
    compiled: dict[Any, Callable] = {}

    def run(state, clicks, batch):
        shapes = batch.layout, batch.start.shape, clicks.shape
        if shapes not in compiled:
            compiled[shapes] = jitted.lower(state, clicks, batch).compile()
            _glibc("malloc_trim", 0)
        return compiled[shapes](state, clicks, batch)

    return run


def _reuse_freed_memory() -> None:
    """Has glibc keep what a step frees, for the next one.

    Else every step maps its temporary arrays anew, tens of megabytes, and the kernel
    clears them page by page: a fifth of the time of a step at 43,000 items on CPU.
    """
    mmap_max, trim_threshold, top_pad = -4, -1, -2  # names of malloc.h
    _glibc("mallopt", mmap_max, 0)
    _glibc("mallopt", trim_threshold, 2**31 - 1)
    _glibc("mallopt", top_pad, 2**28)


def _glibc(name: str, *arguments: int) -> None:
    """Calls a function of glibc, where it is the C library."""
    with contextlib.suppress(AttributeError, OSError, TypeError):
        getattr(ctypes.CDLL(None), name)(*arguments)
