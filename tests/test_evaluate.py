"""Evaluation against a plain ranking of every example."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from srgnn_jax.data.sessions import Sessions
from srgnn_jax.devices import layouts
from srgnn_jax.evaluate import evaluator
from srgnn_jax.evaluate.evaluator import Evaluator
from srgnn_jax.model.srgnn import SRGNN, init_params

ITEMS = 30


def examples_of(seed=0):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(2, 14, 25)
    return Sessions.from_lists([rng.integers(1, ITEMS, n) for n in lengths]).examples()


def expected(model, params, examples, k):
    starts, lengths = examples.starts, examples.lengths
    item_seq = np.zeros((len(examples), 14), np.int32)
    for row, start, length in zip(item_seq, starts, lengths, strict=True):
        row[:length] = examples.items[start : start + length]
    scores = np.array(
        model.apply({"params": params}, item_seq, lengths, method="full_sort_predict")
    )[:, 1:]
    targets = examples.items[starts + lengths]
    ranks = [
        1 + int((row > row[target - 1]).sum())
        for row, target in zip(scores, targets, strict=True)
    ]
    hits = [rank for rank in ranks if rank <= k]
    return len(hits) / len(ranks), sum(1 / rank for rank in hits) / len(ranks)


@pytest.mark.parametrize("batch_size", [7, 1000])
def test_means_match_a_plain_ranking(batch_size):
    model, examples = SRGNN(ITEMS, 8), examples_of()
    params = init_params(model, 0)
    evaluate = Evaluator(model, examples, (5,), batch_size, layouts.Devices(1))
    means = evaluate(params)
    recall, mrr = expected(model, params, examples, 5)
    assert means["recall@5"] == pytest.approx(recall)
    assert means["mrr@5"] == pytest.approx(mrr)
    assert means["examples_per_second"] > 0


def near_ties(num_items):
    """Returns parameters by which rounding would decide many ranks."""
    params = init_params(SRGNN(num_items, 16), 0)
    table = np.array(params["item_embedding"])
    half = num_items // 2
    noise = np.random.default_rng(0).choice([0, 6e-8, -6e-8], table[:half].shape)
    table[half : 2 * half] = table[:half] * (1 + noise)
    return {**params, "item_embedding": table.astype(np.float32)}


@pytest.fixture(scope="module")
def ranked():
    """Sessions, parameters, and the ranks on one device in batches of 64."""
    rng = np.random.default_rng(3)
    lists = [rng.integers(1, 401, n) for n in rng.integers(2, 9, 60)]
    examples = Sessions.from_lists(lists).examples()
    params = near_ties(401)
    devices = layouts.Devices(1, max_positions=100)
    evaluate = Evaluator(SRGNN(401, 16), examples, (5, 20), 64, devices)
    return examples, params, evaluate.with_ranks(params)


@pytest.mark.parametrize(
    ("layout", "batch_size"),
    [
        (("jit",), 1),
        (("jit",), 5000),
        (("pmap",), 64),
        (("mesh", (2, 4)), 64),
        (("mesh", (1, 8)), 200),
    ],
)
def test_no_batch_size_and_no_layout_changes_a_digit(ranked, layout, batch_size):
    examples, params, (expected, ranks) = ranked
    model = SRGNN(401, 16)
    devices = layouts.find_devices(*layout, max_positions=100)
    evaluate = Evaluator(model, examples, (5, 20), batch_size, devices)
    laid_out = devices.make(lambda: jax.tree.map(jnp.asarray, params))
    means, found = evaluate.with_ranks(laid_out)
    np.testing.assert_array_equal(found, ranks)
    for name in expected.keys() - {"examples_per_second"}:
        assert means[name] == expected[name]


def test_lists_hold_the_best_items_of_each_example():
    model, examples = SRGNN(ITEMS, 8), examples_of()
    params = init_params(model, 0)
    for layout in (("jit",), ("mesh", (2, 4))):
        devices = layouts.find_devices(*layout)
        laid_out = devices.make(lambda: params)
        evaluate = Evaluator(model, examples, (5,), 7, devices)
        _, rank = evaluate.with_ranks(laid_out)
        lists = evaluate.lists(laid_out, 6)
        assert lists.shape == (len(examples), 6)
        for best, target, place in zip(lists, examples.targets, rank, strict=True):
            assert len({*best.tolist()} - {0}) == 6
            assert (target in best) == (place <= 6)
            if place <= 6:
                assert best[place - 1] == target


def test_a_large_catalog_is_ranked_for_fewer_sessions_at_a_time(monkeypatch):
    monkeypatch.setattr(evaluator, "MIN_ROWS", 2)
    rows = []
    original = evaluator.batches.eval_batches

    def spy(*arguments):
        for batch in original(*arguments):
            rows.append(batch.start.shape[1])
            yield batch

    monkeypatch.setattr(evaluator.batches, "eval_batches", spy)
    model, examples = SRGNN(ITEMS, 8), examples_of()
    params = init_params(model, 0)
    found = []
    for max_scores in (4 * ITEMS, 10):
        devices = layouts.Devices(1, max_scores=max_scores)
        found.append(Evaluator(model, examples, (5,), 64, devices)(params)["mrr@5"])
        assert max(rows) == {4 * ITEMS: 4, 10: 2}[max_scores]
        rows.clear()
    whole = Evaluator(model, examples, (5,), 64, layouts.Devices(1))(params)
    assert found == [pytest.approx(whole["mrr@5"])] * 2
