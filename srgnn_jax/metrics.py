"""Ranking metrics as sums over examples; whoever calls them divides once, at the end.

Axes: B batch, V item rows (row 0 is the padding item).
"""

from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def target_rank(
    scores: Float[Array, "V B"], target: Int[Array, " B"]
) -> Int[Array, " B"]:
    """Returns the rank (1 = best) of each target among rows 1 to V - 1, by counting.

    Every item that is not scored strictly below the target counts as ranked at or
    before it. So ties are resolved against the target, and whatever cannot be compared
    (NaN, on either side) counts against it too: a model whose scores are all equal, or
    NaN, ranks its target last, never first.
    """
    target_score = scores[target, jnp.arange(target.shape[0])]
    not_below = ~(scores[1:] < target_score)
    return not_below.sum(axis=0, dtype=jnp.int32)


def ranking_sums(
    rank: Int[Array, " B"], weight: Float[Array, " B"], ks: Sequence[int]
) -> dict[str, Float[Array, ""]]:
    """Sums recall@k, mrr@k and ndcg@k over the examples, each times its weight.

    With one target per example, and nothing where its rank is beyond k:
        recall@k = 1,  mrr@k = 1 / rank,  ndcg@k = 1 / log2(rank + 1).
    `recall@k` is the paper's P@k, also called the hit rate.

    Args:
      rank: rank of each target, 1 = best.
      weight: 1 for an example that counts, 0 for padding of the batch.
      ks: the list lengths.

    Returns:
      The sum for each metric's name, and under "examples" the sum of the weights.
    """
    rank = rank.astype(weight.dtype)
    sums = {"examples": weight.sum()}
    for k in ks:
        hit = weight * (rank <= k)
        sums[f"recall@{k}"] = hit.sum()
        sums[f"mrr@{k}"] = (hit / rank).sum()
        sums[f"ndcg@{k}"] = (hit / jnp.log2(rank + 1)).sum()
    return sums
