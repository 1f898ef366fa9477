"""Simple recommenders on the same split and with the same metrics as the model.

    scorer = stan(train, num_items)
    means = metrics.means(target_ranks(scorer, examples), ks=(5, 20))

Each of `METHODS` learns from the training sessions, in time order, of items below
`num_items` (V, row 0 included), and returns a `Scorer`, which sees nothing of an
example but its prefix. Prepared sessions carry no times, so ages are counted: that of a
click in later clicks of its session, that of a session in later training sessions. An
item that a session clicks again stands where it was clicked last.

Axes: E examples, V item rows (row 0 is the padding), S training sessions, B examples
of a batch, P pairs of such an example and a neighbour, C clicks, R rows of a matrix.
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
# Pairs of items that Item-KNN counts at a time, or those of one item.
MAX_PAIRS = 2**22
# Scores whose relative difference is smaller are equal but for rounding.
TIE = 1e-9

# The ages of clicks and the lengths of their sessions -> weights.
Weight = Callable[
    [Int[np.ndarray, " C"], Int[np.ndarray, " C"]], Float[np.ndarray, " C"]
]


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
    ranks = [
        _ranks(scorer.score(batch), batch.targets, fallback_rank)
        for batch in _batches(examples, max_clicks)
    ]
    return np.concatenate([np.zeros(0, np.int64), *ranks])


def _batches(examples: Examples, max_clicks: int) -> Iterator[Examples]:
    for part in _parts(examples.lengths, max_clicks):
        yield Examples(examples.items, examples.starts[part], examples.lengths[part])


def _parts(sizes: Int[np.ndarray, " R"], most: int) -> Iterator[slice]:
    """Cuts rows into parts whose sizes add up to `most`, or of one row."""
    before = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
    start = 0
    while start < len(sizes):
        end = np.searchsorted(before, before[start] + most, side="right") - 1
        part = slice(start, max(int(end), start + 1))
        yield part
        start = part.stop


def _ranks(
    scores: sparse.csr_array,
    targets: Int[np.ndarray, " B"],
    fallback_rank: Int[np.ndarray, " V"],
) -> Int[np.ndarray, " B"]:
    row = _rows(scores)

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


def pop(train: Sessions, num_items: int) -> Scorer:
    """POP: every session gets the items with the most clicks in training."""
    return pop_of_clicks(np.bincount(train.items, minlength=num_items))


def pop_of_clicks(clicks: Int[np.ndarray, " V"]) -> Scorer:
    """POP, from the clicks that each item has in training."""

    def score(examples):
        return sparse.csr_array((len(examples), len(clicks)))

    return Scorer(score, clicks)


def session_pop(train: Sessions, num_items: int) -> Scorer:
    """S-POP: the items that the session clicked most often, then those of POP.

    Among those that it clicked equally often POP decides (Hidasi et al. 2016,
    "Session-based recommendations with recurrent neural networks").
    """
    clicks = np.bincount(train.items, minlength=num_items)

    def score(examples):
        row, item, _ = _prefixes(examples)
        shape = len(examples), num_items
        own = sparse.csr_array((np.ones(len(row)), (row, item)), shape)
        own.data += clicks[own.indices] / (clicks.max() + 1)
        return own

    return Scorer(score, clicks)


def item_knn(
    train: Sessions,
    num_items: int,
    neighbours: int = 100,
    regularization: float | int = 20,
    alpha: float | int = 0.5,
) -> Scorer:
    """Item-KNN: the items whose sessions are most similar to those of the last click.

    With n_i the number of sessions with item i and n_ij of those with both i and j,

        similarity(i, j) = n_ij / ((n_i + lambda)^alpha (n_j + lambda)^(1 - alpha)),

    the cosine of the items' sessions where lambda = 0 and alpha = 1/2 (Hidasi et al.
    2016, whose public code has these defaults). No item is a neighbour of itself.

    Args:
      neighbours: items that are kept for each item, the most similar.
      regularization: lambda; discounts what rare items share by chance.
      alpha: share of the last click's item in the normalization.
    """
    session, item, _ = _last(*_all_clicks(train), num_items)
    shape = len(train), num_items
    contains = sparse.csr_array((np.ones(len(item)), (session, item)), shape)
    sessions = sparse.csr_array(contains.T)
    support = np.diff(sessions.indptr) + regularization
    # Items that the sessions of each item hold, however often.
    pairs = sessions.astype(np.int64) @ np.diff(contains.indptr)
    near = [sparse.csr_array((0, num_items))]
    for part in _parts(pairs, MAX_PAIRS):
        both = sessions[part] @ contains
        row = part.start + _rows(both)
        both.data /= support[row] ** alpha * support[both.indices] ** (1 - alpha)
        both.data[row == both.indices] = 0
        both.eliminate_zeros()
        near.append(_largest(both, neighbours))
    return _of_last_click(sparse.csr_array(sparse.vstack(near)))


def markov(train: Sessions, num_items: int) -> Scorer:
    """First-order Markov chain: what was most often clicked right after the last click.

    The estimate of Rendle et al. 2010, "Factorizing personalized Markov chains for
    next-basket recommendation", where a basket is one click:

        p(j | i) = number of clicks on j right after i / number of clicks after i;

    the divisor, which is the same for all j, is left out.
    """
    session, item, _ = _all_clicks(train)
    within = session[1:] == session[:-1]
    before, after = item[:-1][within], item[1:][within]
    return _of_last_click(
        sparse.csr_array(
            (np.ones(len(before)), (before, after)), (num_items, num_items)
        )
    )


def linear(
    age: Int[np.ndarray, " C"], length: Int[np.ndarray, " C"]
) -> Float[np.ndarray, " C"]:
    """Weighs the clicks of a session n, n - 1, ..., the last one most."""
    return (length - age).astype(np.float64)


def reciprocal(
    age: Int[np.ndarray, " C"], length: Int[np.ndarray, " C"]
) -> Float[np.ndarray, " C"]:
    """Weighs the clicks of a session, from the last one on, 1, 1/2, 1/3, ..."""
    del length
    return 1 / (age + 1)


def vsknn(
    train: Sessions,
    num_items: int,
    k: int = 100,
    sample_size: int = 1000,
    click_weight: Weight = linear,
    neighbour_weight: Weight = reciprocal,
) -> Scorer:
    """V-SKNN: the items of sessions that share clicks, the latest above all.

    The neighbours N(s) of a prefix s are the k most similar of the latest
    `sample_size` training sessions that share an item with it, and

        similarity(s, n) = sum of click_weight(i, s) over the items i of both
        score(j | s) = sum over n in N(s) with j:
            similarity(s, n) neighbour_weight(i*, s),  i* = the latest item of both,

    (Ludewig and Jannach 2018, "Evaluation of session-based recommendation algorithms").
    The defaults are those of the authors' code.

    Args:
      k: neighbours of a prefix.
      sample_size: sessions that they are chosen from.
      click_weight: weight of a click of the prefix, times anything that its session
        determines.
      neighbour_weight: the same of a neighbour.
    """
    return _session_knn(
        train,
        num_items,
        k,
        sample_size,
        click_weight=click_weight,
        session_weight=np.ones(len(train)),
        neighbour_weight=neighbour_weight,
        item_weight=lambda distance: np.ones(len(distance)),
    )


def stan(
    train: Sessions,
    num_items: int,
    k: int = 500,
    sample_size: int = 5000,
    lambda1: float | int = 1.02,
    lambda2: float | int = 1.0,
    lambda3: float | int = 2.05,
) -> Scorer:
    """STAN: sessions that share clicks, weighed by place and age.

    The neighbours N(s) of a prefix s are the k most similar of the latest
    `sample_size` training sessions that share an item with it, and

        similarity(s, n) = sum over the items i of both: exp(-age(i, s) / lambda1),
            times exp(-age(n) / lambda2) / sqrt(number of items of n)
        score(j | s) = sum over n in N(s) with j:
            similarity(s, n) exp(-|age(j, n) - age(i*, n)| / lambda3),
            i* = the item of both that s clicked last

    (Garg et al. 2019, "Sequence and time aware neighborhood for session-based
    recommendations"). What s alone determines is left out. The paper's age of a session
    is in days. Here it is the share of the training sessions that are later, as a data
    set has no times; and lambda2 = 1 was the best of 0.1, 0.3, 1, 3 and none on
    validation, both on Diginetica and on Yoochoose 1/64.

    Args:
      k: neighbours of a prefix.
      sample_size: sessions that they are chosen from.
      lambda1: clicks of the prefix over which their weights fall to 1/e.
      lambda2: training periods over which the weight of a session falls to 1/e.
      lambda3: clicks of a neighbour over which the weights of its items fall to 1/e.
    """
    session, _, _ = _last(*_all_clicks(train), num_items)
    # A session without a click has no weight that counts.
    distinct = np.maximum(np.bincount(session, minlength=len(train)), 1)
    later = np.arange(len(train))[::-1] / max(len(train), 1)
    return _session_knn(
        train,
        num_items,
        k,
        sample_size,
        click_weight=lambda age, _: np.exp(-age / lambda1),
        session_weight=np.exp(-later / lambda2) / np.sqrt(distinct),
        neighbour_weight=lambda age, _: np.ones(len(age)),
        item_weight=lambda distance: np.exp(-distance / lambda3),
    )


METHODS: dict[str, Callable[[Sessions, int], Scorer]] = {
    "POP": pop,
    "S-POP": session_pop,
    "Item-KNN": item_knn,
    "Markov": markov,
    "V-SKNN": vsknn,
    "STAN": stan,
}


def _session_knn(
    train: Sessions,
    num_items: int,
    k: int,
    sample_size: int,
    *,
    click_weight: Weight,
    session_weight: Float[np.ndarray, " S"],
    neighbour_weight: Weight,
    item_weight: Callable[[Int[np.ndarray, " C"]], Float[np.ndarray, " C"]],
) -> Scorer:
    """Scores the items of each prefix's k nearest training sessions."""
    session, item, age = _last(*_all_clicks(train), num_items)
    first = np.searchsorted(session, np.arange(len(train) + 1))
    # None but the latest sessions of an item can be among the latest of a prefix.
    weights = session_weight[session], (item, session)
    sessions_of = _latest(
        sparse.csr_array(weights, (num_items, len(train))), sample_size
    )

    def score(examples):
        shape = len(examples), num_items
        row, clicked, ago = _last(*_prefixes(examples), num_items)
        weight = click_weight(ago, examples.lengths[row])
        query = sparse.csr_array((weight, (row, clicked)), shape)
        sample = _latest(sparse.csr_array(query @ sessions_of), sample_size)
        near = _largest(sample, k)
        of = _rows(near)

        # The clicks of every neighbour, and how long ago the prefix clicked the same.
        starts, ends = first[near.indices], first[near.indices + 1]
        pair, click = _ranges(starts, ends - starts)
        key, wanted = row * num_items + clicked, of[pair] * num_items + item[click]
        order = np.argsort(key)
        found = np.searchsorted(key, wanted, sorter=order)
        found = order[np.minimum(found, len(key) - 1)]
        since = np.where(key[found] == wanted, ago[found], np.iinfo(np.int64).max)
        indptr = np.concatenate([[0], np.cumsum(ends - starts)])
        latest = np.minimum.reduceat(since, indptr[:-1]) if len(of) else since
        from_latest = age[click] - age[click][since == latest[pair]][pair]

        # Both products add up in the neighbours' order: equal sums are equal in bits.
        weight = near.data * neighbour_weight(latest, examples.lengths[of])
        neighbours = sparse.csr_array(
            (weight, np.arange(len(of)), near.indptr), (len(examples), len(of))
        )
        contents = sparse.csr_array(
            (item_weight(np.abs(from_latest)), item[click], indptr),
            (len(of), num_items),
        )
        return sparse.csr_array(neighbours @ contents)

    return Scorer(score, np.zeros(num_items))


def _of_last_click(scores: sparse.csr_array) -> Scorer:
    def score(examples):
        return scores[examples.items[examples.starts + examples.lengths - 1]]

    return Scorer(score, np.zeros(scores.shape[1]))


class _Clicks(NamedTuple):
    """Clicks of some sessions: whose, on what, and how many came later in it."""

    row: Int[np.ndarray, " C"]
    item: Int[np.ndarray, " C"]
    age: Int[np.ndarray, " C"]


def _all_clicks(sessions: Sessions) -> _Clicks:
    row = np.repeat(np.arange(len(sessions)), sessions.lengths)
    age = sessions.offsets[1:][row] - 1 - np.arange(len(row))
    return _Clicks(row, sessions.items, age)


def _prefixes(examples: Examples) -> _Clicks:
    row, click = _ranges(examples.starts, examples.lengths)
    age = (examples.starts + examples.lengths)[row] - 1 - click
    return _Clicks(row, examples.items[click], age)


def _last(
    row: Int[np.ndarray, " C"],
    item: Int[np.ndarray, " C"],
    age: Int[np.ndarray, " C"],
    num_items: int,
) -> _Clicks:
    """Keeps the last click of each row on each item."""
    key = row * num_items + item
    _, before_end = np.unique(key[::-1], return_index=True)
    last = np.sort(len(key) - 1 - before_end)
    return _Clicks(row[last], item[last], age[last])


def _ranges(
    starts: Int[np.ndarray, " R"], counts: Int[np.ndarray, " R"]
) -> tuple[Int[np.ndarray, " C"], Int[np.ndarray, " C"]]:
    """Returns n and starts[n] + 0, 1, ..., counts[n] - 1, for one n after another."""
    of = np.repeat(np.arange(len(starts)), counts)
    before = np.cumsum(counts, dtype=np.int64) - counts
    return of, np.arange(len(of)) + (starts - before)[of]


def _rows(matrix: sparse.csr_array) -> Int[np.ndarray, " C"]:
    return np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))


def _latest(matrix: sparse.csr_array, n: int) -> sparse.csr_array:
    """Keeps the last n columns that each row has."""
    matrix.sort_indices()
    return _keep_last(matrix, n, np.arange(matrix.nnz))


def _largest(matrix: sparse.csr_array, n: int) -> sparse.csr_array:
    """Keeps the n largest values of each row, of equal ones those further right."""
    matrix.sort_indices()
    return _keep_last(matrix, n, np.lexsort((matrix.data, _rows(matrix))))


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
