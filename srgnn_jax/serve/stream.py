"""Sessions of raw ids, read line by line as they come: JSON lines, csv, click logs."""

import contextlib
import csv
import io
import itertools
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import orjson

from srgnn_jax.data.columns import USUAL_NAMES, plain_name
from srgnn_jax.data.read import NOT_UTF8, SEPARATORS, TEXT_SUFFIXES

READ_BYTES = 2**18
JSON_SUFFIXES = (".json", ".jsonl", ".ndjson")
# Numbered lines, None where one is not UTF-8.
_Lines = list[tuple[int, str | None]]


class SessionLine(NamedTuple):
    """A session that was read, or an error instead.

    Attributes:
      line: number of the line, that of a session's first click in a click log.
      session: raw ids.
      error: what is wrong with the line; empty if nothing is.
      label: the session's id, in a click log.
    """

    line: int
    session: Sequence[str | int] = ()
    error: str = ""
    label: str | None = None


def read_sessions(
    source: io.BufferedIOBase, name: str = "-"
) -> Iterator[list[SessionLine]]:
    """Reads sessions as they come, in bounded memory.

    Three forms are read, told by the name's suffix and by the first line that is not
    blank (blank ones that come before it, and alone, are answered as in a csv):
      JSON lines      {"session": ["id", ...]} a line.
      a click log     csv with a header that names a session and an item column by
                      their usual names; consecutive rows of one session, oldest first,
                      make it up.
      a csv           the ids of one session a line; an empty line is an empty session.

    Args:
      source: binary file.
      name: of the source.

    Yields:
      The sessions that can be had without waiting for more, in order; of a line that
      cannot be read, the error.
    """
    chunks = _line_chunks(source)
    for chunk in chunks:
        first = next(((n, line) for n, line in chunk if line and line.strip()), None)
        if first is not None:
            yield from _told_by(*first, name, itertools.chain([chunk], chunks))
            return
        yield [_csv_line(number, line, ",") for number, line in chunk]


def _told_by(
    number: int, first: str, name: str, chunks: Iterable[_Lines]
) -> Iterator[list[SessionLine]]:
    """Reads the chunks in the form that the first line tells."""
    suffix = pathlib.PurePath(name).suffix.lower()
    if suffix in JSON_SUFFIXES or (suffix not in TEXT_SUFFIXES and _is_json(first)):
        for chunk in chunks:
            yield [_json_line(number, line) for number, line in chunk]
        return
    separator = max(SEPARATORS, key=first.count)
    columns = None
    with contextlib.suppress(csv.Error):
        columns = _log_columns(_fields(first, separator))
    if columns:
        rows = ([r for r in chunk if r[0] > number or r[1] is None] for chunk in chunks)
        yield from _log_sessions(rows, separator, *columns)
        return
    for chunk in chunks:
        yield [_csv_line(number, line, separator) for number, line in chunk]


def _is_json(line: str) -> bool:
    """Whether a line is meant as JSON: an object, or a list on its own."""
    if line.lstrip().startswith("["):
        with contextlib.suppress(orjson.JSONDecodeError):
            return isinstance(orjson.loads(line), list)
    return line.lstrip().startswith("{")


def wrong_session(session: Any) -> str:
    """Says why this is no sequence of raw ids; nothing if it is one."""
    if isinstance(session, str | bytes | dict) or not hasattr(session, "__len__"):
        return f"{str(session)[:80]!r} is no list of item ids"
    for kind in set(map(type, session)) - {str, int}:
        if not issubclass(kind, str | int | np.integer) or kind is bool:
            return f"an item id is of type {kind.__name__}; they are text or integers"
    return ""


def _line_chunks(source: io.BufferedIOBase) -> Iterator[_Lines]:
    """Yields the lines that can be had at once, numbered; None if not UTF-8."""
    number = itertools.count(1)
    rest = b""
    while True:
        # read1 returns what a pipe holds: its writer may wait for an answer.
        block = source.read1(READ_BYTES)
        *lines, rest = (rest + block).split(b"\n")
        if not block and rest:
            lines.append(rest)
        if lines:
            yield [(next(number), _decoded(line)) for line in lines]
        if not block:
            return


def _decoded(line: bytes) -> str | None:
    try:
        return line.decode().removeprefix("\ufeff").removesuffix("\r")
    except UnicodeDecodeError:
        return None


def _json_line(number: int, line: str | None) -> SessionLine:
    if line is None:
        return SessionLine(number, error=NOT_UTF8)
    try:
        record = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        return SessionLine(number, error=f"no JSON: {error}")
    if not isinstance(record, dict) or "session" not in record:
        return SessionLine(number, error='no object with a field "session"')
    wrong = wrong_session(record["session"])
    return SessionLine(number, () if wrong else record["session"], wrong)


def _fields(line: str, separator: str) -> list[str]:
    if not line.strip():
        return []
    if '"' in line:
        fields = next(csv.reader([line], delimiter=separator, strict=True))
    else:
        fields = line.split(separator)
    return [field.strip() for field in fields]


def _csv_line(number: int, line: str | None, separator: str) -> SessionLine:
    if line is None:
        return SessionLine(number, error=NOT_UTF8)
    try:
        return SessionLine(number, [f for f in _fields(line, separator) if f])
    except csv.Error as error:
        return SessionLine(number, error=f"unreadable quotes ({error})")


def _log_columns(names: Sequence[str]) -> tuple[int, int, int] | None:
    """Finds the session's and the item's column, and counts all; None without them."""
    plain = list(map(plain_name, names))
    found = [
        next((plain.index(usual) for usual in USUAL_NAMES[of] if usual in plain), None)
        for of in ("session", "item")
    ]
    session, item = found
    return None if session is None or item is None else (session, item, len(names))


def _log_sessions(
    chunks: Iterable[_Lines],
    separator: str,
    session_column: int,
    item_column: int,
    width: int,
) -> Iterator[list[SessionLine]]:
    """Gathers consecutive rows of one session."""
    first_line, label, items = 0, "", list[str | int]()
    for chunk in chunks:
        entries = []
        for number, line in chunk:
            if line == "":
                continue
            try:
                fields = [] if line is None else _fields(line, separator)
                error = f"{len(fields)} fields instead of {width}"
            except csv.Error as unreadable:
                fields, error = [], f"unreadable quotes ({unreadable})"
            if line is None:
                error = NOT_UTF8
            if len(fields) == width:
                now, item = fields[session_column], fields[item_column]
                error = "" if now and item else "the session or the item is empty"
            if error:
                entries.append(SessionLine(number, error=error))
                continue
            if items and now != label:
                entries.append(SessionLine(first_line, items, label=label))
                items = []
            if not items:
                first_line, label = number, now
            items.append(item)
        yield entries
    if items:
        yield [SessionLine(first_line, items, label=label)]
