"""Simple recommenders on the same split and with the same metrics as the model."""

from collections.abc import Sequence

import numpy as np

from srgnn_jax import metrics
from srgnn_jax.data.sessions import Examples, Sessions


def popularity(
    train: Sessions, examples: Examples, num_items: int, ks: Sequence[int]
) -> dict[str, float]:
    """POP: every session gets the items with the most clicks in training.

    Args:
      train: the training sessions.
      examples: what is evaluated.
      num_items: V, row 0 included.
      ks: the list lengths.

    Returns:
      The mean of every metric, named as in `metrics.ranking_metrics`.
    """
    clicks = np.bincount(train.items, minlength=num_items)
    # Equal counts are broken by the lower row, as a list that is made once would.
    order = np.argsort(-clicks[1:], kind="stable") + 1
    rank = np.empty(num_items, np.int32)
    rank[order] = np.arange(1, num_items)
    return metrics.means(rank[examples.targets], ks)
