"""Recommendations for sessions of raw item ids.

    from srgnn_jax import Recommender

    recommender = Recommender.load("runs/diginetica")
    recommender.recommend([["81766", "31331"]], k=5)

Axes: S sessions, C clicks of all of them, B rows of a batch, L positions, D embedding,
V item rows, N rows of the table that is scored, K items of a list.
"""

import collections
import contextlib
import dataclasses
import functools
import io
import itertools
import os
import pathlib
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple, TextIO

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import orjson
from flax import traverse_util
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict
from tqdm import tqdm

from srgnn_jax import config as config_lib
from srgnn_jax.data.columns import Columns
from srgnn_jax.data.prepare import number_values
from srgnn_jax.data.read import read_clicks
from srgnn_jax.data.sessions import Sessions, Vocabulary
from srgnn_jax.devices import layouts, processes, tiers
from srgnn_jax.errors import UserError
from srgnn_jax.evaluate import baselines, metrics
from srgnn_jax.evaluate.scorer import target_ranks
from srgnn_jax.evaluate.workdir import make_evaluator, metric_table
from srgnn_jax.model import graph, item_table
from srgnn_jax.model.graph import AnyArray
from srgnn_jax.model.item_table import ItemTable
from srgnn_jax.model.layers import Params, normalise
from srgnn_jax.runs.checkpoint import Checkpoints, check_finite, restore_best
from srgnn_jax.runs.progress import Progress
from srgnn_jax.runs.workdir import load_vocabulary
from srgnn_jax.serve.stream import SessionLine, read_sessions, wrong_session

# Clicks that the model sees of a session, unless the run was trained on fewer.
MAX_LENGTH = 256
# Sessions that are recommended to at a time; a longer stream is cut.
CHUNK = 4096
# Rows of a batch: few sizes are compiled.
BATCH_SIZES = (1, 8, 64, 256)
# Scores that are held at a time: beyond, they fall out of the caches.
MAX_SCORES = 2**22
# Positions squared, times rows, of a batch: what the graphs of long sessions take.
MAX_EDGES = 2**22

# Raw ids, oldest click first.
RawSession = Sequence[str | int] | np.ndarray


class Recommendation(NamedTuple):
    """The items for one session.

    Attributes:
      items: raw ids, best first.
      scores: theirs: the model's, or probabilities; in a fallback the items' clicks in
        training, or their share of all clicks.
      unknown: ids of the session that the vocabulary lacks, each once; they were
        dropped.
      fallback: whether nothing of the session was known, so that it gets the most
        popular items of training.
    """

    items: list[str]
    scores: list[float]
    unknown: list[str]
    fallback: bool


@dataclasses.dataclass(frozen=True)
class Explanation:
    """What the model saw in a session.

    Attributes:
      items: raw ids of the clicks that it saw, in their order.
      attention: weight of each click in the sum that stands for the session, equation 6
        of Wu et al. 2019; any number, and they need not sum to 1. Of other readouts
        than by attention, the weights that they give.
      edges: (item, next item, weight) of the session graph; the weights from one item
        sum to 1.
      unknown: ids that the vocabulary lacks, each once; they were dropped.
    """

    items: list[str]
    attention: list[float]
    edges: list[tuple[str, str, float]]
    unknown: list[str]


@dataclasses.dataclass(frozen=True)
class _Scope:
    """The items that may be recommended.

    Attributes:
      table: what scores them, after one row for the padding; filled up with rows that
        do not count.
      rows: the item row of each of the table's rows; None where they are the same.
      count: rows that count, the padding included.
      popular: item rows that count, most clicked first.
      clicks: theirs in training.
    """

    table: Float[Array, "N D"]
    rows: Int[Array, " N"] | None
    count: int
    popular: Int[np.ndarray, " n"]
    clicks: Float[np.ndarray, " n"]


class _Clicks(NamedTuple):
    """Sessions as item rows.

    Attributes:
      known: rows of the known clicks of all sessions.
      offsets: session s is `known[offsets[s]:offsets[s + 1]]`.
      unknown: ids that the vocabulary lacks, by session; sessions without are left out.
    """

    known: Int[np.ndarray, " C"]
    offsets: Int[np.ndarray, " S1"]
    unknown: dict[int, list[str]]


class Recommender:
    """A trained model and its items' raw ids.

    A session is a sequence of raw ids, oldest click first: text, or whole numbers that
    stand for their text. Ids that the vocabulary lacks are dropped and reported, of a
    session of more than `max_length` known clicks the last ones count, and one without
    any gets the most popular items of training, marked as a fallback.

    Attributes:
      vocabulary: the raw ids.
      model: the model.
      params: its parameters.
      max_length: clicks that it sees of a session, at most.
      max_rows: sessions that are scored at a time.
    """

    def __init__(
        self,
        model: nn.Module,
        params: Params,
        vocabulary: Vocabulary,
        *,
        max_length: int = MAX_LENGTH,
        max_scores: int = MAX_SCORES,
        score_padding: bool = False,
    ):
        """Takes a model that is not split over devices.

        Args:
          model: the model.
          params: its parameters.
          vocabulary: with the clicks of training, where they are known.
          max_length: clicks that the model sees of a session, at most.
          max_scores: scores (items times sessions) that are held at a time.
          score_padding: whether row 0 has a share in probabilities.

        Raises:
          ValueError: the vocabulary or the item table has another number of rows than
            the model, or a parameter is not finite.
        """
        held = len(params["item_embedding"])
        if {model.num_items, held} != {vocabulary.num_items}:
            raise ValueError(
                f"the vocabulary has {vocabulary.num_items} item rows (padding "
                f"included), the model {model.num_items}, its table {held}"
            )
        check_finite(params)
        self.model, self.params, self.vocabulary = model, params, vocabulary
        self.max_length = max_length
        self._max_scores = max_scores
        self._ids = np.array(["", *vocabulary.ids], object)
        rows = max(BATCH_SIZES[-2], max_scores // model.num_items)
        self.max_rows = max(size for size in BATCH_SIZES if size <= rows)
        # Constants to the compiler, which then multiplies weights with weights itself.
        weights = jax.device_get({**params, "item_embedding": ()})

        def step(item_embedding, *arguments, **options):
            return recommend_step(
                jax.tree.map(jnp.asarray, weights) | {"item_embedding": item_embedding},
                *arguments,
                model=model,
                max_scores=max_scores,
                score_padding=score_padding,
                **options,
            )

        self._step = jax.jit(step, static_argnames=("k", "as_probabilities", "recall"))
        self._click_weights = jax.jit(functools.partial(_click_weights, model))
        clicks = vocabulary.clicks
        if clicks is None:
            clicks = np.zeros(model.num_items - 1, np.int64)
        popular = 1 + np.argsort(-clicks, kind="stable")
        table = params["item_embedding"]
        self._everything = _Scope(
            normalise(table) if model.normalize else table,
            None,
            len(table),
            popular,
            clicks[popular - 1].astype(np.float64),
        )

    @classmethod
    def load(
        cls,
        workdir: str | os.PathLike,
        model: config_lib.MakeModel | None = None,
    ) -> "Recommender":
        """Loads the best checkpoint of a workdir.

        Args:
          workdir: of a run, or of an import; the data set is not needed.
          model: what made the run's model, unless it is SRGNN; see
            `config.make_model`.

        Raises:
          UserError: there is no checkpoint, it is of another model, or its vocabulary
            is missing or another's.
        """
        return load(workdir, model)[0]

    def recommend(
        self,
        sessions: Iterable[RawSession],
        k: int = 20,
        *,
        exclude_seen: bool = False,
        candidates: Iterable[str | int] | None = None,
        as_probabilities: bool = False,
        recall: float = 1.0,
    ) -> list[Recommendation]:
        """Finds the items that each session is likely to click next.

        Args:
          sessions: any number, of any length; see the class.
          k: length of the lists; they are shorter where fewer items may be recommended.
          exclude_seen: leave out what the session clicked, whatever its length.
          candidates: raw ids that may be recommended, such as those in stock; unknown
            ones cannot be. None: all items.
          as_probabilities: give the model's probability that the item is next, among
            all candidates, what was seen included, instead of its score.
          recall: share of the best items that must be found: below 1 they are looked
            for by `jax.lax.approx_max_k`, which is faster on a TPU and large catalogs.

        Returns:
          One recommendation per session, in order. They do not depend on the other
          sessions, but for rounding in the last digits of the scores.

        Raises:
          UserError: `k` or `recall` is out of range, or an id is neither text nor a
            whole number.
        """
        answer = self._answerer(
            k=k,
            exclude_seen=exclude_seen,
            candidates=candidates,
            as_probabilities=as_probabilities,
            recall=recall,
        )
        remaining = enumerate(sessions)
        found: list[Recommendation] = []
        while chunk := list(itertools.islice(remaining, CHUNK)):
            for n, session in chunk:
                if wrong := wrong_session(session):
                    raise UserError(f"session {n}: {wrong}")
            found += answer([session for _, session in chunk])
        return found

    def explain(self, session: RawSession) -> Explanation:
        """Shows the session graph and the attention to each click.

        Args:
          session: raw ids; see the class.

        Raises:
          UserError: no click of the session is known.
        """
        if wrong := wrong_session(session):
            raise UserError(wrong)
        clicks = self._look_up([session])
        rows = clicks.known[-self.max_length :]
        if not len(rows):
            raise UserError(
                f"no item of the session {list(session)!r} is in the vocabulary; "
                "there is nothing to explain"
            )
        item_seq = np.zeros((1, _power_of_two(len(rows), 4)), np.int32)
        item_seq[0, : len(rows)] = rows
        weights = self._click_weights(self.params, item_seq, np.array([len(rows)]))
        if weights is None:
            raise UserError(
                "this model's readout tells no weights of clicks; have it "
                'self.sow("intermediates", "click_weights", weights)'
            )
        nodes, _, connections = graph.connection_matrix(item_seq)
        outgoing = np.asarray(connections)[0, :, item_seq.shape[1] :]
        names = self._ids[np.asarray(nodes)[0]]
        return Explanation(
            items=self._ids[rows].tolist(),
            attention=np.asarray(weights)[0, : len(rows)].tolist(),
            edges=[
                (names[u], names[v], float(outgoing[u, v]))
                for u, v in np.argwhere(outgoing)
            ],
            unknown=clicks.unknown.get(0, []),
        )

    def _answerer(
        self,
        *,
        k: int,
        exclude_seen: bool = False,
        candidates: Iterable[str | int] | None = None,
        as_probabilities: bool = False,
        recall: float = 1.0,
    ):
        """Returns what recommends to a list of sessions; see `recommend`."""
        if k < 1:
            raise UserError(f"k is {k}; lists have at least one item")
        if not 0 < recall <= 1:
            raise UserError(f"recall is {recall}; it must lie in (0, 1]")
        scope = self._everything if candidates is None else self._scope(candidates)
        return functools.partial(
            self._answer,
            scope=scope,
            k=min(k, scope.count - 1),
            exclude_seen=exclude_seen,
            as_probabilities=as_probabilities,
            recall=recall,
        )

    def _scope(self, candidates: Iterable[str | int]) -> _Scope:
        candidates = list(candidates)
        if wrong := wrong_session(candidates):
            raise UserError(f"candidates: {wrong}")
        rows = np.unique(self.vocabulary.rows(candidates))
        rows = np.append(np.int32(0), rows[rows > 0]).astype(np.int32)
        filled_up = np.zeros(_power_of_two(len(rows), 64), np.int32)
        filled_up[: len(rows)] = rows
        everything = self._everything
        allowed = np.isin(everything.popular, rows)
        device_rows = jnp.asarray(filled_up)
        return _Scope(
            everything.table[device_rows],
            device_rows,
            len(rows),
            everything.popular[allowed],
            everything.clicks[allowed],
        )

    def _look_up(self, sessions: Sequence[RawSession]) -> _Clicks:
        lengths = np.fromiter(map(len, sessions), np.int64, len(sessions))
        raw = list(itertools.chain.from_iterable(sessions))
        rows = self.vocabulary.rows(raw)
        if rows.all():
            return _Clicks(rows, np.append(0, np.cumsum(lengths)), {})
        unknown: dict[int, list[str]] = {}
        session_of = np.repeat(np.arange(len(sessions)), lengths)
        for at in np.flatnonzero(rows == 0):
            ids = unknown.setdefault(int(session_of[at]), [])
            if str(raw[at]) not in ids:
                ids.append(str(raw[at]))
        count = np.bincount(session_of[rows > 0], minlength=len(sessions))
        return _Clicks(rows[rows > 0], np.append(0, np.cumsum(count)), unknown)

    def _answer(
        self,
        sessions: Sequence[RawSession],
        *,
        scope: _Scope,
        k: int,
        exclude_seen: bool,
        as_probabilities: bool,
        recall: float,
    ) -> list[Recommendation]:
        clicks = self._look_up(sessions)
        fallback = np.diff(clicks.offsets) == 0
        rows = np.zeros((len(sessions), k), np.int32)
        scores = np.full((len(sessions), k), -np.inf)
        if k:
            if fallback.any():
                total = max(scope.clicks.sum(), 1) if as_probabilities else 1
                rows[fallback] = scope.popular[:k]
                scores[fallback] = scope.clicks[:k] / total
            # All are started before any is waited for.
            pending = [
                (
                    chosen,
                    self._step(
                        self.params["item_embedding"],
                        scope.table,
                        scope.rows,
                        None if scope.rows is None else np.int32(scope.count),
                        *arrays,
                        k=k,
                        as_probabilities=as_probabilities,
                        recall=recall,
                    ),
                )
                for chosen, arrays in self._cut(clicks, exclude_seen)
            ]
            for chosen, (best, row) in pending:
                scores[chosen] = np.asarray(best)[: len(chosen)]
                rows[chosen] = np.asarray(row)[: len(chosen)]
        return [
            Recommendation(items, values, clicks.unknown.get(s, []), is_fallback)
            for s, (items, values, is_fallback) in enumerate(
                zip(*_listed(self._ids, rows, scores), fallback.tolist(), strict=True)
            )
        ]

    def _cut(
        self, clicks: _Clicks, exclude_seen: bool
    ) -> Iterator[tuple[Int[np.ndarray, " b"], tuple[Any, ...]]]:
        """Cuts the sessions with known clicks into batches, long ones first.

        Yields:
          The sessions of a batch, and item_seq and seen (None unless it is needed) for
          `recommend_step`, filled up with rows that do not count.
        """
        lengths = np.diff(clicks.offsets)
        order = np.argsort(-lengths, kind="stable")
        order = order[: np.count_nonzero(lengths)]
        while len(order):
            longest = int(lengths[order[0]])
            width = _power_of_two(min(longest, self.max_length), 4)
            limit = MAX_EDGES // width**2
            num_seen = _power_of_two(longest, 4)
            if exclude_seen:
                limit = min(limit, MAX_EDGES // num_seen)
            size = _batch_size(len(order), min(self.max_rows, limit))
            chosen, order = order[:size], order[size:]
            item_seq = _last_clicks(clicks, chosen, width, self.max_length, size)
            seen = None
            if exclude_seen:
                seen = _last_clicks(clicks, chosen, num_seen, longest, size)
                seen.sort(axis=1)
            yield chosen, (item_seq, seen)


def load(
    workdir: str | os.PathLike, model: config_lib.MakeModel | None = None
) -> tuple[Recommender, Progress, int]:
    """Loads the best checkpoint of a workdir; see `Recommender.load`.

    Returns:
      The recommender, the progress of the run, and the step that was loaded.
    """
    folder = pathlib.Path(workdir).expanduser()
    with contextlib.closing(Checkpoints(folder)) as checkpoints:
        progress = checkpoints.progress()
        config = config_lib.from_dict(progress.config)
        made = config_lib.make_model(config, progress.num_items, model)
        devices = layouts.find_devices("jit")
        params, step = restore_best(checkpoints, progress, made, devices)
    vocabulary = load_vocabulary(folder, progress.vocabulary)
    recommender = Recommender(
        made,
        params,
        vocabulary,
        max_length=config.max_session_length or MAX_LENGTH,
        max_scores=min(MAX_SCORES, config.max_scores),
        score_padding=config.score_padding,
    )
    return recommender, progress, step


def recommend_step(
    params: Params,
    table: Float[Array, "N D"],
    rows: Int[AnyArray, " N"] | None,
    count: Int[AnyArray, ""] | None,
    item_seq: Int[AnyArray, "B L"],
    seen: Int[AnyArray, "B M"] | None,
    *,
    model: nn.Module,
    k: int,
    max_scores: int = item_table.MAX_SCORES,
    score_padding: bool = False,
    as_probabilities: bool = False,
    recall: float = 1.0,
) -> tuple[Float[Array, "B K"], Int[Array, "B K"]]:
    """Finds the best items for a batch of sessions.

    Args:
      params: of the model.
      table: what scores the items to choose from, row 0 of the padding; of
        length 1 if the model normalises.
      rows: the item row of each of the table's rows; None: they are the same.
      count: rows of the table that count, those beyond only fill it up; None: all.
      item_seq: item rows in click order, 0 = padding at the end.
      seen: item rows to leave out, sorted, with 0 as padding; None: none.
      model: the model.
      k: how many items are wanted, fewer than the table has rows.
      max_scores: scores that are held at a time.
      score_padding: whether row 0 has a share in the probabilities among all items.
      as_probabilities: return those instead of scores.
      recall: see `ItemTable.top_k`.

    Returns:
      Scores, -inf where there is no item left, and item rows.
    """
    item_seq_len = jnp.maximum(jnp.count_nonzero(jnp.asarray(item_seq), axis=1), 1)
    session, _ = tiers.encode(model, params, [(item_seq, item_seq_len)])
    wanted = k if seen is None else min(k + seen.shape[1], table.shape[0])
    scored = ItemTable(
        table,
        table.shape[0] if count is None else count,
        score_padding and rows is None,
        max_scores,
        compute_dtype=model.compute_dtype,
    )
    best, row = scored.top_k(session, wanted, recall)
    if as_probabilities:
        total = scored.log_sum_exp(session)
        best = jnp.where(best > -jnp.inf, jnp.exp(best - total[:, None]), best)
    if rows is not None:
        row = jnp.asarray(rows)[row]
    if seen is not None:
        at = jax.vmap(jnp.searchsorted)(jnp.asarray(seen), row)
        at = jnp.minimum(at, seen.shape[1] - 1)
        is_seen = jnp.take_along_axis(jnp.asarray(seen), at, axis=1) == row
        best, index = jax.lax.top_k(jnp.where(is_seen, -jnp.inf, best), k)
        row = jnp.take_along_axis(row, index, axis=1)
    return best, row


def _click_weights(
    model: nn.Module,
    params: Params,
    item_seq: Int[AnyArray, "B L"],
    item_seq_len: Int[AnyArray, " B"],
) -> Float[Array, "B L"] | None:
    """Returns what the readout sows as "click_weights", None if it does not."""
    _, sown = model.apply(
        {"params": params}, item_seq, item_seq_len, mutable=["intermediates"]
    )
    for path, value in traverse_util.flatten_dict(dict(sown)).items():
        if path[-1] == "click_weights":
            return value[0]
    return None


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
      log_file: csv, tsv or parquet with columns for session, item and time, which are
        found and read as those of a training log; see `read.read_clicks`.
      config: may name its columns, and the list lengths; the run's own if None.
      model: see `Recommender.load`.

    Returns:
      The mean of every metric.
    """
    recommender, progress, step = load(workdir, model)
    config = config or config_lib.from_dict(progress.config)
    config_lib.validate(config)
    clicks, _ = read_clicks(
        pathlib.Path(log_file).expanduser(),
        Columns(
            config.session_column,
            config.item_column,
            config.time_column,
            config.date_column,
        ),
        separator=config.separator,
        on_bad_row=config.on_bad_row,
    )
    session, _ = number_values(clicks["session"])
    item, raw_items = number_values(clicks["item"])
    order = np.lexsort((clicks["time"].to_numpy(), session))
    rows = recommender.vocabulary.rows(raw_items.to_list())[item[order]]
    lengths = np.bincount(session[order][rows > 0], minlength=session.max() + 1)
    sessions = Sessions(rows[rows > 0], np.append(0, np.cumsum(lengths)))
    examples = sessions.examples(recommender.max_length)
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
    trained = recommender.vocabulary.clicks
    if trained is not None:
        popular = baselines.pop_of_clicks(np.append(0, trained))
        ranks = target_ranks(popular, examples)
        columns["POP"] = metrics.means(ranks, config.ks)
    lines = [
        "",
        f"step {step} on {log_file}",
        f"{len(sessions):,} sessions, {len(rows):,} clicks, of which "
        f"{np.count_nonzero(rows == 0):,} on unknown items are dropped; "
        f"{len(examples):,} examples",
        "",
        *metric_table(config.ks, columns),
    ]
    processes.say("\n".join(lines))
    return means


def recommend_file(
    workdir: str,
    sessions: str,
    *,
    k: int = 20,
    exclude_seen: bool = False,
    candidates: str | None = None,
    as_probabilities: bool = False,
    recall: float = 1.0,
    model: config_lib.MakeModel | None = None,
) -> None:
    """Recommends to the sessions of a file, one JSON object a line on stdout.

    Args:
      workdir: of a run.
      sessions: the file, or "-" for stdin; see `recommend_stream`.
      k: length of the lists.
      exclude_seen: leave out what a session clicked.
      candidates: text file with the raw ids that may be recommended, one a line.
      as_probabilities: print probabilities instead of scores.
      recall: see `Recommender.recommend`.
      model: see `Recommender.load`.
    """
    options: dict[str, Any] = {
        "k": k,
        "exclude_seen": exclude_seen,
        "as_probabilities": as_probabilities,
        "recall": recall,
    }
    with contextlib.ExitStack() as files:
        source: Any = sys.stdin.buffer
        if sessions != "-":
            source = files.enter_context(_open(sessions, "--sessions"))
        if candidates is not None:
            with _open(candidates, "--candidates") as file:
                text = file.read().decode("utf-8-sig", "replace")
            options["candidates"] = [line for line in text.splitlines() if line]
        recommender = Recommender.load(workdir, model)
        recommend_stream(recommender, source, sys.stdout, name=sessions, **options)


def recommend_stream(
    recommender: Recommender,
    source: io.BufferedIOBase,
    output: TextIO | io.TextIOBase,
    *,
    name: str = "-",
    **options: Any,
) -> None:
    """Recommends to sessions as they are read, in their order, in bounded memory.

    A JSON object is written for each session: items, scores, unknown and fallback, as
    in `Recommendation`, and for a click log also session, its id. A line that cannot be
    read gives an object with `error` and `line`, its number, in its place.

    Args:
      recommender: the model.
      source: binary file; see `session_lines.read_sessions` for its form.
      output: text file; flushed whenever there is no more to read for the moment.
      name: of the source.
      options: those of `Recommender.recommend`.
    """
    answer = recommender._answerer(**{"k": 20, **options})
    done = {"sessions": 0, "fallbacks": 0, "unreadable lines": 0}

    def write(entries, answered):
        found = answered.result()
        output.write("".join(_json_lines(entries, found)))
        output.flush()
        done["sessions"] += len(found)
        done["fallbacks"] += sum(one.fallback for one in found)
        done["unreadable lines"] += len(entries) - len(found)
        bar.update(len(entries))

    # While the device works on some sessions, others are read and written. None of the
    # three waits for input that has yet to come.
    with (
        tqdm(desc="recommend", unit=" sessions", disable=None, leave=False) as bar,
        ThreadPoolExecutor(1) as answering,
        ThreadPoolExecutor(1) as writing,
    ):
        pending: collections.deque[Future] = collections.deque()
        for entries in read_sessions(source, name):
            for start in range(0, len(entries), CHUNK):
                part = entries[start : start + CHUNK]
                sessions = [entry.session for entry in part if not entry.error]
                answered = answering.submit(answer, sessions)
                pending.append(writing.submit(write, part, answered))
                if len(pending) > 2:
                    pending.popleft().result()
        for last in pending:
            last.result()
    counts = ", ".join(f"{n:,} {what}" for what, n in done.items())
    print(counts, file=sys.stderr, flush=True)


def _json_lines(
    entries: Sequence[SessionLine], found: Sequence[Recommendation]
) -> Iterator[str]:
    recommendations = iter(found)
    for entry in entries:
        fields: dict[str, Any] = {"error": entry.error, "line": entry.line}
        if not entry.error:
            fields = next(recommendations)._asdict()
            if entry.label is not None:
                fields["session"] = entry.label
        yield orjson.dumps(fields, option=orjson.OPT_APPEND_NEWLINE).decode()


def _open(path: str, flag: str) -> io.BufferedIOBase:
    try:
        return open(pathlib.Path(path).expanduser(), "rb")
    except OSError as error:
        raise UserError(f"cannot read {flag}={path}: {error.strerror}") from error


def _power_of_two(least: int, smallest: int) -> int:
    return max(1 << (least - 1).bit_length(), smallest)


def _batch_size(sessions: int, most: int) -> int:
    """Returns the rows of the next batch: nearly full, and at most so many."""
    allowed = [size for size in BATCH_SIZES if size <= max(most, 1)]
    return max(size for size in allowed if size < 2 * sessions)


def _last_clicks(
    clicks: _Clicks, chosen: Int[np.ndarray, " b"], width: int, most: int, rows: int
) -> Int[np.ndarray, "B L"]:
    """Returns the last clicks of the chosen sessions, with 0 as padding at the end."""
    ends = clicks.offsets[chosen + 1]
    starts = np.maximum(clicks.offsets[chosen], ends - most)
    index = starts[:, None] + np.arange(width)
    last = clicks.known[np.minimum(index, len(clicks.known) - 1)]
    item_seq = np.zeros((rows, width), np.int32)
    item_seq[: len(chosen)] = np.where(index < ends[:, None], last, 0)
    return item_seq


def _listed(
    ids: np.ndarray, rows: Int[np.ndarray, "S K"], scores: Float[np.ndarray, "S K"]
) -> tuple[list[list[str]], list[list[float]]]:
    """Turns rows into raw ids, and leaves out what has no score."""
    items, values = ids[rows].tolist(), scores.tolist()
    # Scores are in order, best first.
    for s in np.flatnonzero(scores[:, -1:] == -np.inf):
        count = int((scores[s] > -np.inf).sum())
        items[s], values[s] = items[s][:count], values[s][:count]
    return items, values
