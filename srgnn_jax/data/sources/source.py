"""The settings and files of a source, and what those that read a log share."""

import dataclasses
import inspect
import pathlib
import types
from collections.abc import Callable
from typing import Any

import polars as pl

from srgnn_jax.data.columns import Columns
from srgnn_jax.data.prepare import prepare
from srgnn_jax.data.read import SUFFIXES, read_clicks
from srgnn_jax.data.sessions import Dataset
from srgnn_jax.data.times import parse_iso
from srgnn_jax.errors import UserError

# The settings of how a log is read, and those that `prepare` takes.
COLUMN_SETTINGS = frozenset({"session_column", "item_column", "time_column"})
LOG_SETTINGS = COLUMN_SETTINGS | {"log_file", "separator", "on_bad_row"}
RULE_SETTINGS = frozenset(inspect.signature(prepare).parameters) - {"clicks"}


@dataclasses.dataclass(kw_only=True)
class Settings:
    """The fields of configs/default.py that decide what is prepared."""

    log_file: str = ""
    tfds_name: str = ""
    session_column: str = ""
    item_column: str = ""
    time_column: str = ""
    date_column: str = ""
    separator: str = ""
    on_bad_row: str = "error"
    min_session_length: int = 2
    min_item_count: int = 5
    test_days: float = 1.0
    test_start: str = ""
    test_end: str = ""
    train_fraction: float = 1.0
    date_resolution_seconds: int = 0
    recbole_time: str = "exact"

    @property
    def columns(self) -> Columns:
        """The columns that are named."""
        return Columns(
            self.session_column, self.item_column, self.time_column, self.date_column
        )

    @property
    def rules(self) -> dict[str, Any]:
        """The arguments of `prepare.prepare`."""
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
    """Finds a source's raw files: the log that is named, or one for each pattern.

    A file called like the pattern without its "*" goes before all others. Raises
    UserError if there is none, or more than one.
    """
    if hasattr(source, "find_files") and (own := source.find_files(folder, settings)):
        return own
    where = f"config.data_dir = {str(folder)!r}"
    if settings.log_file and "log_file" in source.SETTINGS:
        if not (folder / settings.log_file).is_file():
            raise UserError(f"no file {settings.log_file} in {where}")
        return [folder / settings.log_file]
    files = []
    for pattern in source.FILES:
        paths = [folder / pattern.strip("*"), *sorted(folder.glob(pattern))]
        found = [p for p in paths if p.is_file() and p.name.endswith(SUFFIXES)]
        if not found:
            what = "log" if pattern == "*" else f"file {pattern}"
            raise UserError(f"no {what} in {where}. {source.INSTRUCTIONS}")
        if len(found) > 1 and found[0] != paths[0]:
            names = ", ".join(path.name for path in found)
            raise UserError(
                f"more than one file in {where} ({names}). {source.INSTRUCTIONS}"
            )
        files.append(found[0])
    return files


def read_log(
    path: pathlib.Path,
    settings: Settings,
    split: Callable[[pl.DataFrame], Dataset] | None = None,
    **how: Any,
) -> Dataset:
    """Reads a click log, and prepares it unless `split` turns it into a data set.

    Rows that `read.read_clicks`, which takes `how`, has skipped join the counts.
    """
    rules = settings.rules
    clicks, skipped = read_clicks(path, on_bad_row=settings.on_bad_row, **how)
    try:
        dataset = split(clicks) if split else prepare(clicks, **rules)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    dataset.counts["skipped_rows"] = skipped
    return dataset
