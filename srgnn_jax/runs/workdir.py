"""The folder of a run: made, locked, told from that of several seeds; its small files.

<workdir>/checkpoints          see `checkpoint`
<workdir>/metrics.jsonl        see `records`
<workdir>/counts.json          how much of what the data holds
<workdir>/vocabulary.parquet   the raw item id of every row
<workdir>/lock                 held by the process that trains
<workdir>/seed_<seed>          where there are several runs: the workdir of each
"""

import contextlib
import fcntl
import json
import logging
import os
import pathlib
import socket
from collections.abc import Iterator, Mapping

from srgnn_jax.data.sessions import Vocabulary
from srgnn_jax.devices import processes
from srgnn_jax.errors import UserError, reason

FOLDER = "checkpoints"
_COUNTS, _VOCABULARY = "counts.json", "vocabulary.parquet"

log = logging.getLogger(__name__)


def make_workdir(workdir: str) -> pathlib.Path:
    """Makes the folder of a run, unless it is there; raises UserError if it cannot."""
    folder = pathlib.Path(workdir).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot make the workdir {folder} ({reason(error)}); name another with "
            "--workdir"
        ) from error
    return folder


@contextlib.contextmanager
def only_run(folder: pathlib.Path) -> Iterator[None]:
    """Keeps other processes from training in a workdir at the same time.

    Raises:
      UserError: another run holds it, or a file is not to be read or written, inside.
    """
    try:
        with contextlib.ExitStack() as stack:
            if processes.is_main_process():
                stack.enter_context(_locked(folder))
            yield
    except OSError as error:
        raise UserError(
            f"{error.filename or folder}: {reason(error)}; checkpoints are kept: mend "
            "that, and the same command continues"
        ) from error


@contextlib.contextmanager
def _locked(folder: pathlib.Path) -> Iterator[None]:
    """Holds the lock of a workdir.

    The kernel gives it back when this process ends, however it ends. On network file
    systems it holds between the machines where they carry `flock` over (NFS from
    version 4, Lustre mounted with `flock`), else on one machine only; where the file
    system has no locks at all, a warning says so.
    """
    with (folder / "lock").open("a+") as file:
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
                "%s cannot be locked (%s): start no second run in this workdir",
                file.name,
                reason(error),
            )
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield


def is_single_run(folder: pathlib.Path) -> bool:
    """Tells whether a workdir is that of one run, not of several seeds, nor empty."""
    return (folder / FOLDER).is_dir()


def seed_folders(folder: pathlib.Path) -> dict[int, pathlib.Path]:
    """Finds the workdirs of the seeds of a run of several; none of a single run."""
    found = {}
    for path in folder.glob("seed_*"):
        seed = path.name.removeprefix("seed_")
        if seed.isdecimal() and path.is_dir():
            found[int(seed)] = path
    return {} if is_single_run(folder) else dict(sorted(found.items()))


def check_kind(folder: pathlib.Path, several: bool) -> None:
    """Raises UserError where a folder of several runs is given to one, or so."""
    if several and is_single_run(folder):
        raise UserError(
            f"{folder} holds a single run; several need another --workdir, in which "
            "each has a folder of its own"
        )
    if not several and seed_folders(folder):
        raise UserError(
            f"{folder} holds the runs of several seeds; set config.runs, or choose "
            "another --workdir"
        )


def save_counts(folder: pathlib.Path, counts: Mapping[str, object]) -> None:
    """Writes counts.json."""
    (folder / _COUNTS).write_text(json.dumps(counts, indent=1) + "\n")


def save_vocabulary(folder: pathlib.Path, vocabulary: Vocabulary) -> None:
    """Writes the raw item ids."""
    vocabulary.save(folder / _VOCABULARY)


def load_vocabulary(folder: pathlib.Path, fingerprint: str) -> Vocabulary:
    """Reads the raw item ids; raises UserError unless their fingerprint is this."""
    path = folder / _VOCABULARY
    if not path.is_file():
        raise UserError(f"{path} is missing: it holds the raw id of each item row")
    vocabulary = Vocabulary.load(path)
    if vocabulary.fingerprint() != fingerprint:
        raise UserError(f"{path} belongs to another run than the checkpoints beside it")
    if vocabulary.clicks is None:
        log.warning(
            "%s holds no clicks of training, so that fallbacks are items in the "
            "order of their rows",
            path,
        )
    return vocabulary
