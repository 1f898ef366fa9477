"""Simple recommenders on the same split and with the same metrics as the model.

    scorer = stan(train, num_items)
    means = metrics.means(target_ranks(scorer, examples), ks=(5, 20))

Each of `METHODS` learns from the training sessions, in time order, with items below
`num_items` (V, row 0 included). It returns a `Scorer`, which sees only the prefix of an
example. Prepared sessions have no times, so the age of a click is the number of later
clicks in its session, and that of a session the number of later training sessions. A
repeated item has the position of its last click.
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

# Pairs of items that Item-KNN counts at a time, roughly.
MAX_PAIRS = 2**22


def pop(train: Sessions, num_items: int) -> Scorer:
    """POP: the items with the most training clicks, for every session."""
    return pop_of_clicks(np.bincount(train.items, minlength=num_items))


def pop_of_clicks(clicks: Int[np.ndarray, " V"]) -> Scorer:
    """POP, from the number of training clicks of each item."""
    return Scorer(lambda given: sparse.csr_array((len(given), len(clicks))), clicks)


def session_pop(train: Sessions, num_items: int) -> Scorer:
    """S-POP: the items that the session clicked most often, then those of POP.

    POP breaks ties (Hidasi et al. 2016, "Session-based recommendations with recurrent
    neural networks").
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

    With n_i the number of sessions with item i, and n_ij of those with both i and j,

        similarity(i, j) = n_ij / ((n_i + lambda)^alpha (n_j + lambda)^(1 - alpha)),

    the cosine of the items' sessions if lambda = 0 and alpha = 1/2 (Hidasi et al. 2016;
    the defaults are those of their public code). No item is its own neighbour.

    Args:
      neighbours: how many of the most similar items to keep for each item.
      regularization: lambda; discounts what rare items share by chance.
      alpha: weight of the last click's item in the normalization.
    """
    contains = places(train, num_items).sign().astype(np.float64)
    sessions = sparse.csr_array(contains.T)
    support = np.diff(sessions.indptr) + regularization
    # For each item, the total number of items in its sessions.
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

    The estimator of Rendle et al. 2010, "Factorizing personalized Markov chains for
    next-basket recommendation", with baskets of one click:

        p(j | i) = number of clicks on j right after i / number of clicks after i.

    The divisor is the same for all j and is left out.
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
