"""Sessions, their prefix examples, and the raw ids of their item rows.

Axes: S sessions, C clicks of all sessions, E examples.
"""

import dataclasses
import functools
import hashlib
import os
import pathlib
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq
from jaxtyping import Bool, Int

from srgnn_jax.data.files import reading

# The most rows, or bytes of ids, per byte of a vocabulary's file: ids all differ, so
# they do not compress as well as bombs do.
MOST_UNPACKED = 200
# Bytes that are always read: long ids that start alike do compress well.
ALWAYS_UNPACKED = 1 << 28
# Sessions to copy at a time.
_TAKEN = 1 << 20


@dataclasses.dataclass(frozen=True)
class Examples:
    """Prefixes of sessions, and the item clicked after each prefix."""

    items: Int[np.ndarray, " C"]  # the item rows of all clicks
    starts: Int[np.ndarray, " E"]  # the index of each prefix's first click
    lengths: Int[np.ndarray, " E"]  # in clicks; the next click is the target

    def __post_init__(self) -> None:
        _check_integers(self.items, self.starts, self.lengths)
        if len(self.starts) != len(self.lengths):
            raise ValueError(f"{len(self.starts)} starts, {len(self.lengths)} lengths")
        wrong = (self.starts < 0) | (self.lengths < 1)
        wrong |= self.starts + self.lengths >= len(self.items)
        if wrong.any():
            e = int(wrong.argmax())
            raise ValueError(
                f"example {e}, {self.lengths[e]} clicks from {self.starts[e]} on and a "
                f"target after them, does not lie within {len(self.items)} clicks"
            )

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def targets(self) -> Int[np.ndarray, " E"]:
        """The item row clicked after each prefix."""
        return self.items[self.starts + self.lengths]


@dataclasses.dataclass(frozen=True)
class Sessions:
    """Anonymous visits, each the item rows of its clicks in time order."""

    items: Int[np.ndarray, " C"]  # of all sessions, one after another
    offsets: Int[np.ndarray, " S1"]  # session s is items[offsets[s]:offsets[s + 1]]
    # True: sessions are given (prefix, target) pairs, and only the last click is a
    # target. False: every click from the second on is one.
    last_only: bool = False

    def __post_init__(self) -> None:
        _check_integers(self.items, self.offsets)
        ends = self.offsets[[0, -1]].tolist() if len(self.offsets) else []
        if ends != [0, len(self.items)] or (np.diff(self.offsets) < 0).any():
            raise ValueError(
                "the offsets of sessions must start at 0, never decrease, and end at "
                f"{len(self.items)}, the number of clicks"
            )

    @classmethod
    def from_lengths(
        cls,
        items: Int[np.ndarray, " C"],
        lengths: Int[np.ndarray, " S"],
        last_only: bool = False,
    ) -> "Sessions":
        """Cuts the item rows of all sessions into sessions of these lengths."""
        return cls(items, np.append(0, np.cumsum(lengths, dtype=np.int64)), last_only)

    @classmethod
    def from_lists(
        cls, sessions: Iterable[Sequence[int] | np.ndarray], last_only: bool = False
    ) -> "Sessions":
        """Builds sessions from lists of item rows."""
        lists = [np.asarray(session, np.int32) for session in sessions]
        items = np.concatenate([np.zeros(0, np.int32), *lists])
        return cls.from_lengths(items, np.array([*map(len, lists)], int), last_only)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, s: int) -> Int[np.ndarray, " n"]:
        return self.items[self.offsets[s] : self.offsets[s + 1]]

    @property
    def lengths(self) -> Int[np.ndarray, " S"]:
        """Number of clicks of each session."""
        return np.diff(self.offsets)

    def take(self, chosen: Int[np.ndarray, " T"]) -> "Sessions":
        """Returns the chosen sessions, in the order given."""
        lengths = self.lengths[chosen]
        ends = np.cumsum(lengths)
        shift = self.offsets[chosen] - (ends - lengths)
        items = np.empty(ends[-1] if len(ends) else 0, self.items.dtype)
        # In parts: the indices take more memory than the items.
        for part in range(0, len(chosen), _TAKEN):
            some = slice(part, part + _TAKEN)
            start, end = ends[part] - lengths[part], ends[some][-1]
            index = np.arange(start, end) + np.repeat(shift[some], lengths[some])
            items[start:end] = self.items[index]
        return Sessions.from_lengths(items, lengths, self.last_only)

    def keep(
        self, clicks: Bool[np.ndarray, " C"], least: int = 1
    ) -> tuple["Sessions", Bool[np.ndarray, " S"]]:
        """Drops the other clicks, then sessions of fewer than `least` clicks.

        Returns the sessions that are left, and whether each session [S] is.
        """
        narrow = np.int32 if len(clicks) < 2**31 else np.int64
        before = np.append(narrow(0), np.cumsum(clicks, dtype=narrow))
        lengths = before[self.offsets[1:]] - before[self.offsets[:-1]]
        left = lengths >= least
        items = self.items[clicks & np.repeat(left, self.lengths)]
        return Sessions.from_lengths(items, lengths[left], self.last_only), left

    def examples(self, max_length: int = 0) -> Examples:
        """Returns the prefix examples, in session order, shorter prefixes first.

        Only the last `max_length` clicks of each prefix are kept; 0 keeps all.
        """
        starts, lengths = self.offsets[:-1], self.lengths - 1
        if not self.last_only:
            count = np.maximum(lengths, 0)
            starts = np.repeat(starts, count)
            # Counts 1, 2, ... in every session.
            before = np.repeat(np.cumsum(count) - count, count)
            lengths = np.arange(len(starts)) - before + 1
        if max_length:
            dropped = np.maximum(lengths - max_length, 0)
            starts, lengths = starts + dropped, lengths - dropped
        return Examples(self.items, starts, lengths.astype(np.int32))

    def whole(self) -> "Sessions":
        """Returns the sessions behind (prefix, target) pairs, each once.

        Pairs are listed session by session, longer prefixes first or last. A pair that
        only shortens the one before or after it is left out.
        """
        if not self.last_only:
            return self
        shortens = np.zeros(len(self), bool)
        earlier, later = slice(-1), slice(1, None)
        shortens[earlier] |= self._begins(later, earlier)
        shortens[later] |= self._begins(earlier, later)
        return self.take(np.flatnonzero(~shortens))

    def _begins(self, longer: slice, shorter: slice) -> Bool[np.ndarray, " T"]:
        """Whether each longer session is the shorter one plus one more click."""
        lengths, starts = self.lengths[shorter], self.offsets[:-1][shorter]
        found = self.lengths[longer] == lengths + 1
        lengths = np.where(found, lengths, 0)
        pair = np.repeat(np.arange(len(lengths)), lengths)
        place = np.arange(len(pair)) - (np.cumsum(lengths) - lengths)[pair]
        others = self.offsets[:-1][longer]
        differs = self.items[starts[pair] + place] != self.items[others[pair] + place]
        found[pair[differs]] = False
        return found

    def split_last(self, fraction: float) -> tuple["Sessions", "Sessions"]:
        """Returns all sessions but the last `fraction`, and that last fraction."""
        cut = len(self) - round(fraction * len(self))
        end = self.offsets[cut]
        return (
            Sessions(self.items[:end], self.offsets[: cut + 1], self.last_only),
            Sessions(self.items[end:], self.offsets[cut:] - end, self.last_only),
        )


def check_rows(rows: Any, num_items: int) -> None:
    """Raises ValueError unless all are whole numbers from 1 to num_items - 1."""
    rows = np.asarray(rows)
    if not np.issubdtype(rows.dtype, np.integer):
        raise ValueError(f"item rows must be integers, not {rows.dtype}")
    if rows.size and not (rows.min() >= 1 and rows.max() < num_items):
        wrong = rows[(rows < 1) | (rows >= num_items)][0]
        raise ValueError(f"{wrong} is not an item row: they are 1 to {num_items - 1}")


def _check_integers(*arrays: Any) -> None:
    for array in arrays:
        if np.ndim(array) != 1 or not np.issubdtype(array.dtype, np.integer):
            raise ValueError(
                f"an array of shape {np.shape(array)} and type {array.dtype} is not a "
                "list of integers"
            )


class Vocabulary:
    """The raw ids of all item rows, as text: `ids[0]` is that of row 1.

    `clicks` is how often each item was clicked in training; None: unknown. `is_new`
    marks items that were not in the run this one started from; None: it started from
    none.
    """

    def __init__(
        self,
        ids: Sequence[str],
        clicks: Int[np.ndarray, " n"] | None = None,
        is_new: Bool[np.ndarray, " n"] | None = None,
    ):
        self.ids = list(ids)
        self.clicks, self.is_new = clicks, is_new
        self._rows = {raw: row for row, raw in enumerate(self.ids, 1)}
        if len(self._rows) != len(self.ids):
            raise ValueError("the item ids of a vocabulary must differ")
        if clicks is not None and len(clicks) != len(self.ids):
            raise ValueError(f"{len(clicks)} click counts for {len(self.ids)} item ids")

    def with_clicks(self, items: Int[np.ndarray, " C"]) -> "Vocabulary":
        """Returns the vocabulary with clicks counted from the item rows of training."""
        clicks = np.bincount(items, minlength=self.num_items)[1:]
        return Vocabulary(self.ids, clicks, self.is_new)

    @property
    def new_rows(self) -> Bool[np.ndarray, " V"] | None:
        """Whether each row, including row 0, is a new item; None: see the class."""
        return None if self.is_new is None else np.append(False, self.is_new)

    @property
    def num_items(self) -> int:
        """V, the number of rows including the padding."""
        return len(self.ids) + 1

    def rows(
        self, raw_ids: Iterable[str | int | float | np.integer]
    ) -> Int[np.ndarray, " n"]:
        """Returns the row of each raw id, 0 if it is unknown.

        Ids are compared as text, if necessary without surrounding spaces. If all ids of
        the vocabulary are whole numbers, 1001.0 means 1001.
        """
        raw_ids = list(raw_ids)
        rows = np.array([self._rows.get(str(raw), 0) for raw in raw_ids], np.int32)
        for n in np.flatnonzero(rows == 0):
            text = str(raw_ids[n]).strip()
            if self._all_whole:
                text = re.sub(r"\.0+$", "", text)
            rows[n] = self._rows.get(text, 0)
        return rows

    @functools.cached_property
    def _all_whole(self) -> bool:
        return all(re.fullmatch("-?[0-9]+", raw) for raw in self.ids)

    def raw(self, rows: Iterable[int] | Int[np.ndarray, " n"]) -> list[str]:
        """Returns the raw id of each row; raises IndexError if a row has none."""
        rows = np.fromiter(rows, np.int64)
        if (rows < 1).any():
            raise IndexError(f"row {rows.min()} has no raw id: they start at 1")
        return [self.ids[row - 1] for row in rows]

    def fingerprint(self) -> str:
        """Returns a hash of the ids and their order."""
        digest = hashlib.blake2b(digest_size=16)
        for raw in self.ids:
            encoded = raw.encode()
            digest.update(len(encoded).to_bytes(4, "little") + encoded)
        return digest.hexdigest()

    def save(self, path: str | os.PathLike) -> None:
        """Writes the vocabulary to a parquet file, completely or not at all."""
        path = pathlib.Path(path)
        unfinished = path.with_name(path.name + ".unfinished")
        columns = [pl.Series("item", self.ids, pl.String)]
        if self.clicks is not None:
            columns.append(pl.Series("clicks", self.clicks, pl.Int64))
        if self.is_new is not None:
            columns.append(pl.Series("is_new", self.is_new, pl.Boolean))
        pl.DataFrame(columns).write_parquet(unfinished)
        unfinished.replace(path)

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Vocabulary":
        """Reads what `save` wrote.

        Raises UserError if the file is damaged or not a vocabulary.
        """
        path = pathlib.Path(path)
        with reading(path, ", a vocabulary"):
            size = path.stat().st_size
            most = max(MOST_UNPACKED * size, ALWAYS_UNPACKED)
            # Checked before anything is decompressed.
            footer = pq.read_metadata(path)
            groups = map(footer.row_group, range(footer.num_row_groups))
            length = sum(group.total_byte_size for group in groups)
            if footer.num_rows > MOST_UNPACKED * size or length > most:
                raise ValueError(
                    f"it claims {footer.num_rows:,} rows of {length:,} bytes, more "
                    "than such a file holds"
                )
            columns = pl.read_parquet(path, glob=False)
            known = {"item": pl.String, "clicks": pl.Int64, "is_new": pl.Boolean}
            if columns.schema not in [
                {name: known[name] for name in ("item", *rest)}
                for rest in ((), ("clicks",), ("clicks", "is_new"))
            ]:
                raise ValueError(f"its columns are {str(columns.schema)[:200]}")
            # Rows may share their bytes until they become Python strings.
            if columns["item"].str.len_bytes().sum() > most:
                raise ValueError("its ids are longer, more than such a file holds")
            if any(columns.null_count().row(0)):
                raise ValueError("it holds an empty row")
            ids, *rest = columns
            return cls(ids.to_list(), *(column.to_numpy() for column in rest))


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Sessions to train and test on, their vocabulary, and counts."""

    splits: dict[str, Sessions]  # train, test and perhaps validation, in time order
    vocabulary: Vocabulary
    counts: dict[str, int | float]  # see `counts.count`
    published: dict[str, int | float] = dataclasses.field(default_factory=dict)
    fingerprint: str = ""  # of sessions and vocabulary, once they are stored
    # For the user, one line each: what was read, where test begins, what was dropped.
    notes: Sequence[str] = ()

    @property
    def train(self) -> Sessions:
        return self.splits["train"]

    @property
    def test(self) -> Sessions:
        return self.splits.get("test", Sessions.from_lists([]))

    @property
    def validation(self) -> Sessions | None:
        return self.splits.get("validation")
