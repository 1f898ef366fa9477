"""What a baseline has learnt, and the ranks of targets by it; clicks as matrices.

Axes: E examples, V item rows (row 0 is the padding), C clicks, R rows of a matrix.
"""

import itertools
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
      score: returns the scores [E, V] of the prefixes of some examples. A row stores
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
    scores at all, it is last. About `max_clicks` clicks are scored at a time.
    """
    fallback = scorer.fallback[1:]
    fallback_rank = np.zeros(len(scorer.fallback), np.int64)
    fallback_rank[1:] = len(fallback) - np.searchsorted(np.sort(fallback), fallback)
    ranks = [np.zeros(0, np.int64)]
    for part in parts(examples.lengths, max_clicks):
        batch = Examples(examples.items, examples.starts[part], examples.lengths[part])
        ranks.append(_ranks(scorer.score(batch), batch.targets, fallback_rank))
    return np.concatenate(ranks)


def _ranks(
    scores: sparse.csr_array,
    targets: Int[np.ndarray, " E"],
    fallback_rank: Int[np.ndarray, " V"],
) -> Int[np.ndarray, " E"]:
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


def each_click(
    clicks: Sessions | Examples,
) -> tuple[Int[np.ndarray, " C"], Int[np.ndarray, " C"], Int[np.ndarray, " C"]]:
    """Returns of each click its session or prefix, its item, and its place, from 1."""
    lengths = clicks.lengths
    starts = clicks.starts if isinstance(clicks, Examples) else clicks.offsets[:-1]
    row = np.repeat(np.arange(len(starts)), lengths)
    place = np.arange(len(row)) - (np.cumsum(lengths, dtype=np.int64) - lengths)[row]
    return row, clicks.items[starts[row] + place], 1 + place


def places(clicks: Sessions | Examples, num_items: int) -> sparse.csr_array:
    """Returns the place of the last click on each item; a row a session or prefix."""
    row, item, place = each_click(clicks)
    _, before_end = np.unique((row * num_items + item)[::-1], return_index=True)
    last = len(row) - 1 - before_end
    shape = len(clicks), num_items
    return sparse.csr_array((place[last], (row[last], item[last])), shape)


def row_of_each(matrix: sparse.csr_array) -> np.ndarray:
    """Returns the row of each number that a matrix stores."""
    return np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))


def keep(matrix: sparse.csr_array, n: int, largest: bool) -> sparse.csr_array:
    """Keeps n numbers of each row: its last columns, or its largest numbers.

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


def parts(sizes: Int[np.ndarray, " R"], most: int) -> Iterator[slice]:
    """Cuts rows into parts, a new one whenever the sizes have come to `most` more."""
    so_far = np.cumsum(sizes, dtype=np.int64) // most
    starts = np.flatnonzero(np.diff(so_far, prepend=-1))
    return itertools.starmap(slice, itertools.pairwise([*starts, len(sizes)]))
