"""Groups, intervals and statistics of lists against loops over small data."""

import numpy as np
import pytest

from srgnn_jax.data.sessions import Sessions
from srgnn_jax.evaluate import breakdown
from srgnn_jax.evaluate.breakdown import (
    bootstrap,
    break_down,
    example_sessions,
    list_traits,
    popularity_deciles,
)

LISTS = [[1, 2, 3], [4, 2], [3, 3, 3, 1], [2, 3, 1]]


def published(sessions):
    """Lists the prefixes of sessions as the published test files do, longest first."""
    return [s[:end] for s in sessions for end in range(len(s), 1, -1)]


@pytest.mark.parametrize("max_length", [0, 1, 2])
def test_examples_of_a_session_are_found(max_length):
    examples = Sessions.from_lists(LISTS).examples(max_length)
    assert example_sessions(examples).tolist() == [0, 0, 1, 2, 2, 2, 3, 3]


def test_pairs_of_a_session_are_found_in_the_published_order():
    # The second session cannot continue the first, nor the fifth the fourth.
    sessions = [*LISTS, [2, 3], [2, 3, 1, 2]]
    examples = Sessions.from_lists(published(sessions), last_only=True).examples()
    expected = [s for s, x in enumerate(sessions) for _ in range(len(x) - 1)]
    assert example_sessions(examples).tolist() == expected


def test_deciles_are_tenths_of_the_clicked_items():
    clicks = np.array([9, 5, 0, 5, 7, *range(10, 26)])
    deciles = popularity_deciles(clicks)
    assert deciles[2] == 0
    order = np.argsort(-clicks, kind="stable")
    assert (np.diff(deciles[order[:20]]) >= 0).all()
    assert np.bincount(deciles)[1:].tolist() == [2] * 10
    assert not popularity_deciles(np.zeros(4, int)).any()


def test_groups_hold_what_belongs_to_them():
    lists = [list(range(1, 30)), [5, 6], [31, 1, 31]]
    examples = Sessions.from_lists(lists).examples()
    clicks = np.zeros(32, int)
    clicks[1:21] = np.arange(20, 0, -1)
    found = breakdown.groups(examples, clicks)
    targets = examples.targets
    lasts = np.array([*range(1, 29), 5, 31, 1])
    np.testing.assert_array_equal(found["target"]["trained"], targets <= 20)
    np.testing.assert_array_equal(found["last click"]["never trained"], lasts > 20)
    np.testing.assert_array_equal(found["length"]["longer"], examples.lengths > 5)
    finely = found["length, finely"]
    assert list(finely)[4:] == ["5", "6 to 7", "8 to 10", "11 to 20", "21 or more"]
    assert [int(part.sum()) for part in finely.values()][4:] == [1, 2, 3, 10, 8]
    # Every example is in one group of each trait, except if its target has no decile.
    for trait, parts in found.items():
        count = np.sum(list(parts.values()), axis=0)
        expected = targets <= 20 if trait == "target's popularity" else 1
        np.testing.assert_array_equal(count, expected)


def test_metrics_are_those_of_the_group_and_empty_groups_are_left_out():
    examples = Sessions.from_lists(LISTS).examples()
    rank = np.array([1, 4, 2, 50, 3, 1, 7, 2])
    clicks = np.array([0, 3, 2, 1, 0])
    found = break_down(rank, examples, clicks, (3,))
    assert found["all"]["all"]["examples"] == 8
    assert found["all"]["all"]["recall@3"] == 5 / 8
    longer = rank[examples.lengths == 2]
    assert found["length, finely"]["2"]["mrr@3"] == pytest.approx(
        np.where(longer <= 3, 1 / longer, 0).mean()
    )
    assert found["target"].keys() == {"trained"}
    assert found["last click"]["never trained"]["examples"] == 1
    low, high = found["all"]["all"]["interval"]["recall@3"]
    assert 0 <= low < 5 / 8 < high <= 1


def test_sessions_are_drawn_as_a_whole():
    rng = np.random.default_rng(1)
    # The examples of a session are all equal: only the number of sessions matters.
    hit = rng.random(400) < 0.3
    session = np.repeat(np.arange(400), 9)
    low, high = bootstrap(np.repeat(hit, 9).astype(float)[:, None], session)[:, 0]
    error = 1.96 * np.sqrt(hit.mean() * (1 - hit.mean()) / 400)
    assert low == pytest.approx(hit.mean() - error, abs=0.15 * error)
    assert high == pytest.approx(hit.mean() + error, abs=0.15 * error)


def test_long_sessions_count_by_their_examples():
    values = np.array([[1.0], [1.0], [1.0], [0.0]])
    low, high = bootstrap(values, np.array([7, 7, 7, 3]))[:, 0]
    # A sample of two sessions has only the first, only the second, or both.
    assert (low, high) == (0, 1)
    means = bootstrap(values, np.array([7, 7, 7, 7]))[:, 0]
    assert means.tolist() == [0.75, 0.75]


def test_traits_of_lists():
    clicks = np.array([0, 10, 0, 2, 4])
    traits = list_traits(np.array([[1, 2], [2, 3]]), clicks)
    assert traits == {"coverage": 3 / 4, "popularity": (10 + 0 + 0 + 2) / 4}


def test_ages_are_those_of_the_target_and_of_all_items():
    examples = Sessions.from_lists([[1, 2, 5], [5, 4], [4, 1, 2, 3]]).examples(2)
    is_new = np.array([False, False, False, False, True, True])
    found = breakdown.ages(examples, is_new)
    prefixes = [[1], [1, 2], [5], [4], [4, 1], [1, 2]]
    targets = [2, 5, 4, 1, 2, 3]
    for e, (prefix, target) in enumerate(zip(prefixes, targets, strict=True)):
        both = {bool(is_new[item]) for item in (*prefix, target)} == {True, False}
        assert found["new targets"][e] == is_new[target] != found["old targets"][e]
        assert found["old and new"][e] == both
    assert found["old and new"].tolist() == [False, True, False, True, True, False]
    rank, clicks = np.array([1, 4, 2, 50, 3, 1]), np.ones(6, int)
    assert "age" not in break_down(rank, examples, clicks, (3,))
    means = break_down(rank, examples, clicks, (3,), is_new)["age"]
    assert means["new targets"]["recall@3"] == 1 / 2
    assert means["old and new"]["examples"] == 3
