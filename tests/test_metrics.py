"""Metrics follow their definitions."""

import numpy as np
import pytest

from srgnn_jax.evaluate import metrics


def test_metrics_follow_the_definitions():
    rank = np.array([1, 2, 5, 6])
    found = metrics.ranking_metrics(rank, (1, 5))
    assert found["recall@1"].tolist() == [1, 0, 0, 0]
    assert found["recall@5"].tolist() == [1, 1, 1, 0]
    assert found["mrr@5"].tolist() == [1, 1 / 2, 1 / 5, 0]
    assert found["ndcg@5"] == pytest.approx([1, 1 / np.log2(3), 1 / np.log2(6), 0])
    means = metrics.means(rank, (1, 5))
    assert means.keys() == found.keys()
    assert means["recall@5"] == 3 / 4
    assert means["mrr@5"] == pytest.approx(1.7 / 4)


def test_the_recall_curve_is_recall_at_each_length():
    rank = np.array([1, 3, 3, 60])
    curve = metrics.recall_curve(rank, 5)
    expected = metrics.means(rank, range(1, 6))
    assert curve == [expected[f"recall@{k}"] for k in range(1, 6)]
