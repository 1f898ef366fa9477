"""Recommends to sessions in files, and evaluates on them, for the command line."""

import collections
import contextlib
import io
import pathlib
import sys
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TextIO

import numpy as np
import orjson
import polars as pl
from ml_collections import ConfigDict
from tqdm import tqdm

from srgnn_jax import config as config_lib
from srgnn_jax.data.frames import Clicks
from srgnn_jax.data.read import read_clicks
from srgnn_jax.data.sessions import Sessions
from srgnn_jax.data.sources import Settings
from srgnn_jax.data.visits import gather_visits
from srgnn_jax.devices import layouts, processes
from srgnn_jax.errors import UserError, reason
from srgnn_jax.evaluate import baselines, joined, metrics
from srgnn_jax.evaluate.scorer import target_ranks
from srgnn_jax.evaluate.workdir import make_evaluator, metric_table
from srgnn_jax.serve.inputs import (
    Entries,
    candidates_of,
    log_files,
    open_file,
    read_ids,
    read_sessions,
)
from srgnn_jax.serve.recommend import Recommender


def evaluate_sessions(
    workdir: str,
    clicks: "str | Clicks",
    config: ConfigDict | None = None,
    model: config_lib.MakeModel | None = None,
) -> dict[str, float]:
    """Evaluates the best checkpoint on a click log of raw ids; prints the metrics.

    As in the published preparation, a session's clicks are sorted by time, clicks on
    items not seen in training are dropped, and each remaining click from the second on
    is the target of the clicks before it. The data set is not needed.

    `clicks` is a frame, or a file or a folder that is read like a training log; see
    `read.read_clicks`. `config` (None: the run's own) says how, and may name other list
    lengths; for `model` see `Recommender.load`. Returns the mean of every metric,
    joined with neighbours if the workdir is.
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
        log_, _ = read_clicks(log_files(clicks, settings), settings.form)
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
    params = recommender.params
    evaluate = make_evaluator(config, recommender.model, examples, devices)
    columns = {"SR-GNN": evaluate(params)}
    if neighbours := recommender.neighbours:
        ranks = joined.served_ranks(evaluate, params, neighbours)
        columns = {"joined": metrics.means(ranks, config.ks), **columns}
    if vocabulary.clicks is not None:
        popular = baselines.pop_of_clicks(np.append(0, vocabulary.clicks))
        columns["POP"] = metrics.means(target_ranks(popular, examples), config.ks)
    processes.say(
        f"\nstep {recommender.step} on {name}\n"
        f"{len(sessions):,} sessions, {len(rows):,} clicks "
        f"({np.count_nonzero(rows == 0):,} on unknown items, dropped), "
        f"{len(examples):,} examples\n\n" + "\n".join(metric_table(config.ks, columns))
    )
    return next(iter(columns.values()))


def recommend_file(
    workdir: str,
    sessions: str,
    *,
    candidates: str | None = None,
    model: config_lib.MakeModel | None = None,
    **options: Any,
) -> None:
    """Recommends to the sessions of a file; prints one JSON object per line.

    `sessions` is the file, the folder of a log, or "-" for stdin. `candidates` is a
    text file of raw ids, see `candidates_of`. For the rest see `Recommender.load` and
    `recommend`.
    """
    path = pathlib.Path(sessions).expanduser()
    with contextlib.ExitStack() as stack:
        source: Any = sys.stdin.buffer
        if sessions != "-":
            source = path
            if not path.is_dir():
                file = stack.enter_context(open_file(sessions, "--sessions"))
                # A pipe gives each byte once.
                source = path if path.is_file() else file
        lines = [] if candidates is None else read_ids(candidates, "--candidates")
        recommender = Recommender.load(workdir, model, split=True)
        if candidates is not None:
            vocabulary = recommender.vocabulary
            options["candidates"] = candidates_of(lines, vocabulary, candidates)
        config = config_lib.from_dict(recommender.progress.config)
        settings = config_lib.settings(config)
        options |= {"name": sessions, "settings": settings}
        if isinstance(sys.stdout, io.TextIOWrapper):
            # JSON is UTF-8, whatever the locale.
            sys.stdout.reconfigure(encoding="utf-8")
        recommend_stream(recommender, source, sys.stdout, **options)


def _write(output: TextIO | io.TextIOBase, lines: list[str]) -> None:
    try:
        output.writelines(lines)
        output.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise UserError(f"cannot write the answers: {reason(error)}") from error


def recommend_stream(
    recommender: Recommender,
    source: io.BufferedIOBase | pathlib.Path,
    output: TextIO | io.TextIOBase,
    *,
    name: str = "-",
    settings: Settings = Settings(),  # noqa: B008 (nothing changes it)
    candidates: Iterable[str | int | float] | None = None,
    **options: Any,
) -> None:
    """Recommends to sessions as they are read, in order, in bounded memory.

    It writes a JSON object for each session: items, scores, unknown and fallback, as in
    `Recommendation`, and for a click log also session, its id. For a line that cannot
    be read, it writes an object with `error`, `file` and `line`, its number.

    Args:
      source: binary file, or a path; see `read_sessions` for its format.
      output: text file; flushed whenever there is no more to read for the moment.
      name: of the source; its suffix may decide the format.
      settings: how the run reads a click log.
      candidates: see `Recommender.restrict`; None: all items.
      options: the other arguments of `Recommender.recommend`.
    """
    done = {"sessions": 0, "fallbacks": 0, "unreadable lines": 0}

    def write(entries: Entries, answered: Future) -> None:
        found = answered.result()
        remaining, lines = iter(found), []
        for session, fields in entries:
            if session is not None:
                fields = next(remaining)._asdict() | fields
            lines.append(orjson.dumps(fields).decode() + "\n")
        _write(output, lines)
        done["sessions"] += len(found)
        done["fallbacks"] += sum(one.fallback for one in found)
        done["unreadable lines"] += len(entries) - len(found)
        bar.update(len(entries))

    if candidates is not None:
        recommender = recommender.restrict(candidates)
    # Reports wrong options before anything is read.
    recommender.recommend([], **options)
    # While the device works on some sessions, others are read and written. None of the
    # three waits for input that has not arrived yet.
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
            # Ctrl-C waits only for the sessions that are being worked on.
            answering.shutdown(wait=False, cancel_futures=True)
            raise
    counts = ", ".join(f"{n:,} {what}" for what, n in done.items())
    print(counts, file=sys.stderr, flush=True)
