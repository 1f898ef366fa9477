"""Session-based neighbours: V-SKNN and STAN; see `baselines`.

Axes: S training sessions, V item rows, C clicks.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Int
from scipy import sparse

from srgnn_jax.data.sessions import Sessions
from srgnn_jax.evaluate.scorer import Scorer, keep, places, row_of_each

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
    """
    clicked = places(train, num_items)
    # A session without a click has no weight that counts.
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
    session_weight: Float[np.ndarray, " S"],
    neighbour_weight: Weight,
    item_weight: Callable[[Int[np.ndarray, " C"]], np.ndarray],
) -> Scorer:
    """Scores the items of the k training sessions, as `places`, nearest to a prefix."""
    num_items = train.shape[1]
    weighted = sparse.diags_array(session_weight) @ train.sign()
    # None but the latest sessions of an item can be among the latest of a prefix.
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

        # For each pair: its neighbour's items, and which of them was clicked last.
        pair = row_of_each(near)
        contents = train[near.indices]
        both = clicked[pair].multiply(contents.sign())
        place = both.max(axis=1).toarray()
        last = examples.items[examples.starts[pair] + place - 1]
        distance = contents.data - contents[np.arange(len(pair)), last].repeat(
            np.diff(contents.indptr)
        )

        # Both products add up in the neighbours' order: equal sums are equal in bits.
        weight = near.data * neighbour_weight(lengths[pair] - place, lengths[pair])
        neighbours = sparse.csr_array(
            (weight, np.arange(len(pair)), near.indptr), (len(examples), len(pair))
        )
        contents.data = item_weight(np.abs(distance))
        return sparse.csr_array(neighbours @ contents)

    return Scorer(score, np.zeros(num_items))
