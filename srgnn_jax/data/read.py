"""Click logs, as files, read into columns session, item and time.

polars splits the lines of text, a chunk of them at a time. Those that are quoted or
malformed are looked at a second time, one by one, so that a bad one is known by its
number.
"""

import contextlib
import csv
import functools
import gzip
import io
import itertools
import pathlib
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence

import polars as pl
from tqdm import tqdm

from srgnn_jax.data.columns import USUAL_NAMES, Columns, find_columns
from srgnn_jax.data.times import TimeParser
from srgnn_jax.errors import UserError, reason

TEXT_SUFFIXES = (".csv", ".tsv", ".txt", ".dat", ".inter")
SUFFIXES = (*TEXT_SUFFIXES, *(f"{s}.gz" for s in TEXT_SUFFIXES), ".parquet")
SEPARATORS = "\t,;|"
CHUNK_ROWS = 1_000_000
ANY_COLUMNS = Columns()

NOT_UTF8 = "text that is not UTF-8"
_NUL = "a NUL byte, as in files that were not written to the end"

# The position of each column among these names.
_Find = Callable[[Sequence[str]], dict[str, int]]
# The columns' own names, and chunks of the columns number (of the line), session, item,
# time[, date] and fault (what is wrong with all of the line).
_Chunks = tuple[dict[str, str], Iterator[pl.DataFrame]]


def read_clicks(
    path: pathlib.Path,
    columns: Columns = ANY_COLUMNS,
    *,
    usual: Mapping[str, Sequence[str]] = USUAL_NAMES,
    header: Sequence[str] = (),
    separator: str = "",
    on_bad_row: str = "error",
) -> tuple[pl.DataFrame, int]:
    """Reads a csv, tsv or parquet log, in file order.

    Args:
      path: the file; its text may be gzipped.
      columns: what to read.
      usual: names that the columns without one are looked for by.
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
    find = functools.partial(find_columns, path, columns, usual)
    if path.suffix == ".parquet":
        names, chunks = _parquet_chunks(path, find)
    else:
        names, chunks = _text_chunks(path, find, header, separator)
    parsers = {"time": TimeParser(any_number=bool(columns.date))}
    if columns.date:
        parsers["date"] = TimeParser()
    is_good = pl.all_horizontal(
        *(pl.col(name).str.strip_chars() != "" for name in ("session", "item")),
        *(pl.col(f"{name} parsed").is_not_null() for name in parsers),
    ).fill_null(False)
    good, skipped = [], 0
    for chunk in tqdm(
        chunks, f"read {path.name}", unit=" chunks", disable=None, leave=False
    ):
        parsed = chunk.with_columns(
            parser(chunk[name]).alias(f"{name} parsed")
            for name, parser in parsers.items()
        )
        bad = parsed.filter(~is_good)
        if len(bad) and on_bad_row == "error":
            row = bad.row(0, named=True)
            where = "row" if path.suffix == ".parquet" else "line"
            raise UserError(
                f"{path}, {where} {row['number']}: {_explain(row, names)}; mend it, or "
                "drop such rows with --config.on_bad_row=skip"
            )
        skipped += len(bad)
        times = [pl.col(f"{name} parsed").alias(name) for name in parsers]
        good.append(parsed.filter(is_good).select("session", "item", *times))
    if not sum(map(len, good)):
        raise UserError(
            f"{path} holds no clicks"
            + (f": all {skipped} rows are malformed" if skipped else "")
        )
    return pl.concat(good), skipped


def _explain(row: dict, names: dict[str, str]) -> str:
    """Says what is wrong with a row; `names` are the columns' own."""
    if row["fault"]:
        return row["fault"]
    for column, name in names.items():
        value = row[column]
        if value is None or not str(value).strip():
            return f"the {column} is empty (column {name!r})"
        if row.get(f"{column} parsed", value) is None:
            shown = repr(value[:80]) if isinstance(value, str) else value
            return f"{shown} is not a time (column {name!r})"
    raise AssertionError(f"nothing is wrong with {row}")


def _text_chunks(
    path: pathlib.Path, find: _Find, header: Sequence[str], separator: str
) -> _Chunks:
    # The shell hands on '\t' as it is typed, in two characters.
    separator = separator.replace("\\t", "\t") or ("," if header else "")
    names = header
    if not header:
        names, separator = _read_header(path, separator)
    position = find(names)

    def chunks() -> Iterator[pl.DataFrame]:
        is_first = pl.col("number") == 1
        bare = pl.col("text").str.strip_prefix("\ufeff")
        for lines in _line_chunks(path):
            if header:
                lines = lines.with_columns(
                    pl.when(is_first).then(bare).otherwise("text").alias("text")
                )
            else:
                lines = lines.filter(~is_first)
            yield _split(lines, separator, len(names), position)

    return {column: names[i] for column, i in position.items()}, chunks()


def _read_header(path: pathlib.Path, separator: str) -> tuple[tuple[str, ...], str]:
    """Returns the names of the columns, and what separates them."""
    with _reading(path), _open(path) as file:
        line = file.readline(1 << 20)
    first = line.decode("utf-8-sig", "replace").rstrip("\r\n")
    if not first.strip():
        raise UserError(
            f"{path} is empty, or its first line is, where the header belongs"
        )
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
        return tuple(next(csv.reader([first], delimiter=separator))), separator
    except csv.Error as error:
        raise UserError(f"{path}, line 1: unreadable header ({error})") from error


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
    rows = []
    for number, line in lines.filter(~pl.col("plain")).select("number", "text").rows():
        # A line of separators, such as tabs, is a row of empty fields.
        if line.strip() or separator in line:
            fields, fault = _split_again(line, separator, expected)
            rows.append((number, *(fields[i] for i in position.values()), fault))
    if not rows:
        return split
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
    with _reading(path):
        try:
            for chunk in lines.collect_batches(
                chunk_size=CHUNK_ROWS, maintain_order=True
            ):
                yield chunk
                done += len(chunk)
        except pl.exceptions.ComputeError:
            # polars gives up on text that is not UTF-8, without naming the line.
            with _open(path) as file:
                rest = itertools.islice(enumerate(file, 1), done, None)
                while part := list(itertools.islice(rest, CHUNK_ROWS)):
                    numbers, raw = zip(*part, strict=True)
                    text = [b.rstrip(b"\r\n").decode("utf-8", "replace") for b in raw]
                    yield pl.DataFrame({"number": numbers, "text": text})


def _open(path: pathlib.Path) -> io.BufferedReader | gzip.GzipFile:
    """Opens a file by what it holds, as polars does, not by what it is called."""
    with path.open("rb") as file:
        is_gzip = file.read(2) == b"\x1f\x8b"
    return gzip.open(path) if is_gzip else path.open("rb")


def _parquet_chunks(path: pathlib.Path, find: _Find) -> _Chunks:
    """Times keep the type that they have."""
    frame = pl.scan_parquet(path)
    with _reading(path, " as parquet"):
        schema = frame.collect_schema()
    names = schema.names()
    position = find(names)
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
    frame = frame.select(pl.col(name).alias(column) for column, name in own.items())
    frame = frame.with_row_index("number", 1).with_columns(
        pl.col("session", "item").cast(pl.String),
        pl.lit(None, pl.String).alias("fault"),
    )

    def chunks() -> Iterator[pl.DataFrame]:
        with _reading(path, " as parquet"):
            rows = frame.select(pl.len()).collect().item()
            for chunk in frame.collect_batches(
                chunk_size=CHUNK_ROWS, maintain_order=True
            ):
                rows -= len(chunk)
                yield chunk
        # Where a thread of polars fails, the batches just end.
        if rows:
            raise UserError(f"cannot read {path} as parquet: {rows} rows are damaged")

    return own, chunks()


@contextlib.contextmanager
def _reading(path: pathlib.Path, form: str = "") -> Iterator[None]:
    """Tells in one line that a file, or its compression, cannot be read."""
    try:
        yield
    except (
        OSError,
        EOFError,
        zlib.error,
        pl.exceptions.PolarsError,
        pl.exceptions.PanicException,
    ) as error:
        raise UserError(f"cannot read {path}{form}: {reason(error)}") from error
