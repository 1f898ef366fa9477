"""Sessions, their prefix examples, and the vocabulary."""

import numpy as np
import pytest

from srgnn_jax.data.sessions import MOST_UNPACKED, Sessions, Vocabulary
from tests.tiny import spelled_out

LISTS = [[3, 1, 3, 2], [5], [], [4, 4], [1, 2, 3]]


def test_sessions_hold_what_they_were_built_from():
    sessions = Sessions.from_lists(LISTS)
    assert len(sessions) == 5
    assert [session.tolist() for session in sessions] == LISTS
    assert sessions.lengths.tolist() == [4, 1, 0, 2, 3]
    assert (sessions.items.dtype, sessions.offsets.dtype) == (np.int32, np.int64)


def test_no_sessions():
    sessions = Sessions.from_lists([])
    assert len(sessions) == 0
    assert len(sessions.examples()) == 0


def test_every_click_from_the_second_on_is_a_target_shorter_prefixes_first():
    expected = [
        (session[:n], session[n]) for session in LISTS for n in range(1, len(session))
    ]
    assert spelled_out(Sessions.from_lists(LISTS).examples()) == expected


def test_of_given_pairs_only_the_last_click_is_a_target():
    pairs = Sessions.from_lists([[3, 1, 3, 2], [4, 4]], last_only=True)
    assert spelled_out(pairs.examples()) == [([3, 1, 3], 2), ([4], 4)]


@pytest.mark.parametrize("last_only", [False, True])
def test_max_length_keeps_the_last_clicks_of_a_prefix(last_only):
    sessions = Sessions.from_lists([[3, 1, 3, 2], [4, 4]], last_only)
    whole = spelled_out(sessions.examples())
    expected = [(prefix[-2:], target) for prefix, target in whole]
    assert spelled_out(sessions.examples(2)) == expected


def test_examples_copy_no_clicks():
    sessions = Sessions.from_lists(LISTS)
    examples = sessions.examples(2)
    assert examples.items is sessions.items
    assert (examples.starts.dtype, examples.lengths.dtype) == (np.int64, np.int32)


@pytest.mark.parametrize(
    ("fraction", "later"), [(0.0, 0), (0.1, 1), (0.34, 3), (0.5, 5), (1.0, 10)]
)
def test_split_last_takes_the_last_sessions(fraction, later):
    lists = [[n, n + 1, n + 2][: 2 + n % 2] for n in range(1, 11)]
    split = Sessions.from_lists(lists, last_only=True).split_last(fraction)
    assert [[s.tolist() for s in part] for part in split] == [
        lists[: 10 - later],
        lists[10 - later :],
    ]
    assert all(part.last_only for part in split)


def test_take():
    sessions = Sessions.from_lists(LISTS, last_only=True)
    taken = sessions.take(np.array([4, 0, 2]))
    assert [session.tolist() for session in taken] == [[1, 2, 3], [3, 1, 3, 2], []]
    assert taken.last_only


@pytest.mark.parametrize("least", [1, 2, 4])
def test_sessions_of_the_clicks_that_are_kept(least):
    sessions = Sessions.from_lists(LISTS, last_only=True)
    kept, left = sessions.keep(sessions.items != 3, least)
    expected = [[item for item in session if item != 3] for session in LISTS]
    assert left.tolist() == [len(items) >= least for items in expected]
    assert [s.tolist() for s in kept] == [s for s in expected if len(s) >= least]
    assert kept.last_only


IDS = ["b", "12", 'odd "id", with\n everything;\té', ""]


def test_vocabulary_turns_raw_ids_to_rows_and_back():
    vocabulary = Vocabulary(IDS)
    assert vocabulary.num_items == 5
    rows = vocabulary.rows([IDS[2], 12, "12", "unknown", "b"])
    assert rows.tolist() == [3, 2, 2, 0, 1]
    assert rows.dtype == np.int32
    assert vocabulary.raw(np.array([3, 1, 4])) == [IDS[2], "b", ""]


@pytest.mark.parametrize("row", [0, -1, 5])
def test_rows_without_a_raw_id_are_refused(row):
    with pytest.raises(IndexError):
        Vocabulary(IDS).raw([1, row])


def test_equal_ids_are_refused():
    with pytest.raises(ValueError, match="differ"):
        Vocabulary(["a", "b", "a"])


def test_vocabulary_is_saved_and_loaded_whole(tmp_path):
    path = tmp_path / "vocabulary.parquet"
    Vocabulary(IDS).save(path)
    assert Vocabulary.load(path).ids == IDS
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize(
    "ids",
    [
        [f"https://example.org/{'shop/' * 150}{n}" for n in range(20_000)],
        ["x" * 10**6, "y"],
    ],
)
def test_ids_that_shrink_well_are_no_bomb(tmp_path, ids):
    path = tmp_path / "vocabulary.parquet"
    Vocabulary(ids).save(path)
    assert path.stat().st_size * MOST_UNPACKED < sum(map(len, ids))
    assert Vocabulary.load(path).ids == ids


def test_fingerprint_tells_ids_and_their_order():
    fingerprints = [
        Vocabulary(ids).fingerprint()
        for ids in (IDS, IDS[::-1], ["b1", "2"], ["b", "12"], ["b12"])
    ]
    assert len(set(fingerprints)) == len(fingerprints)
    assert Vocabulary(list(IDS)).fingerprint() == fingerprints[0]


def test_clicks_of_training_are_counted_saved_and_no_part_of_the_fingerprint(tmp_path):
    path = tmp_path / "vocabulary.parquet"
    vocabulary = Vocabulary(IDS)
    counted = vocabulary.with_clicks(np.array([3, 1, 3, 3]))
    assert counted.clicks.tolist() == [1, 0, 3, 0]
    assert counted.fingerprint() == vocabulary.fingerprint()
    counted.save(path)
    assert Vocabulary.load(path).clicks.tolist() == [1, 0, 3, 0]
    vocabulary.save(path)
    assert Vocabulary.load(path).clicks is None
    with pytest.raises(ValueError, match="2 click counts for 4 item ids"):
        Vocabulary(IDS, np.array([1, 2]))


def test_sessions_behind_pairs_are_found_once_in_either_order():
    pairs = [[1, 2, 3], [1, 2], [4, 5], [4, 6], [7, 8], [7, 8, 8], [8, 8], [9, 1, 9, 1]]
    found = Sessions.from_lists(pairs, last_only=True).whole()
    whole = [found[s].tolist() for s in range(len(found))]
    assert whole == [[1, 2, 3], [4, 5], [4, 6], [7, 8, 8], [8, 8], [9, 1, 9, 1]]
    sessions = Sessions.from_lists(pairs)
    assert sessions.whole() is sessions
    assert len(Sessions.from_lists([], last_only=True).whole()) == 0
