"""Metrics follow their definitions."""

import jax.numpy as jnp
import numpy as np
import pytest

from srgnn_jax import metrics


def test_sums_follow_the_definitions():
    rank = jnp.array([1, 2, 5, 6, 3])
    weight = jnp.array([1.0, 1.0, 1.0, 1.0, 0.0])
    sums = metrics.ranking_sums(rank, weight, (1, 5))
    assert sums["examples"] == 4
    assert sums["recall@1"] == 1
    assert sums["recall@5"] == 3
    assert sums["mrr@5"] == pytest.approx(1 + 1 / 2 + 1 / 5)
    assert sums["ndcg@5"] == pytest.approx(1 + 1 / np.log2(3) + 1 / np.log2(6))
