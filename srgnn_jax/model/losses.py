"""Losses, one value per example; the caller weights, sums and divides.

A loss takes the session embeddings, the item table, and the table's rows of the targets
and of the negatives drawn for each session. `LOSSES` holds those that
`config.loss_type` can name.

Axes: B batch, K negatives, D embedding.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from srgnn_jax.model.item_table import ItemTable

# RecBole's BPRLoss adds this inside the logarithm.
BPR_GAMMA = 1e-10


class Loss(NamedTuple):
    """A loss and what it needs.

    Attributes:
      function: (session [B, D], table, target_rows [B, D], negative_rows [B, K, D]) ->
        [B]; `table` is an `ItemTable`.
      negatives: K, the number of items other than the target to draw per example.
    """

    function: Callable[..., Float[Array, " B"]]
    negatives: int = 0


def cross_entropy(
    session: Float[Array, "B D"],
    table: ItemTable,
    target_rows: Float[Array, "B D"],
    negative_rows: Float[Array, "B K D"],
) -> Float[Array, " B"]:
    """Cross entropy of a softmax over items: log sum_v exp(s . e_v) - s . e_target.

    Source: Wu et al. 2019, equations 8 to 10.
    """
    del negative_rows
    return table.log_sum_exp(session) - jnp.sum(session * target_rows, axis=-1)


def bpr(
    session: Float[Array, "B D"],
    table: ItemTable,
    target_rows: Float[Array, "B D"],
    negative_rows: Float[Array, "B K D"],
) -> Float[Array, " B"]:
    """Bayesian personalised ranking: -log(1e-10 + sigmoid(s . e_target - s . e_neg)).

    Returns the mean over the negatives; `LOSSES["BPR"]` draws one.

    Source: Rendle et al. 2009; the constant is from RecBole's `BPRLoss`.
    """
    del table
    difference = jnp.sum(
        session[:, None] * (target_rows[:, None] - negative_rows), axis=-1
    )
    return -jnp.log(BPR_GAMMA + jax.nn.sigmoid(difference)).mean(axis=1)


LOSSES = {"CE": Loss(cross_entropy), "BPR": Loss(bpr, negatives=1)}
