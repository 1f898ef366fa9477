"""Recommendations for raw ids, from Python and from the command line."""

import contextlib
import functools
import io
import json
import logging
import re
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import polars as pl
import pytest
from jaxtyping import TypeCheckError

import srgnn_jax
from srgnn_jax.data.sessions import Vocabulary
from srgnn_jax.devices import layouts
from srgnn_jax.errors import UserError
from srgnn_jax.model import graph
from srgnn_jax.model.item_table import ItemTable
from srgnn_jax.model.srgnn import SRGNN, init_params
from srgnn_jax.serve import exported, inputs
from srgnn_jax.serve import stream as stream_module
from srgnn_jax.serve.recommend import Recommender
from srgnn_jax.serve.stream import evaluate_sessions, recommend_stream
from tests.command import ROOT, run_command
from tests.tiny import old_run

ITEMS = 40
IDS = [f"i{n}" for n in range(1, ITEMS)]
# Item i5 is the most popular, then i7, then all others equally.
CLICKS = np.ones(ITEMS - 1, np.int64)
CLICKS[[4, 6]] = 9, 8


@pytest.fixture(scope="module")
def recommender():
    return make(SRGNN(ITEMS, 8))


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A trained run, with a log of its items in `data` next to it."""
    return old_run(tmp_path_factory.mktemp("trained"))


def make(model, clicks=CLICKS, **options):
    params = init_params(model, 0)
    return Recommender(model, params, Vocabulary(IDS, clicks), **options)


@functools.partial(jax.jit, static_argnames="model")
def full_sort_predict(model, params, item_seq, item_seq_len):
    return model.apply(
        {"params": params}, item_seq, item_seq_len, method="full_sort_predict"
    )


def scores_of(recommender, session):
    """Scores every row for known ids, as the model itself does."""
    rows = recommender.vocabulary.rows(session)
    item_seq = np.pad(rows, (0, 64 - len(rows)))[None]
    return np.asarray(
        full_sort_predict(
            recommender.model, recommender.params, item_seq, np.array([len(rows)])
        )
    )[0]


def ranking(recommender, session, k):
    order = np.argsort(-scores_of(recommender, session)[1:], kind="stable")
    return [recommender.vocabulary.ids[n] for n in order[:k]]


def random_sessions(count=30, seed=0, longest=5):
    rng = np.random.default_rng(seed)
    return [
        [IDS[n] for n in rng.integers(0, ITEMS - 1, rng.integers(1, longest))]
        for _ in range(count)
    ]


def test_lists_are_the_ranking_of_full_sort_predict(recommender):
    sessions = random_sessions(longest=12)
    for session, found in zip(sessions, recommender.recommend(sessions), strict=True):
        assert found.items == ranking(recommender, session, 20)
        best = np.sort(scores_of(recommender, session)[1:])[::-1][:20]
        np.testing.assert_allclose(found.scores, best, atol=1e-5)
        assert (found.unknown, found.fallback) == ([], False)


def test_what_else_is_in_the_batch_changes_nothing(recommender):
    sessions = [*random_sessions(40, longest=8), [], ["i1"] * 70, ["nope"]]
    for together, session in zip(
        recommender.recommend(sessions), sessions, strict=True
    ):
        (alone,) = recommender.recommend([session])
        assert together.items == alone.items
        np.testing.assert_allclose(together.scores, alone.scores, atol=1e-5)


def test_unknown_ids_are_dropped_and_reported_once(recommender):
    with_unknown, without = recommender.recommend(
        [["x", "i3", "y", "i4", "x"], ["i3", "i4"]]
    )
    assert with_unknown.items == without.items
    assert with_unknown.unknown == ["x", "y"]
    assert not with_unknown.fallback


@pytest.mark.parametrize("session", [[], ["x", "y"]])
def test_without_a_known_id_the_most_popular_come_first(recommender, session):
    (found,) = recommender.recommend([session], k=4)
    assert found.items == ["i5", "i7", "i1", "i2"]
    assert found.scores == [9.0, 8.0, 1.0, 1.0]
    assert found.fallback
    assert found.unknown == session
    (share,) = recommender.recommend([session], k=1, as_probabilities=True)
    assert share.scores == [9 / CLICKS.sum()]


def test_a_fallback_keeps_to_the_candidates(recommender):
    (found,) = recommender.recommend([[]], candidates=["i9", "i7", "i8"])
    assert found.items == ["i7", "i8", "i9"]


def test_whole_numbers_stand_for_their_text():
    model = SRGNN(4, 8)
    numbers = Recommender(model, init_params(model, 0), Vocabulary(["12", "7", "300"]))
    as_text, as_int, as_array = numbers.recommend(
        [["7", "12"], [7, 12], np.array([7, 12])]
    )
    assert as_text == as_int == as_array
    assert not as_int.fallback


@pytest.mark.parametrize(
    ("raw", "of_whole", "of_others"),
    [
        ("12", 1, 1),
        (12, 1, 1),
        (12.0, 1, 0),
        (np.float64(12), 1, 0),
        ("12.0", 1, 0),
        ("-300.00", 3, 0),
        (-300.0, 3, 0),
        ("7.0", 2, 4),
        ("12.5", 0, 0),
        (" 12\u00a0", 1, 1),
        ("\t12.0 ", 1, 0),
        ("x\u3000", 0, 3),
        ("1 2", 0, 0),
        ("12.", 0, 0),
        (".0", 0, 0),
        ("", 0, 0),
    ],
)
def test_requests_of_whole_numbers_and_with_spaces(raw, of_whole, of_others):
    """By one rule, of which the loader of exports has a copy."""
    for ids, row in [
        (["12", "7", "-300"], of_whole),
        (["12", "7", "x", "7.0"], of_others),
    ]:
        assert Vocabulary(ids).rows(iter(["7", raw])).tolist() == [2, row]
        assert exported.rows_by_id(ids)(["7", raw]).tolist() == [2, row]


def test_a_json_number_with_a_point_is_its_whole_number():
    numbers = Recommender(
        SRGNN(4, 8), init_params(SRGNN(4, 8), 0), Vocabulary(["12", "7", "300"])
    )
    found = stream(numbers, '{"session": [12.0, "7 "]}\n{"session": ["12", "7"]}')
    assert found[0] == found[1]
    assert not found[0]["fallback"]
    for wrong in (12.5, float("nan"), float("inf"), 2.0**60):
        message = f"session 0: an item id is {wrong}; ids".replace("+", r"\+")
        with pytest.raises(UserError, match=message):
            numbers.recommend([[12.0, wrong]])


@pytest.mark.parametrize("wrong", ["[1.5]", "[null]", "[true]", '[["i1"]]', "{}", "1"])
def test_what_is_no_id_is_refused(recommender, wrong):
    (found,) = stream(recommender, f'{{"session": {wrong}}}')
    assert re.search("not a list of item ids|must be text or integers", found["error"])


def test_what_is_no_session_is_refused_by_its_place(recommender):
    with pytest.raises(UserError, match="session 1: 'i1' is not a list of item ids"):
        recommender.recommend([["i1"], "i1"])
    with pytest.raises(
        UserError, match=r"'i1' is not a list of sessions, such as \[\['17"
    ):
        recommender.recommend("i1")


def test_long_sessions_keep_their_last_clicks():
    short = make(SRGNN(ITEMS, 8), max_length=5)
    (session,) = random_sessions(1, seed=3, longest=2)
    tail = ["i2", "i9", "i2", "i4", "i30"]
    found = short.recommend([session * 9_995 + tail, tail])
    assert found[0].items == found[1].items == ranking(short, tail, 20)
    whole = make(SRGNN(ITEMS, 8), max_length=6)
    assert whole.recommend([[*session, *tail]])[0].items == ranking(
        whole, [*session, *tail], 20
    )


def test_repeated_clicks_count_again(recommender):
    once, twice = recommender.recommend([["i1", "i2"], ["i1", "i2", "i2"]])
    assert twice.items == ranking(recommender, ["i1", "i2", "i2"], 20)
    assert once.scores != twice.scores


def test_k_beyond_the_catalog_gives_all_items(recommender):
    (found,) = recommender.recommend([["i1"]], k=1000)
    assert sorted(found.items) == sorted(IDS)
    assert found.items == ranking(recommender, ["i1"], 1000)


@pytest.mark.parametrize("k", [0, -3])
def test_lists_of_no_item_are_refused(recommender, k):
    with pytest.raises(UserError, match=f"k is {k}"):
        recommender.recommend([["i1"]], k=k)


def test_what_was_seen_is_left_out():
    """Including clicks that the model does not see."""
    max_length = 3
    recommender = make(SRGNN(ITEMS, 8), max_length=max_length)
    sessions = [["i1", "i2", "i3", "i2"], IDS[5:25], [], ["i8"], IDS]
    found = recommender.recommend(sessions, k=25, exclude_seen=True)
    for session, one in zip(sessions, found, strict=True):
        if session:
            ranked = ranking(recommender, session[-max_length:], ITEMS)
            assert one.items == [i for i in ranked if i not in session][:25]
            assert len(one.scores) == len(one.items)
    assert found[-1].items == []
    assert found[2].fallback


def test_candidates_restrict_the_lists(recommender):
    session = ["i1", "i2"]
    allowed = {"i2", "i9", "i30", "i31", "unknown"}
    (found,) = recommender.recommend([session], candidates=allowed)
    assert found.items == [i for i in ranking(recommender, session, 40) if i in allowed]
    (unseen,) = recommender.recommend([session], candidates=allowed, exclude_seen=True)
    assert unseen.items == [i for i in found.items if i != "i2"]


def test_a_restricted_recommender_gives_the_lists_of_its_candidates(recommender):
    sessions = [*random_sessions(6), [], ["unknown"]]
    allowed = ["i7", "i30", "unknown", *IDS[9:24]]
    restricted = recommender.restrict(iter(allowed))
    for options in ({}, {"exclude_seen": True}, {"as_probabilities": True, "k": 3}):
        found = restricted.recommend(sessions, **options)
        assert found == recommender.recommend(sessions, candidates=allowed, **options)
    assert restricted.params is recommender.params
    assert restricted._step is recommender._step
    # It can be narrowed further, not widened.
    (found,) = restricted.restrict(["i1", "i7", "i12"]).recommend([["i1"]])
    assert set(found.items) == {"i7", "i12"}
    assert len(recommender.recommend([["i1"]], k=ITEMS)[0].items) == len(IDS)
    # In the tests, the check of annotations may raise first.
    with pytest.raises((UserError, TypeCheckError)):
        recommender.restrict([1.5])


def test_a_table_that_is_split_over_devices_gives_the_same_lists(recommender):
    devices = layouts.find_devices("mesh", (1, 0))
    params = devices.make(lambda: init_params(recommender.model, 0))
    vocabulary = recommender.vocabulary
    split = Recommender(recommender.model, params, vocabulary, mesh=devices.mesh)
    sessions = [["i1", "i2", "x"], [], ["i9"]]
    for options in (
        {"k": 5, "exclude_seen": True},
        {"candidates": IDS[5:20], "as_probabilities": True},
    ):
        pairs = zip(
            split.recommend(sessions, **options),
            recommender.recommend(sessions, **options),
            strict=True,
        )
        for found, expected in pairs:
            assert found.items == expected.items
            np.testing.assert_allclose(found.scores, expected.scores, atol=1e-5)


def test_few_sessions_are_scored_at_once_and_many_in_blocks(recommender, monkeypatch):
    blocks, count = {}, ItemTable.num_blocks

    def counted(table, batch):
        blocks[batch] = count(table, batch)
        return blocks[batch]

    monkeypatch.setattr(ItemTable, "num_blocks", counted)
    made = make(SRGNN(ITEMS, 8), max_scores=5 * ITEMS, whole=8)
    sessions = random_sessions(60)
    found = [one.items for one in made.recommend(sessions[:8], k=5)]
    found += [one.items for one in made.recommend(sessions[8:], k=5)]
    assert blocks[8] == 1 < blocks[64]
    assert found == [one.items for one in recommender.recommend(sessions, k=5)]


def test_what_candidates_need_is_made_once(monkeypatch):
    recommender, made = make(SRGNN(ITEMS, 8)), []
    restrict = recommender.restrict
    monkeypatch.setattr(
        recommender, "restrict", lambda ids: made.append(ids) or restrict(ids)
    )
    for allowed in (["i1", "i2"], ("i1", "i2"), ["i3", "i4"], np.array(["i3", "i4"])):
        (found,) = recommender.recommend([["i1"]], candidates=allowed)
        assert set(found.items) == set(allowed)
    assert made == [["i1", "i2"], ["i3", "i4"]]


@pytest.mark.parametrize(
    ("candidates", "message"),
    [
        ([], "there are no candidates"),
        (["x"], "none of 1 candidates is known: 'x'; use the item ids of the"),
        ([*"uvwxyz"], "none of 6 candidates is known: 'u', 'v', 'w', 'x', 'y', ...;"),
        ("i1", "candidates: 'i1' is not a list of item ids"),
    ],
)
def test_candidates_that_leave_nothing_are_refused(recommender, candidates, message):
    with pytest.raises(UserError, match=message):
        recommender.recommend([["i1"]], candidates=candidates)
    with pytest.raises(UserError, match=message):
        recommender.restrict(candidates)
    with pytest.raises(UserError, match="candidates is left: an earlier restriction"):
        recommender.restrict(["i1"]).restrict(["i2"])


def test_unknown_candidates_are_counted_and_named(recommender, caplog):
    recommender.restrict(["i1", "i2", "i2"])
    assert not caplog.records
    recommender.restrict(["i1", "x", "i2", "y", "x"])
    recommender.restrict(["i1", "x"])
    assert [record.getMessage() for record in caplog.records] == [
        "2 of 4 candidates are unknown: 'x', 'y'",
        "1 of 2 candidates is unknown: 'x'",
    ]


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("\ufeffi1\r\n\r\n i2 \r\n", ["i1", "i2"]),
        ("i1\u00a0\n\u3000i2\n", ["i1", "i2"]),
        ('"i1"\n\n"i2"', ["i1", "i2"]),
        ("item_id\ni1\ni2", ["i1", "i2"]),
        ("item_id,stock\ni1,3\ni2,5\n", ["i1", "i2"]),
        ("i1\t3\ni2\t5", ["i1", "i2"]),
        ('"i1";"3"\n"x";"4"', ["i1", "x"]),
        # The header decides, whatever else is in the rows.
        ("count;Item-ID;like\n3;i1;i5\n4;i2;i6", ["i1", "i2"]),
        # Not a table: lines differ in their number of fields.
        ("i1 \ni2;x", ["i1", "i2;x"]),
        ('i1;x\n"i2"', ["i1;x", "i2"]),
        # Not csv.
        ('i1,"x\ni2', ['i1,"x', "i2"]),
        # What looks like columns is part of an id, or a quote is.
        ("a,b\nx,y", ["a,b", "x,y"]),
        ('"q"\n"i1"', ['"q"', "i1"]),
    ],
)
def test_candidates_of_a_file(tmp_path, text, ids):
    (tmp_path / "ids").write_bytes(text.encode())
    lines = inputs.read_ids(str(tmp_path / "ids"), "--candidates")
    vocabulary = Vocabulary(["i1", "i2", "i5", "i6", "a,b", '"q"'])
    assert inputs.candidates_of(lines, vocabulary, "ids") == ids


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("i1,i2\ni3,7", "ids, line 1: 'i1,i2' has an item id outside the first column"),
        (
            "code,n\n\ni3,7\n8,i1",
            "line 4: '8,i1' has .* name the column of ids item_id",
        ),
        (" \n\n", "ids is empty; write one item id per line"),
    ],
)
def test_candidates_of_a_file_that_may_be_several(recommender, text, message):
    with pytest.raises(UserError, match=message):
        inputs.candidates_of(text.split("\n"), recommender.vocabulary, "ids")


def test_the_command_line_reads_candidates(workdir, tmp_path, capsys):
    (tmp_path / "sessions.csv").write_text("item3,item4\n")
    (tmp_path / "stock.csv").write_text("item,stock\nitem5,1\nitem6 ,2\n")
    files = {"sessions": "sessions.csv", "candidates": "stock.csv"}
    given = {flag: tmp_path / name for flag, name in files.items()}
    run_command(mode="recommend", workdir=workdir, **given)
    (line,) = capsys.readouterr().out.splitlines()
    assert {*json.loads(line)["items"]} == {"item5", "item6"}


@pytest.mark.parametrize("score_padding", [False, True])
def test_probabilities_are_the_softmax(score_padding):
    recommender = make(SRGNN(ITEMS, 8), score_padding=score_padding)
    session = ["i1", "i2"]
    scores = scores_of(recommender, session)
    (found,) = recommender.recommend([session], k=3, as_probabilities=True)
    softmax = np.exp(scores) / np.exp(scores[0 if score_padding else 1 :]).sum()
    expected = [softmax[IDS.index(i) + 1] for i in found.items]
    np.testing.assert_allclose(found.scores, expected, rtol=1e-4)
    (some,) = recommender.recommend(
        [session], candidates=["i1", "i5", "i6"], as_probabilities=True
    )
    assert sum(some.scores) == pytest.approx(1, abs=1e-5)


def test_approximate_lists_find_the_share_that_is_asked_for(recommender):
    sessions = random_sessions(8)
    exact = recommender.recommend(sessions, k=10)
    rough = recommender.recommend(sessions, k=10, recall=0.9)
    hits = [len({*a.items} & {*b.items}) for a, b in zip(exact, rough, strict=True)]
    assert np.mean(hits) >= 9
    with pytest.raises(UserError, match=r"recall is 0\.0"):
        recommender.recommend(sessions, recall=0.0)


def test_few_shapes_are_compiled(recommender):
    before = recommender._step._cache_size()
    for count in (1, 5, 9, 20, 39):
        recommender.recommend(random_sessions(count, count, longest=12), k=7)
    # Widths 4, 8 and 16, each of 1, 8 or 64 rows.
    assert recommender._step._cache_size() <= before + 9


def test_attention_is_that_of_the_model():
    recommender = make(SRGNN(ITEMS, 8, readout="attention"))
    session = ["i4", "nope", "i9", "i4", "i2", "i2"]
    explained = recommender.explain(session)
    assert explained.items == ["i4", "i9", "i4", "i2", "i2"]
    assert explained.unknown == ["nope"]
    rows = recommender.vocabulary.rows(explained.items)

    def states(module):
        embedded = module.item_embedding()[rows][None]
        _, alias, matrix = graph.connection_matrix(rows[None])
        hidden = module.propagate(matrix, embedded)
        return hidden[0][alias[0]]

    # This readout has no part for the last click: the session is a sum over its clicks.
    @jax.jit
    def states_and_session(params):
        apply = functools.partial(recommender.model.apply, {"params": params})
        return apply(method=states), apply(rows[None], np.array([5]))[0]

    of_click, session_embedding = states_and_session(recommender.params)
    np.testing.assert_allclose(
        jnp.array(explained.attention) @ of_click, session_embedding, atol=1e-6
    )
    assert explained.edges == [
        ("i4", "i9", 0.5),
        ("i4", "i2", 0.5),
        ("i9", "i4", 1.0),
        ("i2", "i2", 1.0),
    ]
    with pytest.raises(UserError, match="nothing to explain"):
        recommender.explain(["nope"])


def test_parts_of_a_score_are_what_it_loses_without_each_click(recommender):
    session = ["i4", "nope", "i9", "i4", "i2"]
    known = [raw for raw in session if raw != "nope"]
    explained = recommender.explain(session, item="i7")
    (row,) = recommender.vocabulary.rows(["i7"])

    def score(clicks):
        return scores_of(recommender, clicks)[row]

    assert explained.item == "i7"
    assert explained.score == pytest.approx(score(known), rel=1e-5)
    without = [known[:n] + known[n + 1 :] for n in range(len(known))]
    expected = [score(known) - score(clicks) for clicks in without]
    assert explained.parts == pytest.approx(expected, abs=1e-6)
    assert len(set(explained.parts)) == 4
    # A single click has all of the score.
    alone = recommender.explain(["i4"], item="i7")
    assert alone.parts == [alone.score] == [pytest.approx(score(["i4"]), rel=1e-5)]
    with pytest.raises(UserError, match="none of 1 candidates is known: 'nope'"):
        recommender.explain(session, item="nope")


def test_recommendations_become_a_frame(recommender):
    sessions = {"a": ["i4", "i9"], "b": [], "c": ["i1"]}
    found = recommender.recommend_frame(sessions, k=3, exclude_seen=True)
    assert found.columns == ["session", "rank", "item", "score", "fallback"]
    lists_ = recommender.recommend(list(sessions.values()), k=3, exclude_seen=True)
    for name, one in zip(sessions, lists_, strict=True):
        rows = found.filter(pl.col("session") == name)
        assert rows["rank"].to_list() == [1, 2, 3]
        assert rows["item"].to_list() == one.items
        assert rows["score"].to_list() == one.scores
        assert rows["fallback"].unique().to_list() == [name == "b"]
    # A session with nothing left has no row; no sessions give an empty frame.
    few = recommender.recommend_frame(sessions, 3, exclude_seen=True, candidates=["i1"])
    assert few["session"].to_list() == ["a", "b"]
    assert recommender.recommend_frame({}).height == 0


def stream(recommender, text, name="-", **options):
    """Returns the parsed output for a text."""
    output = io.StringIO()
    source = io.BufferedReader(io.BytesIO(text.encode()))
    recommend_stream(recommender, source, output, name=name, **options)
    return [json.loads(line) for line in output.getvalue().splitlines()]


def test_json_lines_keep_their_order_and_errors_their_place(recommender, capsys):
    text = (
        '{"session": ["i1", "x"]}\n'
        "{not json}\n"
        '{"sessions": ["i1"]}\n'
        '{"session": "i1"}\n'
        "\n"
        '{"session": []}\r\n'
        '{"session": ["i2", 3]}'
    )
    found = stream(recommender, text, k=2)
    (first,) = recommender.recommend([["i1"]], k=2)
    assert found[0] == {
        "items": first.items,
        "scores": first.scores,
        "unknown": ["x"],
        "fallback": False,
    }
    assert [one.get("line") for one in found[1:5]] == [2, 3, 4, 5]
    assert found[3]["error"] == "'i1' is not a list of item ids"
    assert found[5]["fallback"]
    assert found[6]["unknown"] == ["3"]
    assert "3 sessions, 1 fallbacks, 4 unreadable lines" in capsys.readouterr().err


def test_a_separator_may_be_of_two_characters(recommender):
    (expected,) = recommender.recommend([["i1", "i2"]], k=3)
    (found,) = stream(recommender, "i1::i2\n", name="x.csv", k=3)
    assert found["items"] == expected.items
    lines = ["i1::3", "i4::5"]
    found = inputs.candidates_of(
        ["item_id::stock", *lines], recommender.vocabulary, "ids"
    )
    assert found == ["i1", "i4"]


def test_one_array_is_read_as_its_objects(recommender):
    sessions = [["i1", "i2"], ["i3"]]
    expected = recommender.recommend(sessions, k=3)
    array = [{"session": session} for session in sessions]
    for indent in (None, 1):
        found = stream(recommender, json.dumps(array, indent=indent), k=3)
        assert [one["items"] for one in found] == [one.items for one in expected]
    log = [{"session": n, "item": item} for n, s in enumerate(sessions) for item in s]
    found = stream(recommender, json.dumps(log, indent=1), k=3)
    assert [one["items"] for one in found] == [one.items for one in expected]
    broken = stream(recommender, json.dumps(array, indent=1)[:-3], k=3)
    assert all("error" in one for one in broken)


def test_a_csv_holds_a_session_a_line(recommender):
    found = stream(recommender, 'i1,i2\n"i3", i4\n\n"i5\ni6\n', name="x.csv", k=3)
    expected = recommender.recommend([["i1", "i2"], ["i3", "i4"], [], ["i6"]], k=3)
    assert [one["items"] for n, one in enumerate(found) if n != 3] == [
        one.items for one in expected
    ]
    assert found[3]["line"] == 4


def test_a_click_log_is_read_session_by_session(recommender, monkeypatch):
    # Sessions continue in the next block.
    monkeypatch.setattr(inputs, "READ_BYTES", 10)
    text = "item_id;SessionId\ni1;a\ni2;a\ni3;b\nbroken\n;b\ni4;b\n\ni5;a\n"
    found = stream(recommender, text, k=3)
    # Without times, a session's clicks are in the order of the rows.
    expected = recommender.recommend([["i1", "i2", "i5"], ["i3", "i4"]], k=3)
    lists = [one for one in found if "items" in one]
    assert [one["session"] for one in lists] == ["a", "b"]
    assert [one["items"] for one in lists] == [one.items for one in expected]
    assert [one["line"] for one in found if "error" in one] == [5, 6]


@pytest.mark.parametrize("read_bytes", [1, 1000])
def test_the_first_line_that_is_not_blank_tells_the_form(
    recommender, monkeypatch, read_bytes
):
    # If one byte is read at a time, blank lines come alone.
    monkeypatch.setattr(inputs, "READ_BYTES", read_bytes)
    (expected,) = recommender.recommend([["i1", "i2"]], k=3)
    popular, right = ["i5", "i7", "i1"], '{"session": ["i1", "i2"]}\n'
    # The text after two blank lines, its lists, and the lines with an error.
    for text, lists, wrong in (
        (right, [expected.items], [1, 2]),
        ("session,item\na,i1\na,i2\n", [expected.items], []),
        ("i1;i2\n", [popular, popular, expected.items], []),
        ('["i1", "i2"]\n' + right, [expected.items], [1, 2, 3]),
        ("{broken\n" + right, [expected.items], [1, 2, 3]),
    ):
        found = stream(recommender, "\n  \n" + text, k=3)
        assert [one["items"] for one in found if "items" in one] == lists
        errors = [(one["file"], one["line"]) for one in found if "error" in one]
        assert errors == [("-", n) for n in wrong]
    assert [one["fallback"] for one in stream(recommender, "\n \n")] == [True, True]
    assert stream(recommender, "") == []


def test_text_that_is_not_utf8_is_an_error_in_its_place(recommender):
    source = io.BytesIO(b'{"session": ["i1"]}\n{"session": ["\xff"]}\n')
    output = io.StringIO()
    recommend_stream(recommender, source, output)
    assert json.loads(output.getvalue().splitlines()[1]) == {
        "error": "text that is not UTF-8",
        "file": "-",
        "line": 2,
    }


def piped(arguments):
    """Starts Python with pipes, through which the test talks to it."""
    pipe = subprocess.PIPE
    command = [sys.executable, *arguments]
    return subprocess.Popen(
        command, cwd=ROOT, stdin=pipe, stdout=pipe, stderr=pipe, text=True
    )


@pytest.mark.slow  # a process
def test_answers_come_before_the_input_ends(workdir):
    command = ["-m", "srgnn_jax.main", "--mode=recommend", "--k=2"]
    with piped([*command, f"--workdir={workdir}", "--sessions=-"]) as process:
        for item in ("item1", "item2"):
            process.stdin.write(json.dumps({"session": [item]}) + "\n")
            process.stdin.flush()
            assert len(json.loads(process.stdout.readline())["items"]) == 2
        # The reader goes away, as head does.
        process.stdout.close()
        process.stdin.write('{"session": []}\n' * 10)
        process.stdin.close()
        errors = process.stderr.read()
        process.stdout = process.stdin = None
    assert process.returncode == 0, errors
    assert errors == ""


@pytest.mark.slow  # processes
def test_ctrl_c_ends_a_wait_for_input(workdir):
    # Children of a process that ignores SIGINT, as in the background, ignore it too.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    program = (
        "import sys; from srgnn_jax import Recommender\n"
        "Recommender.load(sys.argv[1]).recommend([['item1']])\n"
        "try: print('ready', flush=True), sys.stdin.read()\n"
        "except KeyboardInterrupt: sys.exit(3)\n"
    )
    command = ["-m", "srgnn_jax.main", "--mode=recommend", f"--workdir={workdir}"]
    for arguments, status in (
        ([*command, "--sessions=-"], 130),
        (["-c", program, str(workdir)], 3),
    ):
        with piped(arguments) as process:
            process.stdin.write('{"session": ["item1"]}\n')
            process.stdin.flush()
            assert process.stdout.readline()
            try:
                # A signal just before the wait begins is missed.
                for _ in range(12):
                    process.send_signal(signal.SIGINT)
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(timeout=5)
                        break
                assert process.returncode == status
            finally:
                process.kill()
            assert "Traceback" not in process.stderr.read()
    signal.signal(signal.SIGINT, before)


def test_a_stream_is_read_as_it_is_answered(recommender, monkeypatch):
    monkeypatch.setattr(inputs, "READ_BYTES", 500)
    line = b'{"session": ["i1", "i2"]}\n'
    left = []

    class Source(io.BytesIO):
        def read1(self, size=-1):
            left.append(len(output.getvalue()))
            return super().read1(size)

    output = io.StringIO()
    recommend_stream(recommender, Source(line * 200), output, k=1)
    assert len(output.getvalue().splitlines()) == 200
    # Each time more is read, earlier sessions have been answered.
    assert left == sorted(left)
    assert left[3] > 0


def test_the_best_checkpoint_is_loaded_with_popularity(workdir):
    recommender = Recommender.load(workdir)
    log = pl.read_csv(workdir.parent / "data" / "log.csv")
    (found,) = recommender.recommend([[]], k=20)
    assert found.fallback
    assert set(found.items) == set(log["item_id"].unique())
    assert found.scores == sorted(found.scores, reverse=True)
    assert 0 < sum(found.scores) < len(log)


def test_an_older_vocabulary_falls_back_on_its_order(workdir, tmp_path, caplog):
    (tmp_path / "checkpoints").symlink_to(workdir / "checkpoints")
    vocabulary = Vocabulary.load(workdir / "vocabulary.parquet")
    with pytest.raises(UserError, match=r"vocabulary.parquet is missing"):
        Recommender.load(tmp_path)
    Vocabulary(vocabulary.ids).save(tmp_path / "vocabulary.parquet")
    with caplog.at_level(logging.WARNING):
        old = Recommender.load(tmp_path)
    assert "no training clicks" in caplog.text
    assert old.recommend([[]], k=3)[0].items == vocabulary.ids[:3]
    Vocabulary(vocabulary.ids[::-1]).save(tmp_path / "vocabulary.parquet")
    with pytest.raises(UserError, match="belongs to another run"):
        Recommender.load(tmp_path)


def test_a_workdir_without_a_run_is_named(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        Recommender.load(tmp_path)


def prefixes(log):
    """Lists the prefixes of a log's sessions and what was clicked next."""
    pairs = []
    grouped = pl.read_csv(log, infer_schema=False).group_by(
        "session_id", maintain_order=True
    )
    for _, session in grouped:
        items = session["item_id"].to_list()
        pairs += [(items[:n], items[n]) for n in range(1, len(items))]
    return pairs


def test_the_command_line_agrees_with_evaluation_on_raw_sessions(
    workdir, tmp_path, capsys
):
    log = workdir.parent / "data" / "log.csv"
    pairs = prefixes(log)
    (tmp_path / "sessions.jsonl").write_text(
        "".join(json.dumps({"session": prefix}) + "\n" for prefix, _ in pairs)
    )
    asked = {"mode": "recommend", "workdir": workdir, "k": 5}
    run_command(**asked, sessions=tmp_path / "sessions.jsonl")
    lines = capsys.readouterr().out.splitlines()
    lists = [json.loads(line)["items"] for line in lines]
    hits = [target in items for items, (_, target) in zip(lists, pairs, strict=True)]
    # Shuffled sessions are sorted by time.
    lines = log.read_text().splitlines()
    np.random.default_rng(0).shuffle(rows := lines[1:])
    (tmp_path / "own.csv").write_text("\n".join([lines[0], *rows, "new,nope,1"]))
    run_command(mode="evaluate", workdir=workdir, sessions=tmp_path / "own.csv")
    evaluated = capsys.readouterr().out
    printed = re.search(r"recall@5 +([\d.]+) +([\d.]+)", evaluated)
    assert printed[1] == f"{100 * np.mean(hits):.2f}"
    # The next column is POP.
    vocabulary = Recommender.load(workdir).vocabulary
    clicks = dict(zip(vocabulary.ids, vocabulary.clicks, strict=True))
    hits = [sum(n >= clicks[item] for n in clicks.values()) <= 5 for _, item in pairs]
    assert printed[2] == f"{100 * np.mean(hits):.2f}"
    assert "(1 on unknown items, dropped)" in evaluated
    assert f"{len(pairs)} examples" in evaluated


def test_a_log_without_a_known_session_is_refused(workdir, tmp_path):
    (tmp_path / "log.csv").write_text("session,item,time\n1,item1,1\n1,nope,2\n")
    with pytest.raises(UserError, match="nothing to evaluate on: none of its 1 sess"):
        evaluate_sessions(str(workdir), str(tmp_path / "log.csv"))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"sessions": "nowhere.jsonl"},
            "cannot read --sessions=nowhere.jsonl: No such",
        ),
        ({"sessions": __file__, "candidates": "nowhere"}, "--candidates=nowhere"),
        ({"sessions": __file__, "k": 0}, "k is 0"),
    ],
)
def test_what_is_missing_is_named(workdir, given, message, capsys):
    with pytest.raises(UserError, match=message):
        run_command(mode="recommend", workdir=workdir, **given)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("error", [OSError("broken"), OSError()])
def test_errors_without_a_reason_of_the_system(monkeypatch, error):
    def fail(*_):
        raise error

    monkeypatch.setattr(inputs, "open", fail, raising=False)
    with pytest.raises(UserError) as raised:
        stream_module.recommend_file("nowhere", "x.jsonl")
    why = str(error) or "OSError"
    assert str(raised.value) == f"cannot read --sessions=x.jsonl: {why}"


def test_candidates_that_are_not_utf8_are_told_by_their_line(tmp_path):
    (tmp_path / "ids").write_bytes(b"i1\r\n\n\xff\n")
    with pytest.raises(UserError, match=r"ids, line 3: text that is not UTF-8"):
        stream_module.recommend_file("nowhere", "-", candidates=str(tmp_path / "ids"))


def test_importing_the_package_imports_no_jax():
    code = "import sys, srgnn_jax; assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
    assert srgnn_jax.Recommender is Recommender
    assert not hasattr(srgnn_jax, "nothing")


def test_in_batches_of_its_own_a_long_session_lengthens_no_others(recommender):
    other = recommender.in_batches((1, 2, 4), (8,), 1024)
    known = [np.ones(clicks, np.int32) for clicks in (3, 20, 2, 1, 2)]
    cut = other._lists.batches(known)
    batches = [(chosen.tolist(), seq.shape) for chosen, seq, _ in cut]
    assert batches == [([1], (1, 256)), ([0, 2, 4, 3], (4, 8))]
    assert other.shapes() == [(1, 8), (2, 8), (4, 8), (1, 256), (2, 256), (4, 256)]
    sessions = random_sessions(20, longest=12)
    for ours, theirs in zip(
        other.recommend(sessions), recommender.recommend(sessions), strict=True
    ):
        assert ours.items == theirs.items
