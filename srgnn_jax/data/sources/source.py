"""What a source is, and what those that read a log share."""

import dataclasses
import inspect
import pathlib
from collections.abc import Callable
from typing import Any

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


def find_file(
    folder: pathlib.Path,
    pattern: str,
    instructions: str,
    named: str = "",
    suffixes: tuple[str, ...] = ("",),
) -> pathlib.Path:
    """Returns the file that is named, or the only one of a pattern and these suffixes.

    Raises:
      UserError: there is none, or more than one.
    """
    where = f"config.data_dir = {str(folder)!r}"
    if named:
        if not (folder / named).is_file():
            raise UserError(f"no file {named} in {where}")
        return folder / named
    paths = [path for path in sorted(folder.glob(pattern)) if path.is_file()]
    found = [path for path in paths if path.name.endswith(suffixes)]
    if not found:
        what = "log" if pattern == "*" else f"file {pattern}"
        raise UserError(f"no {what} in {where}. {instructions}")
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise UserError(f"more than one file in {where} ({names}). {instructions}")
    return found[0]


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
