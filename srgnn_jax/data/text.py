"""Splits text logs, csv and similar formats, into the fields that are read.

polars splits many lines at a time; quoted or malformed lines are then handled one by
one. Damage in columns that are not read does not make a row malformed.
"""

import csv
import dataclasses
import itertools
import pathlib
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import polars as pl

from srgnn_jax.data.columns import USUAL_NAMES, Form, plain_name
from srgnn_jax.data.files import CHUNK, open_text, reading
from srgnn_jax.data.times import forms_of, looks_like_time
from srgnn_jax.errors import UserError

# The likeliest first, for headers that contain several equally often.
SEPARATORS = ("\t", ",", ";", "|", "::")
NOT_UTF8 = "text that is not UTF-8"
# How many lines may be joined by line breaks within quotes.
MOST_JOINED = 1000
USUAL = frozenset(name for names in USUAL_NAMES.values() for name in names)


@dataclasses.dataclass(frozen=True)
class Layout:
    """How the lines of a file are split."""

    names: Sequence[str]
    separator: str
    header_line: int = 1  # rows begin after it
    quoting: str = ""  # "none": quotes are ordinary text
    encoding: str = ""
    has_header: bool = True


def find_layout(path: pathlib.Path, form: Form, width: int = 0) -> Layout:
    """Detects the layout of a file from its first line.

    `width` is the number of columns, if known from another part of the log. Raises
    UserError if the first line is empty or cannot be read as a header.
    """
    separator, quoting = as_meant(form.separator), form.quoting
    number, lines = first_lines(path, form.encoding)
    if lines and is_separator_line(lines[0]):
        named = lines[0].strip('"').removeprefix("sep=")
        number, lines, separator = number + 1, lines[1:], separator or named
    number, lines = without_comments(number, lines, separator)
    first, following = (lines[0] if lines else ""), lines[1:]
    more = following if '"' in first and quoting != "none" else []
    where = f"{path}, line {number}"
    if not first.strip():
        raise UserError(f"{path} is empty: it has no header")
    if "\r" in first:
        raise UserError(
            f"{where}: lines end in carriage returns alone; convert them to line "
            "feeds, for example with: tr '\\r' '\\n'"
        )
    if not separator:
        # It may come after a quoted line break.
        start = first if separator_of(first) in first else "\n".join([first, *more])
        separator = separator_of(start)
        if separator not in start:
            raise UserError(
                f"{where}: no tab, comma, semicolon or '|' in the header "
                f"{first[:80]!r}; name the separator with --config.separator"
            )
    try:
        fields, rows = _first_row([first, *more], separator, quoting, width)
    except csv.Error as error:
        raise UserError(f"{where}: unreadable header ({error})") from error
    header = form.header
    if header == "none":
        header = [str(n) for n in range(1, len(fields) + 1)]
    if header:
        return Layout(header, separator, number - 1, quoting, form.encoding, False)
    names = _as_rows_are(fields, following[rows - 1 :][:2], separator, quoting)
    return Layout(names, separator, number + rows - 1, quoting, form.encoding)


def first_lines(path: pathlib.Path, encoding: str) -> tuple[int, list[str]]:
    """Returns the number of the first non-blank line, and some lines from it on."""
    number = 1
    with reading(path), open_text(path, encoding) as file:
        lines = iter(lambda: file.readline(1 << 20), "")
        for line in lines:
            if line.strip():
                rest = itertools.islice(lines, MOST_JOINED if '"' in line else 20)
                return number, [s.rstrip("\r\n") for s in (line, *rest)]
            number += 1
    return number, []


def is_separator_line(line: str) -> bool:
    """Whether a first line names the separator, as spreadsheets do: sep=;"""
    return bool(re.fullmatch('"?sep=."?', line))


def without_comments(
    number: int, lines: list[str], separator: str
) -> tuple[int, list[str]]:
    """Drops lines that start with '#' before the header, unless one is the header."""
    start = next((n for n, s in enumerate(lines) if s.strip() and s[0] != "#"), 0)
    if not start:
        return number, lines
    separator = separator or separator_of(lines[start])
    names, fields = (lines[n].split(separator) for n in (start - 1, start))
    if len(names) == len(fields) > 1 and is_click(fields):
        # The last such line is the header.
        start -= 1
    return number + start, lines[start:]


def _as_rows_are(
    names: list[str], lines: Sequence[str], separator: str, quoting: str
) -> list[str]:
    """Fits a header to its rows: one may end in a separator that the other lacks.

    R numbers the rows in a column that the header lacks.
    """
    try:
        rows = [fields_of(line, separator, quoting) for line in lines if line.strip()]
    except csv.Error:
        return names
    lengths = {*map(len, rows)}
    if lengths == {len(names) - 1} and not names[-1].strip():
        return names[:-1]
    if lengths == {len(names) + 1}:
        if not any(row[-1].strip() for row in rows):
            return [*names, ""]
        if [row[0] for row in rows] == ["1", "2"]:
            return ["", *names]
    return names


def _first_row(
    lines: Sequence[str], separator: str, quoting: str, width: int
) -> tuple[list[str], int]:
    """Returns the fields of the first row and how many lines it takes.

    Raises csv.Error.
    """
    faults = []
    are_alone = separator == "\t" and _are_alone(lines, lines[0].count("\t"))
    for end in range(1, len(lines) + 1):
        if end > 1 and lines[end - 1].count('"') % 2 == 0:
            continue
        try:
            fields = fields_of("\n".join(lines[:end]), separator, quoting)
        except csv.Error as error:
            faults.append(error)
        else:
            if len(fields) == width or not (width or (are_alone and end > 1)):
                return fields, end
    if separator == "\t" or width:
        return lines[0].split(separator), 1
    raise faults[0]


def as_meant(separator: str) -> str:
    """Returns a separator; a tab may have been typed as a backslash and a t."""
    return separator.replace("\\t", "\t")


def separator_of(line: str) -> str:
    """Returns the separator that occurs most often in a line."""
    return max(SEPARATORS, key=line.count)


def is_click(fields: Collection[str], missing: Collection[str] = ()) -> bool:
    """Whether the fields of a first line are a click, not column names.

    `missing` are values that count as missing; they never name a column.
    """
    if sum(plain_name(field) in USUAL for field in fields) > 1:
        return False
    return any(
        field.strip() in missing or looks_like_time(field) or forms_of(field)
        for field in fields
    )


def check_header(path: pathlib.Path, layout: Layout) -> None:
    """Raises UserError if the header of a file is a click."""
    names = layout.names
    if not layout.has_header or not is_click(names) or len(names) < 2:
        return
    numbers = range(1, len(names) + 1)
    # The longest date, or else number, is probably the time; session and item are the
    # first other fields that are not coordinates.
    dates = [n for n in numbers if forms_of(names[n - 1])]
    times = [n for n in numbers if looks_like_time(names[n - 1])]
    places = {n for n in times if re.fullmatch(r"-?\d{1,3}\.\d+", names[n - 1].strip())}
    times = dates or [n for n in times if n not in places] or times
    time = max(times, key=lambda n: len(names[n - 1].strip()))
    likely = [n for n in numbers if n not in places]
    others = [*(n for n in (*likely, *numbers) if n != time), *numbers][:2]
    numbered = zip(("session", "item", "time"), (*others, time), strict=True)
    raise UserError(
        f"{path}, line {layout.header_line}: "
        f"{layout.separator.join(layout.names)[:120]!r} looks like a click, not like "
        "column names; add a header above it, or name the columns by number, for "
        "example with --config.header=none "
        + " ".join(f"--config.{name}_column={n}" for name, n in numbered)
    )


def fields_of(line: str, separator: str, quoting: str = "") -> list[str]:
    """Splits a line, or several lines joined by quotes; raises csv.Error."""
    if quoting == "none" or '"' not in line:
        return line.split(separator)
    if len(separator) > 1:
        raise csv.Error("quotes need a separator of one character")
    csv.field_size_limit(2**31 - 1)
    try:
        return next(csv.reader([line], delimiter=separator, strict=True))
    except csv.Error:
        if '\\"' not in line:
            raise
        # Spark and MySQL write quotes within quotes like this.
        escaped: Any = {"escapechar": "\\", "doublequote": False}
        return next(csv.reader([line], delimiter=separator, strict=True, **escaped))


def text_chunks(
    path: pathlib.Path, layout: Layout, position: Mapping[str, int]
) -> Iterator[pl.DataFrame]:
    """Yields chunks of rows: number (of the line), the columns of `position`, fault."""
    number, held = 1, ""
    with reading(path), open_text(path, layout.encoding) as file:
        while True:
            block = file.read(CHUNK)
            block += file.readline() if block else ""
            is_last = not block
            block = held + block
            if not block:
                return
            lines = pl.scan_lines(
                block.encode("utf-8", "replace"),
                name="text",
                row_index_name="number",
                row_index_offset=number,
            ).collect()
            held, end = "", number + len(lines)
            if number <= layout.header_line:
                lines = lines.filter(pl.col("number") > layout.header_line)
            if '"' in block and layout.quoting != "none":
                lines, open_from = _join_lines(lines, layout, position)
                if open_from and not is_last and end - open_from < MOST_JOINED:
                    rest = lines.filter(pl.col("number") >= open_from)["text"]
                    held, end = "\n".join([*rest, ""]), open_from
                    lines = lines.filter(pl.col("number") < open_from)
            number = end
            rows = _split(lines, layout, position)
            is_damaged = "\ufffd" in block or "\0" in block
            yield _find_damage(rows, list(position)) if is_damaged else rows


def _join_lines(
    lines: pl.DataFrame, layout: Layout, position: Mapping[str, int]
) -> tuple[pl.DataFrame, int]:
    """Joins lines that were split at a line break within quotes.

    Returns the lines, and the number of the line whose quotes stay open, or 0.
    """
    odd = lines["text"].str.count_matches('"', literal=True) % 2 == 1
    openers = odd.arg_true().to_list()
    if not openers:
        return lines, 0
    texts: list[Any] = lines["text"].to_list()
    while len(openers) > 1:
        start, end = openers[:2]
        parts = texts[start : end + 1]
        if end - start < MOST_JOINED and _are_one(parts, layout, position):
            texts[start : end + 1] = ["\n".join(parts)] + [None] * (end - start)
            openers = openers[2:]
        else:
            openers = openers[1:]
    last = lines["number"][openers[0]] if openers else 0
    return lines.with_columns(pl.Series("text", texts)).drop_nulls(), last


def _are_one(parts: Sequence[str], layout: Layout, position: Mapping[str, int]) -> bool:
    """Whether lines form one row; ids and times contain no line breaks."""
    expected = len(layout.names)
    try:
        fields = fields_of("\n".join(parts), layout.separator)
    except csv.Error:
        return False
    if len(fields) != expected or any(
        "\n" in fields[i].strip() for i in position.values()
    ):
        return False
    if layout.separator == "\t":
        return not _are_alone(parts, expected - 1)
    if "time" not in position:
        return True
    # Each line may be a click of its own, with a quote in some text.
    rows = [part.split(layout.separator) for part in parts if part.strip()]
    times = [row[position["time"]] for row in rows if len(row) == expected]
    return not (len(times) == len(rows) and all(map(looks_like_time, times)))


def _are_alone(lines: Sequence[str], tabs: int) -> bool:
    """Whether each line is a row despite open quotes: few files with tabs quote."""
    return all(line.count("\t") == tabs for line in lines if line.strip())


def _split(
    lines: pl.DataFrame, layout: Layout, position: Mapping[str, int]
) -> pl.DataFrame:
    """Returns number, the columns of `position` and fault; skips blank lines."""
    text, separator, expected = pl.col("text"), layout.separator, len(layout.names)
    is_odd = text.str.count_matches(separator, literal=True) != expected - 1
    if layout.quoting != "none":
        is_odd |= text.str.contains('"', literal=True)
    lines = lines.with_columns(is_odd.alias("is odd"))
    even = lines.filter(~pl.col("is odd")).select(
        "number", text.str.split_exact(separator, expected - 1)
    )
    columns = [pl.col(f"field_{i}").alias(name) for name, i in position.items()]
    split = even.unnest("text").select(
        "number", *columns, pl.lit(None, pl.String).alias("fault")
    )
    rows = []
    for number, line in lines.filter("is odd").select("number", "text").rows():
        # A line of separators, such as tabs, is a row of empty fields.
        if line.strip() or separator in line:
            parts, fault = _split_again(line, layout, position)
            rows.append((number, *parts, fault))
    odd = pl.DataFrame(rows, schema=split.schema, orient="row")
    return pl.concat([split, odd]).sort("number") if rows else split


def _find_damage(rows: pl.DataFrame, columns: list[str]) -> pl.DataFrame:
    for character, what in (
        ("\ufffd", NOT_UTF8 + "; name the encoding of the file with --config.encoding"),
        ("\0", "a NUL byte, as in files that were not fully written"),
    ):
        is_damaged = pl.any_horizontal(pl.col(columns).str.contains(character))
        fault = pl.when(is_damaged & pl.col("fault").is_null()).then(pl.lit(what))
        rows = rows.with_columns(fault.otherwise("fault").alias("fault"))
    return rows


def _split_again(
    line: str, layout: Layout, position: Mapping[str, int]
) -> tuple[Sequence[str], str | None]:
    """Returns the wanted fields of a quoted or malformed line, and its fault."""
    separator, expected, fault = layout.separator, len(layout.names), None
    plain = line.split(separator)
    try:
        fields = fields_of(line, separator, layout.quoting)
    except csv.Error as error:
        fields, fault = plain, f"unreadable quotes ({error})"
    if not fault and len(fields) == expected:
        return [fields[i] for i in position.values()], None
    # Unclosed quotes in a column that is not read are ordinary text.
    if len(plain) == expected:
        parts = [plain[i] for i in position.values()]
        if not any('"' in part for part in parts):
            return parts, None
        if fault:
            fault += "; --config.quoting=none reads quotes as text"
    fault = fault or f"{len(fields)} fields instead of {expected}"
    return [""] * len(position), fault
