"""Data sets built once, kept under a fingerprint, and mapped at later starts.

    <prepared_dir>/<builder>-<fingerprint>/
        tfds/                      the TFDS data set: one record a session
        <split>.items.npy, <split>.offsets.npy, vocabulary.parquet, contents.json
        start-<hash>-<fingerprint>

The fingerprint is that of the source's bytes and of every setting: a file or a setting
that changes is never served from what was built before. The empty `start` file is left
by a start that has read all of the source; its hash is that of the settings and of the
names, sizes, inodes and times of the files in the source's folder. While these stay the
same, later starts neither read the source nor import TFDS. contents.json holds a hash
of each file beside it: a folder that is damaged is prepared anew.
"""

import contextlib
import dataclasses
import hashlib
import io
import json
import logging
import pathlib
import shutil
import tempfile
import time
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import numpy as np

from srgnn_jax import tables
from srgnn_jax.data.sessions import Sessions, Vocabulary, check_rows
from srgnn_jax.errors import UserError, nearest

# Raise it when the same source and settings come to be prepared differently.
PREPARATION_VERSION = 1
# File systems keep times to a few milliseconds, the coarsest of them to two seconds.
SETTLED_NANOSECONDS = 3_000_000_000

log = logging.getLogger(__name__)

# Counts of Wu et al. 2019, table 1.
PUBLISHED_COUNTS: dict[str, dict[str, int | float]] = {
    "diginetica": {
        "clicks": 982_961,
        "train_examples": 719_470,
        "test_examples": 60_858,
        "items": 43_097,
        "average_length": 5.12,
    },
    "yoochoose_1_64": {
        "clicks": 557_248,
        "train_examples": 369_859,
        "test_examples": 55_898,
        "items_in_prefixes": 16_766,
        "average_length": 6.16,
    },
    "yoochoose_1_4": {
        "clicks": 8_326_407,
        "train_examples": 5_917_745,
        "test_examples": 55_898,
        "items_in_prefixes": 29_618,
        "average_length": 5.71,
    },
}


def data_name(dataset: str, train_fraction: float | int) -> str:
    """Names the data, with the fraction of training that is used: yoochoose_1_64."""
    part = Fraction(train_fraction).limit_denominator(1000)
    return dataset if part == 1 else f"{dataset}_{part.numerator}_{part.denominator}"


@dataclasses.dataclass(frozen=True)
class PreparedData:
    """A data set, ready for training.

    Attributes:
      train: the training sessions, in time order.
      test: the test sessions.
      validation: validation sessions, where the data set brings its own.
      vocabulary: the raw id of every item row.
      counts: see `prepare.count`.
      published: the published ones, where there are any.
      fingerprint: of the source and the settings.
    """

    train: Sessions
    test: Sessions
    validation: Sessions | None
    vocabulary: Vocabulary
    counts: dict[str, int | float]
    published: dict[str, int | float]
    fingerprint: str


def load_prepared(
    dataset: str,
    *,
    data_dir: pathlib.Path,
    prepared_dir: pathlib.Path,
    **settings: Any,
) -> PreparedData:
    """Finds a data set prepared, or prepares it.

    Args:
      dataset: name of a builder. "diginetica" and "yoochoose" stand for the raw file
        or, where the folder has none, the published pickles.
      data_dir: folder of the source, only read.
      prepared_dir: folder for what is built.
      **settings: fields of `datasets.builder.PreparationConfig`.

    Raises:
      UserError: a name is unknown, the source is missing or malformed, prepared_dir
        cannot be written, or the disk is full.
    """
    name = data_name(dataset, settings.get("train_fraction", 1.0))
    about = dataset, data_dir, prepared_dir, settings
    try:
        data = _load(*about)
    except _DamagedError as error:
        log.warning("%s; it is prepared anew", error)
        try:
            shutil.rmtree(error.folder)
        except OSError as refused:
            raise UserError(f"{error}, and cannot be removed ({refused})") from error
        data = _load(*about)
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
) -> PreparedData:
    start, settled = _look(dataset, data_dir, settings)
    left = next(prepared_dir.glob(f"*/start-{start}-*"), None)
    if left is not None:
        return _map(left.parent, left.name.rpartition("-")[2])
    folder, fingerprint = _find_or_build(dataset, data_dir, prepared_dir, settings)
    data = _map(folder, fingerprint)
    if settled:
        # Another user's folder may not be written; then every start reads all.
        with contextlib.suppress(OSError):
            (folder / f"start-{start}-{fingerprint}").touch()
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
    about = [PREPARATION_VERSION, dataset, str(data_dir.resolve())]
    about += [sorted(settings.items()), files]
    digest = hashlib.blake2b(json.dumps(about).encode(), digest_size=16)
    return digest.hexdigest(), now - youngest > SETTLED_NANOSECONDS


def _find_or_build(
    dataset: str,
    data_dir: pathlib.Path,
    prepared_dir: pathlib.Path,
    settings: Mapping[str, Any],
) -> tuple[pathlib.Path, str]:
    """Returns the folder of what is prepared, and its fingerprint."""
    # Imported late: TFDS takes a second or more.
    from srgnn_jax.data import datasets
    from srgnn_jax.data.datasets.builder import PreparationConfig

    builders = {
        builder.name: builder
        for builder in (getattr(datasets, name) for name in datasets.__all__)
    }
    if dataset not in builders:
        raise UserError(
            f"config.dataset is {dataset!r}{nearest(dataset, builders)}. There are: "
            + ", ".join(sorted(builders))
        )
    builder = builders[dataset]
    known = [field.name for field in dataclasses.fields(PreparationConfig)]
    for setting in settings:
        if setting not in known:
            raise UserError(f"no setting {setting!r}{nearest(setting, known)}")
    config = PreparationConfig(name="prepared", **settings)
    if dataset in ("diginetica", "yoochoose"):
        pickles = builders["srgnn_pickles"]
        builder = _raw_or_pickles(builder, pickles, data_dir, config)
    _check_settings(builder, builders[dataset], settings)
    files = builder.source_files(data_dir, config)
    defaults = dataclasses.asdict(PreparationConfig())
    fingerprint = _fingerprint(files, builder.name, settings, defaults)
    folder = prepared_dir / f"{builder.name}-{fingerprint[:16]}"
    if not folder.exists():
        _build(builder, config, data_dir, folder)
    return folder, fingerprint


def _check_settings(builder, asked, settings: Mapping[str, Any]) -> None:
    """Refuses settings that would change nothing, unless they are the usual ones.

    Args:
      builder: the builder that will read the data.
      asked: that of `config.dataset`; where its data comes as pickles, its settings
        have been heeded by whoever wrote them.
      settings: all that are given.
    """
    for name in settings.keys() - builder.SETTINGS:
        usual = [getattr(one, name) for one in asked.BUILDER_CONFIGS]
        default = builder.BUILDER_CONFIGS[0]
        if settings[name] not in [*usual, getattr(default, name)]:
            raise UserError(
                f"config.{name} is {settings[name]!r}, which would change nothing: the "
                f"data set is read as {builder.name}, which does not heed it; leave it "
                f"at {usual[0]!r}"
            )


def _raw_or_pickles(raw, pickles, data_dir: pathlib.Path, config):
    try:
        raw.source_files(data_dir, config)
    except UserError as no_raw:
        try:
            pickles.source_files(data_dir, config)
        except UserError:
            raise UserError(
                f"{no_raw} Or {pickles.MANUAL_DOWNLOAD_INSTRUCTIONS[0].lower()}"
                f"{pickles.MANUAL_DOWNLOAD_INSTRUCTIONS[1:]}"
            ) from None
        return pickles
    return raw


def _fingerprint(
    files: list[pathlib.Path],
    builder: str,
    settings: Mapping[str, Any],
    defaults: Mapping[str, Any],
) -> str:
    digest = hashlib.blake2b(digest_size=16)
    # Those at their defaults are left out: a setting that comes to be added later
    # does not turn what was prepared before into other data.
    chosen = {k: v for k, v in settings.items() if v != defaults[k]}
    about = [PREPARATION_VERSION, builder, sorted(chosen.items())]
    digest.update(json.dumps(about).encode())
    for path in files:
        try:
            content = bytes.fromhex(_hash(path))
        except OSError as error:
            raise UserError(f"cannot read {path} ({error.strerror})") from error
        digest.update(f"{path.name}\0".encode() + content)
    return digest.hexdigest()


def _build(builder, config, data_dir: pathlib.Path, folder: pathlib.Path) -> None:
    """Builds in a folder beside and renames it: what is there, is there as a whole."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        unfinished = pathlib.Path(
            tempfile.mkdtemp(prefix="unfinished-", dir=folder.parent)
        )
    except OSError as error:
        raise _cannot_write(folder.parent, error) from error
    try:
        with _quiet_tfds() as tfds:
            download = tfds.download.DownloadConfig(manual_dir=str(data_dir))
            made = builder(config=config, data_dir=str(unfinished / "tfds"))
            made.download_and_prepare(download_config=download)
        contents = {
            "counts": dict(made.info.metadata["counts"]),
            "last_only": list(made.info.metadata["last_only"]),
            "splits": list(made.info.splits),
        }
        for split in contents["splits"]:
            sessions = made.read_sessions(split)
            np.save(unfinished / f"{split}.items.npy", sessions.items)
            np.save(unfinished / f"{split}.offsets.npy", sessions.offsets)
        Vocabulary(made.info.metadata["item_ids"]).save(
            unfinished / "vocabulary.parquet"
        )
        contents["files"] = {
            path.name: _hash(path) for path in unfinished.iterdir() if path.is_file()
        }
        (unfinished / "contents.json").write_text(json.dumps(contents))
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


def _cannot_write(folder: pathlib.Path, error: OSError) -> UserError:
    return UserError(
        f"cannot write to {folder} ({error.strerror or error}); name another folder "
        "with --config.prepared_dir"
    )


@contextlib.contextmanager
def _quiet_tfds():
    """TFDS logs and prints, on stdout, about downloads that do not happen here."""
    import tensorflow_datasets as tfds

    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield tfds
    finally:
        logger.setLevel(level)


class _DamagedError(UserError):
    """A prepared folder is not as it was written."""

    def __init__(self, folder: pathlib.Path, reason: str):
        super().__init__(f"the prepared data in {folder} is damaged: {reason}")
        self.folder = folder


def _map(folder: pathlib.Path, fingerprint: str) -> PreparedData:
    def known(name: str) -> pathlib.Path:
        if _hash(folder / name) != contents["files"][name]:
            raise ValueError(f"{name} is not as it was written")
        return folder / name

    def sessions(split: str) -> Sessions:
        split_sessions = Sessions(
            np.load(known(f"{split}.items.npy"), mmap_mode="r"),
            np.load(known(f"{split}.offsets.npy"), mmap_mode="r"),
            split in contents["last_only"],
        )
        check_rows(split_sessions.items, vocabulary.num_items)
        return split_sessions

    try:
        contents = json.loads((folder / "contents.json").read_text())
        vocabulary = Vocabulary.load(known("vocabulary.parquet"))
        return PreparedData(
            train=sessions("train"),
            test=sessions("test"),
            validation=(
                sessions("validation") if "validation" in contents["splits"] else None
            ),
            vocabulary=vocabulary,
            counts=dict(contents["counts"]),
            published={},
            fingerprint=fingerprint,
        )
    except KeyError as error:
        raise _DamagedError(folder, f"contents.json lacks {error}") from error
    except (OSError, TypeError, ValueError, RecursionError, UserError) as error:
        raise _DamagedError(folder, str(error)) from error


def _hash(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(
            file, lambda: hashlib.blake2b(digest_size=16)
        ).hexdigest()


def counts_table(
    counts: Mapping[str, int | float], published: Mapping[str, int | float]
) -> str:
    """Renders the counts, one a line, the published ones beside where there are any."""

    def show(value: int | float | None) -> str:
        if value is None:
            return ""
        return f"{round(value, 3):,}"

    rows = [["counts", "here", *(["published"] if published else [])]]
    for name, value in counts.items():
        row = [name.replace("_", " "), show(value)]
        rows.append(row + [show(published.get(name))] * bool(published))
    return "\n".join(tables.plain(rows, left=20, width=14))
