"""Ranks are honest for ties and NaN; metrics follow their definitions."""

import jax.numpy as jnp
import numpy as np
import pytest

from srgnn_jax import metrics


def test_rank_matches_sorting():
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(50, 8)).astype(np.float32)
    target = rng.integers(1, 50, 8)
    ranks = metrics.target_rank(jnp.array(scores), jnp.array(target))
    for b in range(8):
        order = 1 + np.argsort(-scores[1:, b])
        assert order[ranks[b] - 1] == target[b]


def test_padding_row_is_never_ranked():
    scores = jnp.array([[99.0], [1.0], [2.0]])
    assert metrics.target_rank(scores, jnp.array([2])).tolist() == [1]


@pytest.mark.parametrize("value", [0.0, jnp.nan, jnp.inf, -jnp.inf])
def test_equal_scores_rank_the_target_last(value):
    scores = jnp.full((40, 3), value)
    assert metrics.target_rank(scores, jnp.array([1, 20, 39])).tolist() == [39] * 3


def test_ties_and_nan_count_against_the_target():
    scores = jnp.array([[0.0], [1.0], [3.0], [3.0], [jnp.nan], [5.0]])
    # Ahead of row 2: row 5 is better, row 3 is equal, row 4 cannot be compared.
    assert metrics.target_rank(scores, jnp.array([2])).tolist() == [4]
    assert metrics.target_rank(scores, jnp.array([4])).tolist() == [5]


def test_sums_follow_the_definitions():
    rank = jnp.array([1, 2, 5, 6, 3])
    weight = jnp.array([1.0, 1.0, 1.0, 1.0, 0.0])
    sums = metrics.ranking_sums(rank, weight, (1, 5))
    assert sums["examples"] == 4
    assert sums["recall@1"] == 1
    assert sums["recall@5"] == 3
    assert sums["mrr@5"] == pytest.approx(1 + 1 / 2 + 1 / 5)
    assert sums["ndcg@5"] == pytest.approx(1 + 1 / np.log2(3) + 1 / np.log2(6))
