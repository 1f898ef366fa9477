"""Ranking metrics of each example, and their means. Axes: E examples."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int


def ranking_metrics(
    rank: Int[np.ndarray, " E"], ks: Sequence[int]
) -> dict[str, Float[np.ndarray, " E"]]:
    """Returns recall@k, mrr@k and ndcg@k of every example, in float64.

    With one target per example, of rank 1 at best; all are 0 if its rank is beyond k:
        recall@k = 1,  mrr@k = 1 / rank,  ndcg@k = 1 / log2(rank + 1).
    `recall@k` is the paper's P@k, also called the hit rate.
    """
    found: dict[str, Float[np.ndarray, " E"]] = {}
    for k in ks:
        hit = (rank <= k).astype(np.float64)
        found[f"recall@{k}"] = hit
        found[f"mrr@{k}"] = hit / rank
        found[f"ndcg@{k}"] = hit / np.log2(rank + 1)
    return found


def names(ks: Sequence[int]) -> list[str]:
    """Returns the names of the metrics, grouped by list length."""
    return [f"{metric}@{k}" for k in ks for metric in ("recall", "mrr", "ndcg")]


def usual_k(ks: Sequence[int]) -> int:
    """Returns the list length to show: 20, as in the papers, or else the longest."""
    return 20 if 20 in ks or not ks else max(ks)


def means(rank: Int[np.ndarray, " E"], ks: Sequence[int]) -> dict[str, float]:
    """Returns the mean over the examples of every metric of `ranking_metrics`."""
    return {name: float(x.mean()) for name, x in ranking_metrics(rank, ks).items()}


def recall_curve(rank: Int[np.ndarray, " E"], longest: int = 50) -> list[float]:
    """Returns recall@1, recall@2, up to recall@`longest`."""
    hits = np.bincount(rank, minlength=longest + 1)[1 : longest + 1]
    return (hits.cumsum() / len(rank)).tolist()
