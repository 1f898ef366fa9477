"""This process, and the others of its run: settings, who speaks, who waits."""

import contextlib
import ctypes
import logging
import os
import pathlib
import re
import sys
import tempfile
import traceback
import warnings
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from tqdm import tqdm

from srgnn_jax.data.store import DEFAULT_DIR
from srgnn_jax.errors import UserError, reason

# What Gloo, NCCL and the coordination service say of a peer that does not answer.
_LOST_PEER = re.compile(
    r"\bgloo\b|\bnccl|coordination ?service|heartbeat|^(UNAVAILABLE|DEADLINE_EXCEEDED)",
    re.IGNORECASE,
)

# What a bar shows while a step is compiled.
COMPILING = "compiling"

log = logging.getLogger(__name__)


# On two cores that send 5,000 requests a second to 1,978 items as well, their p90 is
# 8.5 ms with one thread and 14 with two. A table of a million rows is scored in 17 ms
# with two and 28 with one.
ONE_THREAD_ITEMS = 10_000


def settle_process() -> None:
    """Settles what a command, unlike a library, may: memory, and compiled functions.

    glibc keeps what a step frees for the next one. Else the kernel maps and clears tens
    of megabytes anew in every step: a fifth of its time at 43,000 items on CPU. All
    threads share one heap: another one holds no more than 64 MB, which scores exceed.
    Compiled functions are kept on disk, in this user's cache folder where JAX was told
    of no other. A folder that cannot be written is told, in one line, and read at most.
    """
    # Names of malloc.h.
    mmap_max, trim_threshold, top_pad, arena_max = -4, -1, -2, -8
    glibc("mallopt", arena_max, 1)
    glibc("mallopt", mmap_max, 0)
    glibc("mallopt", trim_threshold, 2**31 - 1)
    glibc("mallopt", top_pad, 2**28)
    named = jax.config.values["jax_compilation_cache_dir"]
    folder = named or os.path.expanduser(f"{DEFAULT_DIR}/compiled")
    if "://" not in folder and not can_be_written(folder):
        log.warning(
            "compiled functions are not kept, as %s cannot be written; name another "
            "folder with JAX_COMPILATION_CACHE_DIR",
            folder,
        )
        about = "Error (reading|writing) persistent compilation cache"
        warnings.filterwarnings("ignore", about)
    if not named and not folder.startswith("~"):
        jax.config.update("jax_compilation_cache_dir", folder)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def settle_threads(num_items: int) -> None:
    """Has XLA work with one thread on CPU, before it starts, where a catalog is small.

    To hand parts of a batch to other threads then costs more than they save.
    """
    if num_items <= ONE_THREAD_ITEMS:
        # XLA's own variable, which it reads once.
        os.environ.setdefault("NPROC", "1")


def can_be_written(folder: str | os.PathLike) -> bool:
    """Whether a folder is there, or can be made, for files of this user.

    A `~` that is left in its name stands for no folder: this user has no home.
    """
    if str(folder).startswith("~"):
        return False
    try:
        pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK | os.X_OK)


def prepared_dir(named: str = "") -> pathlib.Path:
    """Returns the folder for prepared data, the one that is named or this user's.

    Where the usual one cannot be written, that is one among the temporary files.
    """
    if named:
        return pathlib.Path(named).expanduser()
    usual = os.path.expanduser(DEFAULT_DIR)
    if can_be_written(usual):
        return pathlib.Path(usual)
    try:
        folder = pathlib.Path(tempfile.gettempdir(), f"srgnn_jax-{os.getuid()}")
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
        # Others may write into the folder of temporary files too.
        if found.st_uid != os.getuid() or found.st_mode & 0o077:
            raise PermissionError(f"{folder} is not this user's alone")
    except OSError as error:
        raise UserError(
            f"no folder for prepared data: {usual} cannot be written, nor one among "
            f"temporary files ({reason(error)}); name one with --config.prepared_dir"
        ) from error
    log.warning(
        "prepared data is kept in %s, as %s cannot be written; name a folder that "
        "lasts with --config.prepared_dir",
        folder,
        usual,
    )
    return folder


def start_backend() -> None:
    """Has JAX find its devices; UserError: there are none of the platform it is told.

    Not before the processes of a run have joined.
    """
    try:
        jax.devices()
    except (AssertionError, RuntimeError) as error:
        # An assertion of JAX's own is all that it says of a missing plugin.
        asked = jax.config.values["jax_platforms"]
        if not asked or _tells_of_a_lost_peer(error):
            raise
        jax.config.update("jax_platforms", None)
        there = ", ".join(sorted({device.platform for device in jax.devices()}))
        said = str(error).partition(" (set JAX_PLATFORMS")[0]
        why = f" ({said.splitlines()[0][:300]})" if said else ""
        raise UserError(
            f"JAX_PLATFORMS={asked}, but JAX finds only {there} here{why}; set "
            f"JAX_PLATFORMS={there}, or leave it out"
        ) from error


def glibc(name: str, *arguments: int) -> None:
    """Calls a function of glibc, where it is the C library."""
    with contextlib.suppress(AttributeError, OSError, TypeError):
        getattr(ctypes.CDLL(None), name)(*arguments)


@contextlib.contextmanager
def joined(
    coordinator_address: str | None, num_processes: int | None, process_id: int | None
) -> Iterator[None]:
    """Joins the processes of one run, as number `process_id`; before any use of JAX.

    Without arguments, JAX finds the processes in the environment of a TPU pod or of
    Slurm. An error ends this process at once, so that the others notice: Python's own
    end would wait for them, and they for this one.
    """
    try:
        # The default of 100 s is a long time to wait for a peer that is gone.
        jax.distributed.initialize(
            *(coordinator_address, num_processes, process_id),
            heartbeat_timeout_seconds=30,
        )
    except (RuntimeError, ValueError) as error:
        raise UserError(f"cannot join the other processes: {error}") from error
    try:
        with together():
            yield
    except UserError as error:
        _end_at_once(f"error: {error}")
    except Exception:
        _end_at_once(traceback.format_exc())


def is_main_process() -> bool:
    """Whether this process is the one that prints and records."""
    return jax.process_index() == 0


def from_all(value: int | bool) -> np.ndarray:
    """Returns the value of each process, in their order; each must call it."""
    return np.atleast_1d(multihost_utils.process_allgather(np.int32(value)))


def progress_bar(shown: bool, *arguments: Any, **options: Any) -> tqdm:
    """Makes a bar that only the main process shows, on a terminal, while it lasts.

    It counts examples, unless `unit` names something else, and in thousands, so that
    there is room for the bar in 80 columns.
    """
    disable = None if shown and is_main_process() else True
    options = {"unit": "ex", "unit_scale": "unit" not in options} | options
    return tqdm(*arguments, disable=disable, dynamic_ncols=True, leave=False, **options)


def begin(bar: tqdm, name: str) -> None:
    """Names what a bar shows from now on; the time before does not count."""
    bar.unpause()
    bar.set_description(name)


def say(text: str) -> None:
    """Prints, in the main process only."""
    if is_main_process():
        print(text, flush=True)


@contextlib.contextmanager
def main_process_first() -> Iterator[None]:
    """Lets the others wait for the main process; raises UserError there if it fails."""
    done = False
    try:
        if not is_main_process() and not from_all(True)[0]:
            raise UserError("process 0 has failed; see what it says")
        yield
        done = True
    finally:
        if is_main_process():
            from_all(done)


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Ends this process at once when another one of the run is gone.

    Else what waits for that one, such as a save, would wait for minutes.
    """
    try:
        yield
    except Exception as error:
        if jax.process_count() == 1 or not _tells_of_a_lost_peer(error):
            raise
        _end_at_once(
            f"error: in process {jax.process_index()}: another one of the run is gone "
            f"({reason(error)}); start all again: they go on from the last checkpoint"
        )


def _tells_of_a_lost_peer(error: BaseException | None) -> bool:
    """Whether JAX raised an error, or its cause, as a connection broke."""
    while error is not None:
        is_jax = isinstance(error, RuntimeError | ValueError)
        if is_jax and _LOST_PEER.search(str(error)):
            return True
        error = error.__cause__
    return False


def _end_at_once(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(1)
