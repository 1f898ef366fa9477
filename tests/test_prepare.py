"""The rules of preparation, against a plain implementation of them."""

import collections
import csv
import datetime
import os
import pathlib
import time

import numpy as np
import polars as pl
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from benchmarks.prepare import make_log
from srgnn_jax.data.columns import Columns
from srgnn_jax.data.counts import count
from srgnn_jax.data.prepare import prepare
from srgnn_jax.data.read import Form, read_clicks
from srgnn_jax.data.sessions import Sessions, Vocabulary
from srgnn_jax.data.sources import yoochoose
from srgnn_jax.data.visits import DAY, SECOND, gather_visits, group_by_session
from srgnn_jax.errors import UserError

RAW = pathlib.Path(__file__).parents[1].parent / "shared" / "data" / "raw"
needs_raw = pytest.mark.skipif(not RAW.is_dir(), reason="no ../shared/data/raw")


def frame(rows, dates=None):
    clicks = pl.DataFrame(
        rows,
        schema={"session": pl.String, "item": pl.String, "time": pl.Int64},
        orient="row",
    )
    return clicks if dates is None else clicks.with_columns(pl.Series("date", dates))


def lists(sessions):
    return [session.tolist() for session in sessions]


def reference(
    rows,
    dates=None,
    *,
    min_session_length=2,
    min_item_count=5,
    test_days=1.0,
    test_start=None,
    test_end=None,
    train_fraction=1.0,
    train_days=0,
    date_resolution_seconds=0,
):
    """The published rules, click by click.

    Returns:
      Training examples in the published order, test sessions, raw ids by row, and the
      number of sessions in neither split.
    """
    sessions, date = {}, {}
    for number, (session, item, moment) in enumerate(rows):
        sessions.setdefault(session, []).append((moment, item))
        date[session] = moment if dates is None else dates[number]
    if date_resolution_seconds:
        unit = date_resolution_seconds * SECOND
        date = {session: when // unit * unit for session, when in date.items()}
    sessions = {
        session: [item for _, item in sorted(clicks, key=lambda click: click[0])]
        for session, clicks in sessions.items()
        if len(clicks) >= min_session_length
    }
    clicks_of = collections.Counter(
        item for items in sessions.values() for item in items
    )
    for session in list(sessions):
        items = [i for i in sessions[session] if clicks_of[i] >= min_item_count]
        sessions[session] = items
        if len(items) < min_session_length:
            del sessions[session]

    train, test, old = [], [], 0
    window = round(train_days * DAY) if train_days else np.inf
    latest = max((date[session] for session in sessions), default=0)
    for session in sorted(sessions, key=lambda session: date[session]):
        if test_start is None:
            edge = latest - round(test_days * DAY)
            if date[session] > edge:
                test.append(sessions[session])
                continue
        else:
            edge = test_start
        if date[session] < edge - window:
            old += 1
        elif date[session] < edge:
            train.append(sessions[session])
        elif test_start is None:
            pass
        elif test_end is None or date[session] < test_end:
            test.append(sessions[session])
    in_neither = len(sessions) - len(train) - len(test) - old

    rows_of = {}
    for items in train:
        for item in items:
            rows_of.setdefault(item, len(rows_of) + 1)
    train = [[rows_of[item] for item in items] for items in train]
    test = [[rows_of[item] for item in items if item in rows_of] for items in test]
    test = [items for items in test if len(items) >= min_session_length]
    examples = [
        (items[:n], items[n]) for items in train for n in range(len(items) - 1, 0, -1)
    ]
    kept = int(len(examples) * train_fraction)
    return examples[len(examples) - kept :], test, list(rows_of), in_neither


def published_order(train):
    """Spells training examples out, longest prefix of a session first."""
    return [
        (items[:n], items[n])
        for items in lists(train)
        for n in range(len(items) - 1, 0, -1)
    ]


def compare(rows, dates=None, **rules):
    """Compares with the reference; returns whether there was anything to compare."""
    examples, test, _, _ = reference(rows, dates, **rules)
    if not examples or not test:
        with pytest.raises(
            UserError, match=r"no clicks are left|sessions.* to train on"
        ):
            prepare(frame(rows, dates), **rules)
        return False
    compare_prepared(prepare(frame(rows, dates), **rules), rows, dates, **rules)
    return True


def compare_prepared(prepared, rows, dates=None, **rules):
    """Compares what was prepared with the reference."""
    examples, test, ids, in_neither = reference(rows, dates, **rules)
    assert published_order(prepared.splits["train"]) == examples
    assert lists(prepared.splits["test"]) == test
    assert prepared.vocabulary.ids == ids
    assert prepared.counts["edge_sessions"] == in_neither
    assert prepared.counts["train_examples"] == len(examples)
    assert prepared.counts["test_examples"] == sum(len(items) - 1 for items in test)
    assert prepared.counts["raw_clicks"] == len(rows)


# Times in quarters of a second: many are ties, or differ only within a second.
clicks_strategy = st.lists(
    st.tuples(
        st.integers(0, 9).map("s{}".format),
        st.integers(0, 5).map("i{}".format),
        st.integers(0, 40).map(lambda quarters: quarters * SECOND // 4),
    ),
    min_size=5,
    max_size=60,
)


# Not shrunk: that takes minutes if a rule is broken.
@settings(
    max_examples=100,
    deadline=None,
    database=None,
    derandomize=True,
    phases=[Phase.generate],
)
@given(clicks=clicks_strategy, data=st.data())
def test_against_the_reference(clicks, data):
    rules = {
        "min_session_length": data.draw(st.sampled_from([2, 2, 3])),
        "min_item_count": data.draw(st.sampled_from([1, 2, 5])),
        "train_fraction": data.draw(st.sampled_from([1.0, 0.5, 1 / 4, 0.3])),
        "date_resolution_seconds": data.draw(st.sampled_from([0, 1, 2])),
        "train_days": data.draw(st.sampled_from([0, 0, 2 / 86_400, 1e9])),
    }
    if data.draw(st.booleans()):
        rules["test_days"] = data.draw(st.sampled_from([1, 2, 5])) / 86_400
    else:
        rules["test_start"] = data.draw(st.integers(1, 10)) * SECOND
        span = data.draw(st.sampled_from([None, SECOND, 4 * SECOND]))
        rules["test_end"] = span and rules["test_start"] + span
    dates = None
    if data.draw(st.booleans()):
        dates = [data.draw(st.integers(0, 10)) * SECOND for _ in clicks]
    compare(clicks, dates, **rules)


@pytest.mark.parametrize("seed", range(8))
def test_against_the_reference_on_larger_logs(seed):
    rng = np.random.default_rng(seed)
    sessions, items = 300, 40
    rows = []
    for session in range(sessions):
        start = int(rng.integers(0, 20)) * DAY // 4
        for click in range(int(rng.integers(1, 9))):
            # Items appear over time, so that some are in the test split only.
            low = 15 * start // (5 * DAY)
            item = int(rng.integers(low, low + items - 15))
            rows.append((f"s{session}", f"i{item}", start + click % 4 * SECOND))
    rows = [rows[i] for i in np.argsort(rng.normal(size=len(rows)))]
    fraction = [1.0, 1 / 4, 1 / 64, 0.37][seed % 4]
    days = [0.75, 1.0, 1.25, 0.6][seed // 2]
    # All dates are then multiples of a quarter of a day, many of them on the edge.
    rules = {"test_days": days, "date_resolution_seconds": 4}
    assert compare(rows, train_fraction=fraction, **rules)
    # In most logs, a session's clicks are adjacent.
    together = sorted(rows, key=lambda row: row[0])
    assert compare(together, train_fraction=fraction, **rules)
    edge_sessions = prepare(frame(rows), **rules).counts["edge_sessions"]
    assert edge_sessions > 0 or days == 0.6


def walk(session, items, second):
    """One session, with a click per second."""
    return [(session, item, (second + n) * SECOND) for n, item in enumerate(items)]


def test_ties_keep_the_order_of_the_file_and_the_file_tells_the_date():
    rows = [
        ("a", "x", 9 * SECOND),
        ("b", "y", 1 * SECOND),
        ("a", "y", 2 * SECOND),
        ("a", "z", 2 * SECOND),
        ("b", "x", 1 * SECOND),
        ("c", "z", 5 * SECOND),
        ("c", "y", 6 * SECOND),
        ("c", "x", 6 * SECOND),
    ]
    prepared = prepare(frame(rows), min_item_count=1, test_days=3.5 / 86_400)
    # The date of a is that of its last line, not its latest click: b 1, a 2, c 6.
    assert prepared.vocabulary.ids == ["y", "x", "z"]
    assert lists(prepared.splits["train"]) == [[1, 2], [1, 3, 2]]
    assert lists(prepared.splits["test"]) == [[3, 1, 2]]


def test_sessions_on_the_edge_do_neither():
    rows = [
        *walk("before", "ab", -1),
        *walk("edge", "ab", 9),
        *walk("after", "ab", 10),
        *walk("last", "ab", 19),
    ]
    rows = [(session, item, moment + SECOND) for session, item, moment in rows]
    prepared = prepare(frame(rows), min_item_count=1, test_days=10 / 86_400)
    counts = prepared.counts
    assert (counts["train_sessions"], counts["test_sessions"]) == (1, 2)
    assert counts["edge_sessions"] == 1


def test_the_latest_date_is_that_of_a_session_that_is_left():
    rows = [
        *walk("a", "xy", 0),
        *walk("b", "xy", 100),
        *walk("alone", "x", 1000),
        *walk("rare", "pq", 2000),
    ]
    prepared = prepare(frame(rows), min_item_count=2, test_days=10 / 86_400)
    assert prepared.counts["test_sessions"] == 1


def test_items_are_counted_in_sessions_of_more_than_one_click():
    rows = [*walk("a", "xyx", 0), *walk("b", "xyx", 100)]
    alone = [row for n in range(5) for row in walk(f"alone{n}", "y", n)]
    prepared = prepare(frame(rows + alone), min_item_count=3, test_days=1 / 86_400)
    assert prepared.vocabulary.ids == ["x"]


def test_the_border_session_keeps_its_shortest_prefixes():
    rows = [*walk("a", "vwxyz", 0), *walk("b", "yx", 50), *walk("c", "vw", 100)]
    prepared = prepare(
        frame(rows), min_item_count=1, test_days=1 / 86_400, train_fraction=3 / 5
    )
    assert lists(prepared.splits["train"]) == [[1, 2, 3], [4, 3]]
    assert prepared.counts["train_examples"] == 3
    assert prepared.counts["items"] == 5


def test_counts():
    train = Sessions.from_lists([[1, 2, 1], [3, 4]])
    test = Sessions.from_lists([[2, 5, 1]], last_only=True)
    assert count({"train": train, "test": test}, Vocabulary(list("abcdefg"))) == {
        "clicks": 8,
        "train_sessions": 2,
        "test_sessions": 1,
        "train_examples": 3,
        "test_examples": 1,
        "items": 7,
        "items_in_prefixes": 4,
        "average_length": (2 + 3 + 2 + 3) / 4,
    }


def test_what_was_read_and_dropped_is_told_in_words():
    day = 86_400_000_000
    rows = [(f"s{n}", item, n * day // 10) for n in range(40) for item in "ab"]
    rows += [("alone", "a", 0), *(("rare", item, 1) for item in "axy")]
    rows += [("new", item, 39 * day // 10) for item in "zbzbzz"]
    notes = prepare(frame(rows), as_published=False, min_item_count=3).notes
    assert notes == [
        "90 clicks from 1970-01-01 00:00:00 to 1970-01-04 21:36:00, UTC",
        "test begins with the session of 1970-01-04 00:00:00: the last 1 day "
        "(config.test_days)",
        "1 of 43 sessions dropped: fewer than 2 clicks",
        "2 items dropped: fewer than 3 clicks; with them 2 clicks, and 1 sessions then "
        "too short",
        "4 test clicks dropped: on items that training lacks, or in sessions then too "
        "short",
    ]


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"min_item_count": 9}, "no clicks are left of 6"),
        ({"min_session_length": 4}, "no clicks are left of 6"),
        ({"test_days": 1.0}, "leaves 0 sessions to train on and 2 to test on, of 2"),
        ({"test_days": 0.0}, "leaves 1 sessions to train on and 0 to test on, of 2"),
        ({"test_start": 200 * SECOND}, "2 sessions to train on and 0 to test on"),
        ({"train_fraction": 0.1}, "0 sessions are left to train on and 1 to test on"),
    ],
)
def test_empty_splits_are_refused(rules, message):
    rows = [*walk("a", "xyx", 0), *walk("b", "xyx", 100)]
    rules = {"min_item_count": 2, "test_days": 1 / 86_400} | rules
    with pytest.raises(UserError, match=message):
        prepare(frame(rows), **rules)


@pytest.mark.parametrize("bounds", [{}, {"test_start": 5}, {"test_start": 6}])
def test_a_test_end_without_a_start_before_it_is_refused(bounds):
    with pytest.raises(UserError, match=r"config\.test_end needs a config\.test_start"):
        prepare(frame(walk("a", "xyx", 0)), test_end=5, **bounds)


def test_test_clicks_on_unknown_items_only_are_refused():
    rows = [*walk("a", "xyx", 0), *walk("b", "pqp", 100)]
    with pytest.raises(UserError, match="1 sessions are left to train on and 0"):
        prepare(frame(rows), min_item_count=1, test_days=1 / 86_400)


@pytest.mark.parametrize("fraction", [1 / 64, 1 / 4])
def test_a_raw_file_against_the_reference(tmp_path, fraction):
    """A file made by the benchmark, whose rows are read one by one in Python."""
    path = tmp_path / "yoochoose-clicks.dat"
    make_log(path, 20_000, num_items=300)
    with path.open(newline="") as file:
        rows = [
            (
                session,
                item,
                (
                    datetime.datetime.fromisoformat(moment)
                    - datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
                )
                // datetime.timedelta(microseconds=1),
            )
            for session, moment, item, _ in csv.reader(file)
        ]
    assert len(rows) == 20_000
    name = "1_4" if fraction == 1 / 4 else "1_64"
    prepared = yoochoose.read([path], yoochoose.PRESETS[name])
    rules = {"train_fraction": fraction, "date_resolution_seconds": 1}
    compare_prepared(prepared, rows, **rules)
    assert prepared.counts["train_examples"] > 100


@pytest.mark.parametrize("ordered", [False, True])
def test_clicks_are_put_together_by_session(ordered):
    """Numbered by first appearance, and sorted by session and time."""
    rng = np.random.default_rng(0)
    rows = [(f"s{rng.integers(99)}", f"i{rng.integers(50)}", n) for n in range(500)]
    if ordered:
        rows.sort(key=lambda row: row[0])
    times = rng.integers(0, 20, 500)
    times = np.arange(500) if ordered else times
    sessions, session, raw_items = group_by_session(frame(rows), times)
    items = list(dict.fromkeys(item for _, item, _ in rows))
    assert raw_items.to_list() == items
    clicks_of = {}
    for (name, item, _), when in zip(rows, times.tolist(), strict=True):
        clicks_of.setdefault(name, []).append((when, items.index(item)))
    names = list(clicks_of)
    assert session.tolist() == [names.index(name) for name, _, _ in rows]
    assert lists(sessions) == [
        [item for _, item in sorted(clicks, key=lambda click: click[0])]
        for clicks in clicks_of.values()
    ]


@needs_raw
def test_the_diginetica_sample_in_any_time_zone(monkeypatch):
    try:
        for zone in ("UTC", "America/Los_Angeles", "Asia/Tokyo"):
            monkeypatch.setitem(os.environ, "TZ", zone)
            time.tzset()
            clicks, read = read_clicks(
                RAW / "sample_train-item-views.csv",
                Form(Columns(time="timeframe", date="eventdate")),
            )
            counts = prepare(clicks, test_days=7.0).counts
            assert read["skipped_rows"] == 0
            assert (counts["train_sessions"], counts["test_sessions"]) == (469, 47)
            assert (counts["train_examples"], counts["test_examples"]) == (1_205, 99)
            assert counts["items"] == 309
    finally:
        monkeypatch.undo()
        time.tzset()


@needs_raw
def test_real_clicks_against_the_reference():
    rows = []
    for part in ("train_full", "test"):
        path = RAW / f"yoochoose-clicks-100k_{part}.txt"
        rows += read_clicks(path)[0].cast({"item": pl.String}).rows()
    assert compare(rows, train_fraction=1 / 64, date_resolution_seconds=1)


@pytest.mark.parametrize("published", [True, False])
def test_a_window_of_whole_days_has_so_many(published):
    # As in a log of dates: one session of two items per day.
    rows = [(f"s{d}", item, d * DAY) for d in range(9) for item in "ab"]
    rules = {"min_item_count": 1, "as_published": published}
    for test, first in ({"test_days": 2.0}, 7), ({"test_start": 6 * DAY}, 6):
        prepared = prepare(frame(rows), **test, **rules, train_days=3)
        last = first - (published and "test_days" in test)
        assert len(prepared.splits["train"]) == 3
        assert prepared.counts["older_sessions"] == last - 3
        assert "older_sessions" not in prepare(frame(rows), **test, **rules).counts


def visitors_by_place():
    """Two days of one visitor, whose clicks a number orders within each."""
    day = np.array([0, 0, 0, 1, 1]) * 86_400_000_000
    return pl.DataFrame(
        {
            "session": [7] * 5,
            "item": [1, 2, 3, 4, 5],
            "time": [1.0, 2.0, 3.0, 2.0, 1.0],
            "date": day,
        }
    )


def test_a_day_ends_a_visit_where_another_number_orders_clicks():
    visits = gather_visits(visitors_by_place(), session_by_day=True)
    raw = visits.raw_items.to_list()
    assert [[raw[i] for i in s] for s in visits.sessions] == [[1, 2, 3], [5, 4]]
    assert visits.dates.tolist() == [0, 86_400_000_000]


def test_a_pause_needs_times():
    with pytest.raises(UserError, match=r"session_gap_minutes needs the time"):
        gather_visits(visitors_by_place(), session_gap_minutes=30)
