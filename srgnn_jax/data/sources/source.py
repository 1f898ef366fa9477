"""What a source is, and what those that read a log share."""

import dataclasses
import inspect
import pathlib
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import polars as pl

from srgnn_jax.data.columns import Columns
from srgnn_jax.data.prepare import prepare
from srgnn_jax.data.read import read_clicks
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
            rules[name] = parse_iso(pl.Series([text]))[0] if text else None
            if text and rules[name] is None:
                raise UserError(
                    f"config.{name} is {text!r}; write a time in UTC such as "
                    "2014-09-29 or 2014-09-29T12:00:00"
                )
        return rules


@runtime_checkable
class Source(Protocol):
    """A module that finds and reads the files of one source.

    Attributes:
      INSTRUCTIONS: which files to put where; empty if none are needed.
      SETTINGS: the names of the settings that it heeds.
      PRESETS: the usual settings, by name, the first of them the default.
    """

    INSTRUCTIONS: str
    SETTINGS: frozenset[str]
    PRESETS: dict[str, Settings]

    def source_files(
        self, folder: pathlib.Path, settings: Settings
    ) -> list[pathlib.Path]:
        """Returns the raw files in a folder; raises UserError where one is missing."""

    def read(self, files: list[pathlib.Path], settings: Settings) -> Dataset:
        """Reads and prepares the raw files."""


def find_file(
    folder: pathlib.Path, pattern: str, instructions: str, named: str = ""
) -> pathlib.Path:
    """Returns the file that is named, or the one in a folder that matches a pattern.

    Raises:
      UserError: there is none, or more than one.
    """
    where = f"config.data_dir = {str(folder)!r}"
    if named:
        if not (folder / named).is_file():
            raise UserError(f"no file {named} in {where}")
        return folder / named
    found = sorted(path for path in folder.glob(pattern) if path.is_file())
    if len(found) != 1:
        what = "no file" if not found else "more than one file"
        raise UserError(f"{what} {pattern} in {where}. {instructions}")
    return found[0]


def read_log(
    path: pathlib.Path,
    settings: Settings,
    split: Callable[[pl.DataFrame], Dataset] | None = None,
    **how: Any,
) -> Dataset:
    """Reads a click log and prepares it.

    Args:
      path: of the log.
      settings: those of rows and, unless `split` is given, of `prepare.prepare`.
      split: turns the clicks into a data set.
      **how: arguments of `read.read_clicks`, whose skipped rows join the counts.
    """
    rules = settings.rules
    clicks, skipped = read_clicks(path, on_bad_row=settings.on_bad_row, **how)
    try:
        dataset = split(clicks) if split else prepare(clicks, **rules)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    dataset.counts["skipped_rows"] = skipped
    return dataset
