"""Click logs, as files, read into columns session, item and time.

Text files are read line by line, so that a malformed row is known by its line number;
the lines are split and parsed column by column in polars, a chunk at a time.
"""

import codecs
import contextlib
import csv
import dataclasses
import gzip
import io
import itertools
import pathlib
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import polars as pl
from tqdm import tqdm

from srgnn_jax.errors import UserError

TEXT_SUFFIXES = (".csv", ".tsv", ".txt", ".dat", ".inter")
SUFFIXES = (*TEXT_SUFFIXES, *(f"{s}.gz" for s in TEXT_SUFFIXES), ".parquet")
SEPARATORS = "\t,;|"
CHUNK_ROWS = 1_000_000

# Usual spellings of the columns, compared without case, spaces, '_' and '-'.
USUAL_NAMES: dict[str, tuple[str, ...]] = {
    "session": ("sessionid", "session", "sid", "usersession", "visitid"),
    "item": ("itemid", "item", "productid", "product", "iid", "articleid"),
    "time": ("time", "timestamp", "eventtime", "datetime", "ts", "date", "eventdate"),
    "date": (),
}

# Text times are microseconds since 1970 in UTC; years 1970 to 2261 are believed.
LATEST_MICROSECONDS = 9_183_110_400_000_000
_EPOCH = r"^[+-]?\d+(\.\d*)?([eE][+-]?\d+)?$"
_ISO = re.compile(
    r"(?P<year>\d{4})-(?P<month>\d{2})-(?P<day>\d{2})"
    r"(?:[T ](?P<hour>\d{2}):(?P<minute>\d{2})"
    r"(?::(?P<second>\d{2})(?:[.,](?P<fraction>\d{1,9}))?)?)?"
    r"\s*(?:Z|UTC|(?P<sign>[+-])(?P<offset_hour>\d{2}):?(?P<offset_minute>\d{2})?)?",
    re.ASCII,
)
NOT_UTF8 = "text that is not UTF-8"
_NUL = "a NUL byte, as in files that were not written to the end"
# What reading a file raises where it, or its compression, is damaged.
_UNREADABLE = (OSError, EOFError, zlib.error)


@dataclasses.dataclass(frozen=True)
class Columns:
    """Which columns of a log hold what; an empty name is looked for by usual spellings.

    Attributes:
      session: an id of the visit.
      item: an id of what was clicked.
      time: of the click.
      date: of the session, where it is not the time of its last click; then `time` may
        be any number that orders a session's clicks. Empty: there is none.
    """

    session: str = ""
    item: str = ""
    time: str = ""
    date: str = ""


def read_click_log(
    path: pathlib.Path,
    columns: Columns = Columns(),
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
      Columns session and item (text), time (int64 microseconds since 1970, UTC) and,
      where `columns` names it, date (the same, and then a time that is a number is left
      as it is, in float64); and the number of rows that were skipped.

    Raises:
      UserError: the file or a column is missing, there is no row, or a row is malformed
        and `on_bad_row` is "error".
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist")
    if path.suffix == ".parquet":
        names, chunks = _parquet_chunks(path, columns)
    else:
        names, chunks = _text_chunks(path, columns, tuple(header), separator)
    times = {"time": _TimeParser(any_number=bool(columns.date))}
    if columns.date:
        times["date"] = _TimeParser()
    frames, skipped = [], 0
    progress = tqdm(
        chunks, f"read {path.name}", unit=" chunks", disable=None, leave=False
    )
    for chunk in progress:
        parsed = chunk.with_columns(
            parser(chunk[name]).alias(f"{name} parsed")
            for name, parser in times.items()
        ).with_columns(_reason(times).alias("reason"))
        bad = parsed.filter(pl.col("reason").is_not_null())
        if len(bad) and on_bad_row == "error":
            row = bad.row(0, named=True)
            where = "row" if path.suffix == ".parquet" else "line"
            raise UserError(
                f"{path}, {where} {row['number']}: {_explain(row, names)}; mend it, or "
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


def _reason(times: Iterable[str]) -> pl.Expr:
    """Says what is wrong with a row: the name of its first bad column, or null."""

    def empty(name):
        return pl.col(name).is_null() | (pl.col(name).str.strip_chars() == "")

    bad = {"fields": pl.col("fields").is_not_null()}
    bad |= {name: empty(name) for name in ("session", "item")}
    bad |= {name: pl.col(f"{name} parsed").is_null() for name in times}
    return pl.coalesce(
        pl.when(is_bad).then(pl.lit(name)) for name, is_bad in bad.items()
    )


def _explain(row: dict, names: dict[str, str]) -> str:
    if row["reason"] == "fields":
        return row["fields"]
    value, name = row[row["reason"]], names[row["reason"]]
    if value is None or (isinstance(value, str) and not value.strip()):
        return f"the {row['reason']} is empty (column {name!r})"
    shown = repr(value[:80]) if isinstance(value, str) else value
    return f"{shown} is not a time (column {name!r})"


def _text_chunks(
    path: pathlib.Path, columns: Columns, header: tuple[str, ...], separator: str
) -> tuple[dict[str, str], Iterator[pl.DataFrame]]:
    """Returns the columns' own names, and chunks of the file.

    A chunk holds number, session, item, time[, date] and fields, all text but the
    first: `number` is that of the line, `fields` says what is wrong with all of it.
    """
    first = first_line(path)
    has_header = not header
    if not first.strip() and has_header:
        raise UserError(
            f"{path} is empty, or its first line is, where the header belongs"
        )
    # The shell hands on '\t' as it is typed, in two characters.
    separator = separator.replace("\\t", "\t")
    separator = separator or _find_separator(path, first, header)
    names = header or _split_header(path, first, separator)
    position = _find_columns(path, names, columns)
    chunks = _split_chunks(path, has_header, separator, len(names), position)
    return {column: names[i] for column, i in position.items()}, chunks


def _split_chunks(
    path: pathlib.Path,
    has_header: bool,
    separator: str,
    expected: int,
    position: dict[str, int],
) -> Iterator[pl.DataFrame]:
    for chunk in _line_chunks(path):
        if has_header:
            chunk = chunk.filter(pl.col("number") > 1)
        elif chunk["number"][0] == 1:
            # A byte order mark may stand before the first field.
            line = pl.col("text")
            bare = pl.when(number=1).then(line.str.strip_prefix("\ufeff"))
            chunk = chunk.with_columns(bare.otherwise(line))
        fields = _split_plain(chunk["text"], separator, expected, position)
        if fields is not None:
            yield (
                chunk.select("number")
                .hstack(fields)
                .with_columns(pl.lit(None, pl.String).alias("fields"))
            )
            continue
        # Without a separator: a line of tabs is a row of empty fields.
        line = pl.col("text")
        is_blank = line.str.strip_chars() == ""
        chunk = chunk.filter(~is_blank | line.str.contains(separator, literal=True))
        text = chunk["text"]
        if text.str.contains('"', literal=True).any():
            yield _split_quoted(chunk, separator, expected, position)
            continue
        count = text.str.count_matches(separator, literal=True) + 1
        parts = text.str.split_exact(separator, expected - 1).struct.unnest()
        yield pl.DataFrame(
            {
                "number": chunk["number"],
                **{name: parts[f"field_{i}"] for name, i in position.items()},
            }
        ).with_columns(_wrong_line(text, count, expected).alias("fields"))


def _split_plain(
    text: pl.Series, separator: str, expected: int, position: dict[str, int]
) -> pl.DataFrame | None:
    """Splits lines by the csv reader, which is many times as fast.

    Returns:
      The columns of `position`; None where some line is quoted or malformed, which the
      csv reader would not tell with its number.
    """
    separators = text.str.count_matches(separator, literal=True)
    if text.is_empty() or (separators != expected - 1).any():
        return None
    data = text.str.join("\n").item().encode()
    told_by_line = b'"', b"\0", "\ufffd".encode()
    if any(mark in data for mark in told_by_line) or not separator.isascii():
        return None
    if data.startswith(codecs.BOM_UTF8):  # The reader would drop it.
        return None
    fields = pl.read_csv(
        data,
        has_header=False,
        separator=separator,
        quote_char=None,
        schema={str(i): pl.String for i in range(expected)},
        columns=sorted(set(position.values())),
    )
    return fields.select(pl.col(str(i)).alias(name) for name, i in position.items())


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
    except OSError as error:
        raise UserError(f"cannot read {path}: {error}") from error
    except pl.exceptions.ComputeError:
        # polars gives up on text that is not UTF-8, without naming the line.
        yield from _tolerant_line_chunks(path, done)


def _tolerant_line_chunks(path: pathlib.Path, skip: int) -> Iterator[pl.DataFrame]:
    try:
        with _open(path) as file:
            numbered = itertools.islice(enumerate(file, 1), skip, None)
            while rows := list(itertools.islice(numbered, CHUNK_ROWS)):
                text = [
                    line.rstrip(b"\r\n").decode("utf-8", "replace") for _, line in rows
                ]
                yield pl.DataFrame({"number": [n for n, _ in rows], "text": text})
    except _UNREADABLE as error:
        raise UserError(f"cannot read {path}: {error}") from error


def _wrong_line(text: pl.Series, count: pl.Series, expected: int) -> pl.Series:
    wrong = (
        pl.when(text.str.contains("\ufffd", literal=True))
        .then(pl.lit(NOT_UTF8))
        .when(text.str.contains("\0", literal=True))
        .then(pl.lit(_NUL))
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
        wrong = NOT_UTF8 if "\ufffd" in line else _NUL if "\0" in line else None
        try:
            fields = next(csv.reader([line], delimiter=separator, strict=True))
        except csv.Error as error:
            fields, wrong = [], wrong or f"unreadable quotes ({error})"
        if wrong is None and len(fields) != expected:
            wrong = f"{len(fields)} fields instead of {expected}"
        fields += [""] * (expected - len(fields))
        rows.append((number, *(fields[i] for i in position.values()), wrong))
    schema = dict.fromkeys(["number", *position, "fields"], pl.String)
    return pl.DataFrame(rows, schema=schema | {"number": pl.Int64}, orient="row")


def first_line(path: pathlib.Path) -> str:
    """Returns the first line of a text file, gzipped or not, or the start of it."""
    try:
        with _open(path) as file:
            line = file.readline(1 << 20)
    except _UNREADABLE as error:
        raise UserError(f"cannot read {path}: {error}") from error
    return line.decode("utf-8-sig", "replace").rstrip("\r\n")


def _open(path: pathlib.Path) -> io.BufferedReader | gzip.GzipFile:
    """Opens a file by what it holds, as polars does, not by what it is called."""
    with path.open("rb") as file:
        is_gzip = file.read(2) == b"\x1f\x8b"
    return gzip.open(path) if is_gzip else path.open("rb")


def _split_header(path: pathlib.Path, first: str, separator: str) -> tuple[str, ...]:
    if "\r" in first:
        raise UserError(
            f"{path}, line 1: its lines end in carriage returns alone; end them in "
            "line feeds, as with: tr '\\r' '\\n'"
        )
    try:
        return tuple(next(csv.reader([first], delimiter=separator)))
    except csv.Error as error:
        raise UserError(f"{path}, line 1: unreadable header ({error})") from error


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


def plain_name(name: str) -> str:
    """Returns a column's name as USUAL_NAMES spells names: no case, no separators.

    RecBole's headers carry a type, `item_id:token`, which is left out.
    """
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
        elif usual:
            by_rank = [
                [i for i, name in enumerate(names) if plain_name(name) == spelling]
                for spelling in usual
            ]
            matches = next((matches for matches in by_rank if matches), [])
        else:
            continue
        if len(matches) != 1:
            what = f"{column} column {named!r}" if named else f"{column} column"
            shown = ", ".join(repr(name[:80]) for name in names[:40])
            shown += f" and {len(names) - 40} more" if len(names) > 40 else ""
            raise UserError(
                f"{path}: {'more than one' if matches else 'no'} {what} among "
                f"{shown}; name it with --config.{column}_column"
            )
        found[column] = matches[0]
    return found


def _parquet_chunks(
    path: pathlib.Path, columns: Columns
) -> tuple[dict[str, str], Iterator[pl.DataFrame]]:
    """Returns what `_text_chunks` does; times keep the type that they have."""
    frame = pl.scan_parquet(path)
    with _parquet_errors(path):
        schema = frame.collect_schema()
    names = schema.names()
    position = _find_columns(path, names, columns)
    own = {column: names[i] for column, i in position.items()}
    for column, name in own.items():
        dtype = schema[name]
        simple = dtype.is_numeric() or dtype in (pl.String, pl.Categorical, pl.Enum)
        is_id = column in ("session", "item")
        if not simple and (is_id or dtype not in (pl.Date, pl.Datetime)):
            raise UserError(
                f"{path}: column {name!r} holds {dtype}; "
                + ("ids are text or numbers" if is_id else "times are dates or numbers")
            )
    frame = frame.select(
        pl.col(name).alias(column) for column, name in own.items()
    ).with_row_index("number", 1)
    frame = frame.with_columns(
        pl.col("session", "item").cast(pl.String),
        pl.lit(None, pl.String).alias("fields"),
    )
    return own, _collect_parquet(path, frame)


def _collect_parquet(path: pathlib.Path, frame: pl.LazyFrame) -> Iterator[pl.DataFrame]:
    with _parquet_errors(path):
        expected = frame.select(pl.len()).collect().item()
        for batch in frame.collect_batches(chunk_size=CHUNK_ROWS, maintain_order=True):
            expected -= len(batch)
            yield batch
    # Where a thread of polars fails, the batches just end.
    if expected:
        raise UserError(f"cannot read {path} as parquet: {expected} rows are damaged")


@contextlib.contextmanager
def _parquet_errors(path: pathlib.Path) -> Iterator[None]:
    """Turns what polars raises for a damaged file into one line."""
    try:
        yield
    except (
        pl.exceptions.PolarsError,
        pl.exceptions.PanicException,
        OSError,
    ) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"cannot read {path} as parquet: {reason}") from error


class _TimeParser:
    """Parses a column of times chunk by chunk, in the form that its first values tell.

    With `any_number`, numbers are no times and stay as they are.
    """

    def __init__(self, any_number: bool = False):
        self._any_number = any_number
        self._form = ""  # "iso", "s" or "ms", once told

    def __call__(self, column: pl.Series) -> pl.Series:
        """Returns int64 microseconds since 1970, null where a value is not a time."""
        if column.dtype == pl.Date:
            return _in_range(column.cast(pl.Datetime("us")).cast(pl.Int64))
        if isinstance(column.dtype, pl.Datetime):
            if column.dtype.time_zone:
                column = column.dt.convert_time_zone("UTC")
            return _in_range(column.dt.cast_time_unit("us").cast(pl.Int64))
        if not column.dtype.is_numeric():
            column = column.cast(pl.String).str.strip_chars()
            if not self._form and _mostly_iso(column):
                self._form = "iso"
            if self._form == "iso":
                return parse_iso(column)
        number = column.cast(pl.Float64, strict=False)
        finite = number.is_finite()
        if self._any_number:
            return number.set(~finite, None)
        believed = (number >= 0) & (number * 1e3 < LATEST_MICROSECONDS)
        if not self._form and believed.any():
            # Seconds reach 1e11 in the year 5138; milliseconds reached it in 1973.
            first = number.filter(believed).head(1000).to_numpy()
            self._form = "ms" if np.median(first) >= 1e11 else "s"
        return _in_range((number * (1e3 if self._form == "ms" else 1e6)).round())


def _mostly_iso(column: pl.Series) -> bool:
    given = column.filter(column.is_not_null() & (column != "")).head(1000)
    return 2 * int((~given.str.contains(_EPOCH)).sum()) > len(given)


def parse_iso(column: pl.Series) -> pl.Series:
    """Parses ISO times, with or without fraction and offset, and plain dates.

    Returns:
      int64 microseconds since 1970, UTC; null where a value is no such time.
    """
    micro = _parse_alike(column)
    if micro is None:
        micro = np.full(len(column), -1)
        layouts = column.str.replace_all("[0-9]", "0").alias("layout").to_frame()
        for (layout,), rows in layouts.with_row_index("row").group_by("layout"):
            if layout is not None and _ISO.fullmatch(layout):
                micro[rows["row"]] = _parse_alike(column.gather(rows["row"]))
    return _in_range(pl.Series(column.name, micro))


def _parse_alike(column: pl.Series) -> np.ndarray | None:
    """Parses ISO times of one layout, digit by digit for all of them at once.

    Returns:
      int64 microseconds since 1970, -1 where there is no such day or hour; None unless
      all values have the layout of the first, and that is of a time.
    """
    layout = _ISO.fullmatch(str(column.first()))
    if (
        layout is None
        or column.null_count()
        or (column.str.len_bytes() != layout.end()).any()
    ):
        return None
    data = np.frombuffer(column.str.join("").item().encode(), np.uint8)
    characters = np.ascontiguousarray(data.reshape(len(column), -1).T)
    digits = characters - ord("0")
    for expected, character, digit in zip(
        layout[0].encode(), characters, digits, strict=True
    ):
        fits = digit <= 9 if chr(expected).isdigit() else character == expected
        if not fits.all():
            return None

    def integer(group: str, most: int = 9) -> np.ndarray:
        start, stop = layout.span(group)
        number = np.zeros(len(column), np.int32)
        for digit in digits[start : min(stop, start + most)]:
            number = number * 10 + digit
        return number

    month_of_year = integer("month")
    month = (integer("year") - 1970) * 12 + month_of_year - 1
    first_day, next_month = (
        (month + later).astype("datetime64[M]").astype("datetime64[D]").astype(np.int64)
        for later in (0, 1)
    )
    day, hour, minute = integer("day"), integer("hour"), integer("minute")
    second, fraction = integer("second"), integer("fraction", 6)
    fraction *= 10 ** (6 - min(6, len(layout["fraction"] or "")))
    offset = integer("offset_hour") * 60 + integer("offset_minute")
    offset_sign = -1 if layout["sign"] == "-" else 1
    real = (
        (month_of_year >= 1)
        & (month_of_year <= 12)
        & (day >= 1)
        & (day <= next_month - first_day)
        & (hour < 24)
        & (minute < 60)
        & (second < 61)
        & (offset < 24 * 60)
    )
    seconds = (first_day + day - 1) * 86_400 + (
        hour * 3600 + minute * 60 + second - 60 * offset_sign * offset
    )
    return np.where(real, seconds * 1_000_000 + fraction, -1)


def _in_range(micro: pl.Series) -> pl.Series:
    """Casts to int64, null where a time cannot be believed."""
    believed = (micro >= 0) & (micro < LATEST_MICROSECONDS)
    return micro.set(~believed, None).cast(pl.Int64)
