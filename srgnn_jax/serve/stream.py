"""Recommends to, and evaluates on, sessions in files: what the command line does.

Sessions come as JSON lines, csv or a click log, and are read as they come.
"""

import collections
import contextlib
import csv
import io
import itertools
import pathlib
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple, TextIO

import numpy as np
import orjson
from ml_collections import ConfigDict
from tqdm import tqdm

from srgnn_jax import config as config_lib
from srgnn_jax.data.columns import USUAL_NAMES, Columns, plain_name
from srgnn_jax.data.prepare import group_by_session
from srgnn_jax.data.read import NOT_UTF8, SEPARATORS, TEXT_SUFFIXES, read_clicks
from srgnn_jax.data.sessions import Sessions
from srgnn_jax.devices import layouts, processes
from srgnn_jax.errors import UserError, reason
from srgnn_jax.evaluate import baselines, metrics
from srgnn_jax.evaluate.scorer import target_ranks
from srgnn_jax.evaluate.workdir import make_evaluator, metric_table
from srgnn_jax.serve.exported import CHUNK, Recommendation, wrong_session
from srgnn_jax.serve.recommend import Recommender, load

READ_BYTES = 2**18
JSON_SUFFIXES = (".json", ".jsonl", ".ndjson")
_Lines = list[tuple[int, bytes]]
# Turns a line into raw ids and, of a click log, the session's id.
_Parse = Callable[[str], tuple[list[str | int], str | None]]


class SessionLine(NamedTuple):
    """A session that was read, or an error instead."""

    line: int  # its number; in a click log that of the session's first click
    session: list[str | int]
    error: str = ""  # what is wrong with the line
    label: str | None = None  # the session's id, in a click log


def evaluate_sessions(
    workdir: str,
    log_file: str,
    config: ConfigDict | None = None,
    model: config_lib.MakeModel | None = None,
) -> dict[str, float]:
    """Evaluates the best checkpoint on a click log of raw ids; prints the metrics.

    As in the published preparation, a session's clicks are sorted by time, clicks on
    items that training did not know are dropped, and every click from the second on is
    then the target of the clicks before it. The data set is not needed.

    Args:
      workdir: of a run.
      log_file: csv, tsv or parquet, read as a training log is; see `read.read_clicks`.
      config: may name its columns, and the list lengths; the run's own if None.
      model: see `Recommender.load`.

    Returns:
      The mean of every metric.
    """
    recommender, progress, step = load(workdir, model)
    vocabulary = recommender.vocabulary
    config = config or config_lib.from_dict(progress.config)
    config_lib.validate(config)
    clicks, _ = read_clicks(
        pathlib.Path(log_file).expanduser(),
        Columns(*(config[f"{name}_column"] for name in USUAL_NAMES)),
        separator=config.separator,
        on_bad_row=config.on_bad_row,
    )
    sessions, _, raw_items = group_by_session(clicks, clicks["time"].to_numpy())
    rows = vocabulary.rows(raw_items.to_list())[sessions.items]
    known, _ = Sessions(rows, sessions.offsets).keep(rows > 0)
    examples = known.examples(recommender.max_length)
    if not len(examples):
        raise UserError(
            f"{log_file} holds nothing to evaluate on: none of its {len(sessions)} "
            "sessions has two clicks on items of the vocabulary; are its ids those of "
            "the training log?"
        )
    devices = layouts.find_devices(
        "jit", max_scores=config.max_scores, max_positions=config.max_positions
    )
    evaluate = make_evaluator(config, recommender.model, examples, devices)
    means = evaluate(recommender.params)
    columns = {"SR-GNN": means}
    if vocabulary.clicks is not None:
        popular = baselines.pop_of_clicks(np.append(0, vocabulary.clicks))
        columns["POP"] = metrics.means(target_ranks(popular, examples), config.ks)
    processes.say(
        f"\nstep {step} on {log_file}\n"
        f"{len(sessions):,} sessions, {len(rows):,} clicks, of which "
        f"{np.count_nonzero(rows == 0):,} on unknown items are dropped; "
        f"{len(examples):,} examples\n"
    )
    processes.say("\n".join(metric_table(config.ks, columns)))
    return means


def recommend_file(
    workdir: str,
    sessions: str,
    *,
    candidates: str | None = None,
    model: config_lib.MakeModel | None = None,
    **options: Any,
) -> None:
    """Recommends to the sessions of a file, one JSON object a line on stdout.

    Args:
      workdir: of a run.
      sessions: the file, or "-" for stdin; see `recommend_stream`.
      candidates: text file with the raw ids that may be recommended, one a line.
      model: see `Recommender.load`.
      options: the others of `Recommender.recommend`.
    """
    file: Any = contextlib.nullcontext(sys.stdin.buffer)
    if sessions != "-":
        file = _open(sessions, "--sessions")
    with file as source:
        if candidates is not None:
            options["candidates"] = _read_ids(candidates)
        recommender = Recommender.load(workdir, model)
        recommend_stream(recommender, source, sys.stdout, name=sessions, **options)


def recommend_stream(
    recommender: Recommender,
    source: io.BufferedIOBase,
    output: TextIO | io.TextIOBase,
    *,
    name: str = "-",
    candidates: Iterable[str | int] | None = None,
    **options: Any,
) -> None:
    """Recommends to sessions as they are read, in their order, in bounded memory.

    A JSON object is written for each session: items, scores, unknown and fallback, as
    in `Recommendation`, and for a click log also session, its id. A line that cannot be
    read gives an object with `error`, `file` and `line`, its number, in its place.

    Args:
      recommender: the model.
      source: binary file; see `read_sessions` for its form.
      output: text file; flushed whenever there is no more to read for the moment.
      name: of the source.
      candidates: see `Recommender.restrict`; None: all items.
      options: the others of `Recommender.recommend`.
    """
    done = {"sessions": 0, "fallbacks": 0, "unreadable lines": 0}

    def write(entries, answered):
        found = answered.result()
        output.write("".join(_json_lines(entries, found, name)))
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
            for entries in read_sessions(source, name):
                for start in range(0, len(entries), CHUNK):
                    part = entries[start : start + CHUNK]
                    sessions = [entry.session for entry in part if not entry.error]
                    answered = answering.submit(
                        recommender.recommend, sessions, **options
                    )
                    pending.append(writing.submit(write, part, answered))
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


def _json_lines(
    entries: Sequence[SessionLine], found: Sequence[Recommendation], name: str
) -> Iterator[str]:
    recommendations = iter(found)
    for entry in entries:
        fields: dict[str, Any] = {}
        if entry.error:
            fields = {"error": entry.error, "file": name, "line": entry.line}
        else:
            fields = next(recommendations)._asdict()
        if entry.label is not None:
            fields["session"] = entry.label
        yield orjson.dumps(fields, option=orjson.OPT_APPEND_NEWLINE).decode()


def _open(path: str, flag: str) -> io.BufferedIOBase:
    try:
        return open(pathlib.Path(path).expanduser(), "rb")
    except OSError as error:
        raise UserError(f"cannot read {flag}={path}: {reason(error)}") from error


def _read_ids(path: str) -> list[str]:
    with _open(path, "--candidates") as file:
        lines = file.read().split(b"\n")
    ids = []
    for number, line in enumerate(lines, 1):
        try:
            ids.append(_text(line))
        except ValueError as error:
            raise UserError(f"{path}, line {number}: {error}") from error
    return list(filter(None, ids))


def read_sessions(
    source: io.BufferedIOBase, name: str = "-"
) -> Iterator[list[SessionLine]]:
    """Reads sessions as they come, in bounded memory.

    Three forms are read, told by the name's suffix and by the first line that is not
    blank; blank ones before it wait for it:
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
    begun: _Lines = []
    number, first = 0, b""
    while not first and (chunk := next(chunks, [])):
        begun += chunk
        number, first = next((each for each in chunk if each[1].strip()), (0, b""))
    parse, is_log = _parser(first.decode("utf-8-sig", "replace"), name)
    going_on: SessionLine | None = None
    for chunk in itertools.chain([begun], chunks):
        entries = []
        for n, line in chunk:
            if is_log and (n == number or not line.strip()):
                continue
            try:
                session, label = parse(_text(line))
            except ValueError as error:
                entries.append(SessionLine(n, [], str(error)))
                continue
            if label is None:
                entries.append(SessionLine(n, session))
            elif going_on and label == going_on.label:
                going_on.session.extend(session)
            else:
                if going_on:
                    entries.append(going_on)
                going_on = SessionLine(n, session, label=label)
        yield entries
    if going_on:
        yield [going_on]


def _line_chunks(source: io.BufferedIOBase) -> Iterator[_Lines]:
    """Yields the lines that can be had at once, numbered."""
    number = itertools.count(1)
    rest = b""
    while True:
        # read1 returns what a pipe holds: its writer may wait for an answer.
        block = source.read1(READ_BYTES)
        *lines, rest = (rest + block).split(b"\n")
        if not block and rest:
            lines.append(rest)
        if lines:
            yield [(next(number), line) for line in lines]
        if not block:
            return


def _text(line: bytes) -> str:
    try:
        return line.decode("utf-8-sig").removesuffix("\r")
    except UnicodeDecodeError:
        raise ValueError(NOT_UTF8) from None


def _parser(first: str, name: str) -> tuple[_Parse, bool]:
    """Returns what reads a line of the form that the first one tells; is it a log?"""
    suffix = pathlib.PurePath(name).suffix.lower()
    if suffix in JSON_SUFFIXES or (suffix not in TEXT_SUFFIXES and _is_json(first)):
        return lambda line: (_json_session(line), None), False
    separator = max(SEPARATORS, key=first.count)
    try:
        names = [plain_name(name) for name in _fields(first, separator)]
    except ValueError:
        names = []
    session, item = (
        next((names.index(usual) for usual in USUAL_NAMES[of] if usual in names), None)
        for of in ("session", "item")
    )
    if session is None or item is None:
        return lambda line: ([f for f in _fields(line, separator) if f], None), False

    def click(line: str) -> tuple[list[str | int], str]:
        fields = _fields(line, separator)
        if len(fields) != len(names):
            raise ValueError(f"{len(fields)} fields instead of {len(names)}")
        if not (fields[session] and fields[item]):
            raise ValueError("the session or the item is empty")
        return [fields[item]], fields[session]

    return click, True


def _is_json(line: str) -> bool:
    """Whether a line is meant as JSON: an object, or a list on its own."""
    if not line.lstrip().startswith("["):
        return line.lstrip().startswith("{")
    with contextlib.suppress(orjson.JSONDecodeError):
        orjson.loads(line)
        return True
    return False


def _json_session(line: str) -> list[str | int]:
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
    fields = line.split(separator) if line.strip() else []
    if '"' in line:
        try:
            fields = next(csv.reader([line], delimiter=separator, strict=True))
        except csv.Error as error:
            raise ValueError(f"unreadable quotes ({error})") from error
    return [field.strip() for field in fields]
