"""The folder of a run: made, told from that of several seeds, and locked."""

import contextlib
import fcntl
import logging
import os
import pathlib
import socket
from collections.abc import Iterator

from srgnn_jax.errors import UserError

FOLDER = "checkpoints"

log = logging.getLogger(__name__)


def is_single_run(workdir: pathlib.Path) -> bool:
    """Tells whether a workdir is that of one run, not of several seeds, nor empty."""
    return (workdir / FOLDER).is_dir()


def make_workdir(workdir: str) -> pathlib.Path:
    """Makes the folder of a run, unless it is there; raises UserError if it cannot."""
    folder = pathlib.Path(workdir).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot make the workdir {folder} ({error.strerror}); name another with "
            "--workdir"
        ) from error
    return folder


@contextlib.contextmanager
def only_run(folder: pathlib.Path) -> Iterator[None]:
    """Keeps other processes from training in a workdir at the same time.

    The kernel gives the lock back when this process ends, however it ends. On network
    file systems it holds between the machines where they carry `flock` over (NFS from
    version 4, Lustre mounted with `flock`), else on one machine only; where the file
    system has no locks at all, a warning says so.

    Raises:
      UserError: another run holds it.
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
                error.strerror,
            )
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield


def seed_folders(folder: pathlib.Path) -> dict[int, pathlib.Path]:
    """Finds the workdirs of the seeds of a run of several; none of a single run."""
    found = {}
    for path in folder.glob("seed_*"):
        seed = path.name.removeprefix("seed_")
        if seed.isdecimal() and path.is_dir():
            found[int(seed)] = path
    return {} if is_single_run(folder) else dict(sorted(found.items()))
