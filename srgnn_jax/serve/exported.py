"""Recommends from an exported folder; needs only jax, numpy and flatbuffers.

If neighbours are joined with the network, session_knn.py next to this file needs scipy,
which is installed with jax.

`--mode=export` copies this file into the folder as recommender.py:

    sys.path.insert(0, "exported")
    from recommender import Recommender

    Recommender.load("exported").recommend([["81766", "31331"]])

Axes: B sessions of a batch, L positions, M seen clicks, K items of a list.
"""

import dataclasses
import functools
import hashlib
import importlib.util
import io
import itertools
import json
import logging
import os
import pathlib
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.export
import numpy as np

log = logging.getLogger(__name__)

# The model card.
CARD = "README.md"

# Rows of a batch; only these few sizes are compiled.
BATCH_SIZES = (1, 8, 64, 256)
# Maximum scores of a batch, and maximum rows times positions squared (its graphs).
MAX_NUMBERS = 2**22

# Raw ids, oldest click first.
RawSession = Sequence[str | int | float] | np.ndarray


class Recommendation(NamedTuple):
    """The items for one session.

    Attributes:
      items: raw ids, best first.
      scores: the model's scores, or probabilities; for a fallback, the items' clicks in
        training, or their share of all clicks.
      unknown: ids of the session that are not in the vocabulary, each once.
      fallback: whether no id was known; the list is then training's most popular items.
    """

    items: list[str]
    scores: list[float]
    unknown: list[str]
    fallback: bool


class Recommender:
    """An exported model; `manifest` has its k, versions, fingerprints and config."""

    def __init__(self, folder: str | os.PathLike):
        folder = pathlib.Path(folder)
        self.manifest = json.loads((folder / "manifest.json").read_text())
        content = {}
        for name, expected in self.manifest["files"].items():
            if pathlib.Path(name).name != name:
                raise ValueError(f"manifest.json names {name!r}, outside of {folder}")
            if name == CARD:
                continue  # People edit it.
            content[name] = (folder / name).read_bytes()
            if hashlib.sha256(content[name]).hexdigest() != expected:
                raise ValueError(f"{folder / name} is not the file that was exported")
        self._functions = {}
        for length in self.manifest["lengths"]:
            stored = bytearray(content[f"top_k_{length}.bin"])
            self._functions[length] = jax.jit(jax.export.deserialize(stored).call)
        params: dict[str, Any] = {}
        with np.load(io.BytesIO(content["weights.npz"])) as weights:
            for path, value in weights.items():
                *parents, name = path.split("/")
                at = params
                for parent in parents:
                    at = at.setdefault(parent, {})
                at[name] = value
        self._params = jax.device_put(params)
        self._neighbours: Any = None
        # Older exports have no such entry.
        if self.manifest.get("joined"):
            sessions = io.BytesIO(content["neighbours.npz"])
            self._neighbours = _session_knn().Neighbours.load(sessions)
        vocabulary = json.loads(content["vocabulary.json"])
        items = vocabulary["items"]
        most = max(MAX_NUMBERS // (len(items) + 1), BATCH_SIZES[1])
        self._lists = Lists(
            np.array(["", *items], object),
            rows_by_id(items),
            self.manifest["lengths"],
            self.manifest["max_length"],
            [size for size in BATCH_SIZES if size <= most],
            *by_popularity(vocabulary["clicks"], len(items)),
        )

    @classmethod
    def load(cls, folder: str | os.PathLike) -> "Recommender":
        """Reads an exported folder; raises ValueError if a file has changed since."""
        return cls(folder)

    def recommend(
        self,
        sessions: Iterable[RawSession],
        k: int | None = None,
        *,
        exclude_seen: bool = False,
        candidates: Iterable[str | int | float] | None = None,
    ) -> list[Recommendation]:
        """Returns the items that each session is likely to click next.

        A session is raw ids, oldest click first; only the last clicks of a long session
        count. Ids are compared as text, if need be without the spaces around them. If
        all items' ids are whole numbers, 1001.0 means 1001.

        Args:
          sessions: any number, of any length.
          k: length of the lists, at most the export's (the default); lists are shorter
            if fewer items may be recommended.
          exclude_seen: leave out what the session clicked, however long it is.
          candidates: raw ids that may be recommended; a warning names unknown ones.
            None: all items.

        Raises:
          ValueError: `k`, a session or the candidates cannot be used.
        """
        most = self.manifest["k"]
        k = most if k is None else k
        if not 1 <= k <= most:
            raise ValueError(f"k is {k}; this export gives 1 to {most} items")
        lists = self._lists
        if candidates is not None:
            lists = lists.restrict(lists.candidates(candidates))
        allowed = np.zeros(len(lists.ids), bool)
        allowed[lists.popular] = True
        listed = np.flatnonzero(allowed)

        def step(item_seq, seen):
            lengths = np.count_nonzero(item_seq, axis=1).clip(1).astype(np.int32)
            if seen is None:
                seen = np.zeros((len(item_seq), 1), np.int32)
            run = self._functions[item_seq.shape[1]]
            arguments: list[Any] = [self._params, item_seq, lengths, allowed, seen]
            if self._neighbours is not None:
                prefixes = _session_knn().Prefixes.of(item_seq)
                shares = np.zeros((len(item_seq), len(allowed)), np.float32)
                shares[:, listed] = self._neighbours.shares(prefixes, listed)
                arguments.append(shares)
            return run(*arguments)

        return lists.make(sessions, step, k, exclude_seen)


@functools.cache
def _session_knn() -> Any:
    """Returns session_knn: the file next to this one, or the package's module."""
    path = pathlib.Path(__file__).with_name("session_knn.py")
    spec = importlib.util.spec_from_file_location(f"{__name__}_session_knn", path)
    if not path.exists() or spec is None or spec.loader is None:
        return importlib.import_module("srgnn_jax.evaluate.session_knn")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rows_by_id(ids: Sequence[str]) -> Callable[[Any], np.ndarray]:
    """Returns a function from raw ids to rows that works like the package's vocabulary.

    The first id has row 1; unknown ids get row 0.
    """
    row = {raw: n for n, raw in enumerate(ids, 1)}
    all_whole = all(re.fullmatch("-?[0-9]+", raw) for raw in ids)

    def rows_of(raw_ids: Any) -> np.ndarray:
        raw_ids = list(raw_ids)
        rows = np.array([row.get(str(raw), 0) for raw in raw_ids], np.int32)
        for n in np.flatnonzero(rows == 0):
            text = str(raw_ids[n]).strip()
            rows[n] = row.get(re.sub(r"\.0+$", "", text) if all_whole else text, 0)
        return rows

    return rows_of


def by_popularity(clicks: Any, num_ids: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns all item rows, most clicked first, and their clicks (None: 0 each)."""
    clicks = np.zeros(num_ids) if clicks is None else np.asarray(clicks, np.float64)
    order = np.argsort(-clicks, kind="stable")
    return 1 + order, clicks[order]


def wrong_session(session: Any) -> str:
    """Returns why this is not a sequence of raw ids; "" if it is one."""
    if isinstance(session, str | bytes | dict) or not hasattr(session, "__len__"):
        return f"{str(session)[:80]!r} is not a list of item ids"
    for kind in set(map(type, session)) - {str, int}:
        if issubclass(kind, float):
            for raw in session:
                # Larger floats are whole only because they skip numbers.
                if type(raw) is kind and not (raw.is_integer() and abs(raw) < 2**53):
                    return f"an item id is {raw}; ids must be text or integers"
        elif not issubclass(kind, str | int | np.integer) or kind is bool:
            name = kind.__name__
            return f"an item id is of type {name}; ids must be text or integers"
    return ""


def as_list(ids: Iterable[str | int | float]) -> Any:
    """Lists ids, except a text or an object, which `wrong_session` will report."""
    return ids if isinstance(ids, str | bytes | dict) else list(ids)


def power_of_two(least: int, smallest: int = 1) -> int:
    """Returns the smallest power of two that is at least `least` and `smallest`."""
    return max(1 << (least - 1).bit_length(), smallest)


def filled_up(rows: Sequence[np.ndarray], shape: tuple[int, int]) -> np.ndarray:
    """Stacks item rows of sessions, padded to a shape: 0 after each, and rows of 0."""
    joined = np.zeros(shape, np.int32)
    for line, known in zip(joined, rows, strict=False):
        line[: len(known)] = known
    return joined


@dataclasses.dataclass(frozen=True)
class Lists:
    """Makes lists of raw ids for sessions of raw ids."""

    ids: np.ndarray  # of each item row; row 0 is the padding
    rows_of: Callable[[Any], np.ndarray]  # raw ids -> item rows, 0 if unknown
    widths: Sequence[int]  # possible L, ascending
    max_length: int  # maximum number of clicks of a session that count
    sizes: Sequence[int]  # possible B, ascending from 1
    popular: np.ndarray  # item rows that may be listed, most clicked first
    clicks: np.ndarray  # their clicks in training
    error: type[Exception] = ValueError  # raised if a session is not a list of raw ids
    max_positions: int = MAX_NUMBERS  # maximum of B times L
    apart: bool = False  # whether sessions that need another L get another batch

    def make(
        self,
        sessions: Iterable[RawSession],
        step: Callable[[np.ndarray, np.ndarray | None], tuple[Any, Any]],
        k: int,
        with_seen: bool = False,
        total_clicks: float = 1.0,
    ) -> list[Recommendation]:
        """Recommends to any number of sessions.

        `step` takes a batch from `batches` and returns scores, -inf where no item is
        left, and rows [B, at least K]. Sessions without a known click get popular
        items, scored by their clicks divided by `total_clicks`.
        """
        if isinstance(sessions, str | bytes | dict):
            raise self.error(
                f"{str(sessions)[:80]!r} is not a list of sessions, "
                "such as [['17', '4']]"
            )
        known, unknown = self.look_up(list(sessions))
        k = min(k, len(self.popular))
        best = np.tile(self.popular[:k], (len(known), 1))
        scores = np.tile(self.clicks[:k] / total_clicks, (len(known), 1))
        batches = self.batches(known, with_seen) if k else ()
        # Start all batches before waiting for any.
        started = [(chosen, step(item_seq, seen)) for chosen, item_seq, seen in batches]
        for chosen, (score, row) in started:
            best[chosen] = np.asarray(row)[: len(chosen), :k]
            scores[chosen] = np.asarray(score)[: len(chosen), :k]
        items, values = self.ids[best].tolist(), scores.tolist()
        for s in np.flatnonzero(scores[:, -1:] == -np.inf).tolist():
            count = np.count_nonzero(scores[s] > -np.inf)
            items[s], values[s] = items[s][:count], values[s][:count]
        fallback = [not len(rows) for rows in known]
        return list(map(Recommendation, items, values, unknown, fallback))

    def candidates(self, ids: Iterable[str | int | float]) -> np.ndarray:
        """Returns the rows of raw ids; a warning names unknown ones.

        Raises `error` if they are not a list of raw ids, or all are unknown.
        """
        listed = as_list(ids)
        if wrong := wrong_session(listed):
            raise self.error(f"candidates: {wrong}")
        listed = list(dict.fromkeys(listed))
        known = self.rows_of(listed)
        unknown = [repr(raw) for raw, row in zip(listed, known, strict=True) if not row]
        named = ", ".join(unknown[:5]) + ", ..." * (len(unknown) > 5)
        if len(unknown) == len(listed):
            raise self.error(
                f"none of {len(listed):,} candidates is known: {named}; use the item "
                "ids of the training log"
                if listed
                else "there are no candidates; name at least one item"
            )
        if unknown:
            are = "are" if len(unknown) > 1 else "is"
            total = f"{len(unknown):,} of {len(listed):,} candidates"
            log.warning("%s %s unknown: %s", total, are, named)
        return known

    def restrict(self, known: np.ndarray) -> "Lists":
        """Restricts the lists to some item rows; rows of 0 are ignored.

        Raises `error` if no item is left.
        """
        places = np.unique(self._places[known])
        places = places[places >= 0]
        if not len(places):
            raise self.error(
                "none of the candidates is left: an earlier restriction excludes them"
            )
        popular, clicks = self.popular[places], self.clicks[places]
        return dataclasses.replace(self, popular=popular, clicks=clicks)

    @functools.cached_property
    def _places(self) -> np.ndarray:
        """The place of each item row by popularity, -1 if it may not be listed."""
        places = np.full(len(self.ids), -1)
        places[self.popular] = np.arange(len(self.popular))
        return places

    def look_up(
        self, sessions: Sequence[RawSession]
    ) -> tuple[list[np.ndarray], list[list[str]]]:
        """Returns the item rows of each session's known clicks, and its unknown ids."""
        for n, session in enumerate(sessions):
            if wrong := wrong_session(session):
                raise self.error(f"session {n}: {wrong}")
        # One look-up for all sessions: each call has a cost.
        rows = self.rows_of(itertools.chain.from_iterable(sessions))
        ends = [0, *itertools.accumulate(map(len, sessions))]
        known = [rows[start:end] for start, end in itertools.pairwise(ends)]
        unknown: list[list[str]] = [[] for _ in sessions]
        if not rows.all():
            for n, session in enumerate(sessions):
                lacking = np.asarray(session, object)[known[n] == 0]
                unknown[n] = list(dict.fromkeys(map(str, lacking)))
                known[n] = known[n][known[n] > 0]
        return known, unknown

    def sizes_for(self, width: int, num_seen: int = 1) -> list[int]:
        """Returns the possible B for an L and a number of seen clicks."""
        most = min(self.max_positions // width, MAX_NUMBERS // max(width**2, num_seen))
        return [size for size in self.sizes if size <= max(most, 1)]

    def batches(
        self, known: Sequence[np.ndarray], with_seen: bool = False
    ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray | None]]:
        """Cuts the sessions with known clicks into batches, long ones first.

        Yields:
          The sessions of a batch; their last clicks [B, L], 0 at the end, with rows of
          0 as padding; all their clicks [B, M] if `with_seen`, else None.
        """
        lengths = np.fromiter(map(len, known), np.int64, len(known))
        order = np.argsort(-lengths, kind="stable")[: np.count_nonzero(lengths)]
        while len(order):
            longest = int(lengths[order[0]])
            shortened = min(longest, self.max_length)
            width = next(width for width in self.widths if width >= shortened)
            num_seen = power_of_two(longest, 4) if with_seen else 1
            most = len(order)
            if self.apart:
                shorter = max((w for w in self.widths if w < width), default=0)
                most = int(np.count_nonzero(lengths[order] > shorter))
            # The largest batch that is more than half full.
            allowed = self.sizes_for(width, num_seen)
            size = max(size for size in allowed if size < 2 * most)
            chosen, order = order[:size], order[size:]
            clicks = [known[s] for s in chosen]
            last = [rows[-self.max_length :] for rows in clicks]
            seen = filled_up(clicks, (size, num_seen)) if with_seen else None
            yield chosen, filled_up(last, (size, width)), seen
