"""Evaluation cannot leak: an example's rank depends only on its prefix and its target.

Each check also runs on an evaluation that leaks on purpose, and must notice it.
"""

import jax.numpy as jnp
import numpy as np
import pytest

from srgnn_jax.data import batches
from srgnn_jax.data.sessions import Examples, Sessions
from srgnn_jax.devices import layouts
from srgnn_jax.evaluate import evaluator, joined
from srgnn_jax.evaluate.evaluator import Evaluator
from srgnn_jax.evaluate.session_knn import Neighbours, repeat_rates
from srgnn_jax.model.srgnn import SRGNN, init_params
from tests.tiny import spelled_out

V = 40
RNG = np.random.default_rng(0)
# Sessions of 3 clicks have two prefix lengths, so little is compiled.
TRAIN = Sessions.from_lists(RNG.integers(1, V, (60, 3)).tolist())
EXAMPLES = Sessions.from_lists(RNG.integers(1, V, (12, 3)).tolist()).examples()
PARAMS = init_params(SRGNN(V, 8), 0)
NEIGHBOURS = Neighbours(
    "STAN", 0.0, TRAIN.items, TRAIN.offsets, V, 0.0, repeat_rates(TRAIN, V)
)
# Four sessions at a time, so each has batch mates, and others are in other batches.
DEVICES = layouts.Devices(1, max_scores=4 * V)


@pytest.fixture(autouse=True)
def _few_rows(monkeypatch):
    monkeypatch.setattr(evaluator, "MIN_ROWS", 4)


def of_network(examples, model=None, k=0):
    model = model or SRGNN(V, 8)
    return Evaluator(model, examples, (5,), 4, DEVICES).with_lists(PARAMS, k)[1:]


def of_joined(examples, model=None, k=0):
    model = model or SRGNN(V, 8)
    arguments = PARAMS, examples, NEIGHBOURS, ((0.5, 0.7),), k, DEVICES
    found = joined.rank(model, *arguments)
    return found.ranks[:, 0], found.lists


def chosen(examples, numbers):
    starts, lengths = examples.starts[numbers], examples.lengths[numbers]
    return Examples(examples.items, starts, lengths)


def shuffled(evaluate, model=None):
    order = np.random.default_rng(1).permutation(len(EXAMPLES))
    found, _ = evaluate(chosen(EXAMPLES, order), model)
    np.testing.assert_array_equal(found, evaluate(EXAMPLES, model)[0][order])


def alone(evaluate, model=None):
    ranks, _ = evaluate(EXAMPLES, model)
    for n in range(0, len(EXAMPLES), 3):
        found, _ = evaluate(chosen(EXAMPLES, [n]), model)
        assert found == ranks[n]


def other_mates(evaluate, model=None):
    ranks, _ = evaluate(EXAMPLES, model)
    kept = np.arange(len(EXAMPLES)) < len(EXAMPLES) // 2
    # The others keep their lengths, so the kept examples keep their places.
    others = np.random.default_rng(2).integers(1, V, len(EXAMPLES.items))
    items = np.append(EXAMPLES.items, others)
    starts = np.where(kept, EXAMPLES.starts, EXAMPLES.starts + len(others))
    replaced = Examples(items, starts, EXAMPLES.lengths)
    found, _ = evaluate(replaced, model)
    np.testing.assert_array_equal(found[kept], ranks[kept])


def hidden_target(evaluate, model=None):
    """Lists of all items, made with another target, give the target its rank."""
    ranks, _ = evaluate(EXAMPLES, model)
    # One prefix per session, so that the target is in no other prefix.
    hidden = Sessions.from_lists(
        [[*prefix, 1] for prefix, _ in spelled_out(EXAMPLES)], last_only=True
    ).examples()
    _, lists = evaluate(hidden, model, V - 1)
    place = 1 + np.argmax(lists == EXAMPLES.targets[:, None], axis=1)
    np.testing.assert_array_equal(ranks, place)


CHECKS = [shuffled, alone, other_mates, hidden_target]
WAYS = [of_network, of_joined]


@pytest.mark.parametrize("evaluate", WAYS)
def test_shuffling_test_changes_no_rank(evaluate):
    shuffled(evaluate)


@pytest.mark.parametrize("evaluate", WAYS)
def test_an_example_alone_has_the_same_rank(evaluate):
    alone(evaluate)


@pytest.mark.parametrize("evaluate", WAYS)
def test_other_batch_mates_change_no_rank(evaluate):
    other_mates(evaluate)


@pytest.mark.parametrize("evaluate", WAYS)
def test_the_target_is_hidden_from_all_but_the_ranking(evaluate):
    hidden_target(evaluate)


class PeeksAtMates(SRGNN):
    """Mixes the sessions of a batch, like models whose published records were leaks."""

    def encode(self, item_seq, item_seq_len, embedded, *others):
        mates = embedded[:, 0].mean(axis=0)
        return super().encode(item_seq, item_seq_len, embedded, *others) + 3 * mates


@pytest.mark.parametrize("check", [shuffled, alone, other_mates])
def test_a_model_that_peeks_at_batch_mates_is_noticed(check):
    with pytest.raises(AssertionError):
        check(of_network, PeeksAtMates(V, 8))


class SeesTheTarget(SRGNN):
    """Unchanged; as a class of its own, it does not share steps with other tests."""


def test_an_evaluation_that_shows_the_target_is_noticed(monkeypatch):
    original = batches.gather_part

    def leaking(clicks, batch, n):
        part = original(clicks, batch, n)
        tiers, first = [], 0
        for item_seq, length in part.tiers:
            target = part.target[first : first + len(item_seq), None]
            tiers.append((jnp.where(item_seq > 0, target, 0), length))
            first += len(item_seq)
        return part._replace(tiers=tuple(tiers))

    monkeypatch.setattr(batches, "gather_part", leaking)
    with pytest.raises(AssertionError):
        hidden_target(of_network, SeesTheTarget(V, 8))
