"""Click logs, as files, read into columns session, item and time.

polars splits many lines of text at a time; those that are quoted or malformed are then
looked at one by one.
"""

import contextlib
import csv
import gzip
import io
import pathlib
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import polars as pl
import pyarrow as pa
from tqdm import tqdm

from srgnn_jax.data.columns import USUAL_NAMES, Columns, find_columns
from srgnn_jax.data.times import TimeParser
from srgnn_jax.errors import UserError, reason

TEXT_SUFFIXES = (".csv", ".tsv", ".txt", ".dat", ".inter")
SUFFIXES = (*TEXT_SUFFIXES, *(f"{s}.gz" for s in TEXT_SUFFIXES), ".parquet")
SEPARATORS = "\t,;|"
CHUNK_BYTES = 1 << 25
ANY_COLUMNS = Columns()
NOT_UTF8 = "text that is not UTF-8"
_NO_FAULT = pl.lit(None, pl.String).alias("fault")


def read_clicks(
    path: pathlib.Path,
    columns: Columns = ANY_COLUMNS,
    *,
    usual: Mapping[str, Sequence[str]] = USUAL_NAMES,
    header: Sequence[str] = (),
    separator: str = "",
    on_bad_row: str = "error",
) -> tuple[pl.DataFrame, int]:
    """Reads a csv, tsv or parquet log, in file order; its text may be gzipped.

    Columns that are not named are looked for by their usual names. A text file without
    a header line needs `header` and `separator`; otherwise the header line tells an
    empty separator. Malformed rows raise a UserError unless `on_bad_row` is "skip".

    Returns columns session and item (text), time (int64 microseconds since 1970, UTC)
    and, where `columns` names it, date (the same; a time that is a number then stays as
    it is, in float64); and the number of rows that were skipped.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist")
    is_parquet, has_header = path.suffix == ".parquet", not header
    if is_parquet:
        with reading(path, " as parquet"):
            header = pl.scan_parquet(path).collect_schema().names()
    elif has_header:
        # The shell hands on '\t' as it is typed, in two characters.
        header, separator = _read_header(path, separator.replace("\\t", "\t"))
    position = find_columns(path, columns, usual, header)
    names = {column: header[i] for column, i in position.items()}
    chunks = (
        _parquet_chunks(path, names)
        if is_parquet
        else _text_chunks(path, has_header, separator, len(header), position)
    )
    parsers = {"time": TimeParser("date" in names), "date": TimeParser()}
    parsed = {f"{name} parsed": name for name in parsers if name in names}
    is_good = pl.all_horizontal(
        pl.col("session", "item").str.strip_chars() != "",
        pl.col(*parsed).is_not_null(),
    ).fill_null(False)
    good, skipped = [], 0
    for chunk in tqdm(
        chunks, f"read {path.name}", unit=" chunks", disable=None, leave=False
    ):
        chunk = chunk.with_columns(
            parsers[name](chunk[name]).alias(new) for new, name in parsed.items()
        )
        bad = chunk.filter(~is_good)
        if len(bad) and on_bad_row == "error":
            row = bad.row(0, named=True)
            raise UserError(
                f"{path}, {'row' if is_parquet else 'line'} {row['number']}: "
                f"{row['fault'] or _explain(row, names)}; mend it, or drop such rows "
                "with --config.on_bad_row=skip"
            )
        skipped += len(bad)
        good.append(
            chunk.filter(is_good).select("session", "item", *parsed).rename(parsed)
        )
    if not sum(map(len, good)):
        why = f": all {skipped} rows are malformed" if skipped else ""
        raise UserError(f"{path} holds no clicks{why}")
    return pl.concat(good), skipped


def _explain(row: dict, names: dict[str, str]) -> str:
    for column, name in names.items():
        text = "" if row[column] is None else str(row[column])
        if not text.strip():
            return f"the {column} is empty (column {name!r})"
        if row.get(f"{column} parsed", text) is None:
            break
    return f"{text[:80]!r} is not a time (column {name!r})"


def _read_header(path: pathlib.Path, separator: str) -> tuple[Sequence[str], str]:
    """Returns the names of the columns, and what separates them."""
    with reading(path), _open(path) as file:
        line = file.readline(1 << 20)
    first = line.decode("utf-8-sig", "replace").rstrip("\r\n")
    if not first.strip():
        raise UserError(f"{path} is empty, or its first line, the header, is")
    if "\r" in first:
        raise UserError(
            f"{path}, line 1: its lines end in carriage returns alone; end them in "
            "line feeds, as with: tr '\\r' '\\n'"
        )
    if not separator:
        separator = max(SEPARATORS, key=first.count)
        if separator not in first:
            raise UserError(
                f"{path}, line 1: no tab, comma, semicolon or '|' in the header "
                f"{first[:80]!r}; name the separator with --config.separator"
            )
    try:
        return next(csv.reader([first], delimiter=separator)), separator
    except csv.Error as error:
        raise UserError(f"{path}, line 1: unreadable header ({error})") from error


def _text_chunks(
    path: pathlib.Path, has_header: bool, *how: Any
) -> Iterator[pl.DataFrame]:
    """Yields what `_split` makes of chunks of lines; `how` are its other arguments."""
    number = 1
    with reading(path), _open(path) as file:
        while block := file.read(CHUNK_BYTES) + file.readline():
            encoding = "utf-8-sig" if number == 1 else "utf-8"
            # What is not UTF-8 is read as U+FFFD; polars alone would give up on it.
            text = block.decode(encoding, "replace").encode()
            lines = pl.scan_lines(
                text, name="text", row_index_name="number", row_index_offset=number
            ).collect()
            yield _split(lines.filter(pl.col("number") > has_header), *how)
            number += len(lines)


def _split(
    lines: pl.DataFrame, separator: str, expected: int, position: Mapping[str, int]
) -> pl.DataFrame:
    """Returns the lines' number, columns of `position` and fault; skips blank ones."""
    text = pl.col("text")
    separators = text.str.count_matches(separator, literal=True)
    is_odd = text.str.contains('["\0\ufffd]') | (separators != expected - 1)
    lines = lines.with_columns(is_odd.alias("is odd"))
    fields = text.str.split_exact(separator, expected - 1)
    even = lines.filter(~pl.col("is odd")).select("number", fields).unnest("text")
    split = even.select(
        "number",
        *(pl.col(f"field_{i}").alias(name) for name, i in position.items()),
        _NO_FAULT,
    )
    rows = []
    for number, line in lines.filter("is odd").select("number", text).rows():
        # A line of separators, such as tabs, is a row of empty fields.
        if line.strip() or separator in line:
            parts, fault = _split_again(line, separator, expected)
            rows.append((number, *(parts[i] for i in position.values()), fault))
    odd = pl.DataFrame(rows, schema=split.schema, orient="row")
    return pl.concat([split, odd]).sort("number")


def _split_again(
    line: str, separator: str, expected: int
) -> tuple[Sequence[str], str | None]:
    """Returns the fields of a line that is quoted or malformed, and its fault."""
    fault = None
    fields = line.split(separator)
    if "\ufffd" in line:
        fault = NOT_UTF8
    elif "\0" in line:
        fault = "a NUL byte, as in files that were not written to the end"
    elif '"' in line:
        csv.field_size_limit(2**31 - 1)
        try:
            fields = next(csv.reader([line], delimiter=separator, strict=True))
        except csv.Error as error:
            fault = f"unreadable quotes ({error})"
    if not fault and len(fields) != expected:
        fault = f"{len(fields)} fields instead of {expected}"
    return ([""] * expected if fault else fields), fault


def _open(path: pathlib.Path) -> io.BufferedReader | gzip.GzipFile:
    """Opens a file by what it holds, as polars does, not by what it is called."""
    with path.open("rb") as file:
        is_gzip = file.read(2) == b"\x1f\x8b"
    return gzip.open(path) if is_gzip else path.open("rb")


def _parquet_chunks(
    path: pathlib.Path, names: Mapping[str, str]
) -> Iterator[pl.DataFrame]:
    """Yields what `_text_chunks` does, but times have the type that they have."""
    frame = pl.scan_parquet(path)
    for column, name in names.items():
        dtype = frame.collect_schema()[name]
        is_id = column in ("session", "item")
        fits = dtype.is_numeric() or dtype in (pl.String, pl.Categorical, pl.Enum)
        if not fits and (is_id or dtype not in (pl.Date, pl.Datetime)):
            raise UserError(
                f"{path}: column {name!r} holds {dtype}; "
                + ("ids are text or numbers" if is_id else "times are dates or numbers")
            )
    frame = frame.select(pl.col(name).alias(column) for column, name in names.items())
    frame = frame.with_row_index("number", 1).with_columns(
        pl.col("session", "item").cast(pl.String), _NO_FAULT
    )
    with reading(path, " as parquet"):
        rows = frame.select(pl.len()).collect().item()
        for chunk in frame.collect_batches(maintain_order=True):
            rows -= len(chunk)
            yield chunk
    # Where a thread of polars fails, the batches just end.
    if rows:
        raise UserError(f"cannot read {path} as parquet: {rows} rows are damaged")


@contextlib.contextmanager
def reading(path: pathlib.Path, what: str = "") -> Iterator[None]:
    """Raises one UserError for all that goes wrong with a file or its compression."""
    try:
        yield
    except (
        *(OSError, EOFError, ValueError, zlib.error, pa.ArrowException),
        *(pl.exceptions.PolarsError, pl.exceptions.PanicException),
    ) as error:
        raise UserError(f"cannot read {path}{what}: {reason(error)}") from error
