"""Click logs, as files, read into columns session, item and time.

Text files are read line by line, so that a malformed row is known by its line number; the
lines are split and parsed column by column in polars, a chunk at a time.
"""

import csv
import dataclasses
import gzip
import itertools
import pathlib
from collections.abc import Iterator, Sequence

import polars as pl

from srgnn_jax.errors import UserError

TEXT_SUFFIXES = (".csv", ".tsv", ".txt", ".dat", ".inter")
SUFFIXES = (*TEXT_SUFFIXES, *(f"{s}.gz" for s in TEXT_SUFFIXES), ".parquet")
SEPARATORS = "\t,;|"
CHUNK_ROWS = 1_000_000

# Usual spellings of the columns, compared without case, spaces, '_' and '-'.
USUAL_NAMES = {
    "session": ("sessionid", "session", "sid", "usersession", "visitid"),
    "item": ("itemid", "item", "productid", "product", "iid", "articleid"),
    "time": ("time", "timestamp", "eventtime", "datetime", "ts", "date", "eventdate"),
}

# Text times are microseconds since 1970 in UTC; years 1970 to 2261 are believed.
LATEST_MICROSECONDS = 9_183_110_400_000_000
_EPOCH = r"^[+-]?\d+(\.\d*)?([eE][+-]?\d+)?$"
_ISO = (
    r"^(\d{4}-\d{2}-\d{2})"
    r"(?:[T ](\d{2}):(\d{2})(?::(\d{2})(?:[.,](\d{1,9}))?)?)?"
    r"\s*(?:(Z|UTC)|([+-])(\d{2}):?(\d{2}))?$"
)


@dataclasses.dataclass(frozen=True)
class Columns:
    """Which columns of a log hold what; an empty name is looked for by usual spellings.

    Attributes:
      session: an id of the visit.
      item: an id of what was clicked.
      time: of the click.
      date: of the session, where it is not the time of its last click; then `time` is
        any number that orders a session's clicks. Empty: there is none.
    """

    session: str = ""
    item: str = ""
    time: str = ""
    date: str = ""


def read_click_log(
    path: pathlib.Path,
    columns: Columns = Columns(),  # noqa: B008 (immutable)
    *,
    header: Sequence[str] = (),
    separator: str = "",
    on_bad_row: str = "error",
) -> tuple[pl.DataFrame, int]:
    """Reads a csv, tsv or parquet log, in file order.

    Args:
      path: the file; its text may be gzipped.
      columns: what to read.
      header: names of the columns, for a text file without a header line.
      separator: between fields of a text file; told from the header line if empty.
      on_bad_row: "error" or "skip".

    Returns:
      Columns session and item (text), time (int64 microseconds since 1970, UTC) and, where
      `columns` names it, date (the same); and the number of rows that were skipped.

    Raises:
      UserError: the file or a column is missing, there is no row, or a row is malformed
        and `on_bad_row` is "error".
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist")
    if path.suffix == ".parquet":
        chunks = _parquet_chunks(path, columns)
    else:
        chunks = _text_chunks(path, columns, tuple(header), separator)
    times = {"time": _TimeParser("order" if columns.date else "")}
    if columns.date:
        times["date"] = _TimeParser("")
    frames, skipped = [], 0
    for chunk in chunks:
        parsed = chunk.with_columns(
            parser(chunk[name]).alias(f"{name} parsed")
            for name, parser in times.items()
        ).with_columns(_reason(times).alias("reason"))
        bad = parsed.filter(pl.col("reason").is_not_null())
        if len(bad) and on_bad_row == "error":
            row = bad.row(0, named=True)
            where = "row" if path.suffix == ".parquet" else "line"
            raise UserError(
                f"{path}, {where} {row['number']}: {_explain(row, columns)}; mend it, or "
                "drop such rows with --config.on_bad_row=skip"
            )
        skipped += len(bad)
        good = parsed.filter(pl.col("reason").is_null())
        frames.append(
            good.select(
                "session", "item", *(pl.col(f"{n} parsed").alias(n) for n in times)
            )
        )
    if not frames or not sum(map(len, frames)):
        raise UserError(
            f"{path} holds no clicks"
            + (f": all {skipped} rows are malformed" if skipped else "")
        )
    return pl.concat(frames), skipped


def _reason(times: dict) -> pl.Expr:
    """Says what is wrong with a row: the name of its first bad column, or null."""

    def empty(name):
        return pl.col(name).is_null() | (pl.col(name).str.strip_chars() == "")

    reason = pl.when(pl.col("fields").is_not_null()).then(pl.lit("fields"))
    for name in ("session", "item"):
        reason = reason.when(empty(name)).then(pl.lit(name))
    for name in times:
        reason = reason.when(pl.col(f"{name} parsed").is_null()).then(pl.lit(name))
    return reason.otherwise(None)


def _explain(row: dict, columns: Columns) -> str:
    if row["reason"] == "fields":
        return row["fields"]
    value = row[row["reason"]]
    if value is None or not value.strip():
        return f"the {row['reason']} is empty"
    kind = "a number" if row["reason"] == "time" and columns.date else "a time"
    return f"{value[:80]!r} is not {kind} (column {row['reason']})"


def _text_chunks(
    path: pathlib.Path, columns: Columns, header: tuple[str, ...], separator: str
) -> Iterator[pl.DataFrame]:
    """Yields columns number, session, item, time[, date] and fields, all text.

    `number` is that of the line; `fields` says what is wrong with the number of fields.
    """
    first = _first_line(path)
    has_header = not header
    if not first.strip() and has_header:
        raise UserError(f"{path} is empty")
    separator = separator or _find_separator(path, first, header)
    names = header or tuple(next(csv.reader([first], delimiter=separator)))
    position = _find_columns(path, names, columns)
    for chunk in _line_chunks(path):
        if has_header:
            chunk = chunk.filter(pl.col("number") > 1)
        chunk = chunk.with_columns(
            pl.col("text").str.strip_prefix("\ufeff").str.strip_chars_end("\r")
        )
        chunk = chunk.filter(pl.col("text").str.strip_chars() != "")
        text = chunk["text"]
        if text.str.contains('"', literal=True).any():
            yield _split_quoted(chunk, separator, len(names), position)
            continue
        count = text.str.count_matches(separator, literal=True) + 1
        parts = text.str.split_exact(separator, len(names) - 1).struct.unnest()
        yield pl.DataFrame(
            {
                "number": chunk["number"],
                **{name: parts[f"field_{i}"] for name, i in position.items()},
            }
        ).with_columns(_wrong_line(text, count, len(names)).alias("fields"))


def _line_chunks(path: pathlib.Path) -> Iterator[pl.DataFrame]:
    """Yields columns number and text; what is not UTF-8 is read as U+FFFD."""
    lines = pl.scan_lines(
        path, name="text", row_index_name="number", row_index_offset=1
    )
    done = 0
    try:
        for chunk in lines.collect_batches(chunk_size=CHUNK_ROWS, maintain_order=True):
            yield chunk
            done += len(chunk)
    except pl.exceptions.ComputeError:
        # polars gives up on text that is not UTF-8, without naming the line.
        yield from _tolerant_line_chunks(path, done)


def _tolerant_line_chunks(path: pathlib.Path, skip: int) -> Iterator[pl.DataFrame]:
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rb") as file:
            numbered = itertools.islice(enumerate(file, 1), skip, None)
            while rows := list(itertools.islice(numbered, CHUNK_ROWS)):
                text = [
                    line.rstrip(b"\n").decode("utf-8", "replace") for _, line in rows
                ]
                yield pl.DataFrame({"number": [n for n, _ in rows], "text": text})
    except (OSError, EOFError) as error:
        raise UserError(f"cannot read {path}: {error}") from error


def _wrong_line(text: pl.Series, count: pl.Series, expected: int) -> pl.Series:
    wrong = (
        pl.when(text.str.contains("\ufffd", literal=True))
        .then(pl.lit("text that is not UTF-8"))
        .when(count != expected)
        .then(pl.format("{} fields instead of {}", count, pl.lit(expected)))
    )
    return pl.select(wrong.cast(pl.String)).to_series()


def _split_quoted(
    chunk: pl.DataFrame, separator: str, expected: int, position: dict[str, int]
) -> pl.DataFrame:
    """Splits lines of which some have quoted fields."""
    rows = []
    csv.field_size_limit(2**31 - 1)
    for number, line in chunk.iter_rows():
        try:
            fields = next(csv.reader([line], delimiter=separator, strict=True))
        except csv.Error as error:
            fields, wrong = [], f"unreadable quotes ({error})"
        else:
            wrong = None
        if wrong is None and len(fields) != expected:
            wrong = f"{len(fields)} fields instead of {expected}"
        fields += [""] * (expected - len(fields))
        rows.append((number, *(fields[i] for i in position.values()), wrong))
    schema = dict.fromkeys(["number", *position, "fields"], pl.String)
    return pl.DataFrame(rows, schema=schema | {"number": pl.Int64}, orient="row")


def _first_line(path: pathlib.Path) -> str:
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rb") as file:
            line = file.readline(1 << 20)
    except (OSError, EOFError) as error:
        raise UserError(f"cannot read {path}: {error}") from error
    return line.decode("utf-8-sig", "replace").rstrip("\r\n")


def _find_separator(path: pathlib.Path, first: str, header: tuple[str, ...]) -> str:
    found = max(SEPARATORS, key=first.count)
    if found not in first:
        if header:
            return ","
        raise UserError(
            f"{path}, line 1: no tab, comma, semicolon or '|' in the header "
            f"{first[:80]!r}; name the separator with --config.separator"
        )
    return found


def _plain(name: str) -> str:
    # RecBole's headers carry a type, `item_id:token`.
    return name.split(":")[0].strip().lower().translate({ord(c): None for c in " _-"})


def _find_columns(
    path: pathlib.Path, names: Sequence[str], columns: Columns
) -> dict[str, int]:
    """Returns the position of each column that is to be read."""
    found = {}
    for column, usual in USUAL_NAMES.items():
        named = getattr(columns, column)
        if named:
            matches = [i for i, name in enumerate(names) if name.strip() == named]
        else:
            by_rank = [
                [i for i, name in enumerate(names) if _plain(name) == spelling]
                for spelling in usual
            ]
            matches = next((matches for matches in by_rank if matches), [])
        if len(matches) != 1:
            what = f"{column} column {named!r}" if named else f"{column} column"
            raise UserError(
                f"{path}: {'no' if not matches else 'more than one'} {what} among "
                f"{', '.join(map(repr, names))}; name it with --config.{column}_column"
            )
        found[column] = matches[0]
    if columns.date:
        if list(names).count(columns.date) != 1:
            raise UserError(
                f"{path}: no date column {columns.date!r} among "
                f"{', '.join(map(repr, names))}; name it with --config.date_column"
            )
        found["date"] = list(names).index(columns.date)
    return found


def _parquet_chunks(path: pathlib.Path, columns: Columns) -> Iterator[pl.DataFrame]:
    try:
        frame = pl.scan_parquet(path)
        names = frame.collect_schema().names()
    except (pl.exceptions.PolarsError, OSError) as error:
        raise UserError(f"cannot read {path} as parquet: {error}") from error
    position = _find_columns(path, names, columns)
    frame = frame.select(
        [pl.col(names[i]).alias(column) for column, i in position.items()]
    ).with_row_index("number", 1)
    for chunk in frame.collect_batches(chunk_size=CHUNK_ROWS, maintain_order=True):
        yield chunk.with_columns(
            pl.col("session", "item").cast(pl.String),
            pl.lit(None, pl.String).alias("fields"),
        )


class _TimeParser:
    """Parses a column of times chunk by chunk, in the unit that its first chunk tells."""

    def __init__(self, kind: str):
        self._kind = kind

    def __call__(self, column: pl.Series) -> pl.Series:
        """Returns int64 microseconds since 1970, null where a value is not a time."""
        if column.dtype == pl.Date:
            return column.cast(pl.Datetime("us")).cast(pl.Int64)
        if isinstance(column.dtype, pl.Datetime):
            if column.dtype.time_zone:
                column = column.dt.convert_time_zone("UTC")
            return column.dt.cast_time_unit("us").cast(pl.Int64)
        if not column.dtype.is_numeric():
            column = column.cast(pl.String).str.strip_chars()
            if not self._kind and not _first_is_number(column):
                self._kind = "iso"
            if self._kind == "iso":
                return _parse_iso(column)
        number = column.cast(pl.Float64, strict=False)
        if self._kind == "order":
            exact = column.cast(pl.Int64, strict=False)
            rounded = number.is_finite() & (number.abs() < 2**53)
            return exact.zip_with(exact.is_not_null(), _where(rounded, number))
        if not self._kind:
            median = number.filter(number.is_finite()).head(1000).median()
            # Seconds reach 1e11 in the year 5138; milliseconds reached it in 1973.
            self._kind = "ms" if median is not None and median >= 1e11 else "s"
        micro = number * (1e3 if self._kind == "ms" else 1e6)
        return _where((micro >= 0) & (micro < LATEST_MICROSECONDS), micro.round())


def _where(valid: pl.Series, number: pl.Series) -> pl.Series:
    """Casts to int64 where valid, null elsewhere."""
    return pl.select(
        pl.when(valid).then(number).cast(pl.Int64, strict=False)
    ).to_series()


def _first_is_number(column: pl.Series) -> bool:
    given = column.filter(column.is_not_null() & (column != ""))
    return len(given) > 0 and bool(given.head(1).str.contains(_EPOCH)[0])


def _parse_iso(column: pl.Series) -> pl.Series:
    """Parses ISO times, with or without fraction and offset, and plain dates."""
    for form in ("%Y-%m-%dT%H:%M:%S%.fZ", "%Y-%m-%d"):
        dtype = pl.Datetime("us") if "T" in form else pl.Date
        parsed = column.str.strptime(dtype, form, strict=False, exact=True)
        if parsed.null_count() == 0:
            return _in_range(parsed.cast(pl.Datetime("us")).cast(pl.Int64))
    part = column.str.extract_groups(_ISO).struct.unnest()
    day, hour, minute, second, fraction, _, sign, off_hour, off_minute = part
    day = day.str.strptime(pl.Date, "%Y-%m-%d", strict=False)

    def integer(series: pl.Series) -> pl.Series:
        return series.cast(pl.Int64, strict=False).fill_null(0)

    hour, minute, second = integer(hour), integer(minute), integer(second)
    offset = integer(off_hour) * 60 + integer(off_minute)
    offset = offset.zip_with((sign == "+").fill_null(False), -offset)
    micro = (
        day.cast(pl.Datetime("us")).cast(pl.Int64)
        + (hour * 3600 + minute * 60 + second + offset * -60) * 1_000_000
        + integer(fraction.fill_null("").str.pad_end(6, "0").str.slice(0, 6))
    )
    real = (hour < 24) & (minute < 60) & (second < 61)
    return _in_range(micro.zip_with(real, pl.Series([None], dtype=pl.Int64)))


def _in_range(micro: pl.Series) -> pl.Series:
    return _where((micro >= 0) & (micro < LATEST_MICROSECONDS), micro)
