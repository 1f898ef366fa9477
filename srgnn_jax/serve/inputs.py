"""Reads the command line's input: sessions, click logs, candidates."""

import contextlib
import csv
import dataclasses
import io
import itertools
import pathlib
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import orjson
import polars as pl

from srgnn_jax.data import records
from srgnn_jax.data.columns import USUAL_NAMES, Columns, plain_name
from srgnn_jax.data.files import is_array, is_json, is_packed, kind_of, open_text
from srgnn_jax.data.read import Form, columns_of, read_clicks
from srgnn_jax.data.sessions import Vocabulary
from srgnn_jax.data.sources import Settings, click_log
from srgnn_jax.data.text import (
    NOT_UTF8,
    SEPARATORS,
    as_meant,
    fields_of,
    is_separator_line,
    separator_of,
    without_comments,
)
from srgnn_jax.data.times import (
    TimeColumn,
    is_date,
    looks_like_number,
    looks_recent,
)
from srgnn_jax.data.visits import gather_visits
from srgnn_jax.errors import UserError, reason
from srgnn_jax.serve.exported import wrong_session

# Sessions are read, answered and written a few thousand at a time.
READ_BYTES = 2**17
SESSIONS = 4096
JSON_SUFFIXES = (".json", ".jsonl", ".ndjson")
Ids = list[str | int | float]
# The raw ids of sessions (None for a line that cannot be read), and further fields to
# print: the session's id in a log, or the error.
Entries = list[tuple[Ids | None, dict[str, Any]]]


def open_file(path: str, flag: str) -> io.BufferedIOBase:
    try:
        return open(pathlib.Path(path).expanduser(), "rb")
    except OSError as error:
        raise UserError(f"cannot read {flag}={path}: {reason(error)}") from error


def read_ids(path: str, flag: str) -> list[str]:
    """Reads raw ids, one per line; the error message names `flag`."""
    with open_file(path, flag) as file:
        lines = file.read().removesuffix(b"\n").split(b"\n")
    ids = []
    for number, line in enumerate(lines, 1):
        try:
            ids.append(_text(line))
        except ValueError as error:
            raise UserError(f"{path}, line {number}: {error}") from error
    return ids


def candidates_of(lines: Sequence[str], vocabulary: Vocabulary, path: str) -> list[str]:
    """Returns the raw ids of items in a file's lines: one per line, or one per row.

    Spaces around them, quotes, blank lines and a header are ignored. In a row, the id
    is in the column that the header names as the item column, or else in the first.

    Raises:
      UserError: the file is empty, or other columns have ids too.
    """
    texts = {n: line.strip() for n, line in enumerate(lines, 1) if line.strip()}
    if not texts:
        raise UserError(f"--candidates={path} is empty; write one item id per line")
    separator = separator_of(next(iter(texts.values())))
    rows = [_row(text, separator) for text in texts.values()]
    is_known = vocabulary.rows(texts.values()) > 0
    if is_known.any() or len({*map(len, rows)}) > 1:
        # Not a table: what looks like a separator is part of an id.
        rows = [
            [text] if whole or len(row) > 1 else row
            for text, row, whole in zip(texts.values(), rows, is_known, strict=True)
        ]
    names = [plain_name(field) for field in rows[0]]
    column = next((names.index(n) for n in USUAL_NAMES["item"] if n in names), None)
    if column is not None and not vocabulary.rows(rows[0]).any():
        return [row[column] for row in rows[1:]]
    for (n, text), row in zip(texts.items(), rows, strict=True):
        if vocabulary.rows(row[1:]).any():
            raise UserError(
                f"--candidates={path}, line {n}: {text!r} has an item id outside the "
                "first column; write one id per line, or name the column of ids "
                "item_id in a header"
            )
    return [row[0] for row in rows]


def _row(line: str, separator: str) -> list[str]:
    """Returns the fields of a line, or the whole line if it is not csv."""
    try:
        return _fields(line, separator)
    except ValueError:
        return [line]


def read_sessions(
    source: io.BufferedIOBase | pathlib.Path, name: str, settings: Settings
) -> Iterator[Entries]:
    """Reads sessions as they arrive; a click log is read to its end first.

    It reads three formats, and detects the format from the first non-blank line:
      JSON lines      {"session": ["id", ...]} per line.
      a click log     like a training log, in any form that `read.read_clicks` takes,
                      read with the run's own settings; the time column may be missing.
                      Its clicks are grouped by session and sorted by time. If
                      `settings` splits a session into visits, the last one is used.
      a csv           the ids of a session per line; an empty line is an empty session.

    Yields:
      The sessions available without waiting for more, in order; the error for a line
      that cannot be read.
    """
    if not isinstance(source, pathlib.Path):
        # read1 returns what a pipe holds: its writer may wait for an answer.
        blocks, start, lines = _begin(lambda: source.read1(READ_BYTES))
        if not is_packed(start) and not _is_log(lines, name, settings):
            yield from _session_lines(blocks, lines[0], name)
            return
        # A log can be sorted only once all of it has arrived.
        with tempfile.NamedTemporaryFile("wb") as file:
            file.writelines(blocks)
            file.flush()
            yield from read_sessions(pathlib.Path(file.name), name, settings)
    elif source.is_dir() or kind_of(source) == "parquet":
        yield from _log_entries(source, name, settings)
    else:
        with open_text(source) as text:
            blocks, _, lines = _begin(lambda: text.read(READ_BYTES).encode())
            if _is_log(lines, name, settings):
                yield from _log_entries(source, name, settings)
            else:
                yield from _session_lines(blocks, lines[0], name)


def _begin(read: Callable[[], bytes]) -> tuple[Iterator[bytes], bytes, list[str]]:
    """Returns blocks of bytes, the first of them, and the first lines with content."""
    blocks = iter(read, b"")
    start, lines = b"", list[bytes]()
    while not lines and (block := next(blocks, b"")):
        start += block
        # The last line may be incomplete, and what follows comments is the first.
        lines = [line for line in start.split(b"\n")[:-1] if line.strip()]
        if all(line.startswith((b"# ", b"sep=", b'"sep=')) for line in lines):
            lines = []
    texts = [
        line.decode("utf-8-sig", "replace").removesuffix("\r")
        for line in lines[:20] or [start]
    ]
    _, texts = without_comments(1, texts, "")
    if len(texts) > 1 and is_separator_line(texts[0]):
        texts = texts[1:]
    if is_array(texts[0]):
        # Write one line per object.
        with contextlib.suppress(orjson.JSONDecodeError):
            array = orjson.loads(start := start + b"".join(blocks))
            start = b"\n".join(map(orjson.dumps, array))
        blocks, texts = iter(()), [start.split(b"\n")[0].decode("utf-8", "replace")]
    return itertools.chain([start], blocks), start, texts


def _is_log(lines: Sequence[str], name: str, settings: Settings) -> bool:
    """Whether the first of some lines is that of a click log.

    Raises UserError if it is a header that lacks a column, or a click without a header.
    """
    first = lines[0]
    if is_json(first):
        record = _json_fields(first)
        return bool(record) and _log_form(record, name, settings) is not None
    separator = as_meant(settings.separator) or separator_of(first)
    rows: list[list[str]] = []
    for line in lines:
        # Quotes stay open if a row has a line break inside them: a log, not ids.
        rows.append([])
        with contextlib.suppress(csv.Error):
            rows[-1] = fields_of(line, separator, settings.quoting)
    fields = rows[0]
    if settings.header == "none":
        return not fields or _have_times(rows, name, settings)
    if _log_form(fields, name, settings):
        return True
    usual = {plain_name(field) for field in fields}
    if len(fields) > 1 and usual & {*USUAL_NAMES["session"], *USUAL_NAMES["time"]}:
        _form_without_time(settings).names(fields, name)
    if len(fields) > 2 and (any(map(is_date, fields)) or _have_one_time(rows)):
        raise UserError(
            f"{name}: {first[:120]!r} looks like a click in a log without a header; "
            "add one above it, such as session_id,item_id,timestamp"
        )
    return False


def _have_one_time(rows: Sequence[Sequence[str]]) -> bool:
    """Whether one column, and no other, has times since 1970 as numbers.

    Needs three rows: some ids are as large as seconds.
    """
    if len(rows) < 3 or len({*map(len, rows)}) > 1:
        return False
    are_times = [[looks_recent(field) for field in row] for row in rows]
    return are_times[0].count(True) == 1 and are_times == are_times[:1] * len(rows)


def _json_fields(line: str) -> dict[str, bool]:
    """Returns the fields of a click, or of an array's first; none for a session."""
    record: Any = records.record_of(line)[0]
    with contextlib.suppress(orjson.JSONDecodeError):
        array = orjson.loads(line)
        record = array[0] if isinstance(array, list) and array else record
    is_click = isinstance(record, dict) and not isinstance(record.get("session"), list)
    return records.names_of(record) if is_click and {*record} != {"session"} else {}


def _have_times(rows: Sequence[Sequence[str]], name: str, settings: Settings) -> bool:
    """Whether rows without a header are clicks: one of them has a time in its place.

    Raises UserError if the only candidates are numbers that may be times or ids.
    """
    read = TimeColumn(unit=settings.time_unit, form=settings.time_format)
    columns = settings.form.columns
    place = int(columns.date or columns.time or 0) - 1
    fields = pl.Series([row[place] for row in rows if 0 <= place < len(row)])
    if not len(fields):
        return False
    numbers = pl.Series(range(1, len(fields) + 1))
    is_time = read(fields, numbers, f"{name}, line").is_not_null()
    is_named = bool(settings.time_unit or settings.time_format)
    for field, fits in zip(fields, is_time, strict=True):
        if fits and (is_named or looks_recent(field) or not looks_like_number(field)):
            return True
    if is_time.any():
        raise UserError(
            f"{name}: {','.join(rows[0])[:120]!r} may be a click or a session of ids; "
            'write sessions as JSON lines, {"session": ["id", "id"]}, and clicks as '
            "parquet, or set config.time_unit in the run"
        )
    return False


def _form_without_time(settings: Settings) -> Form:
    needs_time = bool(settings.session_gap_minutes or settings.session_by_day)
    return dataclasses.replace(settings.form, needs_time=needs_time)


def _log_form(
    fields: Mapping[str, bool] | Sequence[str], name: str, settings: Settings
) -> Form | None:
    """Returns a form whose columns exist: the run's own, or the usual names."""
    own = _form_without_time(settings)
    columns = [own.columns]
    if not own.needs_time:
        columns.append(dataclasses.replace(own.columns, date=""))
        columns.append(dataclasses.replace(own.columns, date="", time=""))
    for one in (*columns, Columns()):
        form = dataclasses.replace(own, columns=one)
        with contextlib.suppress(UserError):
            form.names(fields, name)
            return form
    return None


def log_files(path: str, settings: Settings) -> list[pathlib.Path]:
    """Returns the files of a log, which may be a folder of parts."""
    log_path = pathlib.Path(path).expanduser()
    if not log_path.is_dir():
        return [log_path]
    settings = dataclasses.replace(settings, log_file="")
    return click_log.find_files(log_path, settings, _form_without_time(settings))


def _log_entries(
    path: pathlib.Path, name: str, settings: Settings
) -> Iterator[Entries]:
    """Yields a log's malformed lines, then its sessions by first appearance."""
    bad: Entries = []

    def on_bad(where, line, what):
        file = name if where == path else str(where)
        bad.append((None, {"error": what, "file": file, "line": line}))

    try:
        files = log_files(str(path), settings)
        own = _form_without_time(settings)
        form = _log_form(columns_of(files[0], own), name, settings) or own
        clicks, _ = read_clicks(files, form, on_bad)
    except UserError as error:
        raise UserError(str(error).replace(str(path), name)) from error
    cuts = settings.visits | {"max_session_clicks": 0}
    visits = gather_visits(clicks, **cuts)
    yield bad
    raw, owners = visits.raw_items.cast(pl.String), visits.ids.cast(pl.String)
    last = visits.last_of_each_id()
    for start in range(0, len(last), SESSIONS):
        chosen = last[start : start + SESSIONS]
        sessions = visits.sessions.take(chosen)
        ids = np.split(raw.gather(sessions.items).to_numpy(), sessions.offsets[1:-1])
        names = owners.gather(chosen).to_list()
        yield [
            (items.tolist(), {"session": owner})
            for items, owner in zip(ids, names, strict=True)
        ]


def _session_lines(blocks: Iterable[bytes], first: str, name: str) -> Iterator[Entries]:
    """Yields the sessions in lines of JSON, or of ids in csv."""
    suffix = pathlib.PurePath(name).suffix.lower()
    separator = ""

    def of_ids(line: str) -> Ids:
        nonlocal separator
        # A line with a single id has no separator, and one of a comment may have any.
        is_telling = not line.startswith("# ") and any(s in line for s in SEPARATORS)
        if not separator and is_telling:
            separator = separator_of(line)
        return [field for field in _fields(line, separator or "\t") if field]

    is_object = suffix in JSON_SUFFIXES or is_json(first) or is_array(first)
    parse = _json_session if is_object else of_ids
    for chunk in _line_chunks(blocks):
        entries: Entries = []
        for n, line in chunk:
            try:
                entries.append((parse(_text(line)), {}))
            except ValueError as error:
                entries.append((None, {"error": str(error), "file": name, "line": n}))
        yield entries


def _line_chunks(blocks: Iterable[bytes]) -> Iterator[list[tuple[int, bytes]]]:
    """Yields numbered lines in chunks, as they arrive."""
    number = itertools.count(1)
    rest = b""
    for block in blocks:
        *lines, rest = (rest + block).split(b"\n")
        if lines:
            yield [(next(number), line) for line in lines]
    if rest:
        yield [(next(number), rest)]


def _text(line: bytes) -> str:
    text = line.decode("utf-8-sig", "replace").removesuffix("\r")
    if "\ufffd" in text:
        raise ValueError(NOT_UTF8)
    return text


def _json_session(line: str) -> Ids:
    try:
        record = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise ValueError(f"not valid JSON: {error}") from error
    if not isinstance(record, dict) or "session" not in record:
        raise ValueError('not an object with a field "session"')
    if wrong := wrong_session(record["session"]):
        raise ValueError(wrong)
    return record["session"]


def _fields(line: str, separator: str) -> list[str]:
    try:
        fields = fields_of(line, separator)
    except csv.Error as error:
        raise ValueError(f"unreadable csv ({error})") from error
    return [field.strip() for field in fields]
