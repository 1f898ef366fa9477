"""The prepared store: data sets built once, kept under a key, and mapped from then on.

    <prepared_dir>/<source>-<key>/
        <split>.items.npy, <split>.offsets.npy, vocabulary.parquet, contents.json
    <prepared_dir>/known_files/<what a file looks like>-<hash of its bytes>

The key is a hash of the source's bytes, of every setting and of the code that prepares:
a file, a setting or a rule that changes is never served from what was built before. A
source is read in full to tell its hash, once for as long as the size, the inode and the
times of its files stay the same.

contents.json holds a checksum of each file beside it, and of itself. A folder of which
one does not match is moved aside and prepared anew; one that cannot be read is left
alone.
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
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from srgnn_jax.data.counts import PUBLISHED_COUNTS, data_name
from srgnn_jax.data.sessions import Dataset, Sessions, Vocabulary, check_rows
from srgnn_jax.data.sources import SOURCES, Settings
from srgnn_jax.errors import UserError, nearest, reason

DEFAULT_DIR = "~/.cache/srgnn_jax"
# File systems keep times to a few milliseconds, the coarsest of them to two seconds.
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
      dataset: name of a source. "diginetica" and "yoochoose" stand for the raw file
        or, where the folder has none, the published pickles.
      data_dir: folder of the source, only read.
      prepared_dir: folder for what is built.
      **settings: fields of `Settings`.

    Raises:
      UserError: a name is unknown, the source is missing or malformed, prepared_dir
        cannot be read or written, or the disk is full.
    """
    if dataset not in SOURCES:
        raise UserError(
            f"config.dataset is {dataset!r}{nearest(dataset, SOURCES)}. There are: "
            + ", ".join(sorted(SOURCES))
        )
    known = [field.name for field in dataclasses.fields(Settings)]
    for setting in settings:
        if setting not in known:
            raise UserError(f"no setting {setting!r}{nearest(setting, known)}")
    chosen = Settings(**settings)
    source, files = _find_source(dataset, data_dir, chosen)
    _check_settings(dataset, source, settings)
    try:
        key = _key(source, files, chosen, prepared_dir)
        folder = prepared_dir / f"{source}-{key[:16]}"
        if not folder.exists():
            _build(source, files, chosen, folder)
        try:
            data = _map(folder)
        except _DamagedError as error:
            aside = _move_aside(folder)
            log.warning("%s; it is moved to %s, and prepared anew", error, aside)
            _build(source, files, chosen, folder)
            data = _map(folder)
    except OSError as error:
        where = error.filename or prepared_dir
        raise UserError(f"cannot read {where} ({reason(error)})") from error
    name = data_name(dataset, chosen.train_fraction)
    _check_fraction(data.counts, name, data_dir)
    if dataset == "recbole_inter" and data.validation is None:
        log.warning(
            "no user in %s has the four clicks that leave one to validate on: the last "
            "training sessions are held out instead",
            data_dir,
        )
    return dataclasses.replace(data, published=PUBLISHED_COUNTS.get(name, {}))


def _find_source(
    dataset: str, data_dir: pathlib.Path, settings: Settings
) -> tuple[str, list[pathlib.Path]]:
    """Returns the name and the files of the source that the folder holds."""
    try:
        return dataset, SOURCES[dataset].source_files(data_dir, settings)
    except UserError as no_raw:
        if dataset not in ("diginetica", "yoochoose"):
            raise
        pickles = SOURCES["srgnn_pickles"]
        try:
            return "srgnn_pickles", pickles.source_files(data_dir, settings)
        except UserError:
            how = pickles.INSTRUCTIONS
            raise UserError(f"{no_raw} Or {how[0].lower()}{how[1:]}") from None


def _check_settings(dataset: str, source: str, settings: Mapping[str, Any]) -> None:
    """Refuses settings that would change nothing, unless they are the usual ones.

    Where a data set comes as pickles, its settings have been heeded by whoever wrote
    them.
    """
    presets = [p for name in (dataset, source) for p in SOURCES[name].PRESETS.values()]
    for setting in settings.keys() - SOURCES[source].SETTINGS:
        usual = [getattr(preset, setting) for preset in presets]
        if settings[setting] not in usual:
            raise UserError(
                f"config.{setting} is {settings[setting]!r}, which would change "
                f"nothing: the data set is read as {source}, which does not heed it; "
                f"leave it at {usual[0]!r}"
            )


def _check_fraction(
    counts: Mapping[str, int | float], name: str, data_dir: pathlib.Path
) -> None:
    """Refuses the pickles of one fraction of Yoochoose under the name of the other."""
    prefix = "yoochoose_"
    if name not in PUBLISHED_COUNTS or not name.startswith(prefix):
        return
    for other in PUBLISHED_COUNTS.keys() - {name}:
        ratio = counts["train_examples"] / PUBLISHED_COUNTS[other]["train_examples"]
        if other.startswith(prefix) and abs(ratio - 1) < 0.01:
            raise UserError(
                f"config.data_dir = {str(data_dir)!r} holds {other}, not {name}: it "
                f"has {counts['train_examples']:,} training examples; use "
                f"--config=configs/yoochoose.py:{other.removeprefix(prefix)}"
            )


def _key(
    source: str,
    files: list[pathlib.Path],
    settings: Settings,
    prepared_dir: pathlib.Path,
) -> str:
    """Returns a hash of the code that prepares, of the settings and of the source."""
    about: list[Any] = [code_hash(), source, dataclasses.asdict(settings)]
    for path in files:
        try:
            about.append((path.name, _hash_once(path, prepared_dir / "known_files")))
        except OSError as error:
            raise UserError(f"cannot read {path} ({reason(error)})") from error
    return _sum(about)


@functools.cache
def code_hash() -> str:
    """Returns a hash of the code of this room: all that may decide what is prepared."""
    room = pathlib.Path(__file__).parent
    paths = sorted(room.rglob("*.py"))
    return _sum([(str(path.relative_to(room)), _hash(path)) for path in paths])


def _hash_once(path: pathlib.Path, known: pathlib.Path) -> str:
    """Returns a hash of a file's bytes, which are read only if it looks changed."""
    now, stat = time.time_ns(), path.stat()
    # The time of change cannot be set, unlike that of modification.
    times = stat.st_mtime_ns, stat.st_ctime_ns
    look = _sum([str(path.resolve()), stat.st_size, stat.st_ino, *times])
    for found in known.glob(f"{look}-*"):
        return found.name.removeprefix(f"{look}-")
    digest = _hash(path)
    # A change within the same tick of the clock would not show in its times.
    if now - max(times) > SETTLED_NANOSECONDS:
        # Another user's folder may not be written; then every start reads all.
        with contextlib.suppress(OSError):
            known.mkdir(parents=True, exist_ok=True)
            (known / f"{look}-{digest}").touch()
    return digest


def _build(
    source: str, files: list[pathlib.Path], settings: Settings, folder: pathlib.Path
) -> None:
    """Builds in a folder beside and renames it: what is there, is there as a whole."""
    with _writing(folder.parent):
        folder.parent.mkdir(parents=True, exist_ok=True)
        beside = tempfile.TemporaryDirectory(
            prefix="unfinished-", dir=folder.parent, ignore_cleanup_errors=True
        )
    with beside:
        data = SOURCES[source].read(files, settings)
        with _writing(folder.parent):
            unfinished = pathlib.Path(beside.name) / folder.name
            unfinished.mkdir()
            _write(data, unfinished)
            try:
                unfinished.rename(folder)
            except OSError:
                # Another process has built the same in the meantime.
                if not folder.exists():
                    raise


@contextlib.contextmanager
def _writing(folder: pathlib.Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot write to {folder} ({reason(error)}); name another folder with "
            "--config.prepared_dir"
        ) from error


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
        "splits": list(splits),
        "last_only": last_only,
        "counts": data.counts,
        # Of the data alone: two ways to the same data are one to a run.
        "fingerprint": _sum([arrays, last_only, data.vocabulary.fingerprint()]),
        "files": arrays | {vocabulary.name: _hash(vocabulary)},
    }
    (folder / "contents.json").write_text(
        json.dumps({"sum": _sum(contents), "contents": contents})
    )


class _DamagedError(UserError):
    """A prepared folder is not as it was written."""

    def __init__(self, folder: pathlib.Path, why: str):
        super().__init__(f"the prepared data in {folder} is damaged: {why}")


def _move_aside(folder: pathlib.Path) -> pathlib.Path:
    """Moves a damaged folder out of the way, into one of its own."""
    try:
        aside = pathlib.Path(tempfile.mkdtemp(prefix="damaged-", dir=folder.parent))
        # Another process may have moved it already.
        with contextlib.suppress(FileNotFoundError):
            folder.rename(aside / folder.name)
    except OSError as error:
        raise UserError(
            f"the prepared data in {folder} is damaged, and cannot be moved aside "
            f"({reason(error)}); remove it, or name another --config.prepared_dir"
        ) from error
    return aside


def _map(folder: pathlib.Path) -> Dataset:
    """Maps a prepared folder, and checks that it is as it was written."""

    def known(name: str) -> pathlib.Path:
        if _hash(folder / name) != contents["files"][name]:
            raise _DamagedError(folder, f"{name} is not as it was written")
        return folder / name

    try:
        contents = _read_contents(folder)
        vocabulary = Vocabulary.load(known("vocabulary.parquet"))
        splits = {}
        for split in ("train", "validation", "test"):
            if split not in contents["splits"]:
                continue
            splits[split] = Sessions(
                np.load(known(f"{split}.items.npy"), mmap_mode="r"),
                np.load(known(f"{split}.offsets.npy"), mmap_mode="r"),
                split in contents["last_only"],
            )
            check_rows(splits[split].items, vocabulary.num_items)
        fingerprint = contents["fingerprint"]
        return Dataset(splits, vocabulary, contents["counts"], fingerprint=fingerprint)
    except FileNotFoundError as error:
        raise _DamagedError(folder, f"{error.filename} is missing") from error
    except OSError as error:
        raise UserError(
            f"cannot read the prepared data in {folder} ({reason(error)}); it is left "
            "as it is: try again, or name another folder with --config.prepared_dir"
        ) from error
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"the prepared data in {folder} is damaged, though its checksums match: "
            f"{reason(error)}; remove the folder, and it is prepared anew"
        ) from error


def _read_contents(folder: pathlib.Path) -> dict[str, Any]:
    text = (folder / "contents.json").read_bytes()
    try:
        stored = json.loads(text)
        if stored["sum"] == _sum(stored["contents"]):
            return stored["contents"]
    except (KeyError, TypeError, ValueError, RecursionError):
        pass
    raise _DamagedError(folder, "contents.json is not as it was written")


def _sum(what: Any) -> str:
    return hashlib.blake2b(json.dumps(what).encode(), digest_size=16).hexdigest()


def _hash(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(
            file, lambda: hashlib.blake2b(digest_size=16)
        ).hexdigest()
