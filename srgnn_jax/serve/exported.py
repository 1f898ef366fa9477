"""Recommends from an exported folder; needs jax, numpy and flatbuffers, nothing else.

`--mode=export` puts this file into the folder, as recommender.py, beside the weights,
the vocabulary and the compiled functions:

    sys.path.insert(0, "exported")
    from recommender import Recommender

    Recommender.load("exported").recommend([["81766", "31331"]])

`srgnn_jax.Recommender` makes its lists by the same `Lists`.

Axes: B sessions of a batch, L positions, K items of a list.
"""

import dataclasses
import hashlib
import io
import itertools
import json
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.export
import numpy as np

# Sessions that are recommended to at a time; more are cut.
CHUNK = 4096
# Rows of a batch: few sizes are compiled.
BATCH_SIZES = (1, 8, 64, 256)
# Scores of a batch, and positions squared times its rows: what graphs take.
MAX_NUMBERS = 2**22

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


class Recommender:
    """What was exported.

    Attributes:
      manifest: how it was made: k, versions, fingerprints, the run's config.
    """

    def __init__(
        self,
        manifest: dict[str, Any],
        functions: dict[int, jax.export.Exported],
        params: dict[str, Any],
        items: Sequence[str],
        clicks: Sequence[int] | None,
    ):
        """Takes what `load` reads.

        Args:
          manifest: of the export.
          functions: (params, item_seq [B, L], lengths [B]) -> (scores, rows), both
            [B, K], for each L.
          params: of the model.
          items: the raw id of each item row, from 1 on.
          clicks: theirs in training.
        """
        self.manifest = manifest
        self._functions = {
            length: jax.jit(function.call) for length, function in functions.items()
        }
        self._params = jax.device_put(params)
        row = {raw: row for row, raw in enumerate(items, 1)}
        self._lists = Lists(
            np.array(["", *items], object),
            lambda raw: np.array([row.get(str(one), 0) for one in raw], np.int32),
            list(functions),
            manifest["max_length"],
            max(MAX_NUMBERS // (len(items) + 1), BATCH_SIZES[1]),
            *by_popularity(clicks, len(items)),
        )

    @classmethod
    def load(cls, folder: str | os.PathLike) -> "Recommender":
        """Reads an exported folder.

        Raises:
          ValueError: a file is not the one that was exported.
        """
        folder = pathlib.Path(folder)
        manifest = json.loads((folder / "manifest.json").read_text())
        content = {}
        for name, expected in manifest["files"].items():
            if pathlib.Path(name).name != name:
                raise ValueError(f"manifest.json names {name!r}, outside of {folder}")
            content[name] = (folder / name).read_bytes()
            if hashlib.sha256(content[name]).hexdigest() != expected:
                raise ValueError(f"{folder / name} is not the file that was exported")
        functions = {
            length: jax.export.deserialize(bytearray(content[f"top_k_{length}.bin"]))
            for length in manifest["lengths"]
        }
        params: dict[str, Any] = {}
        with np.load(io.BytesIO(content["weights.npz"])) as weights:
            for name, value in weights.items():
                *parents, last = name.split("/")
                at = params
                for parent in parents:
                    at = at.setdefault(parent, {})
                at[last] = value
        vocabulary = json.loads(content["vocabulary.json"])
        return cls(
            manifest, functions, params, vocabulary["items"], vocabulary["clicks"]
        )

    def recommend(
        self, sessions: Iterable[RawSession], k: int | None = None
    ) -> list[Recommendation]:
        """Finds the items that each session is likely to click next.

        Args:
          sessions: raw ids, oldest click first; of long sessions the last clicks count.
          k: length of the lists, at most that of the export; None: that.

        Returns:
          One recommendation per session, in order.

        Raises:
          ValueError: `k` is out of range, or an id is neither text nor a whole number.
        """
        most = self.manifest["k"]
        k = most if k is None else k
        if not 1 <= k <= most:
            raise ValueError(f"k is {k}; this export gives 1 to {most} items")

        def step(item_seq, seen):
            del seen
            lengths = np.maximum(np.count_nonzero(item_seq, axis=1), 1)
            run = self._functions[item_seq.shape[1]]
            return run(self._params, item_seq, lengths.astype(np.int32))

        return self._lists.make(sessions, step, k)


def by_popularity(clicks: Any, num_ids: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns all item rows, most clicked first, and their clicks; None: 0 each."""
    clicks = np.zeros(num_ids) if clicks is None else np.asarray(clicks, np.float64)
    order = np.argsort(-clicks, kind="stable")
    return 1 + order, clicks[order]


def wrong_session(session: Any) -> str:
    """Says why this is no sequence of raw ids; nothing if it is one."""
    if isinstance(session, str | bytes | dict) or not hasattr(session, "__len__"):
        return f"{str(session)[:80]!r} is no list of item ids"
    for kind in set(map(type, session)) - {str, int}:
        if not issubclass(kind, str | int | np.integer) or kind is bool:
            return f"an item id is of type {kind.__name__}; they are text or integers"
    return ""


def power_of_two(least: int, smallest: int) -> int:
    """Returns the first power of two from `least` on, and from `smallest` on."""
    return max(1 << (least - 1).bit_length(), smallest)


class Clicks(NamedTuple):
    """Sessions as item rows."""

    known: np.ndarray  # rows of the known clicks of all sessions
    offsets: np.ndarray  # session s is known[offsets[s]:offsets[s + 1]]
    unknown: dict[int, list[str]]  # ids by session; sessions without are left out

    def last(self, chosen: np.ndarray, most: int, shape: tuple[int, int]) -> np.ndarray:
        """Returns the last clicks of some sessions, filled up with 0."""
        ends = self.offsets[chosen + 1]
        starts = np.maximum(self.offsets[chosen], ends - most)
        index = starts[:, None] + np.arange(shape[1])
        last = self.known[np.minimum(index, len(self.known) - 1)]
        item_seq = np.zeros(shape, np.int32)
        item_seq[: len(chosen)] = np.where(index < ends[:, None], last, 0)
        return item_seq


@dataclasses.dataclass(frozen=True)
class Lists:
    """Makes lists of raw ids for sessions of raw ids."""

    ids: np.ndarray  # of each item row; row 0 is the padding
    rows_of: Callable[[list], np.ndarray]  # raw ids -> item rows, 0 where unknown
    widths: Sequence[int]  # the L that there may be, rising
    max_length: int  # clicks of a session that count, at most
    max_rows: int  # B, at most
    popular: np.ndarray  # item rows that may be listed, most clicked first
    clicks: np.ndarray  # theirs in training
    error: type[Exception] = ValueError  # where a session is no list of raw ids

    def make(
        self,
        sessions: Iterable[RawSession],
        step: Callable[[np.ndarray, np.ndarray | None], tuple[Any, Any]],
        k: int,
        with_seen: bool = False,
        total_clicks: float = 1.0,
    ) -> list[Recommendation]:
        """Recommends to any number of sessions.

        `step` gives scores, -inf where no item is left, and rows [B, at least K] for
        what `batches` cuts. Sessions without a known click get popular items, with
        their part of `total_clicks` as score.
        """
        found: list[Recommendation] = []
        remaining = enumerate(sessions)
        k = min(k, len(self.popular))
        while chunk := list(itertools.islice(remaining, CHUNK)):
            for n, session in chunk:
                if wrong := wrong_session(session):
                    raise self.error(f"session {n}: {wrong}")
            clicks = self.look_up([session for _, session in chunk])
            # All are started before any is waited for.
            answers = [
                (chosen, step(item_seq, seen))
                for chosen, item_seq, seen in self.batches(clicks, with_seen)
                if k
            ]
            rows = np.tile(self.popular[:k], (len(chunk), 1))
            scores = np.tile(self.clicks[:k] / total_clicks, (len(chunk), 1))
            for chosen, (best, row) in answers:
                rows[chosen] = np.asarray(row)[: len(chosen), :k]
                scores[chosen] = np.asarray(best)[: len(chosen), :k]
            items, values = self.ids[rows].tolist(), scores.tolist()
            for s in np.flatnonzero(scores[:, -1:] == -np.inf).tolist():
                count = np.count_nonzero(scores[s] > -np.inf)
                items[s], values[s] = items[s][:count], values[s][:count]
            for s, fallback in enumerate((np.diff(clicks.offsets) == 0).tolist()):
                unknown = clicks.unknown.get(s, [])
                found.append(Recommendation(items[s], values[s], unknown, fallback))
        return found

    def look_up(self, sessions: Sequence[RawSession]) -> Clicks:
        """Turns raw ids into item rows."""
        lengths = np.fromiter(map(len, sessions), np.int64, len(sessions))
        raw = list(itertools.chain.from_iterable(sessions))
        rows = self.rows_of(raw)
        session_of = np.repeat(np.arange(len(sessions)), lengths)
        unknown: dict[int, list[str]] = {}
        for at in np.flatnonzero(rows == 0):
            ids = unknown.setdefault(int(session_of[at]), [])
            if str(raw[at]) not in ids:
                ids.append(str(raw[at]))
        count = np.bincount(session_of[rows > 0], minlength=len(sessions))
        return Clicks(rows[rows > 0], np.append(0, np.cumsum(count)), unknown)

    def batches(
        self, clicks: Clicks, with_seen: bool = False
    ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray | None]]:
        """Cuts the sessions with known clicks into batches, long ones first.

        Yields:
          The sessions of a batch; their last clicks [B, L], 0 at the end, and rows of 0
          to fill up; `with_seen` all their clicks, sorted, filled up with 0, else None.
        """
        lengths = np.diff(clicks.offsets)
        order = np.argsort(-lengths, kind="stable")[: np.count_nonzero(lengths)]
        while len(order):
            longest = int(lengths[order[0]])
            shortened = min(longest, self.max_length)
            width = next(width for width in self.widths if width >= shortened)
            num_seen = power_of_two(longest, 4) if with_seen else 1
            most = min(self.max_rows, MAX_NUMBERS // max(width**2, num_seen))
            # Nearly full, and at most so many.
            allowed = [size for size in BATCH_SIZES if size <= max(most, 1)]
            size = max(size for size in allowed if size < 2 * len(order))
            chosen, order = order[:size], order[size:]
            seen = None
            if with_seen:
                seen = np.sort(clicks.last(chosen, longest, (size, num_seen)))
            yield chosen, clicks.last(chosen, self.max_length, (size, width)), seen
