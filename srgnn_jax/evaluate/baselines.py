"""Simple recommenders on the same split and with the same metrics as the model.

    scorer = stan(train, num_items)
    means = metrics.means(target_ranks(scorer, examples), ks=(5, 20))

Each of `METHODS` learns from the training sessions, in time order, of items below
`num_items` (V, row 0 included), and returns a `Scorer`, which sees nothing of an
example but its prefix. Prepared sessions carry no times, so ages are counted: that of a
click in later clicks of its session, that of a session in later training sessions. An
item that a session clicks again stands where it was clicked last.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Int
from scipy import sparse

from srgnn_jax.data.sessions import Sessions
from srgnn_jax.evaluate.scorer import parts
from srgnn_jax.evaluate.session_knn import (
    Scorer,
    each_click,
    keep,
    places,
    row_of_each,
    stan,
    vsknn,
)

# Pairs of items that Item-KNN counts at a time, about.
MAX_PAIRS = 2**22


def pop(train: Sessions, num_items: int) -> Scorer:
    """POP: every session gets the items with the most clicks in training."""
    return pop_of_clicks(np.bincount(train.items, minlength=num_items))


def pop_of_clicks(clicks: Int[np.ndarray, " V"]) -> Scorer:
    """POP, from the clicks that each item has in training."""
    return Scorer(lambda given: sparse.csr_array((len(given), len(clicks))), clicks)


def session_pop(train: Sessions, num_items: int) -> Scorer:
    """S-POP: the items that the session clicked most often, then those of POP.

    Among those that it clicked equally often POP decides (Hidasi et al. 2016,
    "Session-based recommendations with recurrent neural networks").
    """
    clicks = np.bincount(train.items, minlength=num_items)

    def score(examples):
        row, item, _ = each_click(examples)
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
    contains = places(train, num_items).sign().astype(np.float64)
    sessions = sparse.csr_array(contains.T)
    support = np.diff(sessions.indptr) + regularization
    # Items that the sessions of each item hold, however often.
    pairs = sessions.astype(np.int64) @ np.diff(contains.indptr)
    near = [sparse.csr_array((0, num_items))]
    for part in parts(pairs, MAX_PAIRS):
        both = sessions[part] @ contains
        row = part.start + row_of_each(both)
        both.data /= support[row] ** alpha * support[both.indices] ** (1 - alpha)
        both.data[row == both.indices] = 0
        both.eliminate_zeros()
        near.append(keep(both, neighbours, largest=True))
    return _of_last_click(sparse.csr_array(sparse.vstack(near)))


def markov(train: Sessions, num_items: int) -> Scorer:
    """First-order Markov chain: what was most often clicked right after the last click.

    The estimate of Rendle et al. 2010, "Factorizing personalized Markov chains for
    next-basket recommendation", where a basket is one click:

        p(j | i) = number of clicks on j right after i / number of clicks after i;

    the divisor, which is the same for all j, is left out.
    """
    _, item, place = each_click(train)
    after = np.flatnonzero(place > 1)
    pairs = np.ones(len(after)), (item[after - 1], item[after])
    return _of_last_click(sparse.csr_array(pairs, (num_items, num_items)))


def _of_last_click(scores: sparse.csr_array) -> Scorer:
    def score(examples):
        return scores[examples.items[examples.starts + examples.lengths - 1]]

    return Scorer(score, np.zeros(scores.shape[1]))


METHODS: dict[str, Callable[[Sessions, int], Scorer]] = {
    "POP": pop,
    "S-POP": session_pop,
    "Item-KNN": item_knn,
    "Markov": markov,
    "V-SKNN": vsknn,
    "STAN": stan,
}
