"""The settings and files of a source, and what sources that read a log share."""

import dataclasses
import inspect
import pathlib
import types
from collections.abc import Callable, Sequence
from typing import Any

import polars as pl

from srgnn_jax.data.columns import Columns, Form
from srgnn_jax.data.ids import MISSING
from srgnn_jax.data.prepare import prepare
from srgnn_jax.data.read import columns_of, read_clicks
from srgnn_jax.data.sessions import Dataset
from srgnn_jax.data.times import parse_iso
from srgnn_jax.data.visits import gather_visits
from srgnn_jax.errors import UserError


def _keywords(function: Callable) -> frozenset[str]:
    parameters = inspect.signature(function).parameters.values()
    return frozenset(p.name for p in parameters if p.kind is p.KEYWORD_ONLY)


# The settings for reading a log, those of `prepare`, and those of `gather_visits`.
COLUMN_SETTINGS = frozenset({"session_column", "item_column", "time_column"})
FORM_SETTINGS = {
    *("header", "separator", "quoting", "encoding", "missing_values"),
    *("time_unit", "time_format", "events", "on_bad_row"),
}
LOG_SETTINGS = COLUMN_SETTINGS | FORM_SETTINGS | {"log_file", "event_column"}
RULE_SETTINGS = _keywords(prepare) - {"as_published"}
VISIT_SETTINGS = _keywords(gather_visits)


@dataclasses.dataclass(kw_only=True)
class Settings:
    """The fields of configs/default.py that decide what is prepared."""

    log_file: str = ""
    header: str = ""
    tfds_name: str = ""
    session_column: str = ""
    item_column: str = ""
    time_column: str = ""
    date_column: str = ""
    event_column: str = ""
    separator: str = ""
    quoting: str = ""
    encoding: str = ""
    missing_values: Sequence[str] = MISSING
    time_unit: str = ""
    time_format: str = ""
    on_bad_row: str = "error"
    events: Sequence[str] = ()
    session_gap_minutes: float | int = 0.0
    session_by_day: bool = False
    collapse_repeats: bool = False
    max_session_clicks: int = 0
    min_session_length: int = 2
    min_item_count: int = 5
    test_days: float = 1.0
    test_start: str = ""
    test_end: str = ""
    train_days: float | int = 0.0
    train_fraction: float = 1.0
    date_resolution_seconds: int = 0
    recbole_time: str = "exact"

    @property
    def form(self) -> Form:
        """How your own log is read."""
        columns = {name: getattr(self, f"{name}_column") for name in vars(Columns())}
        return Form(
            Columns(**columns),
            of_visitors=bool(self.session_gap_minutes or self.session_by_day),
            **{name: getattr(self, name) for name in FORM_SETTINGS},
        )

    @property
    def visits(self) -> dict[str, Any]:
        """The arguments of `visits.gather_visits`."""
        return {name: getattr(self, name) for name in VISIT_SETTINGS}

    @property
    def rules(self) -> dict[str, Any]:
        """The arguments of `prepare.prepare`, except those of visits."""
        rules = {name: getattr(self, name) for name in RULE_SETTINGS}
        for name in ("test_start", "test_end"):
            text = rules[name]
            rules[name] = parse_iso(pl.Series([text]))[0]
            if text and rules[name] is None:
                raise UserError(
                    f"config.{name} is {text!r}; write a time in UTC such as "
                    "2014-09-29 or 2014-09-29T12:00:00"
                )
        return rules


def find_files(
    source: types.ModuleType, folder: pathlib.Path, settings: Settings
) -> list[pathlib.Path]:
    """Finds a source's raw files: the named log, or one file for each pattern.

    A file whose name is the pattern without its "*" is preferred. Raises UserError if
    there is none, or more than one.
    """
    if hasattr(source, "find_files") and (own := source.find_files(folder, settings)):
        return own
    where = check_folder(folder, source.INSTRUCTIONS)
    if settings.log_file and "log_file" in source.SETTINGS:
        if not (folder / settings.log_file).is_file():
            raise UserError(f"no file {settings.log_file} in {where}")
        return [folder / settings.log_file]
    files = []
    for pattern in source.FILES:
        paths = [folder / pattern.strip("*"), *sorted(folder.glob(pattern))]
        found = [path for path in paths if path.is_file()]
        if not found:
            raise UserError(f"no file {pattern} in {where}. {source.INSTRUCTIONS}")
        if len(found) > 1 and found[0] != paths[0]:
            names = ", ".join(path.name for path in found)
            raise UserError(
                f"more than one file in {where} ({names}). {source.INSTRUCTIONS}"
            )
        files.append(found[0])
    return files


def check_folder(folder: pathlib.Path, instructions: str) -> str:
    """Returns a folder as messages name it; raises UserError if it does not exist."""
    where = f"config.data_dir = {str(folder)!r}"
    if folder.is_file():
        raise UserError(
            f"{where} is a file: name its folder, {str(folder.parent)!r}, and "
            f"--config.log_file={folder.name}"
        )
    if not folder.is_dir():
        raise UserError(f"{where} does not exist. {instructions}")
    return where


def read_log(
    files: list[pathlib.Path], form: Form, split: Callable[..., Dataset], **rules: Any
) -> Dataset:
    """Reads a click log, and turns it into a data set with `split` and these rules.

    The counts of `read.read_clicks` are added to its counts.
    """
    clicks, counts = read_clicks(files, form)
    try:
        dataset = split(clicks, **rules)
    except UserError as error:
        raise UserError(f"{files[0]}: {error}") from error
    dataset.counts.update(counts)
    skipped = f"{counts['skipped_rows']:,} malformed rows dropped"
    notes = [_columns(files[0], form), *dataset.notes]
    notes += [skipped] * bool(counts["skipped_rows"])
    return dataclasses.replace(dataset, notes=notes)


def _columns(file: pathlib.Path, form: Form) -> str:
    """Returns a note on which of a log's columns are read, as what, and which not."""
    names = columns_of(file, form)
    read = form.names(names, file)
    used = ", ".join(f"{column} from {name!r}" for column, name in read.items())
    others = [repr(name) for name in names if name not in read.values()]
    more = f"; not read: {', '.join(others[:10])}" if others else ""
    return f"{file.name}: {used}{more}" + ", ..." * (len(others) > 10)
