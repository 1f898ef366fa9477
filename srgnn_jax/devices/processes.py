"""Settings of this process, and how the processes of a run print and wait."""

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

# Error messages of Gloo, NCCL and the coordination service if a peer is lost.
_LOST_PEER = re.compile(
    r"\bgloo\b|\bnccl|coordination ?service|heartbeat|^(UNAVAILABLE|DEADLINE_EXCEEDED)",
    re.IGNORECASE,
)

# A progress bar's text while a step is compiled.
COMPILING = "compiling"

log = logging.getLogger(__name__)


# On two cores that also send 5,000 requests a second, p90 with 1,978 items is 8.5 ms
# with one thread and 14 ms with two. A table of a million rows is scored in 17 ms with
# two threads and 28 ms with one.
ONE_THREAD_ITEMS = 10_000


def settle_process() -> None:
    """Sets memory and cache options that a command may set, but not a library.

    glibc keeps the memory that a step frees for the next one. Otherwise the kernel maps
    and clears tens of megabytes again in every step: a fifth of its time at 43,000
    items on CPU. All threads share one heap: any other holds at most 64 MB, which
    scores exceed.

    Compiled functions are kept on disk, in this user's cache folder unless JAX has
    another one set. If the folder cannot be written, one line says so and the folder is
    only read, if at all.
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
            "compiled functions are not cached, because %s cannot be written; set "
            "JAX_COMPILATION_CACHE_DIR to another folder",
            folder,
        )
        about = "Error (reading|writing) persistent compilation cache"
        warnings.filterwarnings("ignore", about)
    if not named and not folder.startswith("~"):
        jax.config.update("jax_compilation_cache_dir", folder)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def settle_threads(num_items: int) -> None:
    """Limits XLA to one thread on CPU if the catalog is small; call before it starts.

    Passing parts of a batch to other threads would then cost more than it saves.
    """
    if num_items <= ONE_THREAD_ITEMS:
        # XLA reads this variable once.
        os.environ.setdefault("NPROC", "1")


def can_be_written(folder: str | os.PathLike) -> bool:
    """Whether a folder exists, or can be made, and this user can write to it.

    A `~` left in its name means that this user has no home folder.
    """
    if str(folder).startswith("~"):
        return False
    try:
        pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK | os.X_OK)


def prepared_dir(named: str = "") -> pathlib.Path:
    """Returns the folder for prepared data: `named`, or this user's default.

    If the default cannot be written, it is a folder among the temporary files.
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
        # Others may also write to the folder of temporary files.
        if found.st_uid != os.getuid() or found.st_mode & 0o077:
            raise PermissionError(f"{folder} is not private to this user")
    except OSError as error:
        raise UserError(
            f"no folder for prepared data: {usual} cannot be written, nor can a "
            f"temporary one ({reason(error)}); set one with --config.prepared_dir"
        ) from error
    log.warning(
        "prepared data is kept in %s, because %s cannot be written; set a permanent "
        "folder with --config.prepared_dir",
        folder,
        usual,
    )
    return folder


def start_backend() -> None:
    """Has JAX find its devices; call it after the processes of a run have joined.

    Raises:
      UserError: there are no devices of the platform that JAX_PLATFORMS names.
    """
    try:
        jax.devices()
    except (AssertionError, RuntimeError) as error:
        # For a missing plugin, JAX raises an AssertionError without a message.
        asked = jax.config.values["jax_platforms"]
        if not asked or _is_lost_peer(error):
            raise
        jax.config.update("jax_platforms", None)
        there = ", ".join(sorted({device.platform for device in jax.devices()}))
        said = str(error).partition(" (set JAX_PLATFORMS")[0]
        why = f" ({said.splitlines()[0][:300]})" if said else ""
        raise UserError(
            f"JAX_PLATFORMS={asked}, but JAX finds only {there} here{why}; set "
            f"JAX_PLATFORMS={there}, or unset it"
        ) from error


def glibc(name: str, *arguments: int) -> None:
    """Calls a function of glibc, if that is the C library."""
    with contextlib.suppress(AttributeError, OSError, TypeError):
        getattr(ctypes.CDLL(None), name)(*arguments)


@contextlib.contextmanager
def joined(
    coordinator_address: str | None, num_processes: int | None, process_id: int | None
) -> Iterator[None]:
    """Joins the processes of one run as number `process_id`; call it before using JAX.

    Without arguments, JAX finds the processes in the environment of a TPU pod or of
    Slurm. An error ends this process at once, so that the others notice: a normal exit
    would wait for them, and they for this process.
    """
    try:
        # The default of 100 s is a long wait for a lost peer.
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
    """Returns the value of every process, in order; all of them must call it."""
    return np.atleast_1d(multihost_utils.process_allgather(np.int32(value)))


def progress_bar(shown: bool, *arguments: Any, **options: Any) -> tqdm:
    """Makes a bar that only the main process shows, on a terminal, until it is done.

    It counts examples in thousands, to fit in 80 columns, unless `unit` is given.
    """
    disable = None if shown and is_main_process() else True
    options = {"unit": "ex", "unit_scale": "unit" not in options} | options
    return tqdm(*arguments, disable=disable, dynamic_ncols=True, leave=False, **options)


def begin(bar: tqdm, name: str) -> None:
    """Sets a bar's description; the time before does not count."""
    bar.unpause()
    bar.set_description(name)


def say(text: str) -> None:
    """Prints in the main process only."""
    if is_main_process():
        print(text, flush=True)


@contextlib.contextmanager
def main_process_first() -> Iterator[None]:
    """Makes the others wait for the main process; if it fails, they raise UserError."""
    done = False
    try:
        if not is_main_process() and not from_all(True)[0]:
            raise UserError("process 0 has failed; see its output")
        yield
        done = True
    finally:
        if is_main_process():
            from_all(done)


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Ends this process at once if another process of the run is gone.

    Otherwise a save, or anything else that waits for it, would wait for minutes.
    """
    try:
        yield
    except Exception as error:
        if jax.process_count() == 1 or not _is_lost_peer(error):
            raise
        _end_at_once(
            f"error: in process {jax.process_index()}: another process of the run is "
            f"gone ({reason(error)}); restart all to resume from the last checkpoint"
        )


def _is_lost_peer(error: BaseException | None) -> bool:
    """Whether JAX raised an error, or its cause, because a connection broke."""
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
