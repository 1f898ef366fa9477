"""Evaluation against a plain ranking of every example."""

import numpy as np
import pytest

from srgnn_jax import evaluate as evaluate_module
from srgnn_jax import parallel
from srgnn_jax.data.sessions import Sessions
from srgnn_jax.evaluate import Evaluator
from srgnn_jax.model import SRGNN, init_params

ITEMS = 30


def examples_of(seed=0):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(2, 14, 25)
    return Sessions.from_lists([rng.integers(1, ITEMS, n) for n in lengths]).examples()


def expected(model, params, examples, k):
    hits, reciprocal = 0, 0.0
    for start, length in zip(examples.starts, examples.lengths, strict=True):
        prefix = examples.items[start : start + length]
        target = examples.items[start + length]
        scores = np.array(
            model.apply(
                {"params": params},
                np.pad(prefix, (0, 14 - length))[None],
                np.array([length]),
                method="full_sort_predict",
            )
        )[0, 1:]
        rank = 1 + int((scores > scores[target - 1]).sum())
        if rank <= k:
            hits += 1
            reciprocal += 1 / rank
    return hits / len(examples), reciprocal / len(examples)


@pytest.mark.parametrize("batch_size", [7, 1000])
def test_means_match_a_plain_ranking(batch_size):
    model, examples = SRGNN(ITEMS, 8), examples_of()
    params = init_params(model, 0)
    evaluate = Evaluator(model, examples, (5,), batch_size, parallel.Devices(1))
    means = evaluate(params)
    recall, mrr = expected(model, params, examples, 5)
    assert means["recall@5"] == pytest.approx(recall)
    assert means["mrr@5"] == pytest.approx(mrr)
    assert means["examples_per_second"] > 0


def test_a_large_catalog_is_ranked_for_fewer_sessions_at_a_time(monkeypatch):
    monkeypatch.setattr(evaluate_module, "MIN_ROWS", 2)
    rows = []
    original = evaluate_module.batches.eval_batches

    def spy(*arguments):
        for batch in original(*arguments):
            rows.append(batch.start.shape[1])
            yield batch

    monkeypatch.setattr(evaluate_module.batches, "eval_batches", spy)
    model, examples = SRGNN(ITEMS, 8), examples_of()
    params = init_params(model, 0)
    found = []
    for max_scores in (4 * ITEMS, 10):
        devices = parallel.Devices(1, max_scores=max_scores)
        found.append(Evaluator(model, examples, (5,), 64, devices)(params)["mrr@5"])
        assert max(rows) == {4 * ITEMS: 4, 10: 2}[max_scores]
        rows.clear()
    whole = Evaluator(model, examples, (5,), 64, parallel.Devices(1))(params)
    assert found == [pytest.approx(whole["mrr@5"])] * 2
