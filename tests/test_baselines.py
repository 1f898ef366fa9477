"""POP against counting by hand."""

import pytest

from srgnn_jax import baselines
from srgnn_jax.data.sessions import Sessions


def test_popularity_ranks_by_training_clicks():
    train = Sessions.from_lists([[1, 2, 2], [3, 2, 3]])
    # Ranks: 2 (three clicks), 3 (two), 1 (one), 4 (none).
    test = Sessions.from_lists([[4, 2], [1, 3, 1], [2, 4]]).examples()
    means = baselines.popularity(train, test, num_items=5, ks=(1, 3))
    assert means["recall@1"] == pytest.approx(1 / 4)
    assert means["recall@3"] == pytest.approx(3 / 4)
    assert means["mrr@3"] == pytest.approx((1 + 1 / 2 + 1 / 3) / 4)
    assert "examples" not in means
