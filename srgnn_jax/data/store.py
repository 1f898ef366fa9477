"""The prepared store: data sets are built once, kept under a key, and memory-mapped.

    <prepared_dir>/<source>-<key>/
        <split>.items.npy, <split>.offsets.npy, vocabulary.parquet, contents.json, .sum
    <prepared_dir>/known_files/<what a file looks like>-<hash of its bytes>

The key is a hash of the source's bytes, every setting and the preparation code. If any
of them changes, the data set is built again. contents.json holds the checksums of the
other files, and contents.sum that of contents.json. If a checksum does not match, the
folder is moved aside and the data is prepared again; a folder that cannot be read is
left alone.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import logging
import pathlib
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from srgnn_jax.data.counts import PUBLISHED_COUNTS, data_name
from srgnn_jax.data.sessions import Dataset, Sessions, Vocabulary, check_rows
from srgnn_jax.data.sources import NAMED, SOURCES, Settings, find_files
from srgnn_jax.data.sources.ready_made import refuse
from srgnn_jax.errors import UserError, nearest, reason

# Sources whose raw file may be missing if the published pickles are there.
PUBLISHED_AS_PICKLES = ("diginetica", "retailrocket", "yoochoose")
DEFAULT_DIR = "~/.cache/srgnn_jax"
# Attempts to prepare a folder that is damaged.
MOST_BUILDS = 5
# File systems keep times to a few milliseconds, the coarsest to two seconds.
SETTLED_NANOSECONDS = 3_000_000_000

log = logging.getLogger(__name__)


def load_dataset(
    dataset: str,
    *,
    data_dir: pathlib.Path,
    prepared_dir: pathlib.Path,
    **settings: Any,
) -> Dataset:
    """Finds a data set in the store, or prepares it.

    Args:
      dataset: name of a source, or one of `NAMED`. "diginetica", "retailrocket" and
        "yoochoose" mean the raw file or, if the folder has none, the published pickles.
      data_dir: the source's folder, which is only read.
      prepared_dir: folder for the prepared data.
      **settings: fields of `Settings`.

    Raises UserError if the source is unknown, missing or malformed, or a folder cannot
    be read or written.
    """
    known_names = {*SOURCES, *NAMED}
    if dataset not in known_names:
        raise UserError(
            f"config.dataset is {dataset!r}, not one of "
            f"{', '.join(sorted(known_names))}{nearest(dataset, known_names)}"
        )
    chosen = Settings(**settings)
    name = data_name(dataset, chosen.train_fraction)
    dataset = NAMED.get(dataset, dataset)
    source, files = _find_source(dataset, data_dir, chosen)
    # Pickles were written with the usual settings of their data set.
    presets = [p for name in (dataset, source) for p in SOURCES[name].PRESETS.values()]
    unused = settings.keys() - SOURCES[source].SETTINGS
    refuse(chosen, unused, f"read as {source}, which ignores it", *presets)
    try:
        known = prepared_dir / "known_files"
        hashes = [(path.name, _hash_once(path, known)) for path in files]
        key = _sum([code_hash(), source, dataclasses.asdict(chosen), *hashes])
        folder = prepared_dir / f"{source}-{key[:16]}"
        for attempt in range(MOST_BUILDS):
            if not folder.exists():
                _build(source, files, chosen, folder)
            try:
                data = _map(folder)
                break
            except _DamagedError as error:
                # Another process may be moving it aside, and preparing it, as well.
                if attempt == MOST_BUILDS - 1:
                    raise
                aside = _move_aside(folder)
                log.warning(
                    "%s; it was moved to %s and is prepared again", error, aside
                )
    except OSError as error:
        where = error.filename or f"{data_dir} or {prepared_dir}"
        raise UserError(f"cannot read {where} ({reason(error)})") from error
    _check_fraction(data.counts["train_examples"], name, data_dir)
    if dataset == "recbole_inter" and data.validation is None:
        log.warning(
            "%s has no validation split, and no user with the four clicks that leave "
            "one for validation: the last training sessions are held out instead",
            data_dir,
        )
    return dataclasses.replace(data, published=PUBLISHED_COUNTS.get(name, {}))


def _find_source(
    dataset: str, data_dir: pathlib.Path, settings: Settings
) -> tuple[str, list[pathlib.Path]]:
    """Returns the name and the files of the source that the folder holds."""
    missing = []
    published = ["srgnn_pickles"] if dataset in PUBLISHED_AS_PICKLES else []
    for source in [dataset, *published]:
        try:
            return source, find_files(SOURCES[source], data_dir, settings)
        except UserError as error:
            missing.append(str(error))
    raise UserError(" Or: ".join(missing))


def _check_fraction(examples: float | int, name: str, data_dir: pathlib.Path) -> None:
    """Refuses the pickles of one fraction of Yoochoose under the name of the other."""
    fractions = {n for n in PUBLISHED_COUNTS if n.startswith("yoochoose_")}
    for other in fractions - {name} if name in fractions else ():
        if abs(examples / PUBLISHED_COUNTS[other]["train_examples"] - 1) < 0.01:
            raise UserError(
                f"config.data_dir = {str(data_dir)!r} holds {other}, not {name}: it "
                f"has {examples:,} training examples; use "
                f"--config=configs/yoochoose.py:{other.removeprefix('yoochoose_')}"
            )


@functools.cache
def code_hash() -> str:
    """Returns a hash of this package's code, which decides what is prepared."""
    package = pathlib.Path(__file__).parent
    paths = sorted(package.rglob("*.py"))
    return _sum([(str(path.relative_to(package)), _hash(path)) for path in paths])


def _hash_once(path: pathlib.Path, known: pathlib.Path) -> str:
    """Returns a hash of a file's bytes; reads them only if the file looks changed."""
    now, stat = time.time_ns(), path.stat()
    # Unlike the time of modification, the time of change cannot be set.
    times = stat.st_mtime_ns, stat.st_ctime_ns
    look = _sum([str(path.resolve()), stat.st_size, stat.st_ino, *times])
    for found in known.glob(f"{look}-*"):
        return found.name.removeprefix(f"{look}-")
    digest = _hash(path)
    # A change within the same clock tick would not show in the times.
    if now - max(times) > SETTLED_NANOSECONDS:
        # The folder may belong to another user; then every start reads all bytes.
        with contextlib.suppress(OSError):
            known.mkdir(parents=True, exist_ok=True)
            (known / f"{look}-{digest}").touch()
    return digest


@contextlib.contextmanager
def _explaining(what: str, remedy: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"{what} ({reason(error)}); {remedy}") from error


def _build(
    source: str, files: list[pathlib.Path], settings: Settings, folder: pathlib.Path
) -> None:
    """Builds in a temporary folder and renames it, so that it is never half-built."""
    remedy = "name another folder with --config.prepared_dir"
    with _explaining(f"cannot write to {folder.parent}", remedy):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            prefix="unfinished-", dir=folder.parent, ignore_cleanup_errors=True
        ) as temporary:
            unfinished = pathlib.Path(temporary) / folder.name
            unfinished.mkdir()
            _write(SOURCES[source].read(files, settings), unfinished)
            try:
                unfinished.rename(folder)
            except OSError:
                # Another process has built the same in the meantime.
                if not folder.exists():
                    raise


def _write(data: Dataset, folder: pathlib.Path) -> None:
    splits = {split: s for split, s in data.splits.items() if len(s)}
    for split, sessions in splits.items():
        np.save(folder / f"{split}.items.npy", sessions.items.astype(np.int32))
        np.save(folder / f"{split}.offsets.npy", sessions.offsets.astype(np.int64))
    arrays = {path.name: _hash(path) for path in sorted(folder.iterdir())}
    vocabulary = folder / "vocabulary.parquet"
    data.vocabulary.save(vocabulary)
    last_only = [split for split, sessions in splits.items() if sessions.last_only]
    contents = {
        "last_only": last_only,
        "counts": data.counts,
        "notes": [*data.notes],
        # Of the data alone: a run does not care how the same data was prepared.
        "fingerprint": _sum([arrays, last_only, data.vocabulary.fingerprint()]),
        "files": arrays | {vocabulary.name: _hash(vocabulary)},
    }
    (folder / "contents.json").write_text(json.dumps(contents))
    (folder / "contents.sum").write_text(_hash(folder / "contents.json"))


class _DamagedError(UserError):
    """A prepared folder is not as it was written."""


def _move_aside(folder: pathlib.Path) -> pathlib.Path:
    """Moves a damaged folder into a new folder, out of the way."""
    with _explaining(
        f"the prepared data in {folder} is damaged, and cannot be moved aside",
        "remove it, or name another --config.prepared_dir",
    ):
        aside = pathlib.Path(tempfile.mkdtemp(prefix="damaged-", dir=folder.parent))
        # Another process may have moved it already.
        with contextlib.suppress(FileNotFoundError):
            folder.rename(aside / folder.name)
    return aside


def _map(folder: pathlib.Path) -> Dataset:
    """Maps a prepared folder, and checks that it is as it was written."""
    damaged = f"the prepared data in {folder} is damaged: "

    def checked(name: str, digest: str | None = None) -> pathlib.Path:
        if digest is None:
            digest = contents["files"][name]
        if _hash(folder / name) != digest:
            raise _DamagedError(f"{damaged}{name} is not as it was written")
        return folder / name

    try:
        digest = (folder / "contents.sum").read_bytes().decode()
        contents = json.loads(checked("contents.json", digest).read_bytes())
        vocabulary = Vocabulary.load(checked("vocabulary.parquet"))
        splits = {}
        for split in ("train", "validation", "test"):
            if f"{split}.items.npy" in contents["files"]:
                items, offsets = (
                    np.load(checked(f"{split}.{name}.npy"), mmap_mode="r")
                    for name in ("items", "offsets")
                )
                check_rows(items, vocabulary.num_items)
                splits[split] = Sessions(items, offsets, split in contents["last_only"])
        more = {name: contents[name] for name in ("counts", "notes", "fingerprint")}
        return Dataset(splits, vocabulary, **more)
    except (FileNotFoundError, UserError) as error:
        missing = error.__cause__ if isinstance(error, UserError) else error
        if not isinstance(missing, FileNotFoundError):
            raise
        raise _DamagedError(f"{damaged}{missing.filename} is missing") from error
    except OSError as error:
        raise UserError(
            f"cannot read the prepared data in {folder} ({reason(error)}); it is left "
            "as it is: try again, or name another folder with --config.prepared_dir"
        ) from error
    except (LookupError, TypeError, ValueError, RecursionError) as error:
        # The checksums were changed to match.
        raise _DamagedError(f"{damaged}{reason(error)}") from error


def _sum(what: Any) -> str:
    return hashlib.blake2b(json.dumps(what).encode(), digest_size=16).hexdigest()


def _hash(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16))
    return digest.hexdigest()
