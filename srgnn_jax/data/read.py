"""Click logs, as files, read into columns session, item and time.

Lines of text are split in polars, a chunk of them at a time. Those that are quoted or
malformed are looked at a second time, one by one, so that a bad one is known by its
number.
"""

import contextlib
import csv
import gzip
import io
import itertools
import pathlib
import zlib
from collections.abc import Iterable, Iterator, Sequence

import polars as pl
from tqdm import tqdm

from srgnn_jax.data.columns import Columns, find_columns
from srgnn_jax.data.times import TimeParser
from srgnn_jax.errors import UserError, reason

TEXT_SUFFIXES = (".csv", ".tsv", ".txt", ".dat", ".inter")
SUFFIXES = (*TEXT_SUFFIXES, *(f"{s}.gz" for s in TEXT_SUFFIXES), ".parquet")
SEPARATORS = "\t,;|"
CHUNK_ROWS = 1_000_000
ANY_COLUMNS = Columns()

NOT_UTF8 = "text that is not UTF-8"
_NUL = "a NUL byte, as in files that were not written to the end"
# What reading a file raises where it, or its compression, is damaged.
_UNREADABLE = (OSError, EOFError, zlib.error)


def read_clicks(
    path: pathlib.Path,
    columns: Columns = ANY_COLUMNS,
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
    times = {"time": TimeParser(any_number=bool(columns.date))}
    if columns.date:
        times["date"] = TimeParser()
    frames, skipped = [], 0
    progress = tqdm(
        chunks, f"read {path.name}", unit=" chunks", disable=None, leave=False
    )
    for chunk in progress:
        parsed = chunk.with_columns(
            parser(chunk[name]).alias(f"{name} parsed")
            for name, parser in times.items()
        ).with_columns(_bad_column(times).alias("bad"))
        bad = parsed.filter(pl.col("bad").is_not_null())
        if len(bad) and on_bad_row == "error":
            row = bad.row(0, named=True)
            where = "row" if path.suffix == ".parquet" else "line"
            raise UserError(
                f"{path}, {where} {row['number']}: {_explain(row, names)}; mend it, or "
                "drop such rows with --config.on_bad_row=skip"
            )
        skipped += len(bad)
        good = parsed.filter(pl.col("bad").is_null())
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


def read_header(path: pathlib.Path, separator: str) -> tuple[str, ...]:
    """Returns the names of a text file's columns.

    Raises:
      UserError: there is no first line, or it cannot be read.
    """
    first = _first_line(path)
    if not first.strip():
        raise UserError(
            f"{path} is empty, or its first line is, where the header belongs"
        )
    if "\r" in first:
        raise UserError(
            f"{path}, line 1: its lines end in carriage returns alone; end them in "
            "line feeds, as with: tr '\\r' '\\n'"
        )
    try:
        return tuple(next(csv.reader([first], delimiter=separator)))
    except csv.Error as error:
        raise UserError(f"{path}, line 1: unreadable header ({error})") from error


def _bad_column(times: Iterable[str]) -> pl.Expr:
    """Names the first bad column of a row; null if there is none."""
    bad = {"fault": pl.col("fault").is_not_null()}
    for name in ("session", "item"):
        bad[name] = pl.col(name).is_null() | (pl.col(name).str.strip_chars() == "")
    bad |= {name: pl.col(f"{name} parsed").is_null() for name in times}
    return pl.coalesce(
        pl.when(is_bad).then(pl.lit(name)) for name, is_bad in bad.items()
    )


def _explain(row: dict, names: dict[str, str]) -> str:
    """Says what is wrong with a row; `names` are the columns' own."""
    if row["bad"] == "fault":
        return row["fault"]
    value, name = row[row["bad"]], names[row["bad"]]
    if value is None or (isinstance(value, str) and not value.strip()):
        return f"the {row['bad']} is empty (column {name!r})"
    shown = repr(value[:80]) if isinstance(value, str) else value
    return f"{shown} is not a time (column {name!r})"


def _text_chunks(
    path: pathlib.Path, columns: Columns, header: tuple[str, ...], separator: str
) -> tuple[dict[str, str], Iterator[pl.DataFrame]]:
    """Returns the columns' own names, and chunks of the file.

    A chunk holds number, session, item, time[, date] and fault, all text but the first:
    `number` is that of the line, `fault` says what is wrong with all of it.
    """
    # The shell hands on '\t' as it is typed, in two characters.
    separator = separator.replace("\\t", "\t")
    separator = separator or _find_separator(path, bool(header))
    names = header or read_header(path, separator)
    position = find_columns(path, names, columns)

    def chunks() -> Iterator[pl.DataFrame]:
        for lines in _line_chunks(path):
            if not header:
                lines = lines.filter(pl.col("number") > 1)
            yield _split(lines, separator, len(names), position)

    return {column: names[i] for column, i in position.items()}, chunks()


def _find_separator(path: pathlib.Path, has_no_header: bool) -> str:
    first = _first_line(path)
    found = max(SEPARATORS, key=first.count)
    if found in first:
        return found
    if has_no_header:
        return ","
    if not first.strip():
        read_header(path, ",")
    raise UserError(
        f"{path}, line 1: no tab, comma, semicolon or '|' in the header "
        f"{first[:80]!r}; name the separator with --config.separator"
    )


def _split(
    lines: pl.DataFrame, separator: str, expected: int, position: dict[str, int]
) -> pl.DataFrame:
    """Splits lines into the columns of `position`; blank ones are left out."""
    text = pl.col("text")
    plain = (text.str.count_matches(separator, literal=True) == expected - 1) & (
        ~text.str.contains('["\0\ufffd]')
    )
    lines = lines.with_columns(plain.alias("plain"))
    good = lines.filter("plain")
    parts = good["text"].str.split_exact(separator, expected - 1).struct.unnest()
    split = good.select("number").with_columns(
        *(parts[f"field_{i}"].alias(name) for name, i in position.items()),
        pl.lit(None, pl.String).alias("fault"),
    )
    if len(good) == len(lines):
        return split
    rows = []
    for number, line in lines.filter(~pl.col("plain")).select("number", "text").rows():
        # A line of separators, such as tabs, is a row of empty fields.
        if line.strip() or separator in line:
            fields, fault = _split_again(line, separator, expected)
            rows.append((number, *(fields[i] for i in position.values()), fault))
    again = pl.DataFrame(rows, schema=split.schema, orient="row")
    return pl.concat([split, again]).sort("number")


def _split_again(
    line: str, separator: str, expected: int
) -> tuple[Sequence[str], str | None]:
    """Returns the fields of a line that is quoted or malformed, and its fault."""
    fault = NOT_UTF8 if "\ufffd" in line else _NUL if "\0" in line else None
    fields = line.split(separator)
    if '"' in line:
        csv.field_size_limit(2**31 - 1)
        try:
            fields = next(csv.reader([line], delimiter=separator, strict=True))
        except csv.Error as error:
            fault = fault or f"unreadable quotes ({error})"
    if len(fields) != expected:
        fault = fault or f"{len(fields)} fields instead of {expected}"
    return ([""] * expected if fault else fields), fault


def _line_chunks(path: pathlib.Path) -> Iterator[pl.DataFrame]:
    """Yields columns number and text; what is not UTF-8 is read as U+FFFD."""
    lines = pl.scan_lines(
        path, name="text", row_index_name="number", row_index_offset=1
    )
    done = 0
    try:
        for chunk in lines.collect_batches(chunk_size=CHUNK_ROWS, maintain_order=True):
            yield _without_mark(chunk) if not done else chunk
            done += len(chunk)
    except OSError as error:
        raise UserError(f"cannot read {path}: {reason(error)}") from error
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
                chunk = pl.DataFrame({"number": [n for n, _ in rows], "text": text})
                yield _without_mark(chunk)
    except _UNREADABLE as error:
        raise UserError(f"cannot read {path}: {reason(error)}") from error


def _without_mark(lines: pl.DataFrame) -> pl.DataFrame:
    """Strips the byte order mark that may stand before the file's first line."""
    text = pl.col("text")
    bare = pl.when(number=1).then(text.str.strip_prefix("\ufeff"))
    return lines.with_columns(bare.otherwise(text))


def _first_line(path: pathlib.Path) -> str:
    """Returns the first line of a text file, gzipped or not, or the start of it."""
    try:
        with _open(path) as file:
            line = file.readline(1 << 20)
    except _UNREADABLE as error:
        raise UserError(f"cannot read {path}: {reason(error)}") from error
    return line.decode("utf-8-sig", "replace").rstrip("\r\n")


def _open(path: pathlib.Path) -> io.BufferedReader | gzip.GzipFile:
    """Opens a file by what it holds, as polars does, not by what it is called."""
    with path.open("rb") as file:
        is_gzip = file.read(2) == b"\x1f\x8b"
    return gzip.open(path) if is_gzip else path.open("rb")


def _parquet_chunks(
    path: pathlib.Path, columns: Columns
) -> tuple[dict[str, str], Iterator[pl.DataFrame]]:
    """Returns what `_text_chunks` does; times keep the type that they have."""
    frame = pl.scan_parquet(path)
    with _parquet_errors(path):
        schema = frame.collect_schema()
    names = schema.names()
    position = find_columns(path, names, columns)
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
        pl.lit(None, pl.String).alias("fault"),
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
        raise UserError(f"cannot read {path} as parquet: {reason(error)}") from error
