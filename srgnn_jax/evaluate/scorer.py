"""What a baseline has learnt, and the ranks of targets by it; clicks as flat arrays.

Axes: E examples, V item rows (row 0 is the padding), B examples of a batch, C clicks,
R rows of a matrix.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy import sparse

from srgnn_jax.data.sessions import Examples, Sessions

# Clicks of all prefixes that are scored at a time. Memory grows with their product with
# the sessions sampled per prefix.
MAX_CLICKS = 512
# Scores whose relative difference is smaller are equal but for rounding.
TIE = 1e-9


class Scorer(NamedTuple):
    """A recommender that has learnt.

    Attributes:
      score: returns the scores [B, V] of the prefixes of some examples. A row stores
        those of some items, above 0; all of these come before the other items.
      fallback: orders the other items, higher is better.
    """

    score: Callable[[Examples], sparse.csr_array]
    fallback: Float[np.ndarray, " V"] | Int[np.ndarray, " V"]


def target_ranks(
    scorer: Scorer, examples: Examples, max_clicks: int = MAX_CLICKS
) -> Int[np.ndarray, " E"]:
    """Returns the rank (1 = best) of each example's target among rows 1 to V - 1.

    Ties count against the target, as in `item_table.target_rank`: where there are no
    scores at all, it is last.

    Args:
      scorer: what scores.
      examples: what is evaluated.
      max_clicks: clicks of all prefixes that are scored at a time, or one prefix.
    """
    fallback = scorer.fallback[1:]
    fallback_rank = np.zeros(len(scorer.fallback), np.int64)
    fallback_rank[1:] = len(fallback) - np.searchsorted(np.sort(fallback), fallback)
    ranks = [np.zeros(0, np.int64)]
    for part in parts(examples.lengths, max_clicks):
        starts, lengths = examples.starts[part], examples.lengths[part]
        batch = Examples(examples.items, starts, lengths)
        ranks.append(_ranks(scorer.score(batch), batch.targets, fallback_rank))
    return np.concatenate(ranks)


def _ranks(
    scores: sparse.csr_array,
    targets: Int[np.ndarray, " B"],
    fallback_rank: Int[np.ndarray, " V"],
) -> Int[np.ndarray, " B"]:
    row = row_of_each(scores)

    def count(where):
        return np.bincount(row[where], minlength=len(targets))

    is_target = scores.indices == targets[row]
    score = np.full(len(targets), -np.inf)
    score[row[is_target]] = scores.data[is_target]
    rank = count(scores.data >= score[row] * (1 - TIE))
    # A target without a score comes after all that have one, and after those before it
    # in the fallback's order that have none.
    behind = fallback_rank[targets] - count(
        fallback_rank[scores.indices] <= fallback_rank[targets[row]]
    )
    return np.where(np.isinf(score), rank + behind, rank)


class Clicks(NamedTuple):
    """Clicks of some sessions: whose, on what, and how many came later in it."""

    row: Int[np.ndarray, " C"]
    item: Int[np.ndarray, " C"]
    age: Int[np.ndarray, " C"]


def all_clicks(sessions: Sessions) -> Clicks:
    row = np.repeat(np.arange(len(sessions)), sessions.lengths)
    age = sessions.offsets[1:][row] - 1 - np.arange(len(row))
    return Clicks(row, sessions.items, age)


def prefix_clicks(examples: Examples) -> Clicks:
    row, click = ranges(examples.starts, examples.lengths)
    age = (examples.starts + examples.lengths)[row] - 1 - click
    return Clicks(row, examples.items[click], age)


def last_clicks(
    row: Int[np.ndarray, " C"],
    item: Int[np.ndarray, " C"],
    age: Int[np.ndarray, " C"],
    num_items: int,
) -> Clicks:
    """Keeps the last click of each row on each item."""
    key = row * num_items + item
    _, before_end = np.unique(key[::-1], return_index=True)
    last = np.sort(len(key) - 1 - before_end)
    return Clicks(row[last], item[last], age[last])


def ranges(
    starts: Int[np.ndarray, " R"], counts: Int[np.ndarray, " R"]
) -> tuple[Int[np.ndarray, " C"], Int[np.ndarray, " C"]]:
    """Returns n and starts[n] + 0, 1, ..., counts[n] - 1, for one n after another."""
    of = np.repeat(np.arange(len(starts)), counts)
    before = np.cumsum(counts, dtype=np.int64) - counts
    return of, np.arange(len(of)) + (starts - before)[of]


def parts(sizes: Int[np.ndarray, " R"], most: int) -> Iterator[slice]:
    """Cuts rows into parts whose sizes add up to `most`, or of one row."""
    before = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
    start = 0
    while start < len(sizes):
        end = np.searchsorted(before, before[start] + most, side="right") - 1
        part = slice(start, max(int(end), start + 1))
        yield part
        start = part.stop


def row_of_each(matrix: sparse.csr_array) -> Int[np.ndarray, " C"]:
    return np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))


def latest(matrix: sparse.csr_array, n: int) -> sparse.csr_array:
    """Keeps the last n columns that each row has."""
    matrix.sort_indices()
    return _keep_last(matrix, n, np.arange(matrix.nnz))


def largest(matrix: sparse.csr_array, n: int) -> sparse.csr_array:
    """Keeps the n largest values of each row, of equal ones those further right."""
    matrix.sort_indices()
    return _keep_last(matrix, n, np.lexsort((matrix.data, row_of_each(matrix))))


def _keep_last(
    matrix: sparse.csr_array, n: int, order: Int[np.ndarray, " C"]
) -> sparse.csr_array:
    """Keeps the last n entries of each row, in an order that has row after row."""
    counts = np.diff(matrix.indptr)
    from_end = np.repeat(matrix.indptr[1:], counts) - np.arange(matrix.nnz)
    kept = order[from_end <= n]
    indptr = np.concatenate([[0], np.cumsum(np.minimum(counts, n))])
    return sparse.csr_array(
        (matrix.data[kept], matrix.indices[kept], indptr), matrix.shape
    )
