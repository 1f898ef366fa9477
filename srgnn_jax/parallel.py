"""How a step function runs: by jit on one device, or by pmap over the local devices.

A step function is written for one device's part of a batch. It names its collectives by
the axis that it is given, which is None where there is only one part; `total` is the
sum over that axis. The state, replicated, looks the same to callers either way.
"""

import ctypes
import dataclasses
from collections.abc import Callable
from typing import Any

import jax

AXIS = "batch"


def total(x: Any, axis_name: str | None) -> Any:
    """Sums every leaf over the devices of the axis; None: one device, nothing to do."""
    return x if axis_name is None else jax.lax.psum(x, axis_name)


@dataclasses.dataclass(frozen=True)
class Devices:
    """The devices of this process, and how steps are run on them.

    Attributes:
      shards: parts that a batch is cut into, one a device.
    """

    shards: int

    @property
    def axis_name(self) -> str | None:
        """The axis over which a step function sums, or None."""
        return AXIS if self.shards > 1 else None

    def compile(self, step: Callable, donate_state: bool = False) -> Callable:
        """Compiles `step(state, batch) -> replicated results`.

        Args:
          step: takes the whole state and one device's part of a batch.
          donate_state: whether the state's buffers may be written over.
        """
        donate = (0,) if donate_state else ()
        if self.shards == 1:
            return jax.jit(step, donate_argnums=donate)
        run = jax.pmap(
            step,
            axis_name=AXIS,
            in_axes=(None, 0),
            out_axes=None,
            devices=jax.local_devices(),
            donate_argnums=donate,
        )

        def split(x):
            return x.reshape(self.shards, -1, *x.shape[1:])

        return lambda state, batch: run(state, jax.tree.map(split, batch))


def local_devices(parallel: str) -> Devices:
    """Returns what `config.parallel` asks for: "jit", "pmap", or "auto".

    "auto" is pmap where this process has several devices, else jit.
    """
    if jax.default_backend() == "cpu":
        _reuse_freed_memory()
    count = jax.local_device_count() if parallel in ("auto", "pmap") else 1
    return Devices(count)


def _reuse_freed_memory() -> None:
    """Has glibc keep what a step frees, for the next one.

    Else every step maps its temporary arrays anew, tens of megabytes, and the kernel
    clears them page by page: a fifth of the time of a step at 43,000 items on CPU.
    """
    mmap_max, trim_threshold, top_pad = -4, -1, -2  # names of malloc.h
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return  # Another C library.
    mallopt(mmap_max, 0)
    mallopt(trim_threshold, 2**31 - 1)
    mallopt(top_pad, 2**28)
