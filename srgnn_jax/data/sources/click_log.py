"""Any log of (session, item, time): csv, parquet or JSON lines, whole or in parts.

Files named train, test and valid are ready-made splits, like those of GRU4Rec and
session-rec.
"""

import contextlib
import glob
import itertools
import logging
import os
import pathlib
import re
from collections.abc import Collection, Mapping, Sequence

from srgnn_jax.data.columns import Form
from srgnn_jax.data.files import kind_of
from srgnn_jax.data.prepare import prepare, prepare_splits
from srgnn_jax.data.read import columns_of, lacks_header, read_clicks
from srgnn_jax.data.sessions import Dataset
from srgnn_jax.data.sources import ready_made, source
from srgnn_jax.data.sources.source import Settings
from srgnn_jax.data.text import is_click
from srgnn_jax.errors import UserError

INSTRUCTIONS = (
    "Put one log there (csv, tsv, parquet or JSON lines, compressed or not, as one "
    "file or in parts, with columns for session, item and time), or name it with "
    "config.log_file."
)
FILES = ("*",)
SETTINGS = (
    source.LOG_SETTINGS | source.RULE_SETTINGS | source.VISIT_SETTINGS | {"date_column"}
)
PRESETS = {"default": Settings()}

log = logging.getLogger(__name__)


def read(files: list[pathlib.Path], settings: Settings) -> Dataset:
    """Reads the log, or the splits."""
    if splits := _ready_made(files):
        return _read_splits(splits, settings)
    rules = settings.rules | settings.visits
    return source.read_log(files, settings.form, prepare, as_published=False, **rules)


def _read_splits(splits: dict[str, list[pathlib.Path]], settings: Settings) -> Dataset:
    names = ", ".join(files[0].name for files in splits.values())
    what = f"in ready-made splits ({names}), unless config.log_file names one log"
    ready_made.refuse(settings, source.RULE_SETTINGS - {"min_session_length"}, what)
    read = {split: read_clicks(files, settings.form) for split, files in splits.items()}
    clicks = {split: frame for split, (frame, _) in read.items()}
    data = prepare_splits(clicks, settings.min_session_length, **settings.visits)
    for _, counts in read.values():
        for name, n in counts.items():
            data.counts[name] = data.counts.get(name, 0) + n
    return data


def find_files(
    folder: pathlib.Path, settings: Settings, form: Form | None = None
) -> list[pathlib.Path]:
    """Finds the files of the log: those with the same columns, anywhere in the folder.

    They are read as `form` says, by default that of the settings.

    Hidden files, and files without clicks, are skipped. Raises UserError if there is no
    log, or more than one.
    """
    where = source.check_folder(folder, INSTRUCTIONS)
    named = folder / settings.log_file
    if named.is_file():
        return [named]
    matching = glob.glob(settings.log_file, root_dir=folder, recursive=True)
    found = [named] if named.is_dir() else [folder / name for name in matching]
    found = sorted({file for path in found for file in _files_in(path)})
    if not settings.log_file and any(p.parent.name == "_delta_log" for p in found):
        raise UserError(
            f"{where} holds a Delta table, whose files include deleted rows; export "
            "it, or read all rows with --config.log_file='*.parquet'"
        )
    files = [p for p in found if p.is_file() and not _is_hidden(p, folder)]
    if not files:
        if settings.log_file:
            raise UserError(f"no file {settings.log_file} in {where}")
        raise UserError(f"no log in {where}. {INSTRUCTIONS}")
    if len(files) == 1:
        return files
    return _of_one_form(files, folder, form or settings.form, where)


def _files_in(path: pathlib.Path) -> list[pathlib.Path]:
    """Returns a file itself, or those in a folder and in folders that it links to."""
    if path.is_file():
        return [path]
    seen, files = set(), []
    for top, folders, names in os.walk(path, followlinks=True):
        seen.add(os.path.realpath(top))
        inner = [pathlib.Path(top, name) for name in folders]
        folders[:] = [
            folder.name
            for folder in inner
            if os.path.realpath(folder) not in seen and not _is_own(folder)
        ]
        files += [pathlib.Path(top, name) for name in names]
    return files


def _is_own(folder: pathlib.Path) -> bool:
    """Whether a folder is that of a run, or holds prepared data."""
    has_ids = (folder / "vocabulary.parquet").exists()
    others = ("checkpoints", "counts.json", "contents.sum")
    return has_ids and any((folder / name).exists() for name in others)


def _is_hidden(path: pathlib.Path, folder: pathlib.Path) -> bool:
    """Whether a file is a tool's own, or not data: .DS_Store, ._log.csv, _SUCCESS."""
    # One that config.log_file names may lie elsewhere.
    parts = pathlib.PurePath(os.path.relpath(path, folder)).parts
    return any(p.startswith((".", "_")) and p != ".." for p in parts) or (
        path.suffix.lower() in (".crc", ".md", ".py")
    )


def _by_form(
    files: list[pathlib.Path], form: Form
) -> tuple[
    dict[frozenset[str] | int, list[pathlib.Path]],
    list[tuple[pathlib.Path, UserError]],
]:
    """Groups files by columns, or by the number of columns if there is no header.

    Returns the groups, and the files that are not logs with the reason. Raises the
    UserError of a damaged file: it may be part of the log.
    """
    groups: dict[frozenset[str] | int, list[pathlib.Path]] = {}
    others = []
    for path in files:
        try:
            if not path.stat().st_size:
                continue
            names = columns_of(path, form)
            may_lack_header = form.header != "none" and not isinstance(names, Mapping)
            if may_lack_header and is_click(names, form.missing_values):
                groups.setdefault(len(names), []).append(path)
                continue
            read = form.names(names, path).values()
            # A record may lack any field that is not read.
            is_json = kind_of(path, form.encoding) == "json"
            columns = frozenset(map(str.strip, read if is_json else names))
            groups.setdefault(columns, []).append(path)
        except UserError as error:
            if error.__cause__:
                raise
            others.append((path, error))
    return groups, others


def _continues(
    path: pathlib.Path, form: Form, header: Sequence[str], read: Collection[str]
) -> bool:
    """Whether a file without a header is part of a log with these columns.

    A JSON file is one if at most one of the fields that are read is missing.
    """
    with contextlib.suppress(UserError):
        fields = columns_of(path, form, len(header))
        if isinstance(fields, Mapping):
            return len(fields.keys() & read) >= len(read) - 1 > 1
        return lacks_header(path, fields, header, form)
    return False


def _of_one_form(
    files: list[pathlib.Path], folder: pathlib.Path, form: Form, where: str
) -> list[pathlib.Path]:
    """Returns the files that hold clicks, which must have the same columns."""
    groups, others = _by_form(files, form)
    if not groups:
        if not others:
            raise UserError(
                f"all {len(files)} files in {where} are empty. {INSTRUCTIONS}"
            )
        # The log is probably the file whose error suggests visits, or else the largest.
        _, error = max(
            others,
            key=lambda o: ("session_gap_minutes" in str(o[1]), o[0].stat().st_size),
        )
        if len(others) == 1:
            raise error
        raise UserError(f"none of the {len(files)} files in {where} is a log. {error}")

    def names_of(paths):
        names = [os.path.relpath(path, folder) for path in paths]
        return ", ".join(names[:5]) + f" and {len(names) - 5} others" * (len(names) > 5)

    headed = [columns for columns in groups if isinstance(columns, frozenset)]
    if len(headed) > 1 or (not headed and len(groups) > 1):
        firsts = [
            groups[of][0] for of in sorted(groups, key=lambda of: of not in headed)
        ]
        raise UserError(
            f"several logs in {where}, with different columns ({names_of(firsts)}); "
            "name one with --config.log_file, or use a pattern such as "
            f"--config.log_file='*{firsts[0].suffix}'"
        )
    log_files = groups.pop(headed[0] if headed else next(iter(groups)))
    skipped = [*itertools.chain(*groups.values()), *(path for path, _ in others)]
    if headed:
        # The header of one file also names the columns of files without a header.
        header = [*columns_of(log_files[0], form)]
        parts = [p for p in skipped if _continues(p, form, header, headed[0])]
        log_files = [*log_files, *parts]
        skipped = [path for path in skipped if path not in parts]
    if skipped:
        log.warning("%s: no clicks in %s: skipped", where, names_of(skipped))
    if len(log_files) > 1 and not _ready_made(log_files):
        log.warning(
            "%s: %s files are read as one log: %s",
            *(where, len(log_files), names_of(log_files)),
        )
    return log_files


def _ready_made(files: list[pathlib.Path]) -> dict[str, list[pathlib.Path]]:
    """Returns the files of each split, if all are named after one; else nothing."""
    splits: dict[str, list[pathlib.Path]] = {"train": [], "validation": [], "test": []}
    for path in files:
        words = set(re.split(r"[^a-z]+", path.name.lower()))
        split = next((word for word in ("train", "test") if word in words), "")
        if words & {*ready_made.VALIDATION}:
            split = "validation"
        if not split:
            return {}
        splits[split].append(path)
    if not (splits["train"] and splits["test"]):
        return {}
    # session-rec has files of the whole training set besides its two parts.
    full = [path for path in splits["train"] if "full" in path.name.lower()]
    if full:
        return {"train": full, "test": splits["test"]}
    return {split: paths for split, paths in splits.items() if paths}
