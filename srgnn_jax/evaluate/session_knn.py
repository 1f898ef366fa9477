"""Session-based neighbours: V-SKNN and STAN; see `baselines`.

Axes: S training sessions, B examples of a batch, P pairs of such an example and a
neighbour, C clicks.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Int
from scipy import sparse

from srgnn_jax.data.sessions import Sessions
from srgnn_jax.evaluate.scorer import (
    Scorer,
    all_clicks,
    largest,
    last_clicks,
    latest,
    prefix_clicks,
    ranges,
    row_of_each,
)

# The ages of clicks and the lengths of their sessions -> weights.
Weight = Callable[[Int[np.ndarray, " C"], Int[np.ndarray, " C"]], np.ndarray]


def vsknn(
    train: Sessions,
    num_items: int,
    k: int = 100,
    sample_size: int = 1000,
    click_weight: Weight = lambda age, length: length - age,
    neighbour_weight: Weight = lambda age, length: 1 / (age + 1),
) -> Scorer:
    """V-SKNN: the items of sessions that share clicks, the latest above all.

    The neighbours N(s) of a prefix s are the k most similar of the latest
    `sample_size` training sessions that share an item with it, and

        similarity(s, n) = sum of click_weight(i, s) over the items i of both
        score(j | s) = sum over n in N(s) with j:
            similarity(s, n) neighbour_weight(i*, s),  i* = the latest item of both,

    (Ludewig and Jannach 2018, "Evaluation of session-based recommendation algorithms").
    The defaults are those of the authors' code: from the last click on, the clicks of a
    prefix of n weigh n, n - 1, ..., and its neighbours 1, 1/2, 1/3, ...

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
    session, _, _ = last_clicks(*all_clicks(train), num_items)
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
    session, item, age = last_clicks(*all_clicks(train), num_items)
    first = np.searchsorted(session, np.arange(len(train) + 1))
    # None but the latest sessions of an item can be among the latest of a prefix.
    weights = session_weight[session], (item, session)
    sessions_of = latest(
        sparse.csr_array(weights, (num_items, len(train))), sample_size
    )

    def score(examples):
        shape = len(examples), num_items
        row, clicked, ago = last_clicks(*prefix_clicks(examples), num_items)
        weight = click_weight(ago, examples.lengths[row])
        query = sparse.csr_array((weight, (row, clicked)), shape)
        sample = latest(sparse.csr_array(query @ sessions_of), sample_size)
        near = largest(sample, k)
        of = row_of_each(near)

        # The clicks of every neighbour, and how long ago the prefix clicked the same.
        starts, ends = first[near.indices], first[near.indices + 1]
        pair, click = ranges(starts, ends - starts)
        key, wanted = row * num_items + clicked, of[pair] * num_items + item[click]
        order = np.argsort(key)
        found = np.searchsorted(key, wanted, sorter=order)
        found = order[np.minimum(found, len(key) - 1)]
        since = np.where(key[found] == wanted, ago[found], np.iinfo(np.int64).max)
        indptr = np.concatenate([[0], np.cumsum(ends - starts)])
        nearest = np.minimum.reduceat(since, indptr[:-1]) if len(of) else since
        from_latest = age[click] - age[click][since == nearest[pair]][pair]

        # Both products add up in the neighbours' order: equal sums are equal in bits.
        weight = near.data * neighbour_weight(nearest, examples.lengths[of])
        neighbours = sparse.csr_array(
            (weight, np.arange(len(of)), near.indptr), (len(examples), len(of))
        )
        contents = sparse.csr_array(
            (item_weight(np.abs(from_latest)), item[click], indptr),
            (len(of), num_items),
        )
        return sparse.csr_array(neighbours @ contents)

    return Scorer(score, np.zeros(num_items))
