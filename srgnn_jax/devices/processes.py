"""The processes of a run: which of them speaks, and how they wait for each other."""

import contextlib
import os
import sys
from collections.abc import Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils

from srgnn_jax.errors import UserError

# The default of 100 s is a long time to wait for a peer that is gone.
HEARTBEAT_SECONDS = 30


def join_processes(
    coordinator_address: str | None, num_processes: int | None, process_id: int | None
) -> None:
    """Joins the processes of one run; before anything else is asked of JAX.

    Without arguments, JAX finds them in the environment of a TPU pod or of Slurm.

    Args:
      coordinator_address: host:port of process 0.
      num_processes: how many there are.
      process_id: which one this is.
    """
    try:
        jax.distributed.initialize(
            coordinator_address,
            num_processes,
            process_id,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        )
    except (RuntimeError, ValueError) as error:
        raise UserError(f"cannot join the other processes: {error}") from error


def is_main_process() -> bool:
    """Whether this process is the one that prints and records."""
    return jax.process_index() == 0


def are_several() -> bool:
    """Whether the run has several processes."""
    return jax.process_count() > 1


def from_all(value: int | bool) -> np.ndarray:
    """Returns the value of each process, in their order; each must call it."""
    return np.atleast_1d(multihost_utils.process_allgather(np.int32(value)))


def say(text: str) -> None:
    """Prints, in the main process only."""
    if is_main_process():
        print(text, flush=True)


@contextlib.contextmanager
def main_process_first() -> Iterator[None]:
    """Lets the others wait until the main process has done what is inside."""
    if not is_main_process():
        multihost_utils.sync_global_devices("main process first")
    yield
    if is_main_process():
        multihost_utils.sync_global_devices("main process first")


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Ends this process at once when another one of the run is gone.

    Whatever waits for it, such as a checkpoint that is being saved, would wait for
    minutes.
    """
    try:
        yield
    except RuntimeError as error:
        if jax.process_count() == 1:
            raise
        reason = str(error).strip().splitlines() or [type(error).__name__]
        print(
            f"error: process {jax.process_index()} cannot go on, as another one of the "
            f"run is gone ({reason[0]}); start them all again: they continue from the "
            "last checkpoint",
            file=sys.stderr,
            flush=True,
        )
        os._exit(1)
