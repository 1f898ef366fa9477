"""Reads the wanted columns of parquet files, frames and JSON lines.

Chunks are like those of `text.text_chunks`, but keep the types of the values. One row
may hold all clicks of a session, as a list of structs or as one list per column; see
`one_click_a_row`.
"""

import ast
import contextlib
import json
import pathlib
import re
from collections.abc import Container, Iterator, Mapping, Sequence
from typing import Any

import orjson
import polars as pl

from srgnn_jax.data.columns import is_named_list
from srgnn_jax.data.files import CHUNK, is_array, open_text, reading
from srgnn_jax.errors import UserError

# The columns of a JSON lines file are the fields of its first records, this many.
_SAMPLE = 100
_LONG = re.compile("[0-9]{19}")
# Rows of a frame that are read at a time.
ROWS = 2**20
# Share of lists with blanks within their items from which on blanks split nothing.
SPACED = 0.05
_BRACKETS = r"(?s)^\s*(?:\[(.*)\]|\((.*)\)|\{(.*)\})\s*$"
# An item in quotes, or one without; and quotes around one.
_TOKEN = r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|[^\s,;|"']+"""
_QUOTES = r"""(?s)^(?:'(.*)'|"(.*)")$"""
# A column's name that no log has.
_NUMBER = "\0number"
_DAMAGE = re.compile("[\ufffd\ud800-\udfff]")


def names_of(fields: Mapping[str, Any]) -> dict[str, bool]:
    """Returns of each column whether it holds lists; nested ones are `outer.inner`.

    `fields` are types by name, or the values of a record.
    """
    names: dict[str, bool] = {}
    for name, inner in fields.items():
        is_list = isinstance(inner, pl.List | list)
        if isinstance(inner, pl.List):
            inner = inner.inner
        elif inner and isinstance(inner, list):
            inner = inner[0]
        if isinstance(inner, pl.Struct):
            inner = inner.to_schema()
        if isinstance(inner, Mapping):
            nested = names_of(inner)
            names |= {f"{name}.{n}": is_list or lists for n, lists in nested.items()}
        else:
            names[name] = is_list
    return names


def parquet_names(path: pathlib.Path) -> dict[str, bool]:
    """Returns the columns of a parquet file, in the form of `names_of`."""
    with reading(path, " as parquet"):
        return names_of(pl.scan_parquet(path, glob=False).collect_schema())


def parquet_chunks(
    path: pathlib.Path, names: Mapping[str, str]
) -> Iterator[pl.DataFrame]:
    """Yields chunks of a parquet file: number (of the row), the columns, fault."""
    with reading(path, " as parquet"):
        frame = pl.scan_parquet(path, hive_partitioning=False, glob=False)
        rows = frame.select(pl.len()).collect().item()
        for chunk in frame_chunks(frame, names, path):
            rows -= len(chunk)
            yield chunk
    # If a polars thread fails, the batches just end.
    if rows:
        raise UserError(f"cannot read {path} as parquet: {rows} rows are damaged")


def frame_chunks(
    frame: pl.LazyFrame, names: Mapping[str, str], where: pathlib.Path | str
) -> Iterator[pl.DataFrame]:
    """Yields chunks of a frame; `names` are those of the columns that are read."""
    frame = frame.select(outer_columns(frame.collect_schema(), names))
    numbered = frame.with_row_index(_NUMBER, 1)
    for chunk in numbered.collect_batches(chunk_size=ROWS, maintain_order=True):
        columns = [column_of(chunk, role, name, where) for role, name in names.items()]
        fault = pl.lit(None, pl.String).alias("fault")
        yield chunk.select(pl.col(_NUMBER).alias("number"), *columns, fault)


def outer_columns(schema: Mapping[str, Any], names: Mapping[str, str]) -> list[str]:
    """Returns the top-level columns that contain these."""
    outer = {_outer(name, schema) for name in names.values()}
    return [column for column in schema if column in outer]


def _outer(name: str, columns: Container[str]) -> str:
    return name if name in columns else name.split(".")[0]


def column_of(
    frame: pl.DataFrame, role: str, name: str, where: pathlib.Path | str
) -> pl.Series:
    """Returns a column, nested or not, under the name of its role.

    Raises UserError if the type of its values does not fit the role.
    """
    column = _nested(frame[_outer(name, frame.columns)], name).alias(role)
    _check_type(column, name, where)
    try:
        if column.dtype == pl.Binary:
            return column.cast(pl.String)
        if column.dtype == pl.List(pl.Binary):
            return column.cast(pl.List(pl.String))
    except pl.exceptions.ComputeError as error:
        raise UserError(
            f"{where}: column {name!r} holds bytes that are not text; write text or "
            "numbers"
        ) from error
    return column


def _nested(column: pl.Series, name: str) -> pl.Series:
    """Returns a field of structures, or the list of it of lists of structures."""
    while name != column.name:
        outer = column.name
        name = name.removeprefix(f"{outer}.")
        dtype: Any = column.dtype
        is_list = isinstance(dtype, pl.List)
        fields = (dtype.inner if is_list else dtype).fields
        field = next(
            f.name for f in fields if name == f.name or name.startswith(f"{f.name}.")
        )
        column = (
            column.list.eval(pl.element().struct.field(field))
            if is_list
            else column.struct.field(field)
        ).alias(field)
    return column


def _check_type(column: pl.Series, name: str, where: pathlib.Path | str) -> None:
    dtype: Any = column.dtype
    if isinstance(dtype, pl.List) and column.name != "session":
        dtype = dtype.inner
    is_id = column.name in ("session", "item", "event")
    text = (pl.String, pl.Categorical, pl.Enum, pl.Binary, pl.Null)
    known = text if is_id else (*text, pl.Date, pl.Datetime, pl.Time)
    if not dtype.is_numeric() and dtype not in known:
        what = "ids must be text or" if is_id else "times must be dates or"
        raise UserError(f"{where}: column {name!r} holds {dtype}; {what} numbers")


def json_names(path: pathlib.Path, encoding: str = "") -> dict[str, bool]:
    """Returns the fields of a file's first records, in the form of `names_of`."""
    names: dict[str, bool] = {}
    for line in next(_lines(path, encoding), [])[:_SAMPLE]:
        record, _ = record_of(line)
        names |= names_of(record or {})
    return names


def json_chunks(
    path: pathlib.Path, names: Mapping[str, str], encoding: str = ""
) -> Iterator[pl.DataFrame]:
    """Yields chunks of JSON lines: number (of the line), the columns, fault."""
    number = 1
    for lines in _lines(path, encoding):
        yield _split_json(lines, number, names)
        number += len(lines)


def _lines(path: pathlib.Path, encoding: str) -> Iterator[list[str]]:
    """Yields lists of lines; a file that is one array gives a line per object."""
    with reading(path), open_text(path, encoding) as file:
        lines = file.readlines(CHUNK)
        first = next((line for line in lines if line.strip()), "")
        if is_array(first):
            array = orjson.loads("".join(lines) + file.read())
            lines = [orjson.dumps(one).decode() for one in array]
        while lines:
            yield lines
            lines = file.readlines(CHUNK)


def _split_json(
    lines: Sequence[str], number: int, names: Mapping[str, str]
) -> pl.DataFrame:
    paths = {role: name.split(".") for role, name in names.items()}
    schema: dict[str, Any] = dict.fromkeys(["number", *names, "fault"], pl.String)
    schema["number"] = pl.UInt32
    found: dict[str, list] = {column: [] for column in schema}
    for n, line in enumerate(lines, number):
        if not line.strip():
            continue
        record, fault = record_of(line)
        for role, path in paths.items():
            name = names[role]
            # As Elasticsearch writes it, a name may have a dot.
            path = [name] if name in (record or ()) else path
            value = None if record is None else _value(record, path)
            if _is_damaged(value):
                value, fault = None, "text that is not UTF-8"
            elif isinstance(value, list) and any(isinstance(v, list) for v in value):
                value, fault = None, f"lists within a list ({role})"
            found[role].append(value)
        found["number"].append(n)
        found["fault"].append(fault)
    for role in names:
        if any(isinstance(value, list) for value in found[role]):
            found[role] = [v if isinstance(v, list) else [v] for v in found[role]]
            schema[role] = pl.List(pl.String)
    return pl.DataFrame(found, schema)


def _is_damaged(value: Any) -> bool:
    """Whether text, or text in a list, contains U+FFFD or a lone surrogate."""
    if isinstance(value, list):
        return any(map(_is_damaged, value))
    return bool(value) and not value.isascii() and bool(_DAMAGE.search(value))


def record_of(line: str) -> tuple[dict | None, str | None]:
    """Returns the object on a line, or what is wrong with the line."""
    try:
        # orjson turns integers of more than 64 bits into floats.
        record = (json if _LONG.search(line) else orjson).loads(line)
    except ValueError as error:
        try:
            # Python's parser accepts NaN and lone surrogates.
            record = json.loads(line)
        except (ValueError, RecursionError):
            return None, f"invalid JSON: {error}"
    if not isinstance(record, dict):
        return None, "not a JSON object"
    return record, None


def _value(value: Any, path: Sequence[str]) -> Any:
    """Returns the field at a path as text, or as a list if the path crosses lists."""
    if isinstance(value, list):
        return [_value(one, path) for one in value]
    if path:
        key, *rest = path
        return _value(value.get(key), rest) if isinstance(value, dict) else None
    return None if value is None or isinstance(value, dict) else str(value)


def _split_list(column: pl.Series) -> pl.Series:
    """Splits lists in text at blanks and separators, but not within quotes.

    If items contain blanks next to separators, blanks split nothing.
    """
    text = column.cast(pl.String).str.replace(_BRACKETS, "$1$2$3").str.strip_chars()

    def has(pattern):
        return text.str.contains(pattern).fill_null(False)

    is_quoted = has("(^|[\\s,;|])[\"']")
    plain = text.str.extract_all("[^\\s,;|]+|^[\\s,;|]*$")
    spaced = has("[,;|]") & has("[^\\s,;|]\\s+[^\\s,;|]") & ~is_quoted
    if spaced.sum() > SPACED * (has("[\\s,;|]") & ~is_quoted).sum():
        plain = text.str.extract_all("[^,;|]*[^\\s,;|][^,;|]*|^[\\s,;|]*$")
    plain = plain.list.eval(pl.element().str.strip_chars(" \t\r\n,;|"))
    if not is_quoted.any():
        return plain
    quoted = text.str.extract_all(_TOKEN).list.eval(
        pl.element().str.replace(_QUOTES, "$1$2").str.strip_chars()
    )
    is_escaped = is_quoted & has(r"\\")
    if is_escaped.any():
        lists = [
            _unescaped(one) if escaped else None
            for one, escaped in zip(text, is_escaped, strict=True)
        ]
        unescaped = pl.Series(column.name, lists, pl.List(pl.String))
        quoted = unescaped.zip_with(is_escaped, quoted)
    return quoted.zip_with(is_quoted, plain)


def _unescaped(text: str) -> list[str]:
    """Returns the items of a list as JSON or Python writes it."""
    items = []
    for item in re.findall(_TOKEN, text):
        if item[0] in "\"'":
            read = json.loads if item[0] == '"' else ast.literal_eval
            with contextlib.suppress(ValueError, SyntaxError):
                item = read(item)
        items.append(item.strip())
    return items


def one_click_a_row(chunk: pl.DataFrame, names: Mapping[str, str]) -> pl.DataFrame:
    """Explodes lists, so that each row holds one click.

    Lists are list columns, and text columns whose names say so: "17 4 9", "17,4,9" or
    "['a b', 'c']". If times are not lists, a column `place` holds the order.
    """
    is_list = isinstance(chunk.schema["item"], pl.List) or is_named_list(names["item"])
    columns = [
        _split_list(chunk[role])
        for role in ("item", "time")
        if is_list
        and role in names
        and is_named_list(names[role])
        and chunk.schema[role] in (pl.String, pl.Categorical, pl.Enum)
    ]
    chunk = chunk.with_columns(columns)
    lists = [n for n, dtype in chunk.schema.items() if isinstance(dtype, pl.List)]
    if not lists:
        return chunk
    # A null becomes one row, as a single value does.
    chunk = chunk.with_columns(pl.col(lists).fill_null([None]))
    lengths = [pl.col(name).list.len() for name in lists]
    length, what = lengths[0], "lists of different lengths"
    if "item" not in lists:
        length, what = pl.lit(1), "a list without a list of items"
    differ = pl.any_horizontal(other != length for other in lengths)
    if chunk.select(differ.any()).item():
        message = pl.lit(f"{what} ({', '.join(lists)})")
        fault = pl.when(differ).then(message).otherwise("fault").alias("fault")
        emptied = [
            pl.when(~differ).then(name).otherwise([None]).alias(name) for name in lists
        ]
        chunk = chunk.with_columns(fault, *emptied)
    if "item" in lists and "time" not in lists:
        place = pl.int_ranges(pl.col("item").list.len(), dtype=pl.Int64)
        chunk = chunk.with_columns(place.alias("place"))
        lists.append("place")
    return chunk.explode(lists)
