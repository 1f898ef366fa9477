"""Evaluation against a plain ranking of every example."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from srgnn_jax.data.sessions import Sessions
from srgnn_jax.devices import layouts
from srgnn_jax.evaluate import evaluator
from srgnn_jax.evaluate.evaluator import Evaluator, rank_step
from srgnn_jax.model.srgnn import SRGNN, init_params

ITEMS = 30


@pytest.fixture(scope="module")
def plain():
    """Examples, parameters, and all scores of each example except the padding's."""
    rng = np.random.default_rng(0)
    lists = [rng.integers(1, ITEMS, n) for n in rng.integers(2, 6, 40)]
    examples = Sessions.from_lists(lists).examples()
    item_seq = np.zeros((len(examples), 5), np.int32)
    for row, start, length in zip(
        item_seq, examples.starts, examples.lengths, strict=True
    ):
        row[:length] = examples.items[start : start + length]
    params = init_params(SRGNN(ITEMS, 8), 0)
    predict = functools.partial(SRGNN(ITEMS, 8).apply, method="full_sort_predict")
    scores = jax.jit(predict)({"params": params}, item_seq, examples.lengths)
    return examples, params, np.array(scores)[:, 1:]


def plain_ranks(examples, scores):
    column = examples.targets[:, None] - 1
    return 1 + (scores > np.take_along_axis(scores, column, 1)).sum(axis=1)


def test_means_and_lists_are_those_of_a_plain_ranking(plain):
    examples, params, scores = plain
    evaluate = Evaluator(SRGNN(ITEMS, 8), examples, (5,), 7, layouts.Devices(1))
    means, rank, lists = evaluate.with_lists(params, 6)
    expected = plain_ranks(examples, scores)
    np.testing.assert_array_equal(rank, expected)
    np.testing.assert_array_equal(lists, 1 + np.argsort(-scores)[:, :6])
    assert means["recall@5"] == pytest.approx(np.mean(expected <= 5))
    assert means["mrr@5"] == pytest.approx(np.mean((expected <= 5) / expected))
    assert means["examples_per_second"] > 0


def near_ties(num_items):
    """Returns parameters for which rounding would decide many ranks."""
    params = init_params(SRGNN(num_items, 16), 0)
    table = np.array(params["item_embedding"])
    half = num_items // 2
    noise = np.random.default_rng(0).choice([0, 6e-8, -6e-8], table[:half].shape)
    table[half : 2 * half] = table[:half] * (1 + noise)
    return {**params, "item_embedding": table.astype(np.float32)}


@pytest.fixture(scope="module")
def ranked():
    """Examples, parameters, and the results of one device in batches of 64.

    The ranks come from a step that only ranks, which is all that epochs need.
    """
    rng = np.random.default_rng(3)
    lists = [rng.integers(1, 401, n) for n in rng.integers(2, 5, 120)]
    examples = Sessions.from_lists(lists).examples()
    params = near_ties(401)
    devices = layouts.find_devices("jit", max_positions=100)
    evaluate = Evaluator(SRGNN(401, 16), examples, (5, 20), 64, devices)
    means, ranks, no_lists = evaluate.with_lists(params, 0)
    assert no_lists.shape == (len(examples), 0)
    return examples, params, means, ranks, evaluate.with_lists(params, 20)[2]


@pytest.mark.parametrize(
    ("layout", "batch_size"),
    [
        (("jit",), 1),
        (("jit",), 5000),
        (("pmap",), 64),
        (("mesh", (2, 4)), 64),
        # Slow, as it compiles one more layout; the one above splits the items too.
        pytest.param(("mesh", (1, 8)), 200, marks=pytest.mark.slow),
    ],
)
def test_no_batch_size_no_layout_and_no_list_changes_a_digit(
    ranked, layout, batch_size
):
    examples, params, expected, ranks, lists = ranked
    devices = layouts.find_devices(*layout, max_positions=100)
    evaluate = Evaluator(SRGNN(401, 16), examples, (5, 20), batch_size, devices)
    laid_out = devices.make(lambda: jax.tree.map(jnp.asarray, params))
    means, found, best = evaluate.with_lists(laid_out, 20)
    np.testing.assert_array_equal(found, ranks)
    np.testing.assert_array_equal(best, lists)
    for name in expected.keys() - {"examples_per_second"}:
        assert means[name] == expected[name]


def test_ranks_and_lists_share_their_scores(plain):
    examples, params, _ = plain
    devices = layouts.Devices(1)
    batch = next(evaluator.batches.eval_batches(examples, 64))
    step = functools.partial(rank_step, model=SRGNN(ITEMS, 8), k=5)
    arguments = params, *devices.hold_clicks(examples.items)(batch)
    compiled = devices.lower(step, arguments, updates_state=False).compile()
    shape = f"f32[{ITEMS},{batch.start.shape[1]}]"
    made = [
        line
        for line in compiled.as_text().splitlines()
        if f"= {shape}" in line and " dot(" in line
    ]
    assert len(made) == 1


def test_a_large_catalog_is_ranked_for_fewer_sessions_at_a_time(plain, monkeypatch):
    monkeypatch.setattr(evaluator, "MIN_ROWS", 2)
    rows = []
    original = evaluator.batches.eval_batches

    def spy(*arguments):
        for batch in original(*arguments):
            rows.append(batch.start.shape[1])
            yield batch

    monkeypatch.setattr(evaluator.batches, "eval_batches", spy)
    examples, params, scores = plain
    for max_scores, most in ((4 * ITEMS, 4), (10, 2)):
        devices = layouts.Devices(1, max_scores=max_scores)
        evaluate = Evaluator(SRGNN(ITEMS, 8), examples, (5,), 64, devices)
        _, rank, _ = evaluate.with_lists(params, 0)
        np.testing.assert_array_equal(rank, plain_ranks(examples, scores))
        assert max(rows) <= most
        rows.clear()
