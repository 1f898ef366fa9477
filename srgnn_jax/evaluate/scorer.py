"""Ranks targets by the scores of a baseline.

Axes: E examples, V item rows (row 0 is the padding), R rows.
"""

import itertools
from collections.abc import Iterator

import numpy as np
from jaxtyping import Int
from scipy import sparse

from srgnn_jax.data.sessions import Examples
from srgnn_jax.evaluate.session_knn import Scorer, row_of_each

# Clicks, over all prefixes, that are scored at a time. Memory grows with this number
# times the sessions sampled per prefix.
MAX_CLICKS = 512
# Scores with a smaller relative difference are equal except for rounding.
TIE = 1e-9


def target_ranks(
    scorer: Scorer, examples: Examples, max_clicks: int = MAX_CLICKS
) -> Int[np.ndarray, " E"]:
    """Returns the rank (1 = best) of each example's target among rows 1 to V - 1.

    Ties count against the target, as in `item_table.target_rank`, so it is last if
    there are no scores at all. About `max_clicks` clicks are scored at a time.
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
    # A target without a score comes after all items with one, and after the items
    # without one that precede it in the fallback's order.
    behind = fallback_rank[targets] - count(
        fallback_rank[scores.indices] <= fallback_rank[targets[row]]
    )
    return np.where(np.isinf(score), rank + behind, rank)


def parts(sizes: Int[np.ndarray, " R"], most: int) -> Iterator[slice]:
    """Splits rows into parts; a new one starts whenever the sizes add up to `most`."""
    so_far = np.cumsum(sizes, dtype=np.int64) // most
    starts = np.flatnonzero(np.diff(so_far, prepend=-1))
    return itertools.starmap(slice, itertools.pairwise([*starts, len(sizes)]))
