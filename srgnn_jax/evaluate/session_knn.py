"""V-SKNN, STAN and repeat clicks, and what they add to a network.

An export holds a copy of this file next to its loader, so it may import only numpy and
scipy. Clicks are `Sessions` or `Examples` of `data.sessions`, or anything with the same
arrays.

Axes: S training sessions, V item rows (row 0 is the padding), C clicks, E examples, R
rows of a matrix, N item rows that may be listed, D distinct items of a prefix, T times
that it has an item, A ages of an item in it, in clicks.
"""

import dataclasses
import functools
import io
import itertools
import math
import os
import pathlib
import zipfile
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from scipy import sparse

# The ages of clicks [C] and the lengths of their sessions [C] -> weights [C].
Weight = Callable[[np.ndarray, np.ndarray], np.ndarray]


class Scorer(NamedTuple):
    """A trained recommender.

    Attributes:
      score: returns the scores [E, V] for the prefixes of some examples. A row stores
        positive scores of some items, which rank before all other items.
      fallback: [V], orders the other items; higher is better.
    """

    score: Callable[[Any], sparse.csr_array]
    fallback: np.ndarray


@dataclasses.dataclass(frozen=True)
class Prefixes:
    """Clicks to score: `Examples` without targets; prefixes may be empty."""

    items: np.ndarray  # the item rows of all clicks
    starts: np.ndarray  # the index of each prefix's first click
    lengths: np.ndarray

    @classmethod
    def of(cls, item_seq: np.ndarray) -> "Prefixes":
        """Builds them from item rows [B, L] in click order, 0 = padding at the end."""
        starts = np.arange(len(item_seq)) * item_seq.shape[1]
        return cls(item_seq.reshape(-1), starts, np.count_nonzero(item_seq, axis=1))

    def __len__(self) -> int:
        return len(self.starts)


def vsknn(
    train: Any,
    num_items: int,
    k: int = 100,
    sample_size: int = 1000,
    click_weight: Weight = lambda age, length: length - age,
    neighbour_weight: Weight = lambda age, length: 1 / (age + 1),
) -> Scorer:
    """V-SKNN: items of sessions that share clicks, the latest clicks counting most.

    The neighbours N(s) of a prefix s are the k most similar of the latest
    `sample_size` training sessions that share an item with it, and

        similarity(s, n) = sum of click_weight(i, s) over the items i in both
        score(j | s) = sum over n in N(s) with j:
            similarity(s, n) neighbour_weight(i*, s),  i* = the latest item in both

    (Ludewig and Jannach 2018, "Evaluation of session-based recommendation algorithms").
    The defaults are those of the authors' code: counted from the last one, the clicks
    of a prefix of length n weigh n, n - 1, ..., and neighbours 1, 1/2, 1/3, ... by i*.
    """
    return _session_knn(
        places(train, num_items),
        k,
        sample_size,
        click_weight=click_weight,
        session_weight=np.ones(len(train)),
        neighbour_weight=neighbour_weight,
        item_weight=np.ones_like,
    )


def stan(
    train: Any,
    num_items: int,
    k: int = 500,
    sample_size: int = 5000,
    lambda1: float | int = 1.02,
    lambda2: float | int = 1.0,
    lambda3: float | int = 2.05,
) -> Scorer:
    """STAN: items of sessions that share clicks, weighted by position and age.

    The neighbours N(s) of a prefix s are the k most similar of the latest
    `sample_size` training sessions that share an item with it, and

        similarity(s, n) = sum over the items i in both: exp(-age(i, s) / lambda1),
            times exp(-age(n) / lambda2) / sqrt(number of items of n)
        score(j | s) = sum over n in N(s) with j:
            similarity(s, n) exp(-|age(j, n) - age(i*, n)| / lambda3),
            i* = the item in both that s clicked last

    (Garg et al. 2019, "Sequence and time aware neighborhood for session-based
    recommendations"). Factors that depend only on s are left out. In the paper the age
    of a session is in days. A prepared data set has no times, so here it is the share
    of the training sessions that are later; lambda2 = 1 was the best of 0.1, 0.3, 1, 3
    and none on validation, both on Diginetica and on Yoochoose 1/64.
    """
    clicked = places(train, num_items)
    # Avoids dividing by 0: the weight of a session without clicks has no effect.
    distinct = np.maximum(np.diff(clicked.indptr), 1)
    later = np.arange(len(train))[::-1] / max(len(train), 1)
    return _session_knn(
        clicked,
        k,
        sample_size,
        click_weight=lambda age, _: np.exp(-age / lambda1),
        session_weight=np.exp(-later / lambda2) / np.sqrt(distinct),
        neighbour_weight=lambda age, _: np.ones(len(age)),
        item_weight=lambda distance: np.exp(-distance / lambda3),
    )


def _session_knn(
    train: sparse.csr_array,
    k: int,
    sample_size: int,
    *,
    click_weight: Weight,
    session_weight: np.ndarray,
    neighbour_weight: Weight,
    item_weight: Callable[[np.ndarray], np.ndarray],
) -> Scorer:
    """Scores items of the k nearest training sessions; `train` is from `places`."""
    num_items = train.shape[1]
    weighted = sparse.diags_array(session_weight) @ train.sign()
    # Only the latest sessions of an item can be among the latest of a prefix.
    sessions_of = keep(sparse.csr_array(weighted.T), sample_size, largest=False)

    def score(examples):
        clicked, lengths = places(examples, num_items), examples.lengths
        length = lengths[row_of_each(clicked)]
        query = clicked.copy()
        query.data = click_weight(length - clicked.data, length)
        sample = keep(sparse.csr_array(query @ sessions_of), sample_size, largest=False)
        near = keep(sample, k, largest=True)
        if not near.nnz:
            return sparse.csr_array(clicked.shape)

        # For each pair of a prefix and a neighbour: the neighbour's items, and the
        # shared item that the prefix clicked last.
        pair = row_of_each(near)
        contents = train[near.indices]
        both = clicked[pair].multiply(contents.sign())
        place = both.max(axis=1).toarray()
        last = examples.items[examples.starts[pair] + place - 1]
        distance = contents.data - contents[np.arange(len(pair)), last].repeat(
            np.diff(contents.indptr)
        )

        # Both products add in the neighbours' order, so equal sums agree to the bit.
        weight = near.data * neighbour_weight(lengths[pair] - place, lengths[pair])
        neighbours = sparse.csr_array(
            (weight, np.arange(len(pair)), near.indptr), (len(examples), len(pair))
        )
        contents.data = item_weight(np.abs(distance))
        return sparse.csr_array(neighbours @ contents)

    return Scorer(score, np.zeros(num_items))


METHODS: dict[str, Callable[[Any, int], Scorer]] = {"STAN": stan, "V-SKNN": vsknn}


# Groups of D (by powers of 2), T and A; larger values are in the last one.
KINDS = 6, 6, 24
# Clicks of prefixes counted at a time; how many observations a mean counts as.
CLICKS_AT_A_TIME, OF_THE_MEAN = 2**22, 10
# The most that the items of a session together get of its next click.
MOST_REPEATS = 0.95


def repeat_rates(train: Any, num_items: int) -> np.ndarray:
    """Returns how often items that a prefix has t times, last a clicks ago, come next.

    Counted over all prefixes of the training sessions with d distinct items: [D, T, A].
    If these are few, the rate over all d counts too. Repeats depend on how often and
    how long ago (Anderson et al. 2014, "The dynamics of repeat consumption").
    """
    lengths = np.asarray(train.lengths, np.int64)
    part = np.cumsum(lengths**2) // CLICKS_AT_A_TIME
    starts = [*np.flatnonzero(np.diff(part, prepend=-1)), len(lengths)]
    next_, held = np.zeros((2, math.prod(KINDS)))
    for first, end in itertools.pairwise(starts):
        count = np.maximum(lengths[first:end] - 1, 0)
        before = np.repeat(np.cumsum(count) - count, count)
        length = 1 + np.arange(len(before)) - before
        start = np.repeat(np.asarray(train.offsets[first:end], np.int64), count)
        at, kind = _kinds(Prefixes(train.items, start, length), num_items)
        target = np.asarray(train.items[start + length])[row_of_each(at)]
        held += np.bincount(kind, minlength=held.size)
        next_ += np.bincount(kind[at.indices == target], minlength=held.size)
    rates: Any = next_.sum() / max(held.sum(), 1)
    next_, held = next_.reshape(KINDS), held.reshape(KINDS)
    for came, of in ((next_.sum(axis=0), held.sum(axis=0)), (next_, held)):
        rates = (came + OF_THE_MEAN * rates) / (of + OF_THE_MEAN)
    return rates


def _kinds(clicks: Any, num_items: int) -> tuple[sparse.csr_array, np.ndarray]:
    """Returns the positions of each prefix's items and the indices of their rates."""
    row, item, _ = each_click(clicks)
    shape = len(clicks), num_items
    times = sparse.csr_array((np.ones(len(row), np.int64), (row, item)), shape)
    times.sum_duplicates()
    last = places(clicks, num_items)
    last.sort_indices()
    row = row_of_each(last)
    distinct = np.frexp(np.diff(last.indptr))[1] - 1  # the logarithm, rounded down
    kind = distinct[row], times.data - 1, clicks.lengths[row] - last.data
    return last, np.ravel_multi_index(kind, KINDS, mode="clip")


def weighted(
    knn: Any, repeats: Any, weight: float | int, repeats_weight: float | int
) -> Any:
    """Returns what is added to a network's probabilities, [E, N] like both arrays.

    The network's are scaled so that everything sums to 1. Neighbours, if there are any,
    get the share `weight` of what repeats leave.
    """
    again = repeats_weight * repeats
    return (1 - again.sum(axis=1, keepdims=True)) * weight * knn + again


@dataclasses.dataclass(frozen=True)
class Neighbours:
    """What a network is joined with: neighbours, and the session's own items.

    Attributes:
      method: how neighbours are found and scored, one of `METHODS`.
      weight: their share of the joined probabilities, below 1.
      items, offsets: the training sessions; see `data.sessions.Sessions`.
      num_items: V.
      repeats_weight: what the rates are multiplied by, at most 1.
      rates: `repeat_rates`, or [T, A] for any d; of any shape if their weight is 0.
    """

    method: str
    weight: float
    items: np.ndarray
    offsets: np.ndarray
    num_items: int
    repeats_weight: float = 0.0
    rates: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros((1, 1)))

    @property
    def lengths(self) -> np.ndarray:
        """Number of clicks of each training session."""
        return np.diff(self.offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @functools.cached_property
    def _score(self) -> Callable[[Any], sparse.csr_array]:
        return METHODS[self.method](self, self.num_items).score

    def shares(self, clicks: Any, rows: np.ndarray | None = None) -> np.ndarray:
        """Returns what is added to the network's probabilities, [E, V] in float32.

        See `weighted`. With `rows` [N], in which only 0 may repeat, only these items
        share the probability, and the result is [E, N].
        """
        none = np.zeros((1, 1), np.float32)
        knn = self.knn(clicks, rows) if self.weight else none
        repeats = self.repeats(clicks, rows) if self.repeats_weight else none
        shape = len(clicks), self.num_items if rows is None else len(rows)
        both = weighted(knn, repeats, self.weight, self.repeats_weight)
        return np.broadcast_to(both, shape).astype(np.float32, copy=False)

    def knn(self, clicks: Any, rows: np.ndarray | None = None) -> np.ndarray:
        """Returns the neighbours' scores, scaled to sum to 1; see `shares`.

        If a prefix has no neighbour, all are 0.
        """
        # A product of weights may underflow to 0.
        return self._scaled(
            self._score(clicks), lambda total: 1 / np.where(total > 0, total, 1), rows
        )

    def repeats(self, clicks: Any, rows: np.ndarray | None = None) -> np.ndarray:
        """Returns how likely each item is to come again; 0 if it was not clicked."""
        found, kind = _kinds(clicks, self.num_items)
        found.data = np.broadcast_to(self.rates, KINDS).reshape(-1)[kind]
        return self._scaled(
            found, lambda total: MOST_REPEATS / np.maximum(total, MOST_REPEATS), rows
        )

    def _scaled(
        self,
        scores: sparse.csr_array,
        scale: Callable[[np.ndarray], np.ndarray],
        rows: np.ndarray | None,
    ) -> np.ndarray:
        """Scales each prefix's scores (of `rows`, if given) by `scale` of their sum."""
        if rows is not None:
            is_chosen = np.zeros(self.num_items, bool)
            is_chosen[rows] = True
            scores.data *= is_chosen[scores.indices]
        row = row_of_each(scores)
        scores.data *= scale(np.bincount(row, scores.data, scores.shape[0]))[row]
        shares = scores.astype(np.float32).toarray()
        return shares if rows is None else shares[:, rows]

    def save(self, path: str | os.PathLike) -> None:
        """Writes an npz file, completely or not at all."""
        path = pathlib.Path(path)
        unfinished = path.with_name(path.name + ".unfinished")
        with unfinished.open("wb") as file:
            np.savez_compressed(file, **dataclasses.asdict(self))
        unfinished.replace(path)

    @classmethod
    def load(cls, file: io.BufferedIOBase) -> "Neighbours":
        """Reads a file that `save` wrote; raises ValueError or KeyError for others."""
        try:
            with np.load(file, allow_pickle=False) as found:
                fields = {f.name: found[f.name] for f in dataclasses.fields(cls)}
        except zipfile.BadZipFile as error:
            raise ValueError(f"it is damaged: {error}") from error
        method, weight = str(fields["method"]), float(fields["weight"])
        num_items = int(fields["num_items"])
        items, offsets = fields["items"], fields["offsets"]
        again, rates = float(fields["repeats_weight"]), fields["rates"]
        ends = offsets[[0, -1]].tolist() if len(offsets) else []
        if (
            method not in METHODS
            or not 0 <= weight < 1
            or not 0 <= again <= 1
            or not ((rates >= 0) & (rates <= 1)).all()
            or (again and rates.shape not in (KINDS, KINDS[1:]))
            or ends != [0, len(items)]
            or (np.diff(offsets) < 0).any()
            or (len(items) and not (items.min() > 0 and items.max() < num_items))
        ):
            raise ValueError("it holds no sessions of the vocabulary's items")
        return cls(method, weight, items, offsets, num_items, again, rates)


def each_click(clicks: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns each click's session or prefix, its item, and its position from 1."""
    lengths = clicks.lengths
    starts = clicks.offsets[:-1] if hasattr(clicks, "offsets") else clicks.starts
    row = np.repeat(np.arange(len(starts)), lengths)
    place = np.arange(len(row)) - (np.cumsum(lengths, dtype=np.int64) - lengths)[row]
    return row, clicks.items[starts[row] + place], 1 + place


def places(clicks: Any, num_items: int) -> sparse.csr_array:
    """Returns the position of the last click on each item, by session or prefix."""
    row, item, place = each_click(clicks)
    _, before_end = np.unique((row * num_items + item)[::-1], return_index=True)
    last = len(row) - 1 - before_end
    shape = len(clicks), num_items
    return sparse.csr_array((place[last], (row[last], item[last])), shape)


def row_of_each(matrix: sparse.csr_array) -> np.ndarray:
    """Returns the row of each stored number of a matrix."""
    return np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))


def keep(matrix: sparse.csr_array, n: int, largest: bool) -> sparse.csr_array:
    """Keeps n stored numbers of each row: the rightmost ones, or the largest.

    Of equal numbers, those further right are kept.
    """
    matrix.sort_indices()
    counts = np.diff(matrix.indptr)
    from_end = np.repeat(matrix.indptr[1:], counts) - np.arange(matrix.nnz)
    kept = np.flatnonzero(from_end <= n)
    if largest:
        kept = np.lexsort((matrix.data, row_of_each(matrix)))[kept]
    indptr = np.append(0, np.cumsum(np.minimum(counts, n)))
    return sparse.csr_array(
        (matrix.data[kept], matrix.indices[kept], indptr), matrix.shape
    )
