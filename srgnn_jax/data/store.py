"""The prepared store: data sets built once, kept under a key, and mapped from then on.

    <prepared_dir>/<source>-<key>/
        <split>.items.npy, <split>.offsets.npy, vocabulary.parquet, contents.json
        start-<hash>

The key is a hash of the source's bytes, of every setting and of the code that prepares:
a file, a setting or a rule that changes is never served from what was built before. The
empty `start` file is left by a start that has read all of the source; its hash is that
of the settings and of the names, sizes, inodes and times of the files in the source's
folder. While these stay the same, later starts do not read the source.

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
import shutil
import tempfile
import time
import uuid
from collections.abc import Mapping
from typing import Any

import numpy as np

from srgnn_jax.data.counts import PUBLISHED_COUNTS, data_name
from srgnn_jax.data.sessions import Dataset, Sessions, Vocabulary, check_rows
from srgnn_jax.data.sources import SOURCES, Settings, Source
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
    name = data_name(dataset, settings.get("train_fraction", 1.0))
    about = dataset, data_dir, prepared_dir, settings
    try:
        try:
            data = _load(*about)
        except _DamagedError as error:
            aside = _move_aside(error.folder)
            log.warning("%s; it is moved to %s, and prepared anew", error, aside)
            data = _load(*about)
    except OSError as error:
        where = error.filename or prepared_dir
        raise UserError(f"cannot read {where} ({reason(error)})") from error
    _check_fraction(data.counts, name, data_dir)
    if dataset == "recbole_inter" and data.validation is None:
        log.warning(
            "no user in %s has the four clicks that leave one to validate on: the last "
            "training sessions are held out instead",
            data_dir,
        )
    return dataclasses.replace(data, published=PUBLISHED_COUNTS.get(name, {}))


def _load(
    dataset: str,
    data_dir: pathlib.Path,
    prepared_dir: pathlib.Path,
    settings: Mapping[str, Any],
) -> Dataset:
    start, settled = _look(dataset, data_dir, settings)
    left = next(prepared_dir.glob(f"*/start-{start}"), None)
    if left is not None:
        return _map(left.parent)
    folder = _find_or_build(dataset, data_dir, prepared_dir, settings)
    data = _map(folder)
    if settled:
        # Another user's folder may not be written; then every start reads all.
        with contextlib.suppress(OSError):
            (folder / f"start-{start}").touch()
    return data


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


def _look(
    dataset: str, data_dir: pathlib.Path, settings: Mapping[str, Any]
) -> tuple[str, bool]:
    """Looks at the source's folder, but not into its files.

    Returns:
      A hash of what was asked for and of what lies there; and whether every file has
      been left alone for some time, so that any change from now on shows in its times.
    """
    now = time.time_ns()
    files, youngest = [], 0
    paths = [data_dir / settings.get("log_file", "")]
    with contextlib.suppress(OSError):
        paths += sorted(data_dir.iterdir())
    for path in paths:
        try:
            stat = path.stat()
        except OSError:
            continue
        if path.is_file():
            # The time of change cannot be set, unlike that of modification.
            times = stat.st_mtime_ns, stat.st_ctime_ns
            files.append((path.name, stat.st_size, stat.st_ino, *times))
            youngest = max(youngest, *times)
    about = [code_hash(), dataset, str(data_dir.resolve())]
    return _sum([*about, sorted(settings.items()), files]), (
        now - youngest > SETTLED_NANOSECONDS
    )


def _find_or_build(
    dataset: str,
    data_dir: pathlib.Path,
    prepared_dir: pathlib.Path,
    settings: Mapping[str, Any],
) -> pathlib.Path:
    """Returns the folder of what is prepared."""
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
    name = _raw_or_pickles(dataset, data_dir, chosen)
    source = SOURCES[name]
    _check_settings(name, SOURCES[dataset], settings)
    files = source.source_files(data_dir, chosen)
    folder = prepared_dir / f"{name}-{_key(files, name, settings)[:16]}"
    if not folder.exists():
        _build(source, files, chosen, folder)
    return folder


def _check_settings(name: str, asked: Source, settings: Mapping[str, Any]) -> None:
    """Refuses settings that would change nothing, unless they are the usual ones.

    Args:
      name: of the source that will be read.
      asked: that of `config.dataset`; where its data comes as pickles, its settings
        have been heeded by whoever wrote them.
      settings: all that are given.
    """
    source = SOURCES[name]
    for setting in settings.keys() - source.SETTINGS:
        usual = [getattr(preset, setting) for preset in asked.PRESETS.values()]
        default = next(iter(source.PRESETS.values()))
        if settings[setting] not in [*usual, getattr(default, setting)]:
            raise UserError(
                f"config.{setting} is {settings[setting]!r}, which would change "
                f"nothing: the data set is read as {name}, which does not heed it; "
                f"leave it at {usual[0]!r}"
            )


def _raw_or_pickles(dataset: str, data_dir: pathlib.Path, settings: Settings) -> str:
    """Returns the name of the source that has its files in the folder."""
    if dataset not in ("diginetica", "yoochoose"):
        return dataset
    pickles = SOURCES["srgnn_pickles"]
    try:
        SOURCES[dataset].source_files(data_dir, settings)
    except UserError as no_raw:
        try:
            pickles.source_files(data_dir, settings)
        except UserError:
            how = pickles.INSTRUCTIONS
            raise UserError(f"{no_raw} Or {how[0].lower()}{how[1:]}") from None
        return "srgnn_pickles"
    return dataset


def _key(files: list[pathlib.Path], name: str, settings: Mapping[str, Any]) -> str:
    """Returns a hash of the source, the settings and the code that prepares."""
    # Those at their defaults are left out: a setting that comes to be added later
    # does not turn what was prepared before into other data.
    defaults = dataclasses.asdict(Settings())
    chosen = sorted((k, v) for k, v in settings.items() if v != defaults[k])
    about: list[Any] = [code_hash(), name, chosen]
    for path in files:
        try:
            about.append((path.name, _hash(path)))
        except OSError as error:
            raise UserError(f"cannot read {path} ({reason(error)})") from error
    return _sum(about)


@functools.cache
def code_hash() -> str:
    """Returns a hash of the code of this room: all that may decide what is prepared."""
    room = pathlib.Path(__file__).parent
    paths = sorted(room.rglob("*.py"))
    return _sum([(str(path.relative_to(room)), _hash(path)) for path in paths])


def _build(
    source: Source,
    files: list[pathlib.Path],
    settings: Settings,
    folder: pathlib.Path,
) -> None:
    """Builds in a folder beside and renames it: what is there, is there as a whole."""
    unfinished = folder.with_name(f"unfinished-{uuid.uuid4().hex}")
    try:
        unfinished.mkdir(parents=True)
    except OSError as error:
        raise _cannot_write(folder.parent, error) from error
    try:
        dataset = source.read(files, settings)
        try:
            _write(dataset, unfinished)
            try:
                unfinished.rename(folder)
            except OSError:
                # Another process has built the same in the meantime.
                if not folder.exists():
                    raise
        except OSError as error:
            raise _cannot_write(folder.parent, error) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _write(dataset: Dataset, folder: pathlib.Path) -> None:
    splits = {split: s for split, s in dataset.splits.items() if len(s)}
    for split, sessions in splits.items():
        np.save(
            folder / f"{split}.items.npy", sessions.items.astype(np.int32, copy=False)
        )
        np.save(
            folder / f"{split}.offsets.npy",
            sessions.offsets.astype(np.int64, copy=False),
        )
    arrays = {path.name: _hash(path) for path in sorted(folder.iterdir())}
    dataset.vocabulary.save(folder / "vocabulary.parquet")
    last_only = [split for split, sessions in splits.items() if sessions.last_only]
    contents = {
        "splits": list(splits),
        "last_only": last_only,
        "counts": dataset.counts,
        # Of the data alone: two ways to the same data are one to a run.
        "fingerprint": _sum([arrays, last_only, dataset.vocabulary.fingerprint()]),
        "files": arrays | {"vocabulary.parquet": _hash(folder / "vocabulary.parquet")},
    }
    (folder / "contents.json").write_text(
        json.dumps({"sum": _sum(contents), "contents": contents})
    )


def _cannot_write(folder: pathlib.Path, error: OSError) -> UserError:
    return UserError(
        f"cannot write to {folder} ({reason(error)}); name another folder with "
        "--config.prepared_dir"
    )


class _DamagedError(UserError):
    """A prepared folder is not as it was written."""

    def __init__(self, folder: pathlib.Path, why: str):
        super().__init__(f"the prepared data in {folder} is damaged: {why}")
        self.folder = folder


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
            if split in contents["splits"]:
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
