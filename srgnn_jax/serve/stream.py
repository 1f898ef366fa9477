"""Recommends to, and evaluates on, sessions in files: what the command line does."""

import collections
import contextlib
import csv
import io
import itertools
import pathlib
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TextIO

import numpy as np
import orjson
from ml_collections import ConfigDict
from tqdm import tqdm

from srgnn_jax import config as config_lib
from srgnn_jax.data.columns import USUAL_NAMES, Columns, plain_name
from srgnn_jax.data.prepare import group_by_session
from srgnn_jax.data.read import NOT_UTF8, SEPARATORS, TEXT_SUFFIXES, read_clicks
from srgnn_jax.data.sessions import Sessions, Vocabulary
from srgnn_jax.devices import layouts, processes
from srgnn_jax.errors import UserError, reason
from srgnn_jax.evaluate import baselines, metrics
from srgnn_jax.evaluate.scorer import target_ranks
from srgnn_jax.evaluate.workdir import make_evaluator, metric_table
from srgnn_jax.serve.exported import wrong_session
from srgnn_jax.serve.recommend import Recommender

# Read, answered and written at a time: some thousands of sessions.
READ_BYTES = 2**17
JSON_SUFFIXES = (".json", ".jsonl", ".ndjson")
_Ids = list[str | int | float]
# The raw ids of sessions, None in the place of a line that cannot be read, and what is
# to be printed besides: a log's session, or the error.
_Entries = list[tuple[_Ids | None, dict[str, Any]]]


def evaluate_sessions(
    workdir: str,
    log_file: str,
    config: ConfigDict | None = None,
    model: config_lib.MakeModel | None = None,
) -> dict[str, float]:
    """Evaluates the best checkpoint on a click log of raw ids; prints the metrics.

    As in the published preparation, a session's clicks are sorted by time, those on
    items that training did not know are dropped, and each from the second on is then
    the target of the clicks before it. The data set is not needed.

    `log_file` is read as a training log is, see `read.read_clicks`. `config`, the run's
    own if None, may name its columns, and the list lengths; for `model` see
    `Recommender.load`. Returns the mean of every metric.
    """
    recommender = Recommender.load(workdir, model)
    vocabulary = recommender.vocabulary
    config = config or config_lib.from_dict(recommender.progress.config)
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
    columns = {"SR-GNN": evaluate(recommender.params)}
    if vocabulary.clicks is not None:
        popular = baselines.pop_of_clicks(np.append(0, vocabulary.clicks))
        columns["POP"] = metrics.means(target_ranks(popular, examples), config.ks)
    processes.say(
        f"\nstep {recommender.step} on {log_file}\n"
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

    `sessions` is the file, or "-" for stdin, `candidates` a text file of raw ids, see
    `candidates_of`; for the rest see `Recommender.load` and `recommend`.
    """
    stdin: Any = contextlib.nullcontext(sys.stdin.buffer)
    with stdin if sessions == "-" else _open(sessions, "--sessions") as source:
        lines = [] if candidates is None else read_ids(candidates, "--candidates")
        recommender = Recommender.load(workdir, model)
        if candidates is not None:
            vocabulary = recommender.vocabulary
            options["candidates"] = candidates_of(lines, vocabulary, candidates)
        recommend_stream(recommender, source, sys.stdout, name=sessions, **options)


def recommend_stream(
    recommender: Recommender,
    source: io.BufferedIOBase,
    output: TextIO | io.TextIOBase,
    *,
    name: str = "-",
    candidates: Iterable[str | int | float] | None = None,
    **options: Any,
) -> None:
    """Recommends to sessions as they are read, in their order, in bounded memory.

    A JSON object is written for each session: items, scores, unknown and fallback, as
    in `Recommendation`, and for a click log also session, its id. A line that cannot be
    read gives an object with `error`, `file` and `line`, its number, in its place.

    Args:
      source: binary file; see `read_sessions` for its form.
      output: text file; flushed whenever there is no more to read for the moment.
      name: of the source; its suffix may tell the form.
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
            for entries in read_sessions(source, name):
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


def candidates_of(lines: Sequence[str], vocabulary: Vocabulary, path: str) -> list[str]:
    """Finds the raw ids of items in the lines of a file: one a line, or one of a row.

    Spaces around them, quotes, blank lines and a header do not count. In a row the id
    stands in the column that the header names as the items', or else first.

    Raises:
      UserError: the file is empty, or ids stand in other columns too.
    """
    texts = {n: line.strip() for n, line in enumerate(lines, 1) if line.strip()}
    if not texts:
        raise UserError(f"--candidates={path} is empty; write the id of an item a line")
    separator = max(SEPARATORS, key=next(iter(texts.values())).count)
    rows = [_row(text, separator) for text in texts.values()]
    is_known = vocabulary.rows(texts.values()) > 0
    if is_known.any() or len({*map(len, rows)}) > 1:
        # No table: what looks like a separator is part of an id.
        whole = [len(row) > 1 for row in rows] | is_known
        rows = [
            [text] if is_whole else row
            for text, row, is_whole in zip(texts.values(), rows, whole, strict=True)
        ]
    names = [plain_name(field) for field in rows[0]]
    column = next((names.index(n) for n in USUAL_NAMES["item"] if n in names), None)
    if column is not None and not vocabulary.rows(rows[0]).any():
        return [row[column] for row in rows[1:]]
    for (n, text), row in zip(texts.items(), rows, strict=True):
        if vocabulary.rows(row[1:]).any():
            raise UserError(
                f"--candidates={path}, line {n}: {text!r} has an item's id in another "
                "column than the first; write one id a line, or name the column of ids "
                "item_id in a header"
            )
    return [row[0] for row in rows]


def _row(line: str, separator: str) -> list[str]:
    """Returns the fields of a line, or the whole of one that is no csv."""
    try:
        return _fields(line, separator)
    except ValueError:
        return [line]


def read_sessions(source: io.BufferedIOBase, name: str) -> Iterator[_Entries]:
    """Reads sessions as they come, in bounded memory.

    Three forms are read, told by the name's suffix and by the first line that is not
    blank; blank ones before it wait for it:
      JSON lines      {"session": ["id", ...]} a line.
      a click log     csv with a header that names a session and an item column by
                      their usual names; consecutive rows of one session, oldest first,
                      make it up.
      a csv           the ids of one session a line; an empty line is an empty session.

    Yields:
      The sessions that can be had without waiting for more, in order; of a line that
      cannot be read, the error.
    """
    chunks = _line_chunks(source)
    begun: list[tuple[int, bytes]] = []
    header, first = 0, b""
    while not first and (chunk := next(chunks, [])):
        begun += chunk
        header, first = next((each for each in chunk if each[1].strip()), (0, b""))
    parse, is_log = _parser(first.decode("utf-8-sig", "replace"), name)
    going_on: _Entries = []  # A log's last session, whose clicks may go on.
    clicks: _Ids = []  # Those of that session.
    for chunk in itertools.chain([begun], chunks):
        entries: _Entries = []
        for n, line in chunk:
            if is_log and (n == header or not line.strip()):
                continue
            try:
                session, fields = parse(_text(line))
            except ValueError as error:
                entries.append((None, {"error": str(error), "file": name, "line": n}))
                continue
            if not is_log:
                entries.append((session, fields))
            elif going_on and fields == going_on[0][1]:
                clicks += session
            else:
                entries += going_on
                going_on, clicks = [(session, fields)], session
        yield entries
    yield going_on


def _line_chunks(source: io.BufferedIOBase) -> Iterator[list[tuple[int, bytes]]]:
    """Yields the lines that can be had at once, numbered."""
    number = itertools.count(1)
    rest = b""
    # read1 returns what a pipe holds: its writer may wait for an answer.
    while block := source.read1(READ_BYTES):
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


def _parser(first: str, name: str) -> tuple[Callable[[str], tuple[_Ids, dict]], bool]:
    """Returns what reads a line of the form that the first one tells; is it a log?"""
    suffix = pathlib.PurePath(name).suffix.lower()
    if suffix in JSON_SUFFIXES or (suffix not in TEXT_SUFFIXES and _is_json(first)):
        return lambda line: (_json_session(line), {}), False
    separator = max(SEPARATORS, key=first.count)
    names = []
    with contextlib.suppress(ValueError):
        names = [plain_name(name) for name in _fields(first, separator)]
    session, item = (
        next((names.index(usual) for usual in USUAL_NAMES[of] if usual in names), None)
        for of in ("session", "item")
    )
    if session is None or item is None:
        return lambda line: ([f for f in _fields(line, separator) if f], {}), False

    def click(line: str) -> tuple[_Ids, dict]:
        fields = _fields(line, separator)
        if len(fields) != len(names):
            raise ValueError(f"{len(fields)} fields instead of {len(names)}")
        if not (fields[session] and fields[item]):
            raise ValueError("the session or the item is empty")
        return [fields[item]], {"session": fields[session]}

    return click, True


def _is_json(line: str) -> bool:
    """Whether a line is meant as JSON: an object, or a list on its own."""
    with contextlib.suppress(orjson.JSONDecodeError):
        return isinstance(orjson.loads(line), dict | list)
    return line.lstrip().startswith("{")


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
