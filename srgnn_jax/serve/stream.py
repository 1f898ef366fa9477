"""Recommends to, and evaluates on, sessions in files: what the command line does."""

import collections
import contextlib
import csv
import dataclasses
import io
import itertools
import pathlib
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TextIO

import numpy as np
import orjson
import polars as pl
from ml_collections import ConfigDict
from tqdm import tqdm

from srgnn_jax import config as config_lib
from srgnn_jax.data import records
from srgnn_jax.data.columns import USUAL_NAMES, Columns, plain_name
from srgnn_jax.data.files import is_json, is_packed, kind_of, open_text
from srgnn_jax.data.frames import Clicks
from srgnn_jax.data.read import Form, columns_of, read_clicks
from srgnn_jax.data.sessions import Sessions
from srgnn_jax.data.sources import Settings, click_log
from srgnn_jax.data.text import NOT_UTF8, fields_of, separator_of
from srgnn_jax.data.times import looks_like_time
from srgnn_jax.data.visits import gather_visits
from srgnn_jax.devices import layouts, processes
from srgnn_jax.errors import UserError, reason
from srgnn_jax.evaluate import baselines, metrics
from srgnn_jax.evaluate.scorer import target_ranks
from srgnn_jax.evaluate.workdir import make_evaluator, metric_table
from srgnn_jax.serve.exported import wrong_session
from srgnn_jax.serve.recommend import Recommender

# Read, answered and written at a time: some thousands of sessions.
READ_BYTES = 2**17
SESSIONS = 4096
JSON_SUFFIXES = (".json", ".jsonl", ".ndjson")
_Ids = list[str | int]
# The raw ids of sessions, None in the place of a line that cannot be read, and what is
# to be printed besides: a log's session, or the error.
_Entries = list[tuple[_Ids | None, dict[str, Any]]]


def evaluate_sessions(
    workdir: str,
    clicks: "str | Clicks",
    config: ConfigDict | None = None,
    model: config_lib.MakeModel | None = None,
) -> dict[str, float]:
    """Evaluates the best checkpoint on a click log of raw ids; prints the metrics.

    As in the published preparation, a session's clicks are sorted by time, those on
    items that training did not know are dropped, and each from the second on is then
    the target of the clicks before it. The data set is not needed.

    `clicks` is a file or a folder, read as a training log is, see `read.read_clicks`,
    or a frame. `config`, the run's own if None, says how, and may name other list
    lengths; for `model` see `Recommender.load`. Returns the mean of every metric.
    """
    recommender = Recommender.load(workdir, model)
    vocabulary = recommender.vocabulary
    config = config or config_lib.from_dict(recommender.progress.config)
    config_lib.validate(config)
    settings = config_lib.settings(config)
    name = "the frame" if isinstance(clicks, Clicks) else clicks
    if isinstance(clicks, Clicks):
        log_, _ = clicks.read(settings)
    else:
        log_, _ = read_clicks(_log_files(clicks, settings), settings.form)
    visits = gather_visits(log_, **settings.visits)
    sessions, raw_items = visits.sessions, visits.raw_items.cast(pl.String)
    rows = vocabulary.rows(raw_items.to_list())[sessions.items]
    known, _ = Sessions(rows, sessions.offsets).keep(rows > 0)
    examples = known.examples(recommender.max_length)
    if not len(examples):
        raise UserError(
            f"{name} holds nothing to evaluate on: none of its {len(sessions)} "
            "sessions has two clicks on items of the vocabulary; are its ids those of "
            "the training log?"
        )
    devices = layouts.find_devices(
        "jit", max_scores=config.max_scores, max_positions=config.max_positions
    )
    evaluate = make_evaluator(config, recommender.model, examples, devices)
    columns = {"SR-GNN": evaluate(recommender.params)}
    if vocabulary.clicks is not None:
        popular = baselines.pop_of_clicks(np.append(0, vocabulary.clicks))
        columns["POP"] = metrics.means(target_ranks(popular, examples), config.ks)
    processes.say(
        f"\nstep {recommender.step} on {name}\n"
        f"{len(sessions):,} sessions, {len(rows):,} clicks, of which "
        f"{np.count_nonzero(rows == 0):,} on unknown items are dropped; "
        f"{len(examples):,} examples\n\n" + "\n".join(metric_table(config.ks, columns))
    )
    return columns["SR-GNN"]


def recommend_file(
    workdir: str,
    sessions: str,
    *,
    candidates: str | None = None,
    model: config_lib.MakeModel | None = None,
    **options: Any,
) -> None:
    """Recommends to the sessions of a file, one JSON object a line on stdout.

    `sessions` is the file, the folder of a log, or "-" for stdin, `candidates` a text
    file of raw ids, one a line; for the rest see `Recommender.load` and `recommend`.
    """
    path = pathlib.Path(sessions).expanduser()
    with contextlib.ExitStack() as stack:
        source: Any = sys.stdin.buffer
        if sessions != "-":
            source = path
            path.is_dir() or stack.enter_context(_open(sessions, "--sessions"))
        if candidates is not None:
            options["candidates"] = filter(None, read_ids(candidates, "--candidates"))
        recommender = Recommender.load(workdir, model)
        config = config_lib.from_dict(recommender.progress.config)
        settings = config_lib.settings(config)
        options |= {"name": sessions, "settings": settings}
        recommend_stream(recommender, source, sys.stdout, **options)


def recommend_stream(
    recommender: Recommender,
    source: io.BufferedIOBase | pathlib.Path,
    output: TextIO | io.TextIOBase,
    *,
    name: str = "-",
    settings: Settings = Settings(),  # noqa: B008 (nothing changes it)
    candidates: Iterable[str | int] | None = None,
    **options: Any,
) -> None:
    """Recommends to sessions as they are read, in their order, in bounded memory.

    A JSON object is written for each session: items, scores, unknown and fallback, as
    in `Recommendation`, and for a click log also session, its id. A line that cannot be
    read gives an object with `error`, `file` and `line`, its number.

    Args:
      source: binary file, or a path; see `read_sessions` for its form.
      output: text file; flushed whenever there is no more to read for the moment.
      name: of the source; its suffix may tell the form.
      settings: how the run reads a click log.
      candidates: see `Recommender.restrict`; None: all items.
      options: the others of `Recommender.recommend`.
    """
    done = {"sessions": 0, "fallbacks": 0, "unreadable lines": 0}

    def write(entries: _Entries, answered: Future) -> None:
        found = answered.result()
        remaining = iter(found)
        for session, fields in entries:
            if session is not None:
                fields = next(remaining)._asdict() | fields
            output.write(orjson.dumps(fields).decode() + "\n")
        output.flush()
        done["sessions"] += len(found)
        done["fallbacks"] += sum(one.fallback for one in found)
        done["unreadable lines"] += len(entries) - len(found)
        bar.update(len(entries))

    if candidates is not None:
        recommender = recommender.restrict(candidates)
    # Options that are wrong are told before anything is read.
    recommender.recommend([], **options)
    # While the device works on some sessions, others are read and written. None of the
    # three waits for input that has yet to come.
    with (
        tqdm(desc="recommend", unit=" sessions", disable=None, leave=False) as bar,
        ThreadPoolExecutor(1) as answering,
        ThreadPoolExecutor(1) as writing,
    ):
        pending: collections.deque[Future] = collections.deque()
        try:
            for entries in read_sessions(source, name, settings):
                sessions = [session for session, _ in entries if session is not None]
                answered = answering.submit(recommender.recommend, sessions, **options)
                pending.append(writing.submit(write, entries, answered))
                if len(pending) > 2:
                    pending.popleft().result()
            for last in pending:
                last.result()
        except BaseException:
            # Ctrl-C waits for no more than what is being worked on.
            answering.shutdown(wait=False, cancel_futures=True)
            raise
    counts = ", ".join(f"{n:,} {what}" for what, n in done.items())
    print(counts, file=sys.stderr, flush=True)


def _open(path: str, flag: str) -> io.BufferedIOBase:
    try:
        return open(pathlib.Path(path).expanduser(), "rb")
    except OSError as error:
        raise UserError(f"cannot read {flag}={path}: {reason(error)}") from error


def read_ids(path: str, flag: str) -> list[str]:
    """Reads raw ids, one a line; the flag is for the error where it cannot be read."""
    with _open(path, flag) as file:
        lines = file.read().removesuffix(b"\n").split(b"\n")
    ids = []
    for number, line in enumerate(lines, 1):
        try:
            ids.append(_text(line))
        except ValueError as error:
            raise UserError(f"{path}, line {number}: {error}") from error
    return ids


def read_sessions(
    source: io.BufferedIOBase | pathlib.Path, name: str, settings: Settings
) -> Iterator[_Entries]:
    """Reads sessions as they come; of a click log, once all of it is there.

    Three forms are read, told by what the first line that is not blank holds:
      JSON lines      {"session": ["id", ...]} a line.
      a click log     as one to train on, in any form that `read.read_clicks` takes, by
                      the run's own settings; a column of times may be missing. Its
                      clicks are gathered by session and put in order of time; of the
                      visits that `settings` makes of a session's clicks, the last.
      a csv           the ids of one session a line; an empty line is an empty session.

    Yields:
      The sessions that can be had without waiting for more, in order; of a line that
      cannot be read, the error.
    """
    blocks, start, first = _begin(source)
    is_log = False
    with contextlib.ExitStack() as stack:
        path = source if isinstance(source, pathlib.Path) else None
        if path is None and (is_packed(start) or _is_log(first, name, settings)):
            path = stack.enter_context(_spooled(blocks))
        if path is not None:
            is_log = path.is_dir() or kind_of(path) == "parquet"
        if path is not None and not is_log:
            text = stack.enter_context(open_text(path))
            blocks, start, first = _begin(text)
            is_log = _is_log(first, name, settings)
        if is_log and path:
            yield from _log_entries(path, name, settings)
        else:
            yield from _session_lines(blocks, first, name)


def _begin(source: Any) -> tuple[Iterator[bytes], bytes, str]:
    """Returns blocks of bytes, the first of them, and the first line with something."""
    if isinstance(source, pathlib.Path):
        return iter(()), b"", ""
    blocks: Iterator[bytes]
    if isinstance(source, io.TextIOBase):
        blocks = iter(lambda: source.read(READ_BYTES).encode("utf-8", "replace"), b"")
    else:
        # read1 returns what a pipe holds: its writer may wait for an answer.
        blocks = iter(lambda: source.read1(READ_BYTES), b"")
    start, first = b"", b""
    while not first and (block := next(blocks, b"")):
        start += block
        # The last line may go on.
        lines = start.split(b"\n")[:-1]
        first = next((line for line in lines if line.strip()), b"")
    first = first or start
    told = first.decode("utf-8-sig", "replace").removesuffix("\r")
    return itertools.chain([start] if start else [], blocks), start, told


@contextlib.contextmanager
def _spooled(blocks: Iterable[bytes]) -> Iterator[pathlib.Path]:
    """Writes what is piped to a file; a log is sorted only once it is there."""
    with tempfile.NamedTemporaryFile("wb") as file:
        for block in blocks:
            file.write(block)
        file.flush()
        yield pathlib.Path(file.name)


def _is_log(first: str, name: str, settings: Settings) -> bool:
    """Whether the first line is that of a click log.

    Raises UserError where it is a header that lacks a column.
    """
    form, fields = settings.form, []
    if is_json(first):
        with contextlib.suppress(orjson.JSONDecodeError):
            record = orjson.loads(first)
            is_session = not isinstance(record, dict) or set(record) == {"session"}
            fields = [] if is_session else records.fields_of(record)
        return bool(fields) and _log_form(fields, name, settings) is not None
    separator = settings.separator.replace("\\t", "\t") or separator_of(first)
    with contextlib.suppress(csv.Error):
        fields = fields_of(first, separator, settings.quoting)
    if settings.header == "none":
        numbered = {str(n): field for n, field in enumerate(fields, 1)}
        return looks_like_time(numbered.get(form.columns.time, ""))
    if _log_form(fields, name, settings):
        return True
    usual = {plain_name(field) for field in fields}
    if len(fields) > 1 and usual & {*USUAL_NAMES["session"], *USUAL_NAMES["time"]}:
        _form_without_time(settings).names(fields, name)
    return False


def _form_without_time(settings: Settings) -> Form:
    needs_time = bool(settings.session_gap_minutes or settings.session_by_day)
    return dataclasses.replace(settings.form, needs_time=needs_time)


def _log_form(fields: Sequence[str], name: str, settings: Settings) -> Form | None:
    """Returns the form whose columns are there: the run's, or that of usual names."""
    own = _form_without_time(settings)
    for form in (own, dataclasses.replace(own, columns=Columns())):
        with contextlib.suppress(UserError):
            form.names(fields, name)
            return form
    return None


def _log_files(path: str, settings: Settings) -> list[pathlib.Path]:
    """Returns the files of a log, which may be a folder of parts."""
    log_path = pathlib.Path(path).expanduser()
    if not log_path.is_dir():
        return [log_path]
    return click_log.find_files(log_path, dataclasses.replace(settings, log_file=""))


def _log_entries(
    path: pathlib.Path, name: str, settings: Settings
) -> Iterator[_Entries]:
    """Yields the sessions of a log by first appearance, after its malformed lines."""
    bad: _Entries = []

    def on_bad(where, line, what):
        file = name if where == path else str(where)
        bad.append((None, {"error": what, "file": file, "line": line}))

    try:
        files = _log_files(str(path), settings)
        own = _form_without_time(settings)
        form = _log_form(columns_of(files[0], own), name, settings) or own
        clicks, _ = read_clicks(files, form, on_bad)
    except UserError as error:
        raise UserError(str(error).replace(str(path), name)) from error
    cuts = settings.visits | {"max_session_clicks": 0}
    visits = gather_visits(clicks, **cuts)
    yield bad
    raw, owners = visits.raw_items.cast(pl.String), visits.ids.cast(pl.String)
    # Of the visits of one id, which follow one another, the last.
    is_last = (owners != owners.shift(-1)).fill_null(True)
    last = np.flatnonzero(is_last)
    for start in range(0, len(last), SESSIONS):
        chosen = last[start : start + SESSIONS]
        sessions = visits.sessions.take(chosen)
        ids = np.split(raw.gather(sessions.items).to_numpy(), sessions.offsets[1:-1])
        names = owners.gather(chosen).to_list()
        yield [
            (items.tolist(), {"session": owner})
            for items, owner in zip(ids, names, strict=True)
        ]


def _session_lines(
    blocks: Iterable[bytes], first: str, name: str
) -> Iterator[_Entries]:
    """Yields the sessions of lines, as JSON or as ids in csv."""
    suffix = pathlib.PurePath(name).suffix.lower()
    separator = separator_of(first)

    def of_ids(line: str) -> _Ids:
        return [field for field in _fields(line, separator) if field]

    parse = _json_session if suffix in JSON_SUFFIXES or is_json(first) else of_ids
    for chunk in _line_chunks(blocks):
        entries: _Entries = []
        for n, line in chunk:
            try:
                entries.append((parse(_text(line)), {}))
            except ValueError as error:
                entries.append((None, {"error": str(error), "file": name, "line": n}))
        yield entries


def _line_chunks(blocks: Iterable[bytes]) -> Iterator[list[tuple[int, bytes]]]:
    """Yields the lines that can be had at once, numbered."""
    number = itertools.count(1)
    rest = b""
    for block in blocks:
        *lines, rest = (rest + block).split(b"\n")
        if lines:
            yield [(next(number), line) for line in lines]
    if rest:
        yield [(next(number), rest)]


def _text(line: bytes) -> str:
    try:
        return line.decode("utf-8-sig").removesuffix("\r")
    except UnicodeDecodeError:
        raise ValueError(NOT_UTF8) from None


def _json_session(line: str) -> _Ids:
    try:
        record = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise ValueError(f"no JSON: {error}") from error
    if not isinstance(record, dict) or "session" not in record:
        raise ValueError('no object with a field "session"')
    if wrong := wrong_session(record["session"]):
        raise ValueError(wrong)
    return record["session"]


def _fields(line: str, separator: str) -> list[str]:
    try:
        fields = next(csv.reader([line], delimiter=separator, strict=True))
    except csv.Error as error:
        raise ValueError(f"unreadable csv ({error})") from error
    return [field.strip() for field in fields]
