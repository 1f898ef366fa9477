"""The folder of a run: making it, locking it, finding its seeds; its small files.

<workdir>/checkpoints          see `checkpoint`
<workdir>/metrics.jsonl        see `records`
<workdir>/counts.json          how much of what the data holds
<workdir>/vocabulary.parquet   the raw item id of every row
<workdir>/lock                 held by the process that trains
<workdir>/seed_<seed>          if there are several runs: the workdir of each
"""

import contextlib
import fcntl
import logging
import os
import pathlib
import socket
from collections.abc import Iterator
from typing import TextIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from srgnn_jax.data.sessions import Vocabulary
from srgnn_jax.devices import processes
from srgnn_jax.errors import UserError, reason

FOLDER = "checkpoints"
_VOCABULARY = "vocabulary.parquet"

log = logging.getLogger(__name__)


def make_workdir(workdir: str) -> pathlib.Path:
    """Makes the folder of a run unless it exists; raises UserError if it cannot."""
    folder = pathlib.Path(workdir).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        message = f"cannot make the workdir {folder} ({reason(error)}); choose another"
        raise UserError(message) from error
    return folder


@contextlib.contextmanager
def only_run(folder: pathlib.Path) -> Iterator[None]:
    """Keeps other processes from training in a workdir at the same time.

    Raises:
      UserError: another run holds it, or a file cannot be read or written inside.
    """
    try:
        with contextlib.ExitStack() as stack:
            if processes.is_main_process():
                _lock(folder, stack.enter_context((folder / "lock").open("a+")))
            yield
    except OSError as error:
        raise UserError(
            f"{error.filename or folder}: {reason(error)}; checkpoints are kept: fix "
            "this, and the same command continues"
        ) from error


def _lock(folder: pathlib.Path, file: TextIO) -> None:
    """Locks a workdir's file; the kernel unlocks it however this process ends.

    On network file systems the lock holds between machines if they support `flock` (NFS
    from version 4, Lustre mounted with `flock`), otherwise on one machine only.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.seek(0)
        raise UserError(
            f"another run is training in {folder} ({file.read().strip()}); wait "
            "for it, stop it, or choose another --workdir"
        ) from error
    except OSError as error:
        log.warning(
            "%s cannot be locked (%s): do not start a second run in this workdir",
            file.name,
            reason(error),
        )
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    file.flush()


def seed_folders(folder: pathlib.Path) -> dict[int, pathlib.Path]:
    """Returns the workdirs of a run's seeds; empty for a single run."""
    if (folder / FOLDER).is_dir():
        return {}
    found = {path.name.removeprefix("seed_"): path for path in folder.glob("seed_*/")}
    return dict(sorted((int(s), path) for s, path in found.items() if s.isdecimal()))


def check_kind(folder: pathlib.Path, several: bool) -> None:
    """Raises UserError if a folder of one run is used for several, or vice versa."""
    if several and (folder / FOLDER).is_dir():
        raise UserError(f"{folder} holds a single run; several need another --workdir")
    if not several and seed_folders(folder):
        what = "holds the runs of several seeds; set config.runs or another --workdir"
        raise UserError(f"{folder} {what}")


def save_vocabulary(folder: pathlib.Path, vocabulary: Vocabulary) -> None:
    """Writes the raw item ids."""
    vocabulary.save(folder / _VOCABULARY)


def count_items(folder: str | os.PathLike) -> int:
    """Returns how many raw ids a workdir's vocabulary holds; 0 if unknown."""
    path = pathlib.Path(folder).expanduser() / _VOCABULARY
    try:
        return pq.read_metadata(path).num_rows
    # Reported when it is loaded.
    except (OSError, pa.ArrowException):
        return 0


def load_vocabulary(folder: pathlib.Path, fingerprint: str) -> Vocabulary:
    """Reads the raw item ids; raises UserError if they have another fingerprint."""
    path = folder / _VOCABULARY
    if not path.is_file():
        raise UserError(f"{path} is missing: it holds the raw id of each item row")
    vocabulary = Vocabulary.load(path)
    if vocabulary.fingerprint() != fingerprint:
        raise UserError(
            f"{path} belongs to another run than the checkpoints next to it"
        )
    if vocabulary.clicks is None:
        log.warning(
            "%s holds no training clicks: fallbacks are items in row order",
            path,
        )
    return vocabulary


def popular_items(folder: pathlib.Path, count: int) -> list[str]:
    """Returns the raw ids of the `count` items with the most training clicks."""
    vocabulary = Vocabulary.load(folder / _VOCABULARY)
    clicks = vocabulary.clicks
    order = range(count) if clicks is None else np.argsort(-clicks, kind="stable")
    return [vocabulary.ids[i] for i in order[:count]]
