"""Reads click logs, from files or frames, into columns session, item and time."""

import collections
import contextlib
import csv
import dataclasses
import logging
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import polars as pl
from tqdm import tqdm

from srgnn_jax.data import records, text
from srgnn_jax.data.columns import USUAL_FORM, Form, plain_name
from srgnn_jax.data.files import kind_of
from srgnn_jax.data.ids import IdColumn
from srgnn_jax.data.times import (
    DAY,
    TimeColumn,
    forms_of,
    is_date,
    looks_recent,
    parse_form,
)
from srgnn_jax.errors import UserError

# Called with the file or frame, the number of the line or row, and what is wrong there.
OnBadRow = Callable[[pathlib.Path | str, int, str], None]

log = logging.getLogger(__name__)


# A chunk's source, its unit ("row" or "line"), the names of its columns, and its rows.
_Chunk = tuple[pathlib.Path | str, str, Mapping[str, str], pl.DataFrame]


def read_clicks(
    source: pathlib.Path | Sequence[pathlib.Path] | Mapping[str, pl.DataFrame],
    form: Form = USUAL_FORM,
    on_bad: OnBadRow | None = None,
) -> tuple[pl.DataFrame, dict[str, int]]:
    """Reads a log: text, parquet or JSON lines, compressed or not, or named frames.

    Several files form one log, in the order given. Each needs the columns; text files
    after the first may lack the header. Malformed rows are passed to `on_bad` if it is
    given; otherwise they raise a UserError unless `form.on_bad_row` is "skip".

    Returns, in the order of the log, columns session and item (integers if all are
    whole numbers, else text), time (int64 microseconds since 1970, UTC) and, if the
    form names it, date (the same; a numeric time then stays as it is, in float64); and
    counts: skipped_rows, and one for each event.
    """
    if isinstance(source, Mapping):
        chunks = _frames(source, form)
    else:
        paths = [source] if isinstance(source, pathlib.Path) else source
        chunks = _files(paths, form)
    return _Reader(form, on_bad).read(chunks)


def columns_of(
    path: pathlib.Path, form: Form, width: int = 0
) -> Mapping[str, bool] | Sequence[str]:
    """Returns the columns of a file, as `Form.names` takes them.

    `width` is the number of columns in another part of the log.
    """
    kind = kind_of(path, form.encoding)
    if kind == "parquet":
        return records.parquet_names(path)
    if kind == "json":
        return records.json_names(path, form.encoding)
    return text.find_layout(path, form, width).names


def lacks_header(
    path: pathlib.Path, names: Sequence[str], header: Sequence[str], form: Form
) -> bool:
    """Whether a file is a later part of a log, whose first part alone has a header.

    `names` are the fields of its first line. That click may be malformed: then one of
    the next few has a time where the header says.
    """
    if len(names) != len(header) or text.is_click(names, form.missing_values):
        return len(names) == len(header)
    # A click has a digit somewhere; column names rarely do.
    if not re.search(r"\d", "".join(names)):
        return False
    named = text.USUAL | {plain_name(name) for name in header}
    if any(plain_name(field) in named for field in names):
        return False
    time = form.names(header, path).get("time")
    if time is None:
        return False
    place = header.index(time)
    _, lines = text.first_lines(path, form.encoding)
    separator = text.as_meant(form.separator) or text.separator_of(lines[0])
    for line in lines:
        with contextlib.suppress(csv.Error):
            fields = text.fields_of(line, separator, form.quoting)
            if len(fields) == len(header) and _is_moment(fields[place], form):
                return True
    return False


def _is_moment(field: str, form: Form) -> bool:
    fields = pl.Series([field.strip()])
    named = form.time_format and parse_form(fields, form.time_format).count()
    return bool(named) or is_date(field) or looks_recent(field)


def _frames(frames: Mapping[str, pl.DataFrame], form: Form) -> Iterator[_Chunk]:
    for where, frame in frames.items():
        names = form.names(records.names_of(frame.schema), where)
        for chunk in records.frame_chunks(frame.lazy(), names, where):
            yield where, "row", names, chunk


def _files(paths: Sequence[pathlib.Path], form: Form) -> Iterator[_Chunk]:
    first: text.Layout | None = None
    fields: dict[str, str] = {}
    for path in paths:
        if not path.is_file():
            raise UserError(f"{path} does not exist")
        kind = kind_of(path, form.encoding)
        what = "row" if kind == "parquet" else "line"
        if kind == "parquet":
            names = form.names(records.parquet_names(path), path)
            chunks = records.parquet_chunks(path, names)
        elif kind == "json":
            # A later part may lack a field in all of its records.
            fields = fields or form.names(records.json_names(path, form.encoding), path)
            names = fields
            chunks = records.json_chunks(path, names, form.encoding)
        else:
            width = len(first.names) if first else 0
            layout = text.find_layout(path, form, width)
            if (
                first
                and first.has_header
                and lacks_header(path, layout.names, first.names, form)
            ):
                layout = dataclasses.replace(first, header_line=0, has_header=False)
            text.check_header(path, layout)
            first = first or layout
            names = form.names(layout.names, path)
            position = {role: layout.names.index(n) for role, n in names.items()}
            chunks = text.text_chunks(path, layout, position)
        for chunk in tqdm(
            chunks, f"read {path.name}", unit=" chunks", disable=None, leave=False
        ):
            yield path, what, names, chunk


class _Reader:
    """Parses chunks and joins their good rows."""

    def __init__(self, form: Form, on_bad: OnBadRow | None):
        self.form, self.on_bad = form, on_bad
        self.ids = {n: IdColumn(n, form.missing_values) for n in ("session", "item")}
        has_date = bool(form.columns.date)
        self.time = TimeColumn(has_date, form.time_unit, form.time_format)
        self.date = TimeColumn(form=form.time_format)
        self.kept: dict[str, list[pl.Series]] = {"time": [], "date": []}
        self.events: collections.Counter[str] = collections.Counter()
        self.skipped = 0
        # The current file, rows before it, its last row, and the rows of all chunks.
        self.where, self.before, self.last, self.seen = None, 0, 0, 0

    def read(self, chunks: Iterator[_Chunk]) -> tuple[pl.DataFrame, dict[str, int]]:
        where: pathlib.Path | str = "the log"
        for where, what, names, chunk in chunks:
            self._take(where, what, names, chunk)
        clicks = sum(map(len, self.kept["time"]))
        if not clicks:
            why = ""
            if self.skipped:
                why = f": all {self.skipped} rows are malformed"
            elif self.events:
                there = ", ".join(
                    f"{event} ({n:,})" for event, n in self.events.items()
                )
                why = f": none of its events is chosen; there are {there}"
            raise UserError(f"{where} holds no clicks{why}")
        columns = [column.join() for column in self.ids.values()]
        for name, kept in self.kept.items():
            if kept:
                columns.append(pl.concat(kept).rename(name))
        counts = {"skipped_rows": self.skipped}
        counts |= {f"event_{event}": n for event, n in self.events.items()}
        frame = pl.DataFrame(columns)
        if frame["time"].dtype == pl.Int64 and self.form.needs_time:
            self.time.warn(frame["time"])
        return frame, counts

    def _take(self, where, what, names, chunk: pl.DataFrame) -> None:
        chunk = records.one_click_a_row(chunk, names)
        if where != self.where:
            self.where, self.before, self.last = where, self.before + self.last, 0
        if "session" not in names:
            # Each row is a session.
            number = chunk["number"].cast(pl.Int64) + self.before
            chunk = chunk.with_columns(number.alias("session"))
        parsed = {n: read(chunk[n]) for n, read in self.ids.items()}
        place = f"{where}, {what}"
        parsed |= self._times(chunk, place)
        is_good = chunk["fault"].is_null()
        for column in parsed.values():
            is_good &= column.is_not_null()
        is_click = self._count_events(chunk, is_good)
        bad = chunk.filter(~is_good)
        if len(bad):
            self._report(bad, parsed, is_good, where, what, names)
        self.skipped += len(bad)
        for name, column in parsed.items():
            column = column.filter(is_good & is_click)
            if name in self.ids:
                self.ids[name].keep(column)
            elif name in self.kept and len(column):
                self.kept[name].append(column)
        self.last = int(chunk["number"].tail(1).sum()) or self.last
        self.seen += len(chunk)

    def _times(self, chunk: pl.DataFrame, place: str) -> dict[str, pl.Series]:
        """Returns the parsed columns time and, where there is one, date."""
        if "time" not in chunk.columns:
            order = np.arange(self.seen, self.seen + len(chunk), dtype=np.int64)
            return {"time": pl.Series(order)}
        time = self.time(chunk["time"], chunk["number"], place)
        if "place" in chunk.columns:
            time = time + chunk["place"]
        parsed = {"time": time}
        day = next((n for n in ("date", "day") if n in chunk.columns), "")
        if day and (day == "date" or self.time.is_clock):
            parsed["date"] = self.date(chunk[day], chunk["number"], place)
        if not self.time.is_clock or not chunk["time"].count():
            return parsed
        if "date" not in parsed:
            value = chunk["time"].drop_nulls()[0]
            raise UserError(
                f"{place} {chunk['number'][0]}: {str(value)!r} is a time of day; name "
                "the column of its day with --config.date_column"
            )
        midnight = parsed["date"] - parsed["date"] % DAY
        return {"time": midnight + time, "clock": time}

    def _count_events(self, chunk: pl.DataFrame, is_good: pl.Series) -> pl.Series:
        """Counts the events of good rows, and returns which rows are clicks."""
        if "event" not in chunk.columns:
            return pl.Series([True]).new_from_index(0, len(chunk))
        events = chunk["event"].cast(pl.String).str.strip_chars().fill_null("")
        counted = events.filter(is_good).value_counts(sort=True, name="n")
        self.events.update(dict(counted.rows()))
        chosen = [str(event) for event in self.form.events]
        return events.is_in(chosen) if chosen else events.is_not_null()

    def _report(self, bad, parsed, is_good, where, what, names) -> None:
        """Raises an error for the first malformed row, or passes all to `on_bad`."""
        if not self.on_bad and self.form.on_bad_row == "skip":
            return
        read = pl.DataFrame([c.filter(~is_good).alias(n) for n, c in parsed.items()])
        for row, values in zip(
            bad.iter_rows(named=True), read.iter_rows(named=True), strict=True
        ):
            fault = row["fault"] or self._explain(row, values, names)
            if self.on_bad:
                self.on_bad(where, row["number"], fault)
                continue
            raise UserError(
                f"{where}, {what} {row['number']}: {fault}; fix it, or drop such rows "
                "with --config.on_bad_row=skip"
            )

    def _explain(self, row: dict, values: dict, names: Mapping[str, str]) -> str:
        for column, name in names.items():
            if column == "time" and values.get("clock") is not None:
                # The time of day was read, but not its day.
                column = "date" if "date" in names else "day"
                name, values = names[column], {**values, column: None}
            value = "" if row[column] is None else str(row[column])
            if column == "event" or values.get(column, value) is not None:
                continue
            if column in self.ids or not value.strip():
                if not value.strip():
                    return f"the {column} is empty (column {name!r})"
                return f"the {column} '{value}' counts as missing (column {name!r})"
            forms, text = forms_of(value), pl.Series([value.strip()])
            right = [form for form in forms if parse_form(text, form).count()]
            years = " from 1970 to 2260" if forms and not right else ""
            said = f"{value[:80]!r} is not a time{years} (column {name!r})"
            reader = self.time if column == "time" else self.date
            if reader.has_numbers and is_date(value):
                return f"{said}, and others are numbers; write all in one form"
            advice = [f"--config.time_format={form!r}" for form in right]
            return f"{said}; set {' or '.join(advice)}" if right else said
        return "it cannot be read"
